use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tidemill_protocol::ErrorCode;

use super::completion::Placement;

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
    /// Larger than a batch of the topic, or than the producer's memory, may be.
    #[error(
        "the record or batch takes {bytes} bytes; the limit is {limit}, the least of the topic's batch-bytes-max, the broker's limits and the producer's memory"
    )]
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
    /// The broker refuses the batch for a reason that says nothing of an earlier attempt, which got no answer and may have been
    /// stored. It is not sent again: that could store it twice. Read back whether it is there. So do routed batches fail that were
    /// sent before, and are refused now because one before them was given up: what was sent of both may still be under way.
    #[error(
        "it may or may not be stored, and is not sent again: an earlier attempt got no answer, and now: {0}"
    )]
    Unknown(ServerError),
    /// Some shards of the topic have stored their part of a routed batch, another has refused its own. It is not sent again: that
    /// would store the parts that are there twice.
    #[error(
        "{} of the batch's records are stored{}, the others are not, and it is not sent again: {error}",
        stored(placements),
        places(placements)
    )]
    PartlyStored {
        /// What is stored.
        placements: Arc<[Placement]>,
        /// Why the rest is not.
        error: ServerError,
    },
    /// The broker ended a stream without acknowledgements with this error: it refused one of the records sent with `Acks::None`
    /// since the last flush. That one and those of its partition behind it may be missing.
    #[error(
        "the broker refused records that were sent without acknowledgements; those of their partition behind them may be missing too: {0}"
    )]
    Unacknowledged(ServerError),
    /// A newer producer with the same identity has taken over; this one can send nothing any more.
    #[error("a newer instance of this producer has taken over")]
    Fenced,
    /// The connection broke, and records sent with `Acks::None` are not sent again.
    #[error("the connection broke: the records may or may not be stored")]
    Lost,
    /// The batch could not be compressed.
    #[error("the batch could not be built: {0}")]
    Build(String),
    /// The producer was closed or dropped before, or its client closed.
    #[error("the producer was closed")]
    Closed,
}

impl DeliveryError {
    /// The broker's error code, where the broker refused.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::Refused(error) | Self::PartlyStored { error, .. } | Self::Unacknowledged(error) => {
                Some(error.code)
            }
            _ => None,
        }
    }

    /// Whether the broker refused with `code`.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code() == Some(code.code())
    }
}

fn stored(placements: &[Placement]) -> u64 {
    placements.iter().map(|placement| u64::from(placement.record_count)).sum()
}

fn places(placements: &[Placement]) -> String {
    let place = |placement: &Placement| {
        format!(
            " {} in partition {} from offset {}",
            placement.record_count, placement.partition, placement.base_offset
        )
    };
    let places: Vec<_> = placements.iter().map(place).collect();
    if places.is_empty() { String::new() } else { format!(" ({})", places.join(",").trim_start()) }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{Offset, PartitionId};

    use super::*;

    #[test]
    fn a_batch_stored_in_part_says_where() {
        let placement = |partition, offset, record_count| Placement {
            partition: PartitionId::new(partition),
            base_offset: Offset::new(offset),
            record_count,
        };
        let code = ErrorCode::PartlyStored;
        let error = ServerError {
            code: code.code(),
            message: "gone".to_owned(),
            retriable: false,
            rejections: Vec::new(),
        };
        let error = DeliveryError::PartlyStored {
            placements: [placement(0, 7, 2), placement(3, 9, 1)].into(),
            error,
        };
        let said = error.to_string();
        assert!(
            said.starts_with(
                "3 of the batch's records are stored (2 in partition 0 from offset 7, 1 in partition 3"
            ),
            "{said}"
        );
        assert!(error.is(code));
    }
}
