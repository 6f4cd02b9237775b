use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tidemill_protocol::{Offset, PartitionId, Timestamp};

use super::DeliveryError;

/// How many records of a routed batch went to a partition, and from which offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The partition.
    pub partition: PartitionId,
    /// Offset of the first of them.
    pub base_offset: Offset,
    /// How many; at consecutive offsets, in the order in which they were sent.
    pub record_count: u32,
}

/// Where a batch was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placed {
    At { partition: PartitionId, base_offset: Offset, log_append_time: Option<Timestamp> },
    Routed { placements: Arc<[Placement]> },
    LeftOut { partition: PartitionId },
    Sent,
}

/// Where a record was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// At this offset.
    Stored {
        /// The partition.
        partition: PartitionId,
        /// The record's offset in it; no less than that where the topic's filter left out others of the batch.
        offset: Offset,
        /// The broker's timestamp, where the topic has it so.
        log_append_time: Option<Timestamp>,
    },
    /// The broker placed the records of the batch so; which record went where it does not say.
    Routed {
        /// By partition.
        placements: Arc<[Placement]>,
    },
    /// Nowhere: the topic's filter left out all records of the batch, which is no error.
    LeftOut {
        /// Where the batch was sent to.
        partition: PartitionId,
    },
    /// Handed to the network, with `Acks::None`.
    Sent,
}

impl Receipt {
    /// The offset, where it is known.
    #[must_use]
    pub const fn offset(&self) -> Option<Offset> {
        match self {
            Self::Stored { offset, .. } => Some(*offset),
            Self::Routed { .. } | Self::LeftOut { .. } | Self::Sent => None,
        }
    }

    /// The partition, where it is known.
    #[must_use]
    pub const fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::Stored { partition, .. } | Self::LeftOut { partition } => Some(*partition),
            Self::Routed { .. } | Self::Sent => None,
        }
    }

    /// Whether the topic's filter left out all records of the batch.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        match self {
            Self::LeftOut { .. } => true,
            Self::Routed { placements } => placements.is_empty(),
            Self::Stored { .. } | Self::Sent => false,
        }
    }
}

/// The fate of one batch, shared by the deliveries of all its records: one allocation per batch, none per record.
#[derive(Debug, Default)]
pub(super) struct Completion {
    outcome: OnceLock<Result<Placed, DeliveryError>>,
    /// One per delivery that is being waited for.
    wakers: Mutex<Vec<Waker>>,
}

impl Completion {
    pub(super) fn complete(&self, outcome: Result<Placed, DeliveryError>) {
        if self.outcome.set(outcome).is_err() {
            return;
        }
        // Whoever registers after this sees the outcome: it looks again under the same lock.
        for waker in std::mem::take(&mut *self.wakers.lock()) {
            waker.wake();
        }
    }
}

/// What becomes of a record: a future that may be awaited, kept for later, or dropped (the record is sent all the
/// same).
#[derive(Debug)]
#[must_use = "await it to know that the record is stored, or use send_and_forget"]
pub struct Delivery {
    completion: Arc<Completion>,
    ordinal: u32,
    /// Place of this delivery's waker among those of the batch.
    registered: Option<usize>,
}

impl Delivery {
    pub(super) const fn new(completion: Arc<Completion>, ordinal: u32) -> Self {
        Self { completion, ordinal, registered: None }
    }

    /// The record's place in its batch, from 0: what a broker's [`Rejection`](crate::Rejection) names records by.
    #[must_use]
    pub const fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The outcome, where it is known already.
    #[must_use]
    pub fn now(&self) -> Option<Result<Receipt, DeliveryError>> {
        let receipt = |placed: &Placed| match placed {
            Placed::At { partition, base_offset, log_append_time } => Receipt::Stored {
                partition: *partition,
                offset: base_offset.plus(u64::from(self.ordinal)),
                log_append_time: *log_append_time,
            },
            Placed::Routed { placements } => Receipt::Routed { placements: Arc::clone(placements) },
            Placed::LeftOut { partition } => Receipt::LeftOut { partition: *partition },
            Placed::Sent => Receipt::Sent,
        };
        self.completion.outcome.get().map(|outcome| outcome.as_ref().map(receipt).map_err(Clone::clone))
    }
}

impl Future for Delivery {
    type Output = Result<Receipt, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.now() {
            return Poll::Ready(outcome);
        }
        let completion = Arc::clone(&self.completion);
        let mut wakers = completion.wakers.lock();
        if let Some(outcome) = self.now() {
            return Poll::Ready(outcome);
        }
        match self.registered.and_then(|place| wakers.get_mut(place)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                self.registered = Some(wakers.len());
                wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(placed: Placed) -> Receipt {
        let completion = Arc::new(Completion::default());
        completion.complete(Ok(placed));
        Delivery::new(completion, 2).now().expect("it is complete").expect("it went well")
    }

    #[test]
    fn a_record_that_a_filter_left_out_has_no_offset() {
        let partition = PartitionId::new(1);
        let stored = receipt(Placed::At { partition, base_offset: Offset::new(7), log_append_time: None });
        assert_eq!((stored.partition(), stored.offset()), (Some(partition), Some(Offset::new(9))));
        assert!(!stored.is_left_out());
        let left_out = receipt(Placed::LeftOut { partition });
        assert_eq!((left_out.partition(), left_out.offset()), (Some(partition), None));
        assert!(left_out.is_left_out());
        let placement = Placement { partition, base_offset: Offset::ZERO, record_count: 1 };
        assert!(!receipt(Placed::Routed { placements: Arc::new([placement]) }).is_left_out());
        assert!(receipt(Placed::Routed { placements: Arc::new([]) }).is_left_out());
        assert!(!receipt(Placed::Sent).is_left_out());
    }
}
