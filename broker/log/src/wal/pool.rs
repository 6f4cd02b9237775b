//! Segment files ready for their next life.
//!
//! A helper thread keeps one or two files ahead of the writer: recycled ones, whose old header it erases durably
//! before anything new may stand behind it, or new ones, written full of zeros once, because fdatasync on a file
//! whose blocks and length are settled costs a fraction of one that grows. Where the writer is faster all the same,
//! it takes a merely allocated file rather than wait.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::block::BLOCK_BYTES;
use super::config::WalConfig;
use super::recovery::SEGMENT_EXTENSION;
use super::scan::SegmentFile;
use crate::fs::{AlignedBuffer, OpenMode, Storage};

/// Files that the helper keeps ready.
const READY_MIN: usize = 2;
/// Zeros written at once when a file is made.
const PREWRITE_BYTES: usize = 1 << 20;

/// The pool, shared by the writer and the helper thread.
pub(super) struct Pool {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    blocks: u32,
    direct: bool,
    ready_max: usize,
    prepare_free_min_bytes: u64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    ready: VecDeque<SegmentFile>,
    to_erase: VecDeque<SegmentFile>,
    next_name: u64,
    /// Set after a failure or for want of room, until something changes: the helper does not hammer a full disk.
    paused: bool,
    closing: bool,
}

impl Pool {
    /// A pool over the files that recovery found free. The directory must exist.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        config: &WalConfig,
        direct: bool,
        free: Vec<SegmentFile>,
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
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                to_erase: free.into(),
                next_name: numbers.max().map_or(1, |newest| newest + 1),
                paused: false,
                closing: false,
            }),
            changed: Condvar::new(),
        }))
    }

    /// A file for a new segment: one that is ready, else one made on the spot.
    pub(super) fn take(&self) -> io::Result<SegmentFile> {
        let ready = {
            let mut inner = self.inner.lock();
            inner.paused = false;
            self.changed.notify_one();
            inner.ready.pop_front()
        };
        match ready {
            Some(file) => Ok(file),
            None => self.create(false),
        }
    }

    /// Files whose life is over, durably so.
    pub(super) fn give_back(&self, files: impl IntoIterator<Item = SegmentFile>) {
        let mut inner = self.inner.lock();
        inner.to_erase.extend(files);
        inner.paused = false;
        self.changed.notify_one();
    }

    /// Ends the helper thread's work.
    pub(super) fn close(&self) {
        self.inner.lock().closing = true;
        self.changed.notify_one();
    }

    /// What the helper thread does until the pool is closed.
    pub(super) fn run(&self) {
        while let Some(job) = self.next_job() {
            let done = match job {
                Job::Erase(file) => self.erase(file),
                Job::Create => self.prepare(),
            };
            if let Err(error) = done {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot prepare a segment of the write-ahead log");
                self.inner.lock().paused = true;
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut inner = self.inner.lock();
        loop {
            if inner.closing {
                return None;
            }
            if !inner.paused {
                if let Some(file) = inner.to_erase.pop_front() {
                    return Some(Job::Erase(file));
                }
                if inner.ready.len() < READY_MIN {
                    return Some(Job::Create);
                }
            }
            self.changed.wait(&mut inner);
        }
    }

    /// Makes sure that a file's old life can't come back, and keeps it if it is wanted.
    fn erase(&self, file: SegmentFile) -> io::Result<()> {
        let wanted = file.blocks == self.blocks && self.inner.lock().ready.len() < self.ready_max;
        if wanted {
            file.file.write_all_at(0, &AlignedBuffer::zeroed(BLOCK_BYTES))?;
            file.file.sync_data()?;
            self.inner.lock().ready.push_back(file);
            return Ok(());
        }
        self.storage.remove(&file.path)
    }

    /// Makes a file ahead of time, unless the disk is short of room.
    fn prepare(&self) -> io::Result<()> {
        if self.storage.free_space()?.free < self.prepare_free_min_bytes {
            self.inner.lock().paused = true;
            return Ok(());
        }
        let file = self.create(true)?;
        self.inner.lock().ready.push_back(file);
        Ok(())
    }

    fn create(&self, prewrite: bool) -> io::Result<SegmentFile> {
        let number = {
            let mut inner = self.inner.lock();
            inner.next_name += 1;
            inner.next_name - 1
        };
        let path = self.dir.join(format!("{number:010}.{SEGMENT_EXTENSION}"));
        self.create_at(&path, prewrite).inspect_err(|_| {
            // What is half made only takes room.
            drop(self.storage.remove(&path));
        })
    }

    fn create_at(&self, path: &Path, prewrite: bool) -> io::Result<SegmentFile> {
        let bytes = u64::from(self.blocks) * BLOCK_BYTES as u64;
        let file = self.storage.open(path, OpenMode::CREATE_NEW.with_direct(self.direct))?;
        if prewrite {
            let zeros = AlignedBuffer::zeroed(PREWRITE_BYTES);
            let mut at = 0;
            while at < bytes {
                if self.inner.lock().closing {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let count = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
                file.write_all_at(at, zeros.get(..count).unwrap_or_default())?;
                at += count as u64;
            }
        } else {
            file.allocate(bytes)?;
        }
        file.sync_data()?;
        self.storage.sync_dir(&self.dir)?;
        Ok(SegmentFile { path: path.to_owned(), file, blocks: self.blocks })
    }
}

enum Job {
    Erase(SegmentFile),
    Create,
}
