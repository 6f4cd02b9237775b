//! What an append asks for and what it gets.

use tidemill_protocol::{Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

/// The part of a batch's header that concerns the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendRequest {
    /// Offsets that the batch takes: last offset delta + 1. A filter may have left records out between.
    pub offset_count: u32,
    /// Bytes of the batch in the log.
    pub bytes: u32,
    /// Newest timestamp among the records.
    pub max_timestamp: Timestamp,
    /// Who made it; `None` without idempotence.
    pub producer: Option<ProducerBatch>,
}

/// Identity of a batch of an idempotent producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerBatch {
    /// The producer; 0 or more.
    pub id: ProducerId,
    /// Its epoch; 0 or more.
    pub epoch: ProducerEpoch,
    /// Sequence of the first record; 0 or more.
    pub base_sequence: Sequence,
}

impl ProducerBatch {
    /// Sequence of the last of `count` records.
    #[must_use]
    pub(crate) fn last_sequence(&self, count: u32) -> Sequence {
        self.base_sequence.plus(count.saturating_sub(1))
    }
}

/// Whether a batch is to be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendCheck {
    /// It is next.
    New,
    /// It was answered before.
    Duplicate {
        /// Where it stands; `None`: it was refused, and stays so.
        base_offset: Option<Offset>,
        /// The log's time of that answer.
        answered_at: Timestamp,
    },
}

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The batch is the first of a new segment.
    pub starts_segment: bool,
}

/// Why a batch can't be appended; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// A batch before it is missing, or it is older than what is remembered.
    #[error(
        "sequence {got} came where {expected} is next; a batch before it was lost, or it is too old to be known"
    )]
    OutOfOrderSequence {
        /// What would be next.
        expected: Sequence,
        /// What came.
        got: Sequence,
    },
    /// Its state expired, or it never began at sequence 0.
    #[error("producer {0} is not known here and does not begin at sequence 0; ask for a new producer id")]
    UnknownProducer(ProducerId),
    /// A newer instance of the producer took over.
    #[error("producer {producer} was fenced: a newer instance has epoch {current}")]
    ProducerFenced {
        /// Which one.
        producer: ProducerId,
        /// The epoch in force.
        current: ProducerEpoch,
    },
    /// Nothing more can be remembered of producers, and who is not remembered could write a batch twice.
    #[error(
        "the partition remembers {bytes} bytes of producers, as much as it may, and none of them was unused for long enough \
         to be forgotten; try again later, or use fewer producers"
    )]
    TooManyProducers {
        /// What it remembers.
        bytes: usize,
    },
    /// No offset is left.
    #[error("the partition has no offsets left")]
    OffsetsExhausted,
    /// A batch takes at least one offset.
    #[error("the batch takes no offset")]
    Empty,
}
