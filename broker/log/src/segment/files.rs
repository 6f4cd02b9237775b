//! The open files of all partitions of a broker: a bounded pool of handles, and a bound on the page cache.
//!
//! A thousand partitions are two thousand files and more; handles are opened on use and the longest unused is
//! closed when there are too many. A handle that has written what is not synced is synced before it is closed:
//! the kernel reports a failed write-back to handles that are open, and may forget it once there is none.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidemill_protocol::Offset;
use tracing::{error, warn};

use super::buffers::{Buffer, BufferPool};
use super::header::FileKind;
use super::page_cache::PageCache;
use crate::fs::{OpenMode, Storage, StorageFile};

/// Handles closed at most by one caller that opened one.
const CLOSE_MAX: usize = 8;

/// Bounds shared by all partitions.
#[derive(Debug, Clone, Copy)]
pub struct SegmentFilesConfig {
    /// Handles kept open; those in use at the moment may exceed it.
    pub open_files_max: usize,
    /// Written bytes left in the page cache for readers before the oldest are given back; `None` leaves it to the
    /// kernel.
    pub page_cache_bytes: Option<u64>,
    /// Buffers of finished reads that wait for the next ones, in bytes.
    pub idle_buffers_bytes: usize,
}

impl Default for SegmentFilesConfig {
    fn default() -> Self {
        Self { open_files_max: 4096, page_cache_bytes: Some(4 << 30), idle_buffers_bytes: 16 << 20 }
    }
}

/// The files of all partitions on one storage. One per broker.
pub struct SegmentFiles {
    storage: Arc<dyn Storage>,
    config: SegmentFilesConfig,
    pool: Mutex<Pool>,
    page_cache: Mutex<PageCache>,
    buffers: Arc<BufferPool>,
    next_id: AtomicU64,
    /// Whether a sync of everything failed. Serialises these, as a file's are.
    all_failed: Mutex<bool>,
}

#[derive(Default)]
struct Pool {
    slots: HashMap<u64, Slot>,
    /// Slots by last use.
    order: BTreeMap<u64, u64>,
    tick: u64,
}

struct Slot {
    handle: Arc<dyn StorageFile>,
    owner: Arc<PooledFile>,
    used: u64,
}

/// One file, open or not.
pub(super) struct PooledFile {
    id: u64,
    dir: Arc<Path>,
    kind: FileKind,
    base_offset: Offset,
    /// Holds writes that no sync has covered yet.
    dirty: AtomicBool,
    /// A sync failed: what the file holds is unknown from then on, whatever a later sync says.
    failed: AtomicBool,
    /// How often another file was put under its name: a handle that was opened before is of the old one.
    replaced: AtomicU64,
    /// Serialises syncs, so that nobody takes the good answer that follows somebody else's failure.
    syncing: Mutex<()>,
}

impl PooledFile {
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(self.kind.file_name(self.base_offset))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// To be called after a write, while its handle is held.
    pub(super) fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    fn sync_handle(&self, handle: &dyn StorageFile) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock();
        if self.has_failed() {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        self.dirty.store(false, Ordering::Release);
        handle.sync_data().inspect_err(|source| {
            // Said here, where it happens: whoever finds the file given up later does not know why.
            error!(file = %self.path().display(), %source, "syncing a segment file failed");
            self.failed.store(true, Ordering::Release);
        })
    }
}

impl SegmentFiles {
    /// The files under `storage`'s root.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, config: SegmentFilesConfig) -> Arc<Self> {
        Arc::new(Self {
            storage,
            config,
            pool: Mutex::default(),
            page_cache: Mutex::default(),
            buffers: BufferPool::new(config.idle_buffers_bytes),
            next_id: AtomicU64::new(0),
            all_failed: Mutex::new(false),
        })
    }

    /// Makes all files durable at once.
    ///
    /// # Errors
    /// What the file system says, and from then on always: whoever asks next does not hear which writes were lost.
    pub fn sync_all(&self) -> io::Result<()> {
        let mut failed = self.all_failed.lock();
        if *failed {
            return Err(io::Error::other("an earlier sync of the file system failed; restart the broker"));
        }
        self.storage.sync_all().inspect_err(|source| {
            error!(%source, "syncing the file system failed");
            *failed = true;
        })
    }

    /// The storage the files are on.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Number of handles open now.
    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.pool.lock().slots.len()
    }

    /// A buffer of `length` bytes to read into.
    pub(super) fn buffer(&self, length: usize) -> Buffer {
        self.buffers.take(length)
    }

    pub(super) fn file(&self, dir: &Arc<Path>, kind: FileKind, base_offset: Offset) -> Arc<PooledFile> {
        Arc::new(PooledFile {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            dir: Arc::clone(dir),
            kind,
            base_offset,
            dirty: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            replaced: AtomicU64::new(0),
            syncing: Mutex::new(()),
        })
    }

    /// A handle for `file`, from the pool or opened now; `create` makes the file where there is none.
    pub(super) fn handle(&self, file: &Arc<PooledFile>, create: bool) -> io::Result<Arc<dyn StorageFile>> {
        if let Some(handle) = self.pool.lock().touch(file.id) {
            return Ok(handle);
        }
        let mode = if create { OpenMode::CREATE } else { OpenMode::WRITE };
        let handle = loop {
            let replaced = file.replaced.load(Ordering::Acquire);
            let opened = self.storage.open(&file.path(), mode)?;
            let mut pool = self.pool.lock();
            // Somebody may have opened it meanwhile; all use one handle.
            if let Some(raced) = pool.touch(file.id) {
                break raced;
            }
            // Nor is the handle of a file that no longer stands under the name kept.
            if file.replaced.load(Ordering::Acquire) == replaced {
                break pool.insert(Arc::clone(file), opened);
            }
        };
        self.shrink();
        Ok(handle)
    }

    /// Puts the file `from` in the place of `file`. Who holds a handle goes on with the old one; later ones are of the new.
    pub(super) fn replace(&self, from: &Path, file: &PooledFile) -> io::Result<()> {
        self.storage.rename(from, &file.path())?;
        let mut pool = self.pool.lock();
        file.replaced.fetch_add(1, Ordering::AcqRel);
        pool.remove(file.id);
        Ok(())
    }

    /// Makes what was written to `file` durable. After a failure every later call fails too.
    pub(super) fn sync(&self, file: &Arc<PooledFile>) -> io::Result<()> {
        let handle = self.handle(file, false)?;
        file.sync_handle(&*handle)
    }

    /// Starts writing `range` of `file` back, and lets the oldest such ranges leave the page cache.
    pub(super) fn start_writeback(&self, file: &Arc<PooledFile>, range: Range<u64>) -> io::Result<()> {
        let handle = self.handle(file, false)?;
        // A sync under way writes everything back and must see the errors itself.
        if let Some(_alone) = file.syncing.try_lock() {
            let bytes = range.end.saturating_sub(range.start);
            handle
                .start_writeback(range.start, bytes)
                .inspect_err(|_| file.failed.store(true, Ordering::Release))?;
        }
        let Some(budget) = self.config.page_cache_bytes else { return Ok(()) };
        let expired = self.page_cache.lock().note(Arc::clone(file), range, budget);
        for (old, range) in expired {
            // Advice alone: a file that is gone or can't be opened has nothing to give back.
            if let Ok(handle) = self.handle(&old, false) {
                let _ = handle.advise_dont_need(range.start, range.end.saturating_sub(range.start));
            }
        }
        Ok(())
    }

    /// Closes the handle of `file` and removes the file; a file that is not there is as good as removed.
    pub(super) fn remove(&self, file: &PooledFile) -> io::Result<()> {
        self.pool.lock().remove(file.id);
        self.page_cache.lock().forget(file);
        match self.storage.remove(&file.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Closes the handle of `file`, so that the next use opens it anew.
    pub(super) fn close(&self, file: &PooledFile) {
        self.pool.lock().remove(file.id);
    }

    /// Closes the longest unused handles that nobody holds until the pool is within its bound.
    fn shrink(&self) {
        for _ in 0..CLOSE_MAX {
            let victim = self.pool.lock().victim(self.config.open_files_max);
            let Some((owner, handle)) = victim else { return };
            // The slot stays until the sync is done: whoever wants the file meanwhile finds this handle.
            if owner.dirty.load(Ordering::Acquire) && owner.sync_handle(&*handle).is_err() {
                warn!(file = %owner.path().display(), "sync failed while closing an idle file");
            }
            self.pool.lock().remove_if_idle(&owner, &handle);
        }
    }
}

impl Pool {
    fn touch(&mut self, id: u64) -> Option<Arc<dyn StorageFile>> {
        self.tick += 1;
        let slot = self.slots.get_mut(&id)?;
        self.order.remove(&slot.used);
        slot.used = self.tick;
        self.order.insert(self.tick, id);
        Some(Arc::clone(&slot.handle))
    }

    fn insert(&mut self, owner: Arc<PooledFile>, handle: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        self.tick += 1;
        self.order.insert(self.tick, owner.id);
        self.slots.insert(owner.id, Slot { handle: Arc::clone(&handle), owner, used: self.tick });
        handle
    }

    fn remove(&mut self, id: u64) {
        if let Some(slot) = self.slots.remove(&id) {
            self.order.remove(&slot.used);
        }
    }

    /// The longest unused slot that nobody holds, where there are more than `open_files_max`. It is moved to the
    /// back of the order, so that a slot that turns out to be wanted is not asked for at once again.
    fn victim(&mut self, open_files_max: usize) -> Option<(Arc<PooledFile>, Arc<dyn StorageFile>)> {
        if self.slots.len() <= open_files_max {
            return None;
        }
        let idle = |id: &u64| self.slots.get(id).is_some_and(|slot| Arc::strong_count(&slot.handle) == 1);
        let id = *self.order.values().find(|id| idle(id))?;
        let handle = self.touch(id)?;
        Some((Arc::clone(&self.slots.get(&id)?.owner), handle))
    }

    /// Removes the slot unless somebody else holds or has written through its handle.
    fn remove_if_idle(&mut self, owner: &PooledFile, handle: &Arc<dyn StorageFile>) {
        // The slot's own and the caller's.
        let idle = Arc::strong_count(handle) == 2;
        let lost = owner.has_failed();
        if idle && (lost || !owner.dirty.load(Ordering::Acquire)) {
            self.remove(owner.id);
        }
    }
}
