//! Room kept back for the day the disk is full.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{OpenMode, Storage};

/// A file that only takes up room. On a full disk it is let go, so that what frees space (retention, checkpoints)
/// has space to work in; later it is made again. See [`super::ReservedStorage`].
pub struct DiskReserve {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    bytes: u64,
    /// Held while it is taken or given up: several may want either at once.
    changing: Mutex<()>,
}

impl DiskReserve {
    /// Names the reserve; nothing is touched yet.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self { storage, path: path.into(), bytes, changing: Mutex::new(()) }
    }

    /// Size of the reserve when it is held.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the room is held right now.
    ///
    /// # Errors
    /// Whatever opening the file says, its absence apart.
    pub fn is_held(&self) -> io::Result<bool> {
        match self.storage.open(&self.path, OpenMode::READ) {
            Ok(file) => Ok(file.size()? >= self.bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the room if it is not held.
    ///
    /// # Errors
    /// A full disk, among others; nothing is held then.
    pub fn ensure(&self) -> io::Result<()> {
        let _one = self.changing.lock();
        if self.bytes == 0 || self.is_held()? {
            return Ok(());
        }
        let taken = self
            .storage
            .open(&self.path, OpenMode::CREATE)
            .and_then(|file| file.allocate(self.bytes).and_then(|()| file.sync_data()));
        if taken.is_err() {
            // Half a reserve would only make a full disk fuller.
            drop(self.storage.remove(&self.path));
        }
        taken
    }

    /// Lets the room go, and says whether there was any to let go.
    ///
    /// # Errors
    /// Whatever removing the file says, its absence apart.
    pub fn give_up(&self) -> io::Result<bool> {
        let _one = self.changing.lock();
        match self.storage.remove(&self.path) {
            Ok(()) => {
                tracing::warn!(
                    bytes = self.bytes,
                    "the disk reserve is given up, so that retention can free space"
                );
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for DiskReserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskReserve")
            .field("path", &self.path)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskStorage, MemoryStorage, is_disk_full};
    use super::*;

    #[test]
    fn is_taken_let_go_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(DiskStorage::new(dir.path()).unwrap());
        let reserve = DiskReserve::new(storage, "reserve", 100_000);
        assert!(!reserve.is_held().unwrap());
        for _ in 0..2 {
            reserve.ensure().unwrap();
            assert!(reserve.is_held().unwrap());
            assert!(reserve.give_up().unwrap());
            assert!(!reserve.is_held().unwrap());
        }
        assert!(!reserve.give_up().unwrap());
    }

    #[test]
    fn lets_a_full_disk_write_again() {
        let storage = MemoryStorage::with_capacity(100_000);
        let reserve = DiskReserve::new(Arc::new(storage.clone()), "reserve", 50_000);
        reserve.ensure().unwrap();
        let file = storage.open("data".as_ref(), OpenMode::CREATE).unwrap();
        file.write_all_at(0, &[1; 50_000]).unwrap();
        assert!(is_disk_full(&file.write_all_at(50_000, &[1]).unwrap_err()));
        reserve.give_up().unwrap();
        file.write_all_at(50_000, &[1]).unwrap();
        assert!(is_disk_full(&reserve.ensure().unwrap_err()));
        assert!(!reserve.is_held().unwrap());
    }
}
