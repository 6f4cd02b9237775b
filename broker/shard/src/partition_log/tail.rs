//! The newest batches of a partition, in memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tidemill_log::segment::StoredBatch;
use tidemill_protocol::{Offset, Timestamp};

use super::batches::Batches;

/// What a batch takes in memory beside its bytes.
const BATCH_BYTES: u64 = 160;

/// What a batch counts as, in budgets of memory.
pub(crate) fn tail_bytes(batch: &StoredBatch) -> u64 {
    batch.bytes() as u64 + BATCH_BYTES
}

struct TailBatch {
    stored: StoredBatch,
    starts_segment: bool,
}

/// Batches in the order of their offsets; the first `written` of them are in segments too.
pub(super) struct Tail {
    batches: VecDeque<TailBatch>,
    /// Every offset from here to the log's end is in `batches`.
    start: Offset,
    written: usize,
    bytes: u64,
    unwritten_bytes: u64,
}

/// Batches to write to one segment.
pub(crate) struct Chunk {
    pub(crate) batches: Vec<StoredBatch>,
    pub(crate) starts_segment: bool,
    bytes: u64,
}

impl Chunk {
    /// The offset after its last record.
    pub(crate) fn end(&self) -> Offset {
        self.batches.last().map_or(Offset::ZERO, |last| last.last_offset().plus(1))
    }

    /// What it counts as in budgets of memory.
    #[cfg(test)]
    pub(super) fn tail_bytes(&self) -> u64 {
        self.bytes
    }
}

/// Batches found in memory, copied out from under the lock by reference.
pub(super) struct Found {
    batches: Vec<StoredBatch>,
    bytes: usize,
}

impl Found {
    pub(super) fn into_batches(self, from: Offset) -> Batches {
        let first = self.batches.first().map_or(from, StoredBatch::base_offset);
        let next = self.batches.last().map_or(from, |last| last.last_offset().plus(1));
        let Some(prefix_bytes) = self.batches.first().map(|batch| batch.prefix().len()) else {
            return Batches::whole(Vec::new(), first, next, 0);
        };
        // One allocation for all prefixes.
        let mut prefixes = BytesMut::with_capacity(self.batches.len() * prefix_bytes);
        self.batches.iter().for_each(|batch| prefixes.extend_from_slice(batch.prefix()));
        let mut prefixes = prefixes.freeze();
        let mut parts: Vec<Bytes> = Vec::with_capacity(self.batches.len() * 2);
        for batch in &self.batches {
            parts.push(prefixes.split_to(prefix_bytes));
            parts.push(batch.body().clone());
        }
        Batches::split(parts, first, next, self.bytes)
    }
}

impl Tail {
    pub(super) fn new(start: Offset) -> Self {
        Self { batches: VecDeque::new(), start, written: 0, bytes: 0, unwritten_bytes: 0 }
    }

    /// Adds a batch. Says whether it is the first that is not written.
    pub(super) fn push(&mut self, stored: StoredBatch, starts_segment: bool) -> bool {
        let bytes = tail_bytes(&stored);
        self.bytes += bytes;
        self.unwritten_bytes += bytes;
        self.batches.push_back(TailBatch { stored, starts_segment });
        self.batches.len() == self.written + 1
    }

    /// Batches from the one that holds `from` on, at least one where there is one; `None` where they are on disk.
    pub(super) fn read(&self, from: Offset, bytes_max: usize) -> Option<Found> {
        if from < self.start {
            return None;
        }
        let at = self.batches.partition_point(|batch| batch.stored.last_offset() < from);
        let mut found = Found { batches: Vec::new(), bytes: 0 };
        for batch in self.batches.range(at..) {
            let bytes = batch.stored.bytes();
            if !found.batches.is_empty() && found.bytes + bytes > bytes_max {
                break;
            }
            found.bytes += bytes;
            found.batches.push(batch.stored.clone());
        }
        Some(found)
    }

    /// Base offset of the first batch with a record at or after a time.
    pub(super) fn first_at(&self, time: Timestamp) -> Option<Offset> {
        let found = self.batches.iter().find(|batch| batch.stored.max_timestamp() >= time);
        found.map(|batch| batch.stored.base_offset())
    }

    pub(super) fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes
    }

    /// The next batches before `until` that are not written, as far as they go to one segment.
    pub(super) fn next_chunk(&self, until: Offset, bytes_max: usize) -> Option<Chunk> {
        let mut unwritten =
            self.batches.range(self.written..).take_while(|batch| batch.stored.base_offset() < until);
        let first = unwritten.next()?;
        let mut chunk = Chunk {
            starts_segment: first.starts_segment,
            bytes: tail_bytes(&first.stored),
            batches: vec![first.stored.clone()],
        };
        for batch in unwritten {
            let bytes = chunk.bytes + tail_bytes(&batch.stored);
            if batch.starts_segment || bytes > bytes_max as u64 {
                break;
            }
            chunk.bytes = bytes;
            chunk.batches.push(batch.stored.clone());
        }
        Some(chunk)
    }

    /// The chunk that was taken last is written; 0 where the tail was cleared meanwhile.
    pub(super) fn written(&mut self, chunk: &Chunk) -> u64 {
        if self.batches.len() < self.written + chunk.batches.len() {
            return 0;
        }
        self.written += chunk.batches.len();
        self.unwritten_bytes -= chunk.bytes;
        chunk.bytes
    }

    /// Lets written batches that end before `until` go.
    pub(super) fn trim(&mut self, until: Offset) -> u64 {
        let mut freed = 0;
        while self.written > 0
            && let Some(first) = self.batches.front().filter(|first| first.stored.last_offset() < until)
        {
            freed += tail_bytes(&first.stored);
            self.start = first.stored.last_offset().plus(1);
            self.batches.pop_front();
            self.written -= 1;
        }
        self.bytes -= freed;
        // A burst's capacity is not kept for an idle partition.
        if self.batches.is_empty() {
            self.batches.shrink_to(4);
        }
        freed
    }

    /// Lets everything go; answers its bytes, and those that were not written.
    pub(super) fn clear(&mut self) -> (u64, u64) {
        let freed = (self.bytes, self.unwritten_bytes);
        *self = Self::new(self.start);
        freed
    }
}
