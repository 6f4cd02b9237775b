//! A shard's replicated state in memory, and how it is stored and read back.

mod objects;
mod stored;
mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_controller::Controller;
use tidemill_coordinator::Groups;
use tidemill_partition::Partition;
use tidemill_protocol::{DeploymentId, ProducerId, ShardId, Timestamp, TopicId, TopicPartition};

use crate::keys::{TaskKey, key, space};
use crate::store::{BaseRows, Rows};
use crate::unit::OutboxStream;

pub(crate) use objects::{
    DeploymentState, InboxState, Object, OutboxState, Placements, RoutedAnswer, RoutedProducer, ShardHeader,
    TaskState, TopicState,
};
pub(crate) use stored::{
    Frozen, Put, ReadStateError, SegmentEnds, decode_end, encode_end, read_all, read_ends, read_header,
};
pub(crate) use tracked::Tracked;

/// Everything that entries change. Two replicas that applied the same entries have the same.
pub(crate) struct State {
    pub(crate) header: ShardHeader,
    pub(crate) topics: Tracked<TopicId, TopicState>,
    pub(crate) partitions: Partitions,
    pub(crate) routed: Tracked<(TopicId, ProducerId), RoutedProducer>,
    /// The keys of `routed`, the longest unused first.
    pub(crate) routed_by_use: BTreeSet<(Timestamp, (TopicId, ProducerId))>,
    /// Memory that `routed` takes.
    pub(crate) routed_bytes: usize,
    pub(crate) groups: Groups,
    /// In the controller's shard only; shared with readers, who see it as it was when they asked.
    pub(crate) controller: Option<Arc<Controller>>,
    pub(crate) deployments: Tracked<DeploymentId, DeploymentState>,
    pub(crate) tasks: Tracked<TaskKey, TaskState>,
    pub(crate) outboxes: Tracked<OutboxStream, OutboxState>,
    pub(crate) inboxes: Tracked<OutboxStream, InboxState>,
    pub(crate) rows: Rows,
    /// By task: no row of its expiry index is before this one. Not state, but a short cut: what was deleted since the last
    /// checkpoint lies in the way of who looks for the first row.
    pub(crate) expired_before: BTreeMap<TaskKey, Vec<u8>>,
}

impl State {
    /// The state before any entry.
    pub(crate) fn new(shard: ShardId, base: Option<BaseRows>) -> Self {
        let controller = (shard == ShardId::CONTROLLER).then(Arc::default);
        Self {
            header: ShardHeader::new(shard),
            topics: Tracked::default(),
            partitions: Partitions::default(),
            routed: Tracked::default(),
            routed_by_use: BTreeSet::new(),
            routed_bytes: 0,
            groups: Groups::default(),
            controller,
            deployments: Tracked::default(),
            tasks: Tracked::default(),
            outboxes: Tracked::default(),
            inboxes: Tracked::default(),
            rows: Rows::new(base),
            expired_before: BTreeMap::new(),
        }
    }

    /// Where to look for the task's next key to expire.
    pub(crate) fn expiry_start(&self, task: &TaskKey) -> Vec<u8> {
        self.expired_before.get(task).cloned().unwrap_or_else(|| key(space::EXPIRY, task))
    }
}

struct Slot {
    partition: Partition,
    changed: bool,
}

/// The partitions of a shard, and which of them changed.
#[derive(Default)]
pub(crate) struct Partitions {
    slots: BTreeMap<TopicPartition, Slot>,
    changed: Vec<TopicPartition>,
    /// Removed since the last checkpoint, with the producers whose rows may be stored.
    removed: Vec<(TopicPartition, Vec<ProducerId>)>,
}

impl Partitions {
    pub(crate) fn get(&self, id: &TopicPartition) -> Option<&Partition> {
        self.slots.get(id).map(|slot| &slot.partition)
    }

    pub(crate) fn get_mut(&mut self, id: &TopicPartition) -> Option<&mut Partition> {
        let slot = self.slots.get_mut(id)?;
        if !slot.changed {
            slot.changed = true;
            self.changed.push(*id);
        }
        Some(&mut slot.partition)
    }

    pub(crate) fn create(&mut self, id: TopicPartition) {
        self.slots.insert(id, Slot { partition: Partition::new(), changed: true });
        self.changed.push(id);
    }

    pub(crate) fn remove(&mut self, id: TopicPartition) {
        if let Some(mut slot) = self.slots.remove(&id) {
            let forgotten = slot.partition.take_changes().producers.into_iter().map(|(producer, _)| producer);
            let known = slot.partition.producers().map(|(producer, _)| producer);
            self.removed.push((id, forgotten.chain(known).collect()));
        }
    }

    pub(crate) fn restore(&mut self, id: TopicPartition, partition: Partition) {
        self.slots.insert(id, Slot { partition, changed: false });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.slots.iter().map(|(id, slot)| (id, &slot.partition))
    }

    pub(crate) fn ids(&self) -> Vec<TopicPartition> {
        self.slots.keys().copied().collect()
    }
}
