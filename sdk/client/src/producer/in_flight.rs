use std::collections::VecDeque;
use std::sync::Arc;

use tidemill_protocol::Sequence;
use tidemill_protocol::record_batch::{ProducerFields, RecordBatch};
use tokio::time::Instant;

use super::completion::Completion;
use super::lane::ReadyBatch;
use super::stamp::StampedBatch;

/// Who the lane is to the broker. `None` in [`Numbering`] without idempotence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) fields: ProducerFields,
}

/// A batch that has its sequence and waits for its acknowledgement.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) batch: RecordBatch,
    pub(super) stamped: StampedBatch,
    /// Number of the batch within its identity: the topic sequence of routed produce.
    pub(super) number: u64,
    /// On the current stream; `None` before it was sent there.
    pub(super) request_id: Option<u64>,
    /// How often it was sent. Above 1, or above 0 where no stream is open, an attempt that got no answer may be stored.
    pub(super) attempts: u32,
    /// Certainly not stored, and not under way any more: waits to be numbered anew.
    pub(super) refused: bool,
    /// Partitioner epoch and partition count of the first attempt, in routed produce.
    pub(super) route: Option<(u32, u32)>,
    pub(super) completion: Arc<Completion>,
    pub(super) opened: Instant,
    pub(super) buffered_bytes: usize,
}

/// Gives batches their sequences, in order.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    pub(super) identity: Option<Identity>,
    next_sequence: Sequence,
    next_number: u64,
}

impl Numbering {
    pub(super) fn begin(&mut self, identity: Option<Identity>) {
        *self = Self { identity, ..Self::default() };
    }

    /// Numbers a batch that comes from the queue.
    pub(super) fn admit(&mut self, ready: ReadyBatch) -> InFlight {
        let (stamped, number) = self.stamp(&ready.batch);
        InFlight {
            batch: ready.batch,
            stamped,
            number,
            request_id: None,
            attempts: 0,
            refused: false,
            route: None,
            completion: ready.completion,
            opened: ready.opened,
            buffered_bytes: ready.buffered_bytes,
        }
    }

    /// Numbers what is left in flight anew, in order, under the present identity.
    pub(super) fn renumber(&mut self, in_flight: &mut VecDeque<InFlight>) {
        for batch in in_flight {
            (batch.stamped, batch.number) = self.stamp(&batch.batch);
            batch.request_id = None;
            batch.attempts = 0;
            batch.refused = false;
            batch.route = None;
        }
    }

    fn stamp(&mut self, batch: &RecordBatch) -> (StampedBatch, u64) {
        let number = self.next_number;
        self.next_number += 1;
        let fields = match self.identity {
            Some(identity) => ProducerFields { base_sequence: self.next_sequence, ..identity.fields },
            None => ProducerFields::NONE,
        };
        // Sequences count offsets: a batch that was given gaps takes them along.
        self.next_sequence = self.next_sequence.plus(batch.header().last_offset_delta.unsigned_abs() + 1);
        (StampedBatch::new(batch, fields), number)
    }
}
