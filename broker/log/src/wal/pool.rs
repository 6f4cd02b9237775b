//! Segment files ready for their next life.
//!
//! A helper thread keeps one or two files ahead of the writer: recycled ones, whose old header it erases durably
//! before anything new may stand behind it, or new ones, written full of zeros once, because fdatasync on a file
//! whose blocks and length are settled costs a fraction of one that grows. Where the writer is faster all the same,
//! it erases a recycled file itself, and where there is none takes a merely allocated one rather than wait.
//!
//! Zeros are written slowly while the writer does not run out of files: other writes share the disk, those of other brokers among them,
//! and each of their syncs waits for what the disk was given before.
//!
//! So a file is made only where none is left of those that were recycled: beside the segments in use there are at most
//! those that the helper keeps ready and one that it has in hand, unless there were more segments in use before.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::block::BLOCK_BYTES;
use super::config::WalConfig;
use super::recovery::SEGMENT_EXTENSION;
use super::scan::SegmentFile;
use crate::background::{Step, Worker};
use crate::fs::{AlignedBuffer, OpenMode, Storage};

/// Files that the helper keeps ready.
pub(super) const READY_MIN: usize = 2;
/// Zeros written at once when a file is made.
const PREWRITE_BYTES: usize = 256 << 10;
/// Between two such writes of a helper that is in no hurry: 32 MiB/s at most.
const PREWRITE_PAUSE: Duration = Duration::from_millis(8);

/// The pool, shared by the writer and the helper thread.
pub(super) struct Pool {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    blocks: u32,
    direct: bool,
    ready_max: usize,
    prepare_free_min_bytes: u64,
    /// Of all files of the log: those in use, those that are ready, and those on the way from one to the other.
    files_bytes: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// The helper: keeps files ready until the pool is closed.
pub(super) struct Preparer(Arc<Pool>);

impl Preparer {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self(pool)
    }
}

impl Worker for Preparer {
    fn run(&mut self) {
        while self.0.work(self.0.next_job(None), Blocks::WrittenSlowly) != Step::Ended {}
    }

    fn step(&mut self, waker: &Waker) -> Step {
        self.0.work(self.0.next_job(Some(waker)), Blocks::Written)
    }
}

struct Inner {
    ready: VecDeque<SegmentFile>,
    to_erase: VecDeque<SegmentFile>,
    next_name: u64,
    /// The writer has taken a file.
    in_use: bool,
    /// It has found none that was ready since there last were enough.
    in_hurry: bool,
    /// Set after a failure or for want of room, until something changes: the helper does not hammer a full disk.
    paused: bool,
    closing: bool,
    /// Of a helper that waits without blocking.
    waker: Option<Waker>,
}

impl Pool {
    /// A pool over the files that recovery found free, beside others of `used_bytes`. The directory must exist.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        config: &WalConfig,
        direct: bool,
        free: Vec<SegmentFile>,
        used_bytes: u64,
    ) -> io::Result<Arc<Self>> {
        let names = storage.list(&config.dir)?;
        let numbers = names.iter().filter_map(|entry| entry.name.split('.').next()?.parse::<u64>().ok());
        let spare = config.spare_bytes_max / config.segment_bytes;
        Ok(Arc::new(Self {
            storage,
            dir: config.dir.clone(),
            blocks: u32::try_from(config.segment_bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX),
            direct,
            ready_max: usize::try_from(spare).unwrap_or(usize::MAX).max(READY_MIN),
            prepare_free_min_bytes: config.prepare_free_min_bytes,
            files_bytes: AtomicU64::new(used_bytes + free.iter().map(SegmentFile::bytes).sum::<u64>()),
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                to_erase: free.into(),
                next_name: numbers.max().map_or(1, |newest| newest + 1),
                in_use: false,
                in_hurry: false,
                paused: false,
                closing: false,
                waker: None,
            }),
            changed: Condvar::new(),
        }))
    }

    /// A file for a new segment: one that is ready, else one made on the spot.
    pub(super) fn take(&self) -> io::Result<SegmentFile> {
        // It is wanted before any can be ready.
        let is_first = !std::mem::replace(&mut self.inner.lock().in_use, true);
        loop {
            let file = {
                let mut inner = self.inner.lock();
                inner.paused = false;
                self.wake_helper(&mut inner);
                if let Some(ready) = inner.ready.pop_front() {
                    return Ok(ready);
                }
                inner.in_hurry |= !is_first;
                inner.to_erase.pop_front()
            };
            match file {
                Some(file) if file.blocks == self.blocks => {
                    erase_header(&file)?;
                    return Ok(file);
                }
                Some(other) => self.remove(&other)?,
                None => return self.create(Blocks::Allocated),
            }
        }
    }

    /// Bytes of all files of the log.
    pub(super) fn files_bytes(&self) -> u64 {
        self.files_bytes.load(Ordering::Relaxed)
    }

    /// Files whose life is over, durably so.
    pub(super) fn give_back(&self, files: impl IntoIterator<Item = SegmentFile>) {
        let mut inner = self.inner.lock();
        inner.to_erase.extend(files);
        inner.paused = false;
        self.wake_helper(&mut inner);
    }

    /// Ends the helper's work.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closing = true;
        self.wake_helper(&mut inner);
    }

    fn wake_helper(&self, inner: &mut Inner) {
        self.changed.notify_one();
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// What the helper does next. Without a waker it blocks until there is something.
    fn next_job(&self, waker: Option<&Waker>) -> Job {
        let mut inner = self.inner.lock();
        loop {
            if inner.closing {
                return Job::End;
            }
            if !inner.paused {
                if let Some(file) = inner.to_erase.pop_front() {
                    return Job::Erase(file);
                }
                if inner.ready.len() < READY_MIN {
                    return Job::Create;
                }
            }
            if let Some(waker) = waker {
                inner.waker = Some(waker.clone());
                return Job::Wait;
            }
            self.changed.wait(&mut inner);
        }
    }

    fn work(&self, job: Job, blocks: Blocks) -> Step {
        let done = match job {
            Job::Erase(file) => self.erase(file),
            Job::Create => self.prepare(blocks),
            Job::Wait => return Step::Idle { until: None },
            Job::End => return Step::Ended,
        };
        if let Err(error) = done {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot prepare a segment of the write-ahead log");
            self.inner.lock().paused = true;
        }
        Step::Worked
    }

    /// Makes sure that a file's old life can't come back, and keeps it if it is wanted.
    fn erase(&self, file: SegmentFile) -> io::Result<()> {
        let wanted = file.blocks == self.blocks && self.inner.lock().ready.len() < self.ready_max;
        if wanted {
            erase_header(&file)?;
            self.inner.lock().ready.push_back(file);
            return Ok(());
        }
        self.remove(&file)
    }

    fn remove(&self, file: &SegmentFile) -> io::Result<()> {
        self.storage.remove(&file.path)?;
        self.files_bytes.fetch_sub(file.bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes a file ahead of time, unless the disk is short of room.
    fn prepare(&self, blocks: Blocks) -> io::Result<()> {
        if self.storage.free_space()?.free < self.prepare_free_min_bytes {
            self.inner.lock().paused = true;
            return Ok(());
        }
        let file = self.create(blocks)?;
        let mut inner = self.inner.lock();
        inner.ready.push_back(file);
        inner.in_hurry &= inner.ready.len() < READY_MIN;
        Ok(())
    }

    fn create(&self, blocks: Blocks) -> io::Result<SegmentFile> {
        let number = {
            let mut inner = self.inner.lock();
            inner.next_name += 1;
            inner.next_name - 1
        };
        let path = self.dir.join(format!("{number:010}.{SEGMENT_EXTENSION}"));
        let bytes = u64::from(self.blocks) * BLOCK_BYTES as u64;
        // Before the first byte, so that whoever plans with the disk's room counts it in time.
        self.files_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.create_at(&path, blocks).inspect_err(|_| {
            // What is half made only takes room.
            drop(self.storage.remove(&path));
            self.files_bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    fn create_at(&self, path: &Path, blocks: Blocks) -> io::Result<SegmentFile> {
        let bytes = u64::from(self.blocks) * BLOCK_BYTES as u64;
        let file = self.storage.open(path, OpenMode::CREATE_NEW.with_direct(self.direct))?;
        if blocks == Blocks::Allocated {
            file.allocate(bytes)?;
        } else {
            let zeros = AlignedBuffer::zeroed(PREWRITE_BYTES);
            let mut at = 0;
            while at < bytes {
                self.pause(blocks)?;
                let count = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
                file.write_all_at(at, zeros.get(..count).unwrap_or_default())?;
                at += count as u64;
            }
        }
        file.sync_data()?;
        self.storage.sync_dir(&self.dir)?;
        Ok(SegmentFile { path: path.to_owned(), file, blocks: self.blocks })
    }

    /// Before each write of zeros.
    fn pause(&self, blocks: Blocks) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if blocks == Blocks::WrittenSlowly && !inner.in_hurry && !inner.closing {
            self.changed.wait_for(&mut inner, PREWRITE_PAUSE);
        }
        if inner.closing { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

/// How a new file gets its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// At once; each sync has to settle what was written of them.
    Allocated,
    Written,
    /// As long as nobody waits for it.
    WrittenSlowly,
}

/// Durably, so that nothing of the old life is taken for new after a crash.
fn erase_header(file: &SegmentFile) -> io::Result<()> {
    file.file.write_all_at(0, &AlignedBuffer::zeroed(BLOCK_BYTES))?;
    file.file.sync_data()
}

enum Job {
    Erase(SegmentFile),
    Create,
    Wait,
    End,
}
