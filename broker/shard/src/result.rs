//! What a unit answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_controller::{ControllerError, ControllerReply};
use tidemill_coordinator::GroupReply;
use tidemill_partition::AppendError;
use tidemill_protocol::{
    LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicId, TopicPartition,
};

use crate::batch::BatchFault;
use crate::wire;

/// The result of one unit: the same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitResult {
    /// The batch is in the partition.
    Appended {
        /// Offset of its first record.
        base_offset: Offset,
        /// The log's time, where the topic stamps it.
        log_append_time: Option<Timestamp>,
        /// The partition's first offset.
        log_start: Offset,
        /// It was there already.
        duplicate: bool,
    },
    /// A plugin refused the batch, now or when it came first.
    BatchRefused {
        /// It had been refused already.
        duplicate: bool,
    },
    /// The parts for this shard are in their partitions.
    RoutedAppended {
        /// Partition, offset of the first record, number of offsets.
        placements: Vec<(PartitionId, Offset, u32)>,
        /// They were there already.
        duplicate: bool,
    },
    /// The group's answer.
    Group(GroupReply),
    /// The controller's answer.
    Control(Result<ControllerReply, ControllerError>),
    /// Adopted.
    Adopted,
    /// An equal or newer version is adopted already; nothing changed.
    Stale {
        /// The version in force.
        version: u64,
    },
    /// The task's step is done.
    Progressed,
    /// The task's step is not done; nothing changed.
    ProgressRefused(ProgressRefusal),
    /// The item is there, now or since before.
    Delivered {
        /// The last number that is there.
        last: u64,
    },
    /// The item is not next; nothing changed.
    OutOfOrder {
        /// The last number that is there.
        last: u64,
    },
    /// The log starts there.
    LogStart {
        /// The first offset.
        offset: Offset,
    },
    /// Done, and nothing to say.
    Done,
    /// Not done; nothing changed.
    Refused(UnitError),
}

/// Why a unit was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum UnitError {
    /// The controller's decision has not reached this shard.
    #[error("topic {0} is not known to its shard yet; try again")]
    NotAdopted(TopicId),
    /// The topic is gone.
    #[error("topic {0} was deleted")]
    TopicDeleted(TopicId),
    /// The topic is known, this partition of it is not here.
    #[error("partition {0} is not in this shard")]
    UnknownPartition(TopicPartition),
    /// Another leader epoch is in force.
    #[error("leader epoch {named} is over, {current} is in force; refresh the metadata")]
    WrongLeaderEpoch {
        /// The one asked for.
        named: LeaderEpoch,
        /// The one in force.
        current: LeaderEpoch,
    },
    /// A batch before it is missing, or it is too old to be known.
    #[error("sequence {got} came where {expected} is next")]
    OutOfOrderSequence {
        /// What would be next.
        expected: Sequence,
        /// What came.
        got: Sequence,
    },
    /// The same, for batches that the broker partitions.
    #[error("topic sequence {got} came where {expected} is next")]
    OutOfOrderTopicSequence {
        /// What would be next.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// Its state expired, or it never began at 0.
    #[error("producer {0} is not known here and does not begin at sequence 0; ask for a new producer id")]
    UnknownProducer(ProducerId),
    /// Nothing more can be remembered of producers until some have been idle for a while.
    #[error(
        "{place} remembers {bytes} bytes of producers, as much as it may, and none of them was unused for long enough to be \
         forgotten; try again later, or use fewer producers"
    )]
    TooManyProducers {
        /// Which partition, or the shard.
        place: String,
        /// What it remembers.
        bytes: usize,
    },
    /// A newer instance of the producer took over.
    #[error("producer {producer} was fenced: a newer instance has epoch {current}")]
    ProducerFenced {
        /// Which one.
        producer: ProducerId,
        /// The epoch in force.
        current: ProducerEpoch,
    },
    /// Not a batch, or more than the topic allows.
    #[error("the batch can't be appended: {0}")]
    InvalidBatch(#[from] BatchFault),
    /// No offset is left.
    #[error("partition {0} has no offsets left")]
    OffsetsExhausted(TopicPartition),
    /// Beyond the end.
    #[error("offset {wanted} is beyond the end of the partition, {high_watermark}")]
    OffsetOutOfRange {
        /// What was asked for.
        wanted: Offset,
        /// The first offset.
        log_start: Offset,
        /// The end.
        high_watermark: Offset,
    },
    /// A metadata command outside the controller's shard.
    #[error("this shard is not the controller's")]
    NotController,
    /// No such deployment or task here.
    #[error("there is no such task in this shard")]
    UnknownTask,
    /// Computed under another epoch of the deployment.
    #[error("the deployment is at epoch {current}")]
    WrongDeploymentEpoch {
        /// The epoch in force.
        current: u32,
    },
    /// Nothing was emitted on that stream, or not so far.
    #[error("the outbox has no item {up_to} on that stream")]
    UnknownOutboxItem {
        /// What was said to be delivered.
        up_to: u64,
    },
    /// Lists or names beyond their bounds.
    #[error("{0}")]
    Invalid(String),
    /// Of a batch that the broker partitions an attempt came that had passed the topic's produce filter as it is at another time, or another
    /// filter: what the two let through may differ.
    #[error(
        "an earlier attempt of this batch passed the topic's produce filter as it was then, and this one as it is now; what was stored stays"
    )]
    OtherFilterPass,
}

impl UnitError {
    pub(crate) fn from_append(error: AppendError, partition: TopicPartition) -> Self {
        match error {
            AppendError::OutOfOrderSequence { expected, got } => Self::OutOfOrderSequence { expected, got },
            AppendError::UnknownProducer(producer) => Self::UnknownProducer(producer),
            AppendError::ProducerFenced { producer, current } => Self::ProducerFenced { producer, current },
            AppendError::TooManyProducers { bytes } => {
                Self::TooManyProducers { place: format!("partition {partition}"), bytes }
            }
            AppendError::OffsetsExhausted => Self::OffsetsExhausted(partition),
            AppendError::Empty => Self::InvalidBatch(BatchFault::Offsets),
        }
    }
}

/// Why a task's step was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProgressRefusal {
    /// No such deployment or task here.
    #[error("there is no such task in this shard")]
    UnknownTask,
    /// Computed under another epoch of the deployment.
    #[error("the deployment is at epoch {current}")]
    WrongEpoch {
        /// The epoch in force.
        current: u32,
    },
    /// The deployment or the task is paused or failed.
    #[error("the task does not run")]
    NotRunning,
    /// The task stands elsewhere: somebody else's step came first.
    #[error("the task stands at offset {expected} of {source_partition}")]
    WrongPosition {
        /// In which source.
        source_partition: TopicPartition,
        /// Where it stands.
        expected: Offset,
    },
    /// A timer that is not set for that time, or not due.
    #[error("a timer that was handled is not set for that time, or is not due yet")]
    WrongTimer {
        /// Its key.
        #[serde(with = "wire::bytes")]
        key: Bytes,
    },
    /// Too much is on the way to this target.
    #[error("too much is on the way to {target}; wait for deliveries")]
    OutboxFull {
        /// The target.
        target: TopicPartition,
    },
    /// The task's state would be larger than its deployment allows.
    #[error("the task's state would have {bytes} bytes, {limit} are allowed")]
    StateFull {
        /// What it would have.
        bytes: u64,
        /// The deployment's setting.
        limit: u64,
    },
    /// The target's topic is gone: the failure policy decides.
    #[error("the target topic of {target} was deleted")]
    TargetDeleted {
        /// The target.
        target: TopicPartition,
    },
    /// It contradicts itself or goes beyond bounds: a fault of who proposed.
    #[error("the step can't be so: {0}")]
    Invalid(String),
}
