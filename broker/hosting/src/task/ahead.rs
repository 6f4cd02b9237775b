//! What was read of a source and is not done yet: a batch is read and unpacked once, however many calls its records take.
//!
//! ```text
//!      position                      end                            next
//!         v                           v                               v
//!   done  | window: records, unpacked | rest of the open batch | stored batches | the log
//! ```
//!
//! It follows the position that the shard has. Whatever became of a call, the next records are those from there on: what lies
//! before is dropped, and where the position lies elsewhere everything is, and read again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tidemill_protocol::record_batch::{BatchError, BatchLimits, RecordBatch, RecordMark, Records};
use tidemill_protocol::{Offset, TopicPartition};

use super::reading::{CALL_RECORDS_MAX, ENOUGH_BYTES, SourceRecords, TaskRecord};
use crate::port::Fetched;

/// Stored and unpacked bytes of one source that are kept from call to call; beyond it stored ones are read again. And where the
/// batches that a call's records lie in have so many bytes, unpacked, no other is unpacked for it.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// The same of all tasks together, in bytes that are unpacked: whoever finds it used up keeps nothing from call to call, and unpacks a
/// batch again for each.
///
/// What a call under way has unpacked itself is counted when it is over. Until then it has a bound of its own, for each task, which
/// makes one call at a time: [`KEPT_BYTES_MAX`], and beyond it one batch and the stored ones of one fetch.
const ALL_KEPT_BYTES_MAX: usize = 256 << 20;

/// What all tasks keep from call to call.
#[derive(Debug)]
pub(crate) struct KeptBytes {
    used: AtomicUsize,
    most: usize,
}

impl Default for KeptBytes {
    fn default() -> Self {
        Self::new(ALL_KEPT_BYTES_MAX)
    }
}

impl KeptBytes {
    const fn new(most: usize) -> Self {
        Self { used: AtomicUsize::new(0), most }
    }

    /// Changes what one of them keeps; `false`, and nothing, where it is more and there is no room for it.
    fn change(&self, from: usize, to: usize) -> bool {
        let changed = |used: usize| match to.checked_sub(from) {
            Some(more) => used.checked_add(more).filter(|sum| *sum <= self.most || more == 0),
            None => Some(used.saturating_sub(from - to)),
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).is_ok()
    }
}

/// By source: what was read ahead of the task.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    sources: BTreeMap<TopicPartition, SourceAhead>,
    all: Arc<KeptBytes>,
    /// What of that is this task's, as of the last call.
    kept: usize,
}

/// What was read of one source.
#[derive(Debug)]
pub(super) struct SourceAhead {
    position: Offset,
    window: Vec<TaskRecord>,
    /// Of the window's records.
    window_bytes: usize,
    /// Where the task stands when the window is done.
    end: Offset,
    /// The batches that were walked to their end and still have records in the window.
    walked: VecDeque<WalkedBatch>,
    open: Option<OpenBatch>,
    /// Bytes that the walked batches and the open one hold in memory.
    unpacked_bytes: usize,
    stored: VecDeque<Bytes>,
    next: Offset,
}

/// A batch that was unpacked, and how far.
#[derive(Debug)]
struct OpenBatch {
    records: Records,
    mark: RecordMark,
}

/// A batch that its records in the window hold in memory.
#[derive(Debug)]
struct WalkedBatch {
    last_record: Offset,
    unpacked_bytes: usize,
}

impl Ahead {
    pub(super) fn new(all: Arc<KeptBytes>) -> Self {
        Self { sources: BTreeMap::new(), all, kept: 0 }
    }

    /// What was read of a source from a position on.
    pub(super) fn at(&mut self, source: TopicPartition, position: Offset) -> &mut SourceAhead {
        self.sources.entry(source).or_insert_with(|| SourceAhead::new(position)).follow(position);
        // What is done is held no more, also where nothing comes after it.
        let held = self.kept_bytes().min(self.kept);
        self.count(held);
        self.sources.entry(source).or_insert_with(|| SourceAhead::new(position))
    }

    /// Takes a call's records back. It drops those of them that are done when it learns the position. Answers whether they are kept.
    pub(super) fn keep(&mut self, records: SourceRecords) -> bool {
        let source = records.source;
        let Some(ahead) = self.sources.get_mut(&source) else { return true };
        let position = ahead.position;
        ahead.window_bytes = records.records.iter().map(TaskRecord::bytes).sum();
        ahead.window = records.records;
        if ahead.kept_bytes() > KEPT_BYTES_MAX {
            ahead.let_go_of_stored();
        }
        if self.count(self.kept_bytes()) {
            return true;
        }
        if let Some(ahead) = self.sources.get_mut(&source) {
            ahead.let_go_of_stored();
        }
        if self.count(self.kept_bytes()) {
            return true;
        }
        self.sources.insert(source, SourceAhead::new(position));
        // Of the others there is no more than before.
        let others = self.kept_bytes();
        self.count(others.min(self.kept));
        false
    }

    /// Nothing of a source is known any more.
    pub(super) fn forget(&mut self, source: TopicPartition) {
        self.sources.remove(&source);
        self.count(self.kept_bytes().min(self.kept));
    }

    pub(super) fn clear(&mut self) {
        self.sources.clear();
        self.count(0);
    }

    fn kept_bytes(&self) -> usize {
        self.sources.values().map(SourceAhead::kept_bytes).fold(0, usize::saturating_add)
    }

    fn count(&mut self, kept: usize) -> bool {
        let fits = self.all.change(self.kept, kept);
        if fits {
            self.kept = kept;
        }
        fits
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.all.change(self.kept, 0);
    }
}

impl SourceAhead {
    fn new(position: Offset) -> Self {
        Self {
            position,
            window: Vec::new(),
            window_bytes: 0,
            end: position,
            walked: VecDeque::new(),
            open: None,
            unpacked_bytes: 0,
            stored: VecDeque::new(),
            next: position,
        }
    }

    fn follow(&mut self, position: Offset) {
        if position < self.position || position > self.end {
            *self = Self::new(position);
            return;
        }
        let done = self.window.partition_point(|record| record.offset < position);
        self.window_bytes -= self.window.drain(..done).map(|record| record.bytes()).sum::<usize>();
        while let Some(batch) = self.walked.front()
            && batch.last_record < position
        {
            self.unpacked_bytes -= batch.unpacked_bytes;
            self.walked.pop_front();
        }
        self.position = position;
    }

    /// Where to read on in the log.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Whether nothing is known of what comes at the position.
    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty() && self.end == self.position
    }

    /// Whether a call for so many records should get more than what is unpacked.
    pub(super) fn wants_more(&self, count: usize) -> bool {
        !self.has_enough(count) && self.has_room()
    }

    /// Whether the window has what a call for so many records gets.
    fn has_enough(&self, count: usize) -> bool {
        self.window.len() >= count || self.window_bytes >= ENOUGH_BYTES
    }

    /// Whether one more batch may be unpacked for a call.
    ///
    /// Like [`Self::has_enough`] it depends on the position and on what the log has from there on, and not on what became of earlier
    /// calls: what counts are the batches that the window's records lie in, and every window begins at the position.
    fn has_room(&self) -> bool {
        self.window.is_empty() || self.unpacked_bytes < KEPT_BYTES_MAX
    }

    /// Adds what the log has from [`Self::next`] on.
    pub(super) fn push(&mut self, fetched: Fetched) {
        self.stored.extend(fetched.batches);
        self.next = self.next.max(fetched.next);
    }

    /// Unpacks until there are so many records, or [`ENOUGH_BYTES`] of them, or no more, or no room for another batch. At least one
    /// record where there is any, however large it is.
    pub(super) fn unpack(&mut self, count: usize, limits: &BatchLimits) -> Result<(), BatchError> {
        let count = count.min(CALL_RECORDS_MAX);
        while !self.has_enough(count) {
            let open = match self.open.take() {
                Some(open) => open,
                None => {
                    if !self.has_room() {
                        return Ok(());
                    }
                    let Some(stored) = self.stored.pop_front() else { return Ok(()) };
                    // The log has checked what it read, and what is in memory was checked when it came.
                    let records = RecordBatch::decode_trusted(stored, limits)?.records(limits)?;
                    let mark = records.iter().mark();
                    self.unpacked_bytes += records.data().len();
                    OpenBatch { records, mark }
                }
            };
            self.open = self.walk(open, count)?;
        }
        Ok(())
    }

    /// Takes records of a batch into the window. Hands the batch back where there are more.
    fn walk(&mut self, open: OpenBatch, count: usize) -> Result<Option<OpenBatch>, BatchError> {
        let OpenBatch { records, mark } = open;
        let mut left = records.iter_from(mark);
        while !self.has_enough(count) {
            let Some(record) = left.next() else {
                self.close(&records);
                return Ok(None);
            };
            let record = record?;
            if record.offset < self.position {
                continue;
            }
            let record = TaskRecord {
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key.map(|key| records.slice_of(key)),
                value: record.value.map(|value| records.slice_of(value)),
                headers: records.slice_of(record.headers.as_bytes()),
            };
            self.end = record.offset.plus(1);
            self.window_bytes += record.bytes();
            self.window.push(record);
        }
        if left.clone().next().is_none() {
            self.close(&records);
            return Ok(None);
        }
        let mark = left.mark();
        Ok(Some(OpenBatch { records, mark }))
    }

    /// Nothing is left of a batch but what the window has of it.
    fn close(&mut self, records: &Records) {
        let (header, unpacked_bytes) = (records.header(), records.data().len());
        // A batch may reach beyond its last record.
        self.end = self.end.max(header.next_offset());
        match self.window.last() {
            Some(last) if last.offset >= header.base_offset => {
                self.walked.push_back(WalkedBatch { last_record: last.offset, unpacked_bytes });
            }
            _ => self.unpacked_bytes -= unpacked_bytes,
        }
    }

    /// The records of a call; [`Ahead::keep`] takes them back.
    pub(super) fn take(&mut self, topic: u32, source: TopicPartition) -> SourceRecords {
        self.window_bytes = 0;
        SourceRecords {
            topic,
            source,
            position: self.position,
            end: self.end,
            records: std::mem::take(&mut self.window),
        }
    }

    /// What is stored is read again. The open batch stays, however large it is: to unpack it again for each call would cost the
    /// more the larger it is.
    fn let_go_of_stored(&mut self) {
        if !self.stored.is_empty() {
            self.stored.clear();
            let behind = self.open.as_ref().map_or(self.end, |open| open.records.header().next_offset());
            self.next = behind.max(self.end);
        }
    }

    fn kept_bytes(&self) -> usize {
        self.stored.iter().map(Bytes::len).fold(self.unpacked_bytes, usize::saturating_add)
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
