use std::io;

use thiserror::Error;

use crate::event::HISTORY_VERSION;
use crate::history::LINE_BYTES_MAX;
use crate::ids::{OFFSETS_MAX, PRODUCERS_MAX, RUN_RECORDS_MAX, SEQUENCES_MAX};

/// Why a history is none.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// It can't be read.
    #[error("the history can't be read: {0}")]
    Io(#[from] io::Error),
    /// It has no first line.
    #[error("the history is empty: its first line must be a header")]
    Empty,
    /// The first line is no header.
    #[error("line 1 is no header of a history: {0}")]
    Header(serde_json::Error),
    /// It is of another version.
    #[error("the history is of version {0}; this checker reads version {HISTORY_VERSION}")]
    Version(u32),
    /// A line is no event.
    #[error("line {line} is no event: {error}")]
    Line {
        /// Which.
        line: u64,
        /// Why.
        error: serde_json::Error,
    },
    /// A line that does not end.
    #[error("line {line} is longer than {LINE_BYTES_MAX} bytes")]
    LongLine {
        /// Which.
        line: u64,
    },
    /// An event can't be.
    #[error("line {line}: {error}")]
    Event {
        /// Where.
        line: u64,
        /// Why.
        error: EventError,
    },
}

/// Why an event can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EventError {
    /// Its producer has no event of its own before.
    #[error("producer {producer} is not declared; a `producer` event must stand before what it sends")]
    UnknownProducer {
        /// Which.
        producer: u32,
    },
    /// A replica's records without the replica.
    #[error("broker {broker} has no `replica` event of that partition before its `stored` events")]
    UnknownReplica {
        /// Which.
        broker: u32,
    },
    /// A number that does not fit.
    #[error(
        "a number is too large: producers are below {PRODUCERS_MAX}, sequences below {SEQUENCES_MAX}, offsets below {OFFSETS_MAX}, \
         and a run has at most {RUN_RECORDS_MAX} records"
    )]
    TooLarge,
    /// Too many partitions.
    #[error("the history speaks of more than {partitions_max} partitions")]
    TooManyPartitions {
        /// How many may be.
        partitions_max: usize,
    },
}
