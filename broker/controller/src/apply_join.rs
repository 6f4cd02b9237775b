//! Join tokens: made, used once, forgotten.

use tidemill_protocol::{BrokerId, Timestamp};

use crate::apply_brokers::check_words;
use crate::brokers::{BrokerRecord, BrokerState, JoinRequest, JoinTokenRecord, TokenUse};
use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::state::{Bounds, Controller};

/// How long a token is remembered after its end, so that who comes late hears why.
const TOKEN_REMEMBERED_MS: i64 = 7 * 24 * 60 * 60 * 1000;

impl Controller {
    pub(crate) fn create_join_token(
        &mut self,
        hash: [u8; 32],
        broker: Option<BrokerId>,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        if let Some(known) = self.join_tokens.get(&hash) {
            let is_same = known.broker == broker && known.expires_at == expires_at;
            return if is_same {
                Ok(ControllerReply::Done)
            } else {
                Err(MembershipError::TokenExists.into())
            };
        }
        let forgotten: Vec<[u8; 32]> = self
            .join_tokens()
            .filter(|token| token.expires_at.plus_ms(TOKEN_REMEMBERED_MS) < now)
            .map(|token| token.hash)
            .collect();
        if self.join_tokens.len() - forgotten.len() >= Bounds::JOIN_TOKENS_MAX {
            return Err(ControllerError::TooMany { what: "join tokens", limit: Bounds::JOIN_TOKENS_MAX });
        }
        for hash in forgotten {
            self.join_tokens.remove(&hash);
            self.note_change(ObjectKey::JoinToken(hash));
        }
        self.put_token(JoinTokenRecord { hash, broker, expires_at, used: None });
        self.next_version();
        Ok(ControllerReply::Done)
    }

    /// Lets a broker in with an empty directory: as a new one, or as the next life of one that is known.
    pub(crate) fn join(
        &mut self,
        request: &JoinRequest,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let broker = request.broker;
        let token = self.join_tokens.get(&request.hash).ok_or(MembershipError::UnknownToken)?.clone();
        if let Some(used) = token.used {
            // It may not have heard the first answer. Later the token is worth no more than another's, and nothing once its broker is out.
            let is_same = used.broker == broker && used.directory == request.directory;
            let known = self.brokers.get(&broker);
            let is_in = known.is_some_and(|known| known.is_member() && known.incarnation == used.incarnation);
            return if is_same && is_in && token.expires_at > now {
                Ok(ControllerReply::Joined { incarnation: used.incarnation })
            } else {
                Err(MembershipError::TokenUsed(used.broker).into())
            };
        }
        if token.expires_at <= now {
            return Err(MembershipError::TokenExpired.into());
        }
        if let Some(expected) = token.broker.filter(|expected| *expected != broker) {
            return Err(MembershipError::TokenOfAnother { expected, broker }.into());
        }
        check_words(broker, &[&request.addresses, &request.peer_addresses], &[&request.rack])?;
        if let Some(known) = self.brokers.get(&broker).filter(|known| known.is_member()) {
            // A mistyped number must not give away the place of a broker that is down for an hour.
            if token.broker.is_none() {
                return Err(MembershipError::IdInUse(broker).into());
            }
            // It would be pushed out while it answers under the ids that the new one takes over.
            if known.alive {
                return Err(MembershipError::StillAlive(broker).into());
            }
            self.check_majorities_without(broker).map_err(|(shard, alive, voters)| {
                MembershipError::JoinLosesQuorum { broker, shard, alive, voters }
            })?;
        }
        let record = match self.brokers.get(&broker) {
            // The old life is over, whatever it was.
            Some(known) => BrokerRecord {
                incarnation: known.next_incarnation,
                next_incarnation: known.next_incarnation.saturating_add(1),
                epoch: known.epoch + 1,
                state: if known.is_member() { known.state } else { BrokerState::Active },
                ..BrokerRecord::expected(broker, now)
            },
            None if self.brokers.len() >= Bounds::BROKERS_MAX => {
                return Err(ControllerError::TooMany { what: "brokers", limit: Bounds::BROKERS_MAX });
            }
            None => BrokerRecord::expected(broker, now),
        };
        let incarnation = record.incarnation;
        self.put_broker(BrokerRecord {
            directory: Some(request.directory),
            addresses: request.addresses.clone(),
            peer_addresses: request.peer_addresses.clone(),
            rack: request.rack.clone(),
            ..record
        });
        let used = TokenUse { broker, directory: request.directory, incarnation };
        self.put_token(JoinTokenRecord { used: Some(used), ..token });
        self.renew_replicas(broker);
        self.settle_observers();
        Ok(ControllerReply::Joined { incarnation })
    }

    fn put_token(&mut self, token: JoinTokenRecord) {
        self.note_change(ObjectKey::JoinToken(token.hash));
        self.join_tokens.insert(token.hash, token);
    }
}
