//! The segments of one partition: appending, rolling, dropping.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tidemill_protocol::Offset;
use tracing::{error, warn};

use super::cursors::Cursors;
use super::ends::{PartitionEnds, SegmentEnd};
use super::files::SegmentFiles;
use super::frame::FrameHead;
use super::header::{FileHeader, FileKind};
use super::index::wants_entry;
use super::key::KeyHasher;
use super::read::ReadError;
use super::single::Segment;
use super::stored::StoredBatch;

/// Index entries that wait in memory at most before they are written: about one page of them.
const PENDING_ENTRIES_MAX: usize = 170;

/// How segments are written.
#[derive(Debug, Clone, Copy)]
pub struct SegmentConfig {
    /// Bytes of batches between two entries of the index.
    pub index_interval_bytes: u64,
    /// Write-back of what was appended starts each time this many bytes have come together.
    pub writeback_bytes: u64,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self { index_interval_bytes: 4096, writeback_bytes: 1 << 20 }
    }
}

/// The files of one partition. One thread writes (calls of several are serialised); any number reads meanwhile.
/// Every call that touches a file blocks.
pub struct SegmentStore {
    files: Arc<SegmentFiles>,
    dir: Arc<Path>,
    key: KeyHasher,
    config: SegmentConfig,
    view: RwLock<View>,
    cursors: Mutex<Cursors>,
    pub(super) writer: Mutex<Writer>,
}

/// The segments that readers see, by base offset.
pub(super) type View = Arc<Vec<Arc<Segment>>>;

/// What only the writer knows.
#[derive(Default)]
pub(super) struct Writer {
    /// Segments with bytes that no sync has covered.
    pub(super) dirty: Vec<Arc<Segment>>,
    /// Segments that left the view and whose files are still there.
    pub(super) dropped: Vec<Arc<Segment>>,
    /// A file was created in the directory since its last sync.
    pub(super) created_files: bool,
    /// The directory itself was created since its parent's last sync.
    pub(super) created_dir: bool,
    /// What the last completed sync covers.
    pub(super) durable: PartitionEnds,
    /// Set once a sync failed: what is on the disk is unknown until the store is opened again.
    pub(super) failed: bool,
    /// How far write-back of the active segment was started.
    writeback_to: u64,
}

/// Where a write stopped.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The batch does not come after what is stored.
    #[error("a batch at offset {batch} can't follow offset {next} in {}", dir.display())]
    OutOfOrder {
        /// Of the batch, or of the segment to roll to.
        batch: Offset,
        /// The offset after the last stored record.
        next: Offset,
        /// The partition's directory.
        dir: PathBuf,
    },
    /// The storage refused. Nothing of the call is visible to readers, and it can be made again.
    #[error("writing segment file {}: {source}", file.display())]
    Io {
        /// The file, relative to the storage's root.
        file: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
    /// What is there already can't be read, so nothing is put after it.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// A sync or a write-back failed, now or earlier.
    #[error("{} was given up because a sync failed: restart to recover from the last checkpoint", dir.display())]
    Failed {
        /// The partition's directory.
        dir: PathBuf,
    },
}

/// What dropping whole segments took out of the view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Number of segments.
    pub segments: usize,
    /// Bytes of their log files.
    pub bytes: u64,
}

/// What became of the files of dropped segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Segments whose files are gone.
    pub segments: usize,
    /// Bytes of their log files.
    pub bytes: u64,
    /// Segments that the checkpoint still names, or that a reader or a snapshot still holds.
    pub kept: usize,
}

impl SegmentStore {
    pub(super) fn assemble(
        files: Arc<SegmentFiles>,
        dir: Arc<Path>,
        key: KeyHasher,
        config: SegmentConfig,
        ends: PartitionEnds,
    ) -> Self {
        let view = ends.segments.iter().map(|end| Segment::new(&files, &dir, *end)).collect();
        let writeback_to = ends.segments.last().map_or(0, |end| end.bytes);
        let writer = Writer { durable: ends, writeback_to, ..Writer::default() };
        Self {
            files,
            dir,
            key,
            config,
            view: RwLock::new(Arc::new(view)),
            cursors: Mutex::default(),
            writer: Mutex::new(writer),
        }
    }

    /// Appends batches in order and shows them to readers, in one gathered write. Nothing is synced.
    ///
    /// The first append makes the files; a partition without a segment gets one at the first batch's base offset.
    ///
    /// # Errors
    /// See [`AppendError`]; but for `Failed`, nothing of `batches` is stored then.
    pub fn append(&self, batches: &[StoredBatch]) -> Result<(), AppendError> {
        let Some(first) = batches.first() else { return Ok(()) };
        let mut writer = self.writer.lock();
        let segment = self.active(&mut writer, first.base_offset())?;
        let before = segment.end();
        if before.is_empty() {
            self.create_dir(&mut writer, &segment)?;
        } else {
            // Checks the header of a file that another life of the process wrote.
            segment.log_file(&self.files, &self.key)?;
        }
        let gathered = self.gather(batches, before)?;
        self.write(&segment, &before, &gathered, batches)?;

        if !writer.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, &segment)) {
            writer.dirty.push(Arc::clone(&segment));
        }
        writer.created_files |= before.is_empty();
        let pending = segment.publish(gathered.end, &gathered.entries);
        if pending >= PENDING_ENTRIES_MAX {
            match segment.write_pending(&self.files, &self.key) {
                Ok(created) => writer.created_files |= created,
                // The batches are stored and visible. The entries wait for the next call; a sync insists on them.
                Err(source) => {
                    warn!(file = %segment.index.path().display(), %source, "index entries are not written yet");
                }
            }
        }
        self.start_writeback(&mut writer, &segment, self.config.writeback_bytes)
    }

    /// Seals the active segment and begins a new one at `base_offset`. The caller decides when, from the log alone,
    /// so that every replica's segments are the same.
    ///
    /// # Errors
    /// `OutOfOrder` where records at or after `base_offset` are stored already.
    pub fn roll(&self, base_offset: Offset) -> Result<(), AppendError> {
        let mut writer = self.writer.lock();
        self.check_usable(&writer)?;
        let active = self.view.read().last().map(|active| (Arc::clone(active), active.end()));
        let next = active.as_ref().map_or(Offset::ZERO, |(_, end)| end.next_offset);
        if base_offset < next {
            return Err(AppendError::OutOfOrder { batch: base_offset, next, dir: self.dir.to_path_buf() });
        }
        let replaces_empty = match &active {
            Some((_, end)) if end.is_empty() && end.base_offset == base_offset => return Ok(()),
            Some((segment, end)) if !end.is_empty() => {
                segment.seal();
                self.start_writeback(&mut writer, segment, 1)?;
                false
            }
            Some(_) => true,
            None => false,
        };
        self.change_view(|view| {
            if replaces_empty {
                view.pop();
            }
            view.push(Segment::new(&self.files, &self.dir, SegmentEnd::empty(base_offset)));
        });
        writer.writeback_to = 0;
        Ok(())
    }

    /// Takes the sealed segments whose records are all before `offset` out of the view. Their files stay until
    /// [`SegmentStore::delete_unnamed`].
    pub fn drop_before(&self, offset: Offset) -> Dropped {
        self.drop_where(|end| end.sealed && end.next_offset <= offset)
    }

    /// Takes all segments out of the view, for a partition that is deleted or replaced.
    pub fn drop_all(&self) -> Dropped {
        self.drop_where(|_| true)
    }

    fn drop_where(&self, gone: impl Fn(&SegmentEnd) -> bool) -> Dropped {
        let mut writer = self.writer.lock();
        let mut dropped = Dropped::default();
        self.change_view(|view| {
            let count = view.iter().take_while(|segment| gone(&segment.end())).count();
            for segment in view.drain(..count) {
                dropped.segments += 1;
                dropped.bytes += segment.end().bytes;
                writer.dirty.retain(|dirty| !Arc::ptr_eq(dirty, &segment));
                if !segment.end().is_empty() {
                    writer.dropped.push(segment);
                }
            }
        });
        dropped
    }

    /// Deletes the files of dropped segments that `committed`, the ends in the last durable checkpoint, does not
    /// name and that no reader or pin holds. What is kept waits for the next call.
    ///
    /// # Errors
    /// The first file that could not be removed; it is tried again by the next call.
    pub fn delete_unnamed(&self, committed: &PartitionEnds) -> Result<Deleted, AppendError> {
        let mut writer = self.writer.lock();
        let mut deleted = Deleted::default();
        let mut kept = Vec::new();
        let mut failure = None;
        for segment in std::mem::take(&mut writer.dropped) {
            // The list that it was taken from is the only other holder that does not count.
            let held = Arc::strong_count(&segment) > 1 || committed.find(segment.base_offset).is_some();
            let bytes = segment.end().bytes;
            match if held { Ok(false) } else { self.remove_files(&segment).map(|()| true) } {
                Ok(true) => {
                    deleted.segments += 1;
                    deleted.bytes += bytes;
                    continue;
                }
                Ok(false) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
            kept.push(segment);
        }
        deleted.kept = kept.len();
        writer.dropped = kept;
        failure.map_or(Ok(deleted), Err)
    }

    /// Removes the directory of a partition all of whose segments were dropped and deleted. Says whether it did.
    ///
    /// # Errors
    /// What the storage says.
    pub fn remove_dir(&self) -> io::Result<bool> {
        let writer = self.writer.lock();
        let unused = self.view.read().is_empty() && writer.dropped.is_empty();
        if unused {
            self.files.storage().remove_dir_all(&self.dir)?;
        }
        Ok(unused)
    }

    /// Closes the files, for whoever puts others in their place: reads under way finish on the handles that they hold, later ones
    /// open what then stands under the name.
    pub fn close_files(&self) {
        let writer = self.writer.lock();
        for segment in self.view().iter().chain(&writer.dropped) {
            self.files.close(&segment.log);
            self.files.close(&segment.index);
        }
    }

    /// How far the segments go now, whether that is durable or not.
    pub(super) fn written_ends(&self) -> PartitionEnds {
        PartitionEnds { segments: self.view.read().iter().map(|segment| segment.end()).collect() }
    }

    /// What the last [`SegmentStore::sync`] made durable.
    pub fn ends(&self) -> PartitionEnds {
        self.writer.lock().durable.clone()
    }

    /// The offset after the last record that readers see; `None` where there is no segment.
    pub fn next_offset(&self) -> Option<Offset> {
        self.view.read().last().map(|active| active.end().next_offset)
    }

    /// Bytes of all log files that readers see.
    pub fn bytes(&self) -> u64 {
        self.view.read().iter().map(|segment| segment.end().bytes).sum()
    }

    /// The partition's directory, relative to the storage's root.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn view(&self) -> View {
        Arc::clone(&self.view.read())
    }

    pub(super) fn files(&self) -> &SegmentFiles {
        &self.files
    }

    pub(super) fn shared_files(&self) -> &Arc<SegmentFiles> {
        &self.files
    }

    pub(super) fn key(&self) -> &KeyHasher {
        &self.key
    }

    pub(super) fn config(&self) -> &SegmentConfig {
        &self.config
    }

    pub(super) fn cursors(&self) -> &Mutex<Cursors> {
        &self.cursors
    }

    pub(super) fn check_usable(&self, writer: &Writer) -> Result<(), AppendError> {
        if writer.failed { Err(AppendError::Failed { dir: self.dir.to_path_buf() }) } else { Ok(()) }
    }

    /// The segment that appends go to.
    fn active(&self, writer: &mut Writer, first: Offset) -> Result<Arc<Segment>, AppendError> {
        self.check_usable(writer)?;
        let active = self.view.read().last().map(Arc::clone);
        let active = active.filter(|segment| !segment.end().sealed);
        let Some(active) = active else {
            let next = self.next_offset().unwrap_or_default();
            if first < next {
                return Err(AppendError::OutOfOrder { batch: first, next, dir: self.dir.to_path_buf() });
            }
            let segment = Segment::new(&self.files, &self.dir, SegmentEnd::empty(first));
            self.change_view(|view| view.push(Arc::clone(&segment)));
            writer.writeback_to = 0;
            return Ok(segment);
        };
        if active.has_failed() {
            writer.failed = true;
            self.check_usable(writer)?;
        }
        Ok(active)
    }

    /// Makes heads, index entries and the new end of the segment for batches that follow `before`.
    fn gather(&self, batches: &[StoredBatch], before: SegmentEnd) -> Result<Gathered, AppendError> {
        let mut end = before;
        let mut gathered = Gathered { heads: Vec::with_capacity(batches.len()), entries: Vec::new(), end };
        for batch in batches {
            if batch.base_offset() < end.next_offset {
                let next = end.next_offset;
                let dir = self.dir.to_path_buf();
                return Err(AppendError::OutOfOrder { batch: batch.base_offset(), next, dir });
            }
            let (bytes, head) = FrameHead::encode(&self.key, batch);
            gathered.heads.push(bytes);
            let position = end.frames_end();
            if let Some(entry) = wants_entry(&head, position, &end, self.config.index_interval_bytes) {
                gathered.entries.push(entry);
                end.index_entries += 1;
                end.indexed_to = position;
            }
            end.extend(&head);
        }
        gathered.end = end;
        Ok(gathered)
    }

    fn write(
        &self,
        segment: &Segment,
        before: &SegmentEnd,
        gathered: &Gathered,
        batches: &[StoredBatch],
    ) -> Result<(), AppendError> {
        let kind = FileKind::Log;
        let header = FileHeader { kind, key: self.key.key(), base_offset: segment.base_offset }.encode();
        let header = before.is_empty().then_some(IoSlice::new(&header));
        let frames = (gathered.heads.iter().zip(batches))
            .flat_map(|(head, batch)| [IoSlice::new(head), IoSlice::new(batch.body())]);
        let mut slices: Vec<_> = header.into_iter().chain(frames).collect();
        let written = self.files.handle(&segment.log, before.is_empty()).and_then(|handle| {
            // Marked first: a write that fails half-way has dirtied pages too.
            segment.log.mark_dirty();
            handle.write_all_vectored_at(before.bytes, &mut slices)
        });
        written.map_err(|source| AppendError::Io { file: segment.log.path(), source })?;
        segment.header_written();
        Ok(())
    }

    fn create_dir(&self, writer: &mut Writer, segment: &Segment) -> Result<(), AppendError> {
        if writer.created_files || !self.written_ends().segments.iter().all(SegmentEnd::is_empty) {
            return Ok(());
        }
        let created = self.files.storage().create_dir_all(&self.dir);
        created.map_err(|source| AppendError::Io { file: segment.log.path(), source })?;
        writer.created_dir = true;
        Ok(())
    }

    /// Starts write-back of what was appended to the active segment, if it is at least `least` bytes.
    fn start_writeback(&self, writer: &mut Writer, segment: &Segment, least: u64) -> Result<(), AppendError> {
        let range = writer.writeback_to..segment.end().bytes;
        if range.end.saturating_sub(range.start) < least {
            return Ok(());
        }
        writer.writeback_to = range.end;
        if let Err(source) = self.files.start_writeback(&segment.log, range) {
            error!(file = %segment.log.path().display(), %source, "write-back failed");
            writer.failed = true;
        }
        self.check_usable(writer)
    }

    fn remove_files(&self, segment: &Segment) -> Result<(), AppendError> {
        for file in [&segment.index, &segment.log] {
            let removed = self.files.remove(file);
            removed.map_err(|source| AppendError::Io { file: file.path(), source })?;
        }
        Ok(())
    }

    fn change_view(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        let mut view = self.view.write();
        let mut segments = view.to_vec();
        change(&mut segments);
        *view = Arc::new(segments);
    }
}

/// What one append writes beside the bodies.
struct Gathered {
    heads: Vec<[u8; super::frame::HEAD_BYTES]>,
    entries: Vec<super::index::IndexEntry>,
    end: SegmentEnd,
}
