use std::time::Duration;

use thiserror::Error;
use tidemill_protocol::ErrorCode;

use crate::{RequestError, ServerError};

/// Why a producer could not start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProducerError {
    /// The topic, the producer's id, or the connection.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Settings that contradict each other or the broker's limits.
    #[error("the producer's settings do not stand: {0}")]
    Settings(String),
}

/// Why a record was not taken. Nothing of it will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// The memory for unacknowledged records is used up; only from the `try_` forms.
    #[error("the producer's memory is full: {limit} bytes wait to be acknowledged")]
    Full {
        /// `buffer_bytes_max`.
        limit: usize,
    },
    /// Larger than a batch, or than the producer's memory, may be.
    #[error("the record or batch takes {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What it would take.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The topic has no such partition.
    #[error("the topic has {count} partitions, and no partition {partition}")]
    NoPartition {
        /// As asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// A partition was named where the broker is to choose it.
    #[error("the producer is routed: the broker chooses the partition")]
    Routed,
    /// The record itself cannot be encoded.
    #[error("the record cannot be encoded: {0}")]
    Invalid(String),
    /// Nothing can be sent any more.
    #[error("the producer has stopped: {0}")]
    Stopped(DeliveryError),
}

/// What became of a record that was taken and not stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeliveryError {
    /// The broker refused the batch; nothing of it is stored.
    #[error(transparent)]
    Refused(#[from] ServerError),
    /// The delivery timeout passed. Where the batch had been sent it may or may not be stored.
    #[error("not acknowledged within {after:?}{}{}", if *.sent { ", though sent: it may be stored" } else { ", and never sent" }, last.as_ref().map(|e| format!("; last problem: {e}")).unwrap_or_default())]
    TimedOut {
        /// `delivery_timeout`.
        after: Duration,
        /// Whether a broker may have seen it.
        sent: bool,
        /// The last thing that went wrong, if any.
        last: Option<String>,
    },
    /// A newer producer with the same identity has taken over; this one can send nothing any more.
    #[error("a newer instance of this producer has taken over")]
    Fenced,
    /// The connection broke, and records sent with `Acks::None` are not sent again.
    #[error("the connection broke: the records may or may not be stored")]
    Lost,
    /// The batch could not be compressed.
    #[error("the batch could not be built: {0}")]
    Build(String),
    /// The producer was closed or dropped before.
    #[error("the producer was closed")]
    Closed,
}

impl DeliveryError {
    /// The broker's error code, where the broker refused.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the broker refused with `code`.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code() == Some(code.code())
    }
}
