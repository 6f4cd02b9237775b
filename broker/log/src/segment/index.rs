//! The sparse index: one file for lookups by offset and by time.
//!
//! ```text
//!   0         48        72        96
//!   +---------+---------+---------+---------+- - -
//!   | header  | entry 0 | entry 1 | entry 2 |          entry n names a frame at least
//!   +---------+---------+---------+---------+- - -     `index_interval_bytes` after that of n - 1
//!              /          \
//!   +---------+-------------+------------+------------------+
//!   | crc32   | offset      | position   | max timestamp    |   big-endian; the crc covers the segment's
//!   | u32     | delta u32   | u64        | before it, i64   |   base offset, n, and the three fields
//!   +---------+-------------+------------+------------------+
//! ```
//!
//! An entry says: at `position` begins the frame whose base offset is the segment's plus `offset delta`, and nothing
//! before it in the segment has a timestamp above `max timestamp`. All three rise, so the same entries are searched
//! by offset and by time. The first frame has no entry; it stands behind the header. An entry that can't name its
//! frame (a delta beyond 32 bits) is left out: lookups then walk further. Each entry has a checksum because the
//! file is never read as a whole.

use std::io;

use tidemill_protocol::{Offset, Timestamp};

use super::frame::{Fields, FrameHead};
use super::header::{FIRST_FRAME, HEADER_BYTES};
use crate::fs::StorageFile;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 24;
/// Entries read at once, when a search has come this close.
const RUN: u64 = 128;

/// A place in the log file where a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Of the frame.
    pub(super) offset: Offset,
    /// Where it begins.
    pub(super) position: u64,
    /// The largest timestamp in the segment before it.
    pub(super) max_before: Timestamp,
}

/// Why an index can't be used. It is rebuilt from the log file then.
#[derive(Debug)]
pub(super) enum IndexError {
    Io(io::Error),
    Damaged,
}

impl IndexEntry {
    /// The frame behind the header, which has no entry in the file.
    pub(super) const fn first(base_offset: Offset) -> Self {
        Self { offset: base_offset, position: FIRST_FRAME, max_before: Timestamp::new(i64::MIN) }
    }

    /// Entry number `number` of the segment at `base`; `None` where the format can't name the frame.
    pub(super) fn encode(&self, base: Offset, number: u64) -> Option<[u8; ENTRY_BYTES]> {
        let delta = self.delta(base)?;
        let mut bytes = [0; ENTRY_BYTES];
        let fields = (self.crc(base, number, delta).to_be_bytes().into_iter())
            .chain(delta.to_be_bytes())
            .chain(self.position.to_be_bytes())
            .chain(self.max_before.get().to_be_bytes());
        bytes.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
        Some(bytes)
    }

    pub(super) fn decode(bytes: &[u8], base: Offset, number: u64) -> Option<Self> {
        let mut fields = Fields(bytes.get(..ENTRY_BYTES)?);
        let crc = u32::from_be_bytes(fields.take());
        let delta = u32::from_be_bytes(fields.take());
        let position = u64::from_be_bytes(fields.take());
        let max_before = Timestamp::new(i64::from_be_bytes(fields.take()));
        let entry = Self { offset: base.plus(u64::from(delta)), position, max_before };
        (entry.crc(base, number, delta) == crc).then_some(entry)
    }

    /// Whether the format can name this frame.
    pub(super) fn fits(&self, base: Offset) -> bool {
        self.delta(base).is_some()
    }

    fn delta(&self, base: Offset) -> Option<u32> {
        self.offset.get().checked_sub(base.get()).and_then(|delta| u32::try_from(delta).ok())
    }

    fn crc(&self, base: Offset, number: u64, delta: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&base.get().to_be_bytes());
        hasher.update(&number.to_be_bytes());
        hasher.update(&delta.to_be_bytes());
        hasher.update(&self.position.to_be_bytes());
        hasher.update(&self.max_before.get().to_be_bytes());
        hasher.finalize()
    }
}

/// Whether the frame at `position` gets an entry: the one rule that appending and rebuilding share.
pub(super) fn wants_entry(
    head: &FrameHead,
    position: u64,
    before: &super::SegmentEnd,
    interval_bytes: u64,
) -> Option<IndexEntry> {
    let entry = IndexEntry { offset: head.base_offset, position, max_before: before.max_timestamp };
    let due = !before.is_empty() && position.saturating_sub(before.indexed_to) >= interval_bytes;
    (due && entry.fits(before.base_offset)).then_some(entry)
}

/// The length of an index file with `entries` entries.
pub(super) fn index_bytes(entries: u64) -> u64 {
    HEADER_BYTES as u64 + entries * ENTRY_BYTES as u64
}

/// The entries of an index file.
pub(super) struct IndexFile<'a> {
    pub(super) file: &'a dyn StorageFile,
    pub(super) base: Offset,
    pub(super) entries: u64,
}

impl IndexFile<'_> {
    /// The last entry for which `before` holds; `before` holds for a first part of the entries and none after it.
    pub(super) fn last_where(
        &self,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> Result<Option<IndexEntry>, IndexError> {
        // Invariant: `before` holds for all entries below `low` and for none from `high` on.
        let (mut low, mut high) = (0, self.entries);
        let mut found = None;
        let mut run: Option<Run> = None;
        while low < high {
            if run.is_none() && high - low <= RUN {
                run = Some(self.read_run(low, high - low)?);
            }
            let middle = low + (high - low) / 2;
            let entry = match &run {
                Some(run) => run.entry(middle)?,
                None => self.read_run(middle, 1)?.entry(middle)?,
            };
            if before(&entry) {
                (low, found) = (middle + 1, Some(entry));
            } else {
                high = middle;
            }
        }
        Ok(found)
    }

    /// The `count` entries from `first` on.
    fn read_run(&self, first: u64, count: u64) -> Result<Run, IndexError> {
        let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(ENTRY_BYTES);
        let mut bytes = vec![0; bytes];
        self.file.read_exact_at(index_bytes(first), &mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => IndexError::Damaged,
            _ => IndexError::Io(error),
        })?;
        Ok(Run { base: self.base, first, bytes })
    }
}

/// Consecutive entries as they stand in the file.
struct Run {
    base: Offset,
    first: u64,
    bytes: Vec<u8>,
}

impl Run {
    fn entry(&self, number: u64) -> Result<IndexEntry, IndexError> {
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX).saturating_mul(ENTRY_BYTES);
        let bytes = self.bytes.get(at..).unwrap_or_default();
        IndexEntry::decode(bytes, self.base, number).ok_or(IndexError::Damaged)
    }
}
