//! One segment of a partition: its two files and how far they go.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidemill_protocol::{Offset, Timestamp};
use tracing::warn;

use super::ends::SegmentEnd;
use super::files::{PooledFile, SegmentFiles};
use super::frame::FrameFault;
use super::header::{FileHeader, FileKind, HEADER_BYTES};
use super::index::{ENTRY_BYTES, IndexEntry, IndexError, IndexFile, index_bytes};
use super::key::KeyHasher;
use super::read::{Damage, ReadError};
use super::walk::WalkError;
use crate::fs::StorageFile;

/// Nothing is wrong with the index as far as is known.
const INDEX_GOOD: u8 = 0;
/// It did not lead where it should: it is rebuilt with the next sync.
const INDEX_SUSPECT: u8 = 1;
/// It could not be rebuilt because the log file is damaged: it is kept, for it leads past the damage.
const INDEX_CONFIRMED: u8 = 2;

/// A segment. Whoever holds it keeps its files: they are removed when nobody does.
pub(super) struct Segment {
    pub(super) base_offset: Offset,
    pub(super) log: Arc<PooledFile>,
    pub(super) index: Arc<PooledFile>,
    /// Held for copies only, never across I/O, save by the writer while it replaces the index.
    state: Mutex<State>,
    header_checked: AtomicBool,
    index_health: AtomicU8,
    /// Reads served, so that a scrubber knows whether anybody wants the pages.
    pub(super) reads: AtomicU64,
}

struct State {
    /// Published after the write: nothing beyond it is ever read.
    end: SegmentEnd,
    /// The last of the index's entries, which are not in the file yet.
    pending: Vec<IndexEntry>,
}

impl Segment {
    pub(super) fn new(files: &SegmentFiles, dir: &Arc<Path>, end: SegmentEnd) -> Arc<Self> {
        Arc::new(Self {
            base_offset: end.base_offset,
            log: files.file(dir, FileKind::Log, end.base_offset),
            index: files.file(dir, FileKind::Index, end.base_offset),
            state: Mutex::new(State { end, pending: Vec::new() }),
            header_checked: AtomicBool::new(false),
            index_health: AtomicU8::new(INDEX_GOOD),
            reads: AtomicU64::new(0),
        })
    }

    /// How far readers may go.
    pub(super) fn end(&self) -> SegmentEnd {
        self.state.lock().end
    }

    /// Publishes what was written up to `end`, with its new index entries. Returns how many wait for the file.
    pub(super) fn publish(&self, end: SegmentEnd, entries: &[IndexEntry]) -> usize {
        let mut state = self.state.lock();
        debug_assert!(end.bytes >= state.end.bytes, "a published end never goes back");
        state.end = end;
        state.pending.extend_from_slice(entries);
        state.pending.len()
    }

    pub(super) fn seal(&self) {
        self.state.lock().end.sealed = true;
    }

    /// The log file, its header checked on first use.
    pub(super) fn log_file(
        &self,
        files: &SegmentFiles,
        key: &KeyHasher,
    ) -> Result<Arc<dyn StorageFile>, ReadError> {
        let handle = files.handle(&self.log, false).map_err(|source| self.io_error(source))?;
        if !self.header_checked.load(Ordering::Acquire) {
            let mut bytes = [0; HEADER_BYTES];
            handle.read_exact_at(0, &mut bytes).map_err(|source| self.io_error(source))?;
            let expected = FileHeader { kind: FileKind::Log, key: key.key(), base_offset: self.base_offset };
            if FileHeader::decode(&bytes) != Ok(expected) {
                return Err(self.damage(0..HEADER_BYTES as u64, FrameFault::FileHeader).into());
            }
            self.header_checked.store(true, Ordering::Release);
        }
        Ok(handle)
    }

    /// Has the header checked again by the next use.
    pub(super) fn distrust_header(&self) {
        self.header_checked.store(false, Ordering::Release);
    }

    /// Another log file with the same bytes, as far as they were sound, stands under the name now. An index that could not be rebuilt
    /// because of the damage can be.
    pub(super) fn log_replaced(&self) {
        self.distrust_header();
        let (confirmed, suspect) = (INDEX_CONFIRMED, INDEX_SUSPECT);
        let _ = self.index_health.compare_exchange(confirmed, suspect, Ordering::AcqRel, Ordering::Acquire);
    }

    /// To be called by whoever wrote the header.
    pub(super) fn header_written(&self) {
        self.header_checked.store(true, Ordering::Release);
    }

    /// The last indexed place for which `before` holds, else the first frame. Never fails for the index's sake: one
    /// that is damaged is marked for rebuilding, and the caller walks from further ahead.
    pub(super) fn last_indexed(
        &self,
        files: &SegmentFiles,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> IndexEntry {
        let first = IndexEntry::first(self.base_offset);
        let in_file = {
            let state = self.state.lock();
            if state.pending.first().is_some_and(&before) {
                let holds = state.pending.partition_point(&before);
                return holds.checked_sub(1).and_then(|at| state.pending.get(at)).copied().unwrap_or(first);
            }
            state.end.index_entries - state.pending.len() as u64
        };
        if in_file == 0 {
            return first;
        }
        let found = files.handle(&self.index, false).map_err(IndexError::Io).and_then(|file| {
            IndexFile { file: &*file, base: self.base_offset, entries: in_file }.last_where(before)
        });
        match found {
            Ok(found) => found.unwrap_or(first),
            Err(IndexError::Damaged) => {
                warn!(file = %self.index.path().display(), "an index is damaged");
                self.suspect_index();
                first
            }
            Err(IndexError::Io(error)) => {
                warn!(file = %self.index.path().display(), %error, "an index can't be read");
                first
            }
        }
    }

    /// Has the index rebuilt with the next sync, unless that was tried and it is the log file that is damaged.
    pub(super) fn suspect_index(&self) {
        let (good, suspect) = (INDEX_GOOD, INDEX_SUSPECT);
        let _ = self.index_health.compare_exchange(good, suspect, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn index_is_suspect(&self) -> bool {
        self.index_health.load(Ordering::Acquire) == INDEX_SUSPECT
    }

    /// Whether it is known that the log file is damaged, and the index is the best there is.
    pub(super) fn index_is_confirmed(&self) -> bool {
        self.index_health.load(Ordering::Acquire) == INDEX_CONFIRMED
    }

    pub(super) fn confirm_index(&self) {
        self.index_health.store(INDEX_CONFIRMED, Ordering::Release);
    }

    /// Puts a rebuilt index, already written, in the place of the old one.
    pub(super) fn index_replaced(&self, entries: u64, indexed_to: u64) {
        let mut state = self.state.lock();
        state.pending = Vec::new();
        state.end.index_entries = entries;
        state.end.indexed_to = indexed_to;
        drop(state);
        self.index_health.store(INDEX_GOOD, Ordering::Release);
    }

    /// Writes the entries that wait to the index file, and says whether that created it. Only the writer calls it.
    pub(super) fn write_pending(&self, files: &SegmentFiles, key: &KeyHasher) -> io::Result<bool> {
        let (pending, in_file) = {
            let state = self.state.lock();
            (state.pending.clone(), state.end.index_entries - state.pending.len() as u64)
        };
        if pending.is_empty() {
            return Ok(false);
        }
        let bytes = encode_entries(&pending, self.base_offset, in_file, key);
        let at = if in_file == 0 { 0 } else { index_bytes(in_file) };
        let handle = files.handle(&self.index, true)?;
        handle.write_all_at(at, &bytes)?;
        self.index.mark_dirty();
        let mut state = self.state.lock();
        state.pending.drain(..pending.len());
        state.pending.shrink_to_fit();
        Ok(in_file == 0)
    }

    /// Whether a sync of one of its files failed, be it somebody else's.
    pub(super) fn has_failed(&self) -> bool {
        self.log.has_failed() || self.index.has_failed()
    }

    /// Damage found in the log file, counted.
    pub(super) fn damage(&self, position: std::ops::Range<u64>, fault: FrameFault) -> Damage {
        metrics::counter!("tidemill_segment_damage_total").increment(1);
        Damage { file: self.log.path(), segment: self.base_offset, position, fault }
    }

    /// A failed read as the reader is told: a file that ends too early is damage.
    pub(super) fn io_error(&self, source: io::Error) -> ReadError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.damage(0..self.end().bytes, FrameFault::FileShort).into();
        }
        ReadError::Io { file: self.log.path(), source }
    }

    /// Why a walk that stands at `position` failed, as the reader is told.
    pub(super) fn walk_error(&self, position: u64, error: WalkError) -> ReadError {
        match error {
            WalkError::Io(source) => self.io_error(source),
            WalkError::Fault { fault, to } => self.damage(position..to, fault).into(),
        }
    }

    /// The largest timestamp in it.
    pub(super) fn max_timestamp(&self) -> Timestamp {
        self.end().max_timestamp
    }
}

/// Entries from number `first` on as bytes; with the file's header before entry 0.
pub(super) fn encode_entries(entries: &[IndexEntry], base: Offset, first: u64, key: &KeyHasher) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + entries.len() * ENTRY_BYTES);
    if first == 0 {
        let header = FileHeader { kind: FileKind::Index, key: key.key(), base_offset: base };
        bytes.extend_from_slice(&header.encode());
    }
    for (number, entry) in (first..).zip(entries) {
        // Entries that don't fit are not made (see `wants_entry`).
        bytes.extend(entry.encode(base, number).into_iter().flatten());
    }
    bytes
}
