//! A majority is lost for good: the cluster goes on as what one broker has.

use tidemill_protocol::{BrokerId, NodeId, ShardId, Timestamp};

use crate::apply_brokers::set_alive;
use crate::brokers::{BrokerRecord, BrokerState};
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::state::Controller;

/// So many incarnations of each broker are left out: the lost part of the controller's log may have given them to somebody.
pub(crate) const INCARNATIONS_LEFT_OUT: u32 = 100;

impl Controller {
    /// Leaves nobody in the cluster but the survivor, and of each shard that it has its replica alone. Shards that it has
    /// not keep their lost replicas: there is nothing to go on with.
    pub(crate) fn accept_loss(
        &mut self,
        survivor: BrokerId,
        incarnation: u32,
        shards: &[ShardId],
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let known = self.known_broker(survivor)?.clone();
        for shard in shards {
            self.known_shard(*shard)?;
        }
        let node = NodeId::new(survivor, incarnation);
        let used = self.known_shard(ShardId::CONTROLLER)?.used.get(&survivor).copied();
        if used.is_some_and(|used| used >= incarnation) {
            // It happened, and others may have joined since.
            return Ok(ControllerReply::Done);
        }
        if !shards.contains(&ShardId::CONTROLLER) {
            let reason = format!("broker {survivor} has no replica of it, and nothing goes on without one");
            return Err(MembershipError::InvalidReplicas { shard: ShardId::CONTROLLER, reason }.into());
        }
        let lost: Vec<BrokerRecord> =
            self.brokers().filter(|other| other.broker != survivor).cloned().collect();
        for mut record in lost {
            set_alive(&mut record, false, now);
            let next_incarnation = record.next_incarnation.saturating_add(INCARNATIONS_LEFT_OUT);
            let epoch = record.epoch + 1;
            self.put_broker(BrokerRecord { state: BrokerState::Removed, next_incarnation, epoch, ..record });
        }
        self.put_broker(BrokerRecord {
            state: BrokerState::Active,
            next_incarnation: known.next_incarnation.max(incarnation.saturating_add(1)),
            epoch: known.epoch + 1,
            ..known
        });
        for shard in shards {
            self.change_shard(*shard, |record| {
                record.replicas = vec![node];
                record.observers.clear();
                // What leaders of before said is over, whatever their terms were.
                record.members = None;
                record.used.insert(survivor, incarnation);
            });
        }
        self.settle_observers();
        Ok(ControllerReply::Done)
    }
}
