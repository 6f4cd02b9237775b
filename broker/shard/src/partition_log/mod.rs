//! One partition's records on this broker: the tail in memory, the segments on disk.
//!
//! ```text
//!        segments on disk                          tail in memory
//!  |------------------------------|
//!                     |-----------+------------------------|
//!   log start         tail start  written                   log end = high watermark
//! ```
//! Apply pushes to the tail's end; write-behind moves batches to segments in order; what is written may leave the
//! tail's front when memory is wanted. So a reader finds any offset in the tail or in a segment, and readers of the
//! newest records never touch the disk. The lock is held for pointers and counters only, never across I/O.

mod batches;
mod suspects;
mod tail;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tidemill_controller::TopicConfig;
use tidemill_log::segment::{
    OpenError, PartitionEnds, ReadError, SegmentConfig, SegmentFiles, SegmentStore, StoredBatch, StreamKey,
};
use tidemill_protocol::{LeaderEpoch, Offset, TopicPartition};
use tokio::sync::watch;

use crate::watched::Watched;

pub use batches::Batches;
pub(crate) use suspects::Suspects;
use tail::Tail;
pub(crate) use tail::{Chunk, tail_bytes};

/// What a reader may know of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionView {
    /// The first offset that can be read.
    pub log_start: Offset,
    /// Readers of committed records stop here.
    pub last_stable: Offset,
    /// The end of what is applied.
    pub high_watermark: Offset,
    /// Under which the last batch was appended; -1 where there is none.
    pub leader_epoch: LeaderEpoch,
    /// Bytes of the segments.
    pub bytes: u64,
    /// Number of segments.
    pub segments: usize,
    /// The topic's settings.
    pub config: TopicConfig,
}

/// What a fetch found.
#[derive(Debug)]
pub enum Fetch {
    /// In memory; empty at the high watermark.
    Memory(Batches),
    /// On disk: run it where blocking is allowed.
    Disk(DiskRead),
    /// Before the log start or beyond the high watermark.
    OutOfRange {
        /// The first offset.
        log_start: Offset,
        /// The end.
        high_watermark: Offset,
    },
    /// The partition is not in this shard, or was deleted.
    Unknown,
}

/// A read that touches the disk.
pub struct DiskRead {
    log: Arc<PartitionLog>,
    from: Offset,
    bytes_max: usize,
}

impl std::fmt::Debug for DiskRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskRead")
            .field("partition", &self.log.id)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// Why a read from disk failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The records went while the read was on its way.
    #[error("offset {wanted} of {partition} is gone: the log starts at {log_start} now")]
    Gone {
        /// The partition.
        partition: TopicPartition,
        /// What was asked for.
        wanted: Offset,
        /// The first offset.
        log_start: Offset,
    },
    /// The whole partition went while the read was on its way.
    #[error("{partition} is gone: its topic was deleted")]
    Deleted {
        /// The partition.
        partition: TopicPartition,
    },
    /// Damage, or the disk refused.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The partition's files can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl DiskRead {
    /// Reads whole batches, at least one. Blocking.
    ///
    /// # Errors
    /// [`FetchError`]; damage is reported when it is met first, batches before it are returned.
    pub fn run(self) -> Result<Batches, FetchError> {
        let store = self.log.store()?;
        match store.read(self.from, Offset::new(i64::MAX), self.bytes_max) {
            Ok(read) => Ok(Batches::whole(read.parts, read.first, read.next, read.bytes)),
            Err(error) => {
                if self.log.is_deleted() {
                    return Err(FetchError::Deleted { partition: self.log.id });
                }
                let log_start = self.log.view().log_start;
                if self.from < log_start {
                    return Err(FetchError::Gone { partition: self.log.id, wanted: self.from, log_start });
                }
                if let ReadError::Damaged(damage) = &error {
                    self.log.files.suspects.add(self.log.id, damage.segment);
                }
                Err(error.into())
            }
        }
    }
}

/// How partitions' files are opened.
#[derive(Clone)]
pub(crate) struct LogFiles {
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) dir: PathBuf,
    pub(crate) config: SegmentConfig,
    /// Segments of all partitions in which somebody met damage.
    pub(crate) suspects: Arc<Suspects>,
}

/// One partition's log.
pub(crate) struct PartitionLog {
    id: TopicPartition,
    files: LogFiles,
    inner: Mutex<Inner>,
    /// Opened with the first write or at the start of the broker; one caller opens, the others wait.
    store: OnceLock<SegmentStore>,
    opening: Mutex<()>,
    deleted: AtomicBool,
    high_watermark: Watched<Offset>,
    /// The ends in the last durable checkpoint. Only the checkpoint changes them.
    recorded: Mutex<PartitionEnds>,
}

struct Inner {
    view: PartitionView,
    tail: Tail,
}

impl PartitionLog {
    /// A partition whose files, if any, hold what `view` and `recorded` say.
    pub(crate) fn new(
        id: TopicPartition,
        files: LogFiles,
        view: PartitionView,
        recorded: PartitionEnds,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            files,
            inner: Mutex::new(Inner { view, tail: Tail::new(view.high_watermark) }),
            store: OnceLock::new(),
            opening: Mutex::new(()),
            deleted: AtomicBool::new(false),
            high_watermark: Watched::new(view.high_watermark),
            recorded: Mutex::new(recorded),
        })
    }

    pub(crate) fn id(&self) -> TopicPartition {
        self.id
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.files.dir.join(directory_name(self.id))
    }

    /// The partition's files. Blocking where they are not open yet.
    pub(crate) fn store(&self) -> Result<&SegmentStore, OpenError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let _one_opens = self.opening.lock();
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let ends = self.recorded.lock().clone();
        let (store, _) =
            SegmentStore::open(&self.files.files, self.dir(), stream_key(self.id), self.files.config, ends)?;
        Ok(self.store.get_or_init(|| store))
    }

    /// The partition's files, where they are open: they are once anything was written.
    pub(crate) fn opened(&self) -> Option<&SegmentStore> {
        self.store.get()
    }

    pub(crate) fn view(&self) -> PartitionView {
        self.inner.lock().view
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Offset> {
        self.high_watermark.subscribe()
    }

    /// Adds a batch to the tail's end; readers see it at once. Says whether it is the first that is not written.
    pub(crate) fn push(&self, batch: StoredBatch, starts_segment: bool) -> bool {
        let mut inner = self.inner.lock();
        let view = &mut inner.view;
        view.high_watermark = batch.last_offset().plus(1);
        view.last_stable = view.high_watermark;
        view.leader_epoch = batch.epoch();
        view.bytes += batch.bytes() as u64;
        view.segments += usize::from(starts_segment);
        inner.tail.push(batch, starts_segment)
    }

    /// Wakes whoever waits for records.
    pub(crate) fn publish(&self) {
        if self.is_deleted() {
            return;
        }
        let high_watermark = self.view().high_watermark;
        self.high_watermark.set(high_watermark);
    }

    pub(crate) fn configure(&self, config: TopicConfig) {
        self.inner.lock().view.config = config;
    }

    /// Says whether segments went.
    pub(crate) fn advance_log_start(&self, log_start: Offset, segments: usize, bytes: u64) -> bool {
        let view = &mut self.inner.lock().view;
        let fewer = segments < view.segments;
        (view.log_start, view.segments, view.bytes) = (log_start, segments, bytes);
        fewer
    }

    /// The partition is gone: readers are told. What is in memory stays until [`Self::clear`]: a checkpoint that froze
    /// before the deletion still writes it.
    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
        // Waiters wake, whatever they wait for, ask for records, and learn that it is unknown.
        self.high_watermark.modify(|published| *published = Offset::new(i64::MAX));
    }

    /// Another shard has taken this one's place, where the partition begins at `log_start`, or is gone. Who follows it is let go of,
    /// and who still reads here is told why files are missing.
    pub(crate) fn give_way(&self, log_start: Option<Offset>) {
        match log_start {
            Some(log_start) => {
                let view = &mut self.inner.lock().view;
                view.log_start = view.log_start.max(log_start);
            }
            None => self.mark_deleted(),
        }
        self.high_watermark.end();
        if let Some(store) = self.opened() {
            store.close_files();
        }
    }

    /// Lets go of what is in memory. Answers the tail's bytes: all, unwritten.
    pub(crate) fn clear(&self) -> (u64, u64) {
        self.inner.lock().tail.clear()
    }

    pub(crate) fn fetch(self: &Arc<Self>, from: Offset, bytes_max: usize) -> Fetch {
        if self.is_deleted() {
            return Fetch::Unknown;
        }
        let inner = self.inner.lock();
        let PartitionView { log_start, high_watermark, .. } = inner.view;
        if from < log_start || from > high_watermark {
            return Fetch::OutOfRange { log_start, high_watermark };
        }
        match inner.tail.read(from, bytes_max) {
            Some(found) => {
                drop(inner);
                Fetch::Memory(found.into_batches(from))
            }
            None => Fetch::Disk(DiskRead { log: Arc::clone(self), from, bytes_max }),
        }
    }

    /// The first batch in the tail with a record at or after a time, if the tail holds it all the way from `from`.
    pub(crate) fn tail_by_time(&self, time: tidemill_protocol::Timestamp) -> Option<Offset> {
        self.inner.lock().tail.first_at(time)
    }

    pub(crate) fn unwritten_bytes(&self) -> u64 {
        self.inner.lock().tail.unwritten_bytes()
    }

    /// The next batches to write before `until`, all of one segment.
    pub(crate) fn next_chunk(&self, until: Offset, bytes_max: usize) -> Option<Chunk> {
        self.inner.lock().tail.next_chunk(until, bytes_max)
    }

    /// A chunk is in the segment files. Answers the bytes that no longer wait.
    pub(crate) fn written(&self, chunk: &Chunk) -> u64 {
        self.inner.lock().tail.written(chunk)
    }

    /// Lets written batches before `until` leave memory. Answers the bytes.
    pub(crate) fn trim(&self, until: Offset) -> u64 {
        self.inner.lock().tail.trim(until)
    }

    pub(crate) fn recorded(&self) -> PartitionEnds {
        self.recorded.lock().clone()
    }

    pub(crate) fn set_recorded(&self, ends: PartitionEnds) {
        *self.recorded.lock() = ends;
    }
}

/// Name of a partition's directory.
pub(crate) fn directory_name(id: TopicPartition) -> String {
    id.to_string()
}

/// What enters the checksum of each of a partition's frames: topic id and partition number.
pub(crate) fn stream_key(id: TopicPartition) -> StreamKey {
    let mut key = [0; StreamKey::BYTES];
    let (topic, partition) = key.split_at_mut(16);
    topic.copy_from_slice(&id.topic.bytes());
    partition.copy_from_slice(&id.partition.get().to_be_bytes());
    StreamKey::new(key)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
