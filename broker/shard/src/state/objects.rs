//! The objects of a shard's state and their stored form.
//!
//! ```text
//! value: format u8 (1) | postcard of the object
//! ```

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidemill_controller::TopicConfig;
use tidemill_log::wal::EntryId;
use tidemill_partition::BATCHES_REMEMBERED;
use tidemill_protocol::{
    DeploymentId, LogIndex, Offset, PartitionId, ProducerEpoch, ProducerId, ShardId, Term, Timestamp,
    TopicId, TopicPartition,
};

use crate::keys::{KeyPart, TaskKey, space};
use crate::unit::{AdoptedStatus, FilterPass, OutboxStream, TaskStatus};

const FORMAT: u8 = 1;

/// Stored state that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored {what} can't be read: {reason}")]
pub(crate) struct ObjectError {
    pub(crate) what: &'static str,
    pub(crate) reason: String,
}

/// Something that is stored as one row.
pub(crate) trait Object: Clone + Serialize + DeserializeOwned {
    type Key: KeyPart + Ord + Copy;
    const SPACE: u8;
    const WHAT: &'static str;

    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).expect("plain data always encodes into memory")
    }

    fn decode(bytes: &[u8]) -> Result<Self, ObjectError> {
        let fail = |reason: String| ObjectError { what: Self::WHAT, reason };
        match bytes.split_first() {
            Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
                Ok((object, [])) => Ok(object),
                Ok((_, left)) => Err(fail(format!("{} bytes are left over", left.len()))),
                Err(error) => Err(fail(error.to_string())),
            },
            Some((format, _)) => {
                Err(fail(format!("it has format {format}, this release reads format {FORMAT}")))
            }
            None => Err(fail("it is empty".to_owned())),
        }
    }
}

/// What is not any object's: one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardHeader {
    pub(crate) shard: ShardId,
    /// Index, term and leader's node of the last applied entry.
    applied: Option<(LogIndex, Term, u64)>,
    /// Raft's membership, opaque here.
    membership: Option<Vec<u8>>,
    /// The log's time: the greatest that any entry brought.
    pub(crate) log_time: Option<Timestamp>,
    /// The log's time of the last sweep for expired producers.
    pub(crate) swept_at: Timestamp,
}

impl ShardHeader {
    pub(crate) fn new(shard: ShardId) -> Self {
        Self { shard, applied: None, membership: None, log_time: None, swept_at: Timestamp::default() }
    }

    pub(crate) fn applied(&self) -> Option<EntryId> {
        self.applied.map(|(index, term, leader_node)| EntryId { index, term, leader_node })
    }

    pub(crate) fn set_applied(&mut self, id: EntryId) {
        self.applied = Some((id.index, id.term, id.leader_node));
    }

    pub(crate) fn membership(&self) -> Option<Bytes> {
        self.membership.as_deref().map(Bytes::copy_from_slice)
    }

    pub(crate) fn set_membership(&mut self, membership: &[u8]) {
        self.membership = Some(membership.to_vec());
    }

    /// The log's time; the beginning of 1970 before the first entry.
    pub(crate) fn now(&self) -> Timestamp {
        self.log_time.unwrap_or_default()
    }
}

impl Object for ShardHeader {
    type Key = ();
    const SPACE: u8 = space::SHARD;
    const WHAT: &'static str = "shard header";
}

/// An adopted topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicState {
    pub(crate) version: u64,
    pub(crate) name: String,
    pub(crate) config: TopicConfig,
    pub(crate) partitions: Vec<PartitionId>,
    /// The log's time of its deletion: kept for a while so that an old proposal does not bring it back.
    pub(crate) deleted_at: Option<Timestamp>,
}

impl Object for TopicState {
    type Key = TopicId;
    const SPACE: u8 = space::TOPIC;
    const WHAT: &'static str = "topic";
}

/// What one routed batch was answered: partition, base offset, number of offsets.
pub(crate) type Placements = Vec<(PartitionId, Offset, u32)>;

/// A routed batch that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoutedAnswer {
    pub(crate) placements: Placements,
    pub(crate) filtered: Option<FilterPass>,
}

/// An idempotent producer whose batches the broker partitions, in one topic of this shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoutedProducer {
    pub(crate) epoch: ProducerEpoch,
    /// The topic sequence that comes next.
    pub(crate) next: u64,
    pub(crate) last_used: Timestamp,
    /// Answers of the sequences before `next`, oldest first.
    pub(crate) answers: VecDeque<RoutedAnswer>,
}

impl RoutedProducer {
    pub(crate) fn new(epoch: ProducerEpoch) -> Self {
        Self { epoch, next: 0, last_used: Timestamp::default(), answers: VecDeque::new() }
    }

    pub(crate) fn answer(&self, sequence: u64) -> Option<&RoutedAnswer> {
        let back = self.next.checked_sub(sequence)?.checked_sub(1)?;
        let at = self.answers.len().checked_sub(1)?.checked_sub(usize::try_from(back).ok()?)?;
        self.answers.get(at)
    }

    pub(crate) fn remember(&mut self, answer: RoutedAnswer, now: Timestamp) {
        if self.answers.len() >= BATCHES_REMEMBERED {
            self.answers.pop_front();
        }
        self.answers.push_back(answer);
        self.next += 1;
        self.last_used = now;
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        96 + self.answers.iter().map(|answer| 56 + answer.placements.len() * 16).sum::<usize>()
    }
}

impl Object for RoutedProducer {
    type Key = (TopicId, ProducerId);
    const SPACE: u8 = space::ROUTED;
    const WHAT: &'static str = "routed producer";
}

/// An adopted deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeploymentState {
    pub(crate) version: u64,
    pub(crate) epoch: u32,
    pub(crate) status: AdoptedStatus,
    pub(crate) state_bytes_max: u64,
    pub(crate) outbox_bytes_max: u64,
    /// The log's time of the last adoption.
    pub(crate) adopted_at: Timestamp,
}

impl Object for DeploymentState {
    type Key = DeploymentId;
    const SPACE: u8 = space::DEPLOYMENT;
    const WHAT: &'static str = "deployment";
}

/// One task, its rows apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskState {
    /// Which life of the task: the deployment's version when it began here.
    pub(crate) incarnation: u64,
    pub(crate) status: TaskStatus,
    pub(crate) positions: BTreeMap<TopicPartition, Offset>,
    /// Bytes of keyed state and timers.
    pub(crate) state_bytes: u64,
    /// Number of timers set.
    pub(crate) timers: u64,
    /// Number of keys that expire.
    pub(crate) expiring: u64,
}

impl Object for TaskState {
    type Key = TaskKey;
    const SPACE: u8 = space::TASK;
    const WHAT: &'static str = "task";
}

/// What is on the way from a task here to one target; the items are rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutboxState {
    /// Number of the oldest item that is not delivered; `next` where none is.
    pub(crate) first: u64,
    /// Number of the item that is emitted next, from 1.
    pub(crate) next: u64,
    /// Bytes of the batches in between.
    pub(crate) bytes: u64,
}

impl Object for OutboxState {
    type Key = OutboxStream;
    const SPACE: u8 = space::OUTBOX;
    const WHAT: &'static str = "outbox";
}

/// How far a stream from another shard's task is delivered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InboxState {
    /// Number of the last item that is here.
    pub(crate) last: u64,
    pub(crate) last_used: Timestamp,
}

impl Object for InboxState {
    type Key = OutboxStream;
    const SPACE: u8 = space::INBOX;
    const WHAT: &'static str = "inbox";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_by_its_sequence() {
        let mut producer = RoutedProducer::new(ProducerEpoch::new(0));
        assert_eq!(producer.answer(0), None);
        for sequence in 0..100_i64 {
            let placements = vec![(PartitionId::new(0), Offset::new(sequence * 10), 10)];
            let filter = FilterPass { filter: DeploymentId::new(7), now: Timestamp::new(sequence) };
            let filtered = (sequence % 2 == 0).then_some(filter);
            producer.remember(RoutedAnswer { placements, filtered }, Timestamp::new(1));
        }
        assert_eq!(producer.answer(99).unwrap().placements[0].1, Offset::new(990));
        assert_eq!(producer.answer(100), None);
        let oldest = 100 - BATCHES_REMEMBERED as u64;
        assert_eq!(producer.answer(oldest).unwrap().placements[0].1.get() as u64, oldest * 10);
        assert_eq!(producer.answer(oldest - 1), None);
        let stored = producer.encode();
        assert_eq!(RoutedProducer::decode(&stored).unwrap(), producer);
    }

    #[test]
    fn damage_and_other_formats_are_told() {
        let bytes = ShardHeader::new(ShardId::new(3)).encode();
        assert!(ShardHeader::decode(&bytes[..1]).is_err());
        assert!(ShardHeader::decode(&[]).is_err());
        let mut other = bytes.clone();
        other[0] = 2;
        assert!(ShardHeader::decode(&other).unwrap_err().to_string().contains("format 2"));
        let mut long = bytes;
        long.push(0);
        assert!(ShardHeader::decode(&long).is_err());
    }
}
