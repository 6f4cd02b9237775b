//! A majority is lost for good: the cluster goes on as what one broker has.
//!
//! The end of the controller's log may be lost with it, and with that what it gave out: numbers that the survivor's state does not
//! know and that are in use all the same. Given out again, they name two things: a producer's record passes for the duplicate of
//! another's, and a shard takes a new deployment for one that it has. So numbers are left out here, of each kind far more than one
//! controller gives out while a replica of it hears nothing:
//!
//! | number | given again | here |
//! | --- | --- | --- |
//! | producer ids | acknowledged records are lost as duplicates | left out |
//! | deployment ids | a shard takes one task's state and positions for another's | left out |
//! | plugin numbers | two versions are equally new | left out |
//! | the metadata's version | clients and shards take new for old | left out |
//! | versions of topics and deployments (of the metadata) | a shard goes by what it adopted of the lost | all change once more |
//! | epochs of deployments | a task of the lost passes for today's | left out, of each that is not deleted |
//! | epochs of partitioners' bindings | a retry is placed by another partitioner than its first attempt | the same, of topics |
//! | epochs of brokers | none: nobody goes by them yet | left out |
//! | incarnations of the lost | a node id comes back | left out |
//! | incarnations of the survivor | none: it never lived under one that it has not heard of, and its next is beyond those | |
//! | versions of plugins that were named by counting | none: a name of what is there; caches and tasks go by the digest | |
//! | starts of brokers | none: each counts its own, on its disk | |
//! | ids of topics, directories and tokens | none: random | |
//! | where the next topic goes (`next_shard`) | none: no id | |
//!
//! In the data shards, lives of tasks are versions of their deployments, leader epochs are Raft's terms (those leave out for
//! themselves, `raft/src/recover.rs`), and sequences are the producers' own. Two kinds stay dense, and so can come twice: offsets and
//! log indexes, which are told apart by the leader epoch, and the numbers in a task's outbox. Those count on from what the shard of
//! the task has left; a target shard that got more of the lost takes as many of the next items for ones that it has, and one that
//! got less waits for items that are forgotten. No number of the controller's helps there: the task would have to begin a new life.

use tidemill_protocol::{BrokerId, DeploymentId, NodeId, ShardId, Timestamp, TopicId};

use crate::apply_brokers::set_alive;
use crate::brokers::{BrokerRecord, BrokerState};
use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::state::Controller;

/// So many incarnations of each broker are left out: the lost part of the controller's log may have given them to somebody.
pub(crate) const INCARNATIONS_LEFT_OUT: u32 = 100;
/// Brokers take them in blocks of a thousand: that is a million blocks.
const PRODUCER_IDS_LEFT_OUT: i64 = 1_000_000_000;
/// Of deployments.
const DEPLOYMENT_IDS_LEFT_OUT: u64 = 1_000_000;
/// Of uploads.
const PLUGIN_NUMBERS_LEFT_OUT: u64 = 1_000_000;
/// Of the metadata: nearly every command gives one.
const VERSIONS_LEFT_OUT: u64 = 1_000_000;
/// Of each deployment, of each topic's binding of a partitioner, of each broker: people change them, one by one.
const EPOCHS_LEFT_OUT: u32 = 1_000;

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
        // First, so that all that changes here has a version which was never given.
        self.leave_out_numbers();
        self.leave_out_epochs();
        let lost: Vec<BrokerRecord> =
            self.brokers().filter(|other| other.broker != survivor).cloned().collect();
        for mut record in lost {
            set_alive(&mut record, false, now);
            let next_incarnation = record.next_incarnation.saturating_add(INCARNATIONS_LEFT_OUT);
            let epoch = record.epoch.saturating_add(EPOCHS_LEFT_OUT.into());
            self.put_broker(BrokerRecord { state: BrokerState::Removed, next_incarnation, epoch, ..record });
        }
        self.put_broker(BrokerRecord {
            state: BrokerState::Active,
            next_incarnation: known.next_incarnation.max(incarnation.saturating_add(1)),
            epoch: known.epoch.saturating_add(EPOCHS_LEFT_OUT.into()),
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

    /// Goes on behind all numbers that the lost part of the controller's log may have given out.
    fn leave_out_numbers(&mut self) {
        let header = &mut self.header;
        header.version = header.version.saturating_add(VERSIONS_LEFT_OUT);
        header.next_producer_id = header.next_producer_id.saturating_add(PRODUCER_IDS_LEFT_OUT);
        header.next_deployment_id = header.next_deployment_id.saturating_add(DEPLOYMENT_IDS_LEFT_OUT);
        header.next_plugin_number = header.next_plugin_number.saturating_add(PLUGIN_NUMBERS_LEFT_OUT);
        self.note_change(ObjectKey::Header);
    }

    /// Lets every deployment and every binding of a partitioner begin another epoch, and shards adopt all of them anew: they may
    /// have adopted what is lost. A retry of before is placed as its first attempt was.
    fn leave_out_epochs(&mut self) {
        let live = self.topics().filter(|topic| !topic.deleted);
        let topics: Vec<TopicId> = live.map(|topic| topic.id).collect();
        for id in topics {
            self.change_topic(id, |topic| {
                topic.bind_partitioner(topic.partitioner.deployment, EPOCHS_LEFT_OUT);
            });
        }
        let live = self.deployments().filter(|deployment| !deployment.deleted);
        let deployments: Vec<DeploymentId> = live.map(|deployment| deployment.id).collect();
        for id in deployments {
            self.change_deployment(id, |record| record.epoch = record.epoch.saturating_add(EPOCHS_LEFT_OUT));
        }
    }
}
