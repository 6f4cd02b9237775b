//! The file-system seam: the only place of the broker that opens log files.
//!
//! Everything that the log does to a disk goes through [`Storage`] and [`StorageFile`], so that a test can own the
//! disk: [`DiskStorage`] is the real one, [`MemoryStorage`] forgets or tears at a crash what was not synced, and
//! [`FaultyStorage`] wraps either and fails, shortens or corrupts chosen calls. [`ReservedStorage`] wraps one too, and
//! gives a reserve up rather than fail for want of room.
//!
//! All calls block; callers run them on threads where that is allowed. All paths are relative to the storage's root
//! and may not leave it.

mod aligned;
mod disk;
mod faulty;
mod lock;
mod memory;
mod reserve;
mod reserved;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub use aligned::AlignedBuffer;
pub use disk::DiskStorage;
pub use faulty::{Call, Effect, FaultyStorage};
pub use lock::{DirectoryLock, LockError};
pub use memory::MemoryStorage;
pub use reserve::DiskReserve;
pub use reserved::ReservedStorage;

/// What direct I/O asks of offsets, lengths and addresses: they must be multiples of this many bytes.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// A directory tree that files live in.
///
/// A file that was created, renamed or removed is sure to be so after a power loss only once [`Storage::sync_dir`]
/// returned for its directory; bytes are sure only after [`StorageFile::sync_data`]. A failed sync says nothing
/// about what is on the device and must never be retried: the caller stops trusting the file.
pub trait Storage: Send + Sync + 'static {
    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound` where it is absent and not to be created; `InvalidInput` where [`OpenMode::direct`] is asked for
    /// and the file system can't.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;
    /// Creates a directory and its parents. The parents' entries are synced by the caller where that matters.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The entries of a directory, sorted by name. `Path::new("")` is the root.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it. An absent one is not an error.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing what stands at `to`. Both must lie in directories that exist.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes everything of this file system durable (`syncfs`).
    fn sync_all(&self) -> io::Result<()>;
    /// How much room the file system has.
    fn free_space(&self) -> io::Result<Space>;
    /// Takes an exclusive lock on a file, which is created if absent, and on the directory that it lies in, where those can
    /// be locked: removing or replacing the file lets nobody else in. Held until the guard is dropped.
    ///
    /// # Errors
    /// `WouldBlock` where another holds one of them.
    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;
}

/// An open file. Positions are given with each call; there is no cursor.
pub trait StorageFile: Send + Sync {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads up to `buffer.len()` bytes; 0 at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes`, growing the file where needed.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all slices one after another from `offset` on, growing the file where needed.
    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes the bytes, and the length needed to read them, durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or grows (with zeros) to `bytes`.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes sure that the first `bytes` have room on the device, growing the file if it is shorter.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Tells the page cache that a range won't be read again soon. `bytes` 0 means to the end. Advice only.
    fn advise_dont_need(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Asks the kernel to begin to write a range's dirty pages without waiting. Advice only.
    fn start_writeback(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Whether reads and writes pass the page cache by, so that [`DIRECT_ALIGNMENT`] binds them.
    fn is_direct(&self) -> bool;

    /// Fills `buffer`.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let count = self.read_at(at, rest)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let filled = rest;
            rest = filled.get_mut(count..).unwrap_or_default();
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }
}

/// Holds a lock until dropped.
pub trait LockGuard: Send + Sync {
    /// What the lock file held when it was taken or, in the error path, who has it: free text.
    fn describe(&self, text: &str) -> io::Result<()>;
}

/// How to open a file. Reading is always allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    /// Allow writing.
    pub write: bool,
    /// What to do where the file is absent or there already.
    pub create: Create,
    /// Pass the page cache by (`O_DIRECT`).
    pub direct: bool,
}

/// Whether opening may create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// The file must be there.
    Never,
    /// Create it if absent.
    IfMissing,
    /// It must not be there.
    New,
}

impl OpenMode {
    /// An existing file, read only.
    pub const READ: Self = Self { write: false, create: Create::Never, direct: false };
    /// An existing file, for reading and writing.
    pub const WRITE: Self = Self { write: true, create: Create::Never, direct: false };
    /// For reading and writing, created if absent.
    pub const CREATE: Self = Self { write: true, create: Create::IfMissing, direct: false };
    /// For reading and writing; an error if it is there.
    pub const CREATE_NEW: Self = Self { write: true, create: Create::New, direct: false };

    /// The same, with direct I/O or without.
    #[must_use]
    pub const fn with_direct(self, direct: bool) -> Self {
        Self { direct, ..self }
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// Its name within the directory.
    pub name: String,
    /// Whether it is a directory itself.
    pub is_dir: bool,
    /// Length in bytes; 0 for a directory.
    pub len: u64,
}

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an unprivileged writer can still use.
    pub free: u64,
    /// Size of the whole.
    pub total: u64,
}

/// Whether an error means that the disk, or the user's share of it, is full.
#[must_use]
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Refuses paths that are not below the root: a bug of the caller, never a way out.
fn check_path(path: &Path) -> io::Result<()> {
    use std::path::Component;
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} leaves the storage's root", path.display()),
        ))
    }
}
