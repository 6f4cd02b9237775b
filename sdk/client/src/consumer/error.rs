use thiserror::Error;
use tidemill_protocol::{Offset, TopicPartition};

use crate::{RequestError, ServerError};

/// Why a consumer could not start, or a partition could not be added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConsumerError {
    /// A topic, the committed positions, or the connection.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The topic has no such partition.
    #[error("topic {topic} has {count} partitions, and no partition {partition}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// As asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// There is nothing to read.
    #[error("a consumer needs at least one topic")]
    NoTopic,
    /// The windows of the partitions would be too small to be of use.
    #[error("{partitions} partitions do not fit a window of {window} bytes; raise window_bytes")]
    Window {
        /// How many.
        partitions: usize,
        /// `window_bytes`.
        window: usize,
    },
}

/// Why nothing more comes of a partition, or of the whole consumer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConsumeError {
    /// The broker refused the subscription: the filter, or the rights.
    #[error("the subscription was refused: {0}")]
    Refused(ServerError),
    /// The client was closed before everything was read.
    #[error("the client was closed")]
    Closed,
    /// The broker ended this partition, or its topic was deleted; the others go on.
    #[error("partition {partition}: {error}")]
    Partition {
        /// Which.
        partition: TopicPartition,
        /// Why.
        error: ServerError,
    },
    /// The position is before the log's start or after its end; seek to go on. The other partitions go on.
    #[error("{error}")]
    OutOfRange {
        /// Which.
        partition: TopicPartition,
        /// Where it was to go on.
        position: String,
        /// What the broker said.
        error: ServerError,
    },
    /// What the broker sends for this partition is damaged, repeatedly. The other partitions go on.
    #[error("partition {partition} at offset {offset}: {reason}")]
    Corrupt {
        /// Which.
        partition: TopicPartition,
        /// Where.
        offset: Offset,
        /// What is wrong with it.
        reason: String,
    },
}
