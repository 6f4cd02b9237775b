//! Brokers: registered, alive or not, drained, removed.

use tidemill_protocol::{BrokerId, NodeId, ShardId, Timestamp};

use crate::brokers::{BrokerRecord, BrokerStart, BrokerState};
use crate::changes::ObjectKey;
use crate::cluster::BrokerRegistration;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::shards::{ShardRecord, is_majority};
use crate::state::{Bounds, Controller};

impl Controller {
    /// What releases before the second say at a start; does what it did then.
    pub(crate) fn register_broker(&mut self, registration: &BrokerRegistration) -> ControllerReply {
        let known = self.brokers.get(&registration.broker);
        // A late registration of an older start must not undo a newer one.
        let is_news = known.is_none_or(|known| known.is_member() && known.starts < registration.incarnation);
        if is_news {
            let first = BrokerRecord::from(registration.clone());
            let record = match known {
                None => first,
                Some(known) => BrokerRecord {
                    epoch: first.epoch.max(known.epoch + 1),
                    starts: first.starts,
                    addresses: first.addresses,
                    software: first.software,
                    alive: true,
                    ..known.clone()
                },
            };
            self.put_broker(record);
        }
        ControllerReply::Done
    }

    /// A broker has started.
    pub(crate) fn register(
        &mut self,
        start: &BrokerStart,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let broker = start.broker;
        check_words(broker, &[&start.addresses, &start.peer_addresses], &[&start.rack, &start.software])?;
        // The one broker of a cluster that was not formed of many brings itself in.
        let expected = BrokerRecord::expected(broker, now);
        let known = match self.brokers.get(&broker) {
            Some(known) => known,
            None if self.brokers.is_empty() => &expected,
            None => return Err(MembershipError::NotInvited(broker).into()),
        };
        check_life(start, known)?;
        let level = self.feature_level();
        if start.features < level {
            let features = start.features;
            return Err(MembershipError::FeaturesTooOld { broker, features, level }.into());
        }
        // A late one of an older start must not undo a newer one; the answer shows who is registered.
        if start.starts >= known.starts {
            let mut record = BrokerRecord {
                directory: Some(start.directory),
                starts: start.starts,
                addresses: start.addresses.clone(),
                peer_addresses: start.peer_addresses.clone(),
                rack: start.rack.clone(),
                software: start.software.clone(),
                features: start.features,
                ..known.clone()
            };
            set_alive(&mut record, true, now);
            self.put_broker_if_changed(record);
        }
        self.plant_shards(broker);
        self.settle_observers();
        Ok(ControllerReply::Broker(Box::new(self.brokers[&broker].clone())))
    }

    pub(crate) fn set_alive(
        &mut self,
        broker: BrokerId,
        starts: u64,
        alive: bool,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let known = self.known_broker(broker)?;
        // What was heard of another start says nothing of this one.
        if known.is_member() && known.starts == starts {
            let mut record = known.clone();
            set_alive(&mut record, alive, now);
            self.put_broker_if_changed(record);
        }
        Ok(ControllerReply::Done)
    }

    pub(crate) fn drain(&mut self, broker: BrokerId) -> Result<ControllerReply, ControllerError> {
        let record = self.member(broker)?.clone();
        if record.state == BrokerState::Active {
            let others = self.eligible_brokers().filter(|other| other.broker != broker).count();
            if let Some(shard) = self.held_by(broker).find(|shard| shard.replicas.len() > others) {
                let (shard, replicas) = (shard.shard, shard.replicas.len());
                return Err(MembershipError::NowhereToGo { broker, shard, replicas, others }.into());
            }
            if others == 0 {
                return Err(MembershipError::LastBroker(broker).into());
            }
            self.put_broker(BrokerRecord { state: BrokerState::Draining, ..record });
        }
        Ok(ControllerReply::Broker(Box::new(self.brokers[&broker].clone())))
    }

    pub(crate) fn undrain(&mut self, broker: BrokerId) -> Result<ControllerReply, ControllerError> {
        let record = self.member(broker)?.clone();
        if record.state == BrokerState::Draining {
            self.put_broker(BrokerRecord { state: BrokerState::Active, ..record });
        }
        Ok(ControllerReply::Broker(Box::new(self.brokers[&broker].clone())))
    }

    pub(crate) fn remove(
        &mut self,
        broker: BrokerId,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let mut record = self.known_broker(broker)?.clone();
        if record.is_member() {
            if self.brokers().filter(|other| other.is_member()).count() == 1 {
                return Err(MembershipError::LastBroker(broker).into());
            }
            self.check_majorities_without(broker).map_err(|(shard, alive, voters)| {
                MembershipError::QuorumLost { broker, shard, alive, voters }
            })?;
            let replicas = self.held_by(broker).count();
            if record.alive && replicas > 0 {
                return Err(MembershipError::StillServes { broker, replicas }.into());
            }
            set_alive(&mut record, false, now);
            record.state = BrokerState::Removed;
            self.put_broker(record);
            self.settle_observers();
        }
        Ok(ControllerReply::Broker(Box::new(self.brokers[&broker].clone())))
    }

    /// The shards of which a broker is to have a replica.
    pub(crate) fn held_by(&self, broker: BrokerId) -> impl Iterator<Item = &ShardRecord> {
        self.shards().filter(move |shard| shard.brokers().any(|holder| holder == broker))
    }

    /// Whether those who stay can carry the change that leaves a broker's replicas out: a majority counts over all voters. Else the first shard
    /// where they can't, who would be there, and of how many.
    pub(crate) fn check_majorities_without(&self, broker: BrokerId) -> Result<(), (ShardId, usize, usize)> {
        for shard in self.shards() {
            let (alive, voters) = self.alive_voters_without(shard.shard, broker);
            let concerned = shard.voters().iter().any(|node| node.broker() == broker);
            if concerned && !is_majority(alive, voters) {
                return Err((shard.shard, alive, voters));
            }
        }
        Ok(())
    }

    fn alive_voters_without(&self, shard: ShardId, broker: BrokerId) -> (usize, usize) {
        let record = &self.shards[&shard];
        let voters = record.voters();
        let counts = |node: &NodeId| node.broker() != broker && self.is_alive_in(record, *node);
        (voters.iter().filter(|node| counts(node)).count(), voters.len())
    }

    pub(crate) fn known_broker(&self, broker: BrokerId) -> Result<&BrokerRecord, MembershipError> {
        self.brokers.get(&broker).ok_or(MembershipError::UnknownBroker(broker))
    }

    fn member(&self, broker: BrokerId) -> Result<&BrokerRecord, MembershipError> {
        let record = self.known_broker(broker)?;
        if record.is_member() { Ok(record) } else { Err(MembershipError::RemovedAlready(broker)) }
    }

    pub(crate) fn put_broker(&mut self, record: BrokerRecord) {
        self.note_change(ObjectKey::Broker(record.broker));
        self.brokers.insert(record.broker, record);
        self.next_version();
    }

    fn put_broker_if_changed(&mut self, mut record: BrokerRecord) {
        let known = self.brokers.get(&record.broker);
        if known != Some(&record) {
            record.epoch = known.map_or(0, |known| known.epoch) + 1;
            self.put_broker(record);
        }
    }
}

/// Whether who starts is the life of the broker that the cluster knows.
fn check_life(start: &BrokerStart, known: &BrokerRecord) -> Result<(), MembershipError> {
    let (broker, incarnation, current) = (start.broker, start.incarnation, known.incarnation);
    if !known.is_member() {
        return Err(MembershipError::Removed(broker));
    }
    if incarnation < current {
        return Err(MembershipError::OldIncarnation { broker, incarnation, current });
    }
    if incarnation > current {
        return Err(MembershipError::UnknownIncarnation { broker, incarnation, current });
    }
    if known.directory.is_some_and(|directory| directory != start.directory) {
        return Err(MembershipError::OtherDirectory(broker));
    }
    Ok(())
}

/// Bounds on what a broker says of itself.
pub(crate) fn check_words(
    broker: BrokerId,
    lists: &[&Vec<String>],
    words: &[&String],
) -> Result<(), MembershipError> {
    let refuse = |reason: String| Err(MembershipError::InvalidBroker { broker, reason });
    if lists.iter().any(|list| list.len() > Bounds::BROKER_ADDRESSES_MAX) {
        return refuse(format!("it has more than {} addresses", Bounds::BROKER_ADDRESSES_MAX));
    }
    let mut all = lists.iter().flat_map(|list| list.iter()).chain(words.iter().copied());
    if all.any(|word| word.len() > Bounds::BROKER_WORD_BYTES_MAX) {
        let longest = Bounds::BROKER_WORD_BYTES_MAX;
        return refuse(format!("an address, its rack or its version is longer than {longest} bytes"));
    }
    Ok(())
}

pub(crate) fn set_alive(record: &mut BrokerRecord, alive: bool, now: Timestamp) {
    if record.alive != alive {
        record.alive = alive;
        record.alive_changed_at = now;
    }
}
