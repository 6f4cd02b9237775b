//! One process per data directory.
//!
//! What is locked is the directory itself and a file in it, which says who holds the lock. The file alone would not do: whoever
//! removes or replaces it (a clean-up, a copy that is restored) leaves the holder with the lock of a file that nobody opens again,
//! and the next process would start beside it. Where directories can't be locked, the file is all there is.

use std::io;
use std::path::{Path, PathBuf};

use super::{LockGuard, OpenMode, Storage};

/// Longest description that is read back from a lock file.
const HOLDER_BYTES_MAX: usize = 200;

/// An exclusive lock on a data directory, held until dropped. A process that dies loses it at once.
pub struct DirectoryLock {
    _guard: Box<dyn LockGuard>,
}

impl DirectoryLock {
    /// Takes the lock of the directory by the file `path` in it, and leaves a line in it that tells the next who holds it.
    ///
    /// # Errors
    /// [`LockError::Held`] where another process has it.
    pub fn acquire(storage: &dyn Storage, path: &Path) -> Result<Self, LockError> {
        match storage.try_lock(path) {
            Ok(guard) => {
                // Only for people: a full disk must not keep the broker from starting.
                drop(guard.describe(&format!("process {}\n", std::process::id())));
                Ok(Self { _guard: guard })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(LockError::Held { path: path.to_owned(), holder: read_holder(storage, path) })
            }
            Err(source) => Err(LockError::Io { path: path.to_owned(), source }),
        }
    }
}

impl std::fmt::Debug for DirectoryLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectoryLock").finish_non_exhaustive()
    }
}

/// Why a data directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process works in it.
    #[error("the data directory is in use by {holder} (lock file {path}); stop it first, or choose another directory",
        path = path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The directory or the lock file can't be opened or locked.
    #[error("cannot lock the data directory by {path}: {source}", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

fn read_holder(storage: &dyn Storage, path: &Path) -> String {
    let mut buffer = [0_u8; HOLDER_BYTES_MAX];
    let count = storage.open(path, OpenMode::READ).and_then(|file| file.read_at(0, &mut buffer)).unwrap_or(0);
    let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).trim().to_owned();
    if text.is_empty() { "another process".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskStorage, MemoryStorage};
    use super::*;

    fn second_open_fails_until_the_first_is_dropped(storage: &dyn Storage) {
        let first = DirectoryLock::acquire(storage, Path::new("LOCK")).unwrap();
        let error = DirectoryLock::acquire(storage, Path::new("LOCK")).unwrap_err();
        assert!(matches!(error, LockError::Held { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DirectoryLock::acquire(storage, Path::new("LOCK")).unwrap();
    }

    fn without_its_file_it_is_held_all_the_same(storage: &dyn Storage) {
        let path = Path::new("LOCK");
        let first = DirectoryLock::acquire(storage, path).unwrap();
        storage.remove(path).unwrap();
        let error = DirectoryLock::acquire(storage, path).unwrap_err();
        assert!(matches!(&error, LockError::Held { holder, .. } if holder == "another process"), "{error}");
        // As one that is restored from a copy.
        storage.open(path, OpenMode::CREATE_NEW).unwrap().write_all_at(0, b"process 7\n").unwrap();
        let error = DirectoryLock::acquire(storage, path).unwrap_err();
        assert!(matches!(&error, LockError::Held { holder, .. } if holder == "process 7"), "{error}");
        drop(first);
        DirectoryLock::acquire(storage, path).unwrap();
    }

    #[test]
    fn on_disk() {
        let dir = tempfile::tempdir().unwrap();
        second_open_fails_until_the_first_is_dropped(&DiskStorage::new(dir.path()).unwrap());
    }

    #[test]
    fn in_memory() {
        second_open_fails_until_the_first_is_dropped(&MemoryStorage::new());
    }

    #[test]
    fn on_disk_without_its_file() {
        let dir = tempfile::tempdir().unwrap();
        without_its_file_it_is_held_all_the_same(&DiskStorage::new(dir.path()).unwrap());
    }

    #[test]
    fn in_memory_without_its_file() {
        without_its_file_it_is_held_all_the_same(&MemoryStorage::new());
    }
}
