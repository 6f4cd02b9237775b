//! Making what was appended durable: what a checkpoint does before it commits the ends.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tracing::{error, info, warn};

use super::SegmentStore;
use super::ends::PartitionEnds;
use super::read::ReadError;
use super::rebuild::rebuild_index;
use super::single::Segment;
use super::store::Writer;

/// Why nothing can be recorded about a partition. The store takes no more writes after `Sync` and `Failed`.
#[derive(Debug, Error)]
pub enum SyncError {
    /// Writing the index failed, before anything was synced. It can be tried again.
    #[error("writing segment index {}: {source}", file.display())]
    Write {
        /// The file, relative to the storage's root.
        file: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
    /// The storage could not make a file or directory durable: what is on the disk is unknown from now on.
    #[error("syncing {}: {source}; restart to recover from the last checkpoint", path.display())]
    Sync {
        /// What was to be synced, relative to the storage's root.
        path: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
    /// An earlier sync or write-back failed.
    #[error("{} was given up because a sync failed: restart to recover from the last checkpoint", dir.display())]
    Failed {
        /// The partition's directory.
        dir: PathBuf,
    },
}

/// Everything appended so far is with the operating system, and the ends that may be recorded once it is durable.
///
/// Finished by [`Flush::sync`], or by [`Flush::synced`] after a sync of the whole file system that began after this
/// was made. If it is dropped, what it covers is covered by the next one.
#[must_use = "nothing is durable yet"]
pub struct Flush<'a> {
    store: &'a SegmentStore,
    ends: PartitionEnds,
    dirty: Vec<Arc<Segment>>,
    created_files: bool,
    created_dir: bool,
}

impl SegmentStore {
    /// Makes all that was appended durable, and returns what to record about it. Appends may go on meanwhile; they
    /// are not in what is returned.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub fn sync(&self) -> Result<PartitionEnds, SyncError> {
        self.flush()?.sync()
    }

    /// Whether anything was appended that no sync covers.
    #[cfg(test)]
    pub(super) fn is_dirty(&self) -> bool {
        !self.writer.lock().dirty.is_empty()
    }

    /// Hands everything to the operating system, for a caller that syncs many partitions at once.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub fn flush(&self) -> Result<Flush<'_>, SyncError> {
        let mut writer = self.writer.lock();
        writer.failed |= writer.dirty.iter().any(|segment| segment.has_failed());
        if writer.failed {
            return Err(SyncError::Failed { dir: self.dir().to_path_buf() });
        }
        self.repair_indexes(&mut writer);
        let Writer { dirty, created_files, .. } = &mut *writer;
        for segment in dirty {
            let written = segment.write_pending(self.files(), self.key());
            *created_files |=
                written.map_err(|source| SyncError::Write { file: segment.index.path(), source })?;
        }
        Ok(Flush {
            store: self,
            ends: self.written_ends(),
            dirty: std::mem::take(&mut writer.dirty),
            created_files: std::mem::take(&mut writer.created_files),
            created_dir: std::mem::take(&mut writer.created_dir),
        })
    }

    /// Rebuilds indexes that misled a reader.
    fn repair_indexes(&self, writer: &mut Writer) {
        for segment in self.view().iter().filter(|segment| segment.index_is_suspect()) {
            let interval_bytes = self.config().index_interval_bytes;
            match rebuild_index(self.files(), self.key(), segment, interval_bytes) {
                Ok(()) => {
                    info!(file = %segment.index.path().display(), "rebuilt a damaged index");
                    writer.created_files = true;
                    if !writer.dirty.iter().any(|dirty| Arc::ptr_eq(dirty, segment)) {
                        writer.dirty.push(Arc::clone(segment));
                    }
                }
                Err(ReadError::Damaged(damage)) => {
                    error!(%damage, "a damaged segment was found");
                    segment.confirm_index();
                }
                Err(error) => warn!(%error, "an index could not be rebuilt, the next sync tries again"),
            }
        }
    }
}

impl Flush<'_> {
    /// What may be recorded once this is synced.
    #[must_use]
    pub fn ends(&self) -> &PartitionEnds {
        &self.ends
    }

    /// Syncs the files and directories that changed, one by one.
    ///
    /// # Errors
    /// `Sync`; the store takes no more writes then.
    pub fn sync(self) -> Result<PartitionEnds, SyncError> {
        match self.sync_files() {
            Ok(()) => Ok(self.synced()),
            Err(error) => {
                self.failed();
                Err(error)
            }
        }
    }

    /// Everything was made durable by other means.
    #[must_use]
    pub fn synced(mut self) -> PartitionEnds {
        self.dirty.clear();
        (self.created_files, self.created_dir) = (false, false);
        let ends = std::mem::take(&mut self.ends);
        self.store.writer.lock().durable.clone_from(&ends);
        ends
    }

    /// The caller's sync failed: the store takes no more writes.
    pub fn failed(self) {
        self.store.writer.lock().failed = true;
    }

    fn sync_files(&self) -> Result<(), SyncError> {
        let files = self.store.files();
        for segment in &self.dirty {
            // As of the flush: what is appended meanwhile may be due an index file that nobody has written yet.
            let flushed = self.ends.find(segment.base_offset);
            let indexed = flushed.is_some_and(|end| end.index_entries > 0);
            for file in [Some(&segment.log), indexed.then_some(&segment.index)].into_iter().flatten() {
                files.sync(file).map_err(|source| SyncError::Sync { path: file.path(), source })?;
            }
        }
        let dir = Some(self.store.dir()).filter(|_| self.created_files);
        let above = self.store.dir().ancestors().skip(1).filter(|_| self.created_dir);
        for path in dir.into_iter().chain(above) {
            let synced = files.storage().sync_dir(path);
            synced.map_err(|source| SyncError::Sync { path: path.to_path_buf(), source })?;
        }
        Ok(())
    }
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let mut writer = self.store.writer.lock();
        writer.created_files |= self.created_files;
        writer.created_dir |= self.created_dir;
        for segment in self.dirty.drain(..) {
            // One that was dropped meanwhile needs no sync.
            let wanted = self.store.view().iter().any(|other| Arc::ptr_eq(other, &segment));
            if wanted && !writer.dirty.iter().any(|other| Arc::ptr_eq(other, &segment)) {
                writer.dirty.push(segment);
            }
        }
    }
}
