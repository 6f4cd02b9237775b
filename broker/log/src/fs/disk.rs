//! The real file system.

#![allow(clippy::disallowed_methods, reason = "this is the seam itself")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};

use super::{Create, DirEntry, LockGuard, OpenMode, Space, Storage, StorageFile, check_path};

/// Zeros are written in pieces of this size where a file system can't allocate.
const ZERO_FILL_BYTES: usize = 1 << 20;
/// The kernel takes at most this many slices in one call (`IOV_MAX`).
const SLICES_PER_CALL_MAX: usize = 1024;

/// A directory of the real file system.
#[derive(Debug, Clone)]
pub struct DiskStorage {
    root: PathBuf,
    /// Open for good: a failed write-back is told to those who had the file system open when it failed, and once to all others together.
    directory: Arc<File>,
}

impl DiskStorage {
    /// Opens `root`, which is created (and its entry synced) if it is absent.
    ///
    /// # Errors
    /// Whatever creating the directory says.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root: PathBuf = root.into();
        if !root.is_dir() {
            std::fs::create_dir_all(&root)?;
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let directory = Arc::new(File::open(&root)?);
        Ok(Self { root, directory })
    }

    /// The directory that all paths are relative to.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(self.root.join(path))
    }
}

impl Storage for DiskStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode.write);
        match mode.create {
            Create::Never => {}
            Create::IfMissing => {
                options.create(true);
            }
            Create::New => {
                options.create_new(true);
            }
        }
        if mode.direct {
            options.custom_flags(OFlags::DIRECT.bits().cast_signed());
        }
        let file = options.open(self.resolve(path)?)?;
        Ok(Arc::new(DiskFile { file, direct: mode.direct }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(self.resolve(path)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.resolve(path)?)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let is_dir = metadata.is_dir();
            let len = if is_dir { 0 } else { metadata.len() };
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir, len });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(self.resolve(path)?)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(self.resolve(path)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.resolve(from)?, self.resolve(to)?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.resolve(path)?)?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&*self.directory)?)
    }

    fn free_space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let path = self.resolve(path)?;
        // Before the file, which is left as it is where the directory is another's: it says whose.
        let directory = try_lock_directory(path.parent().unwrap_or(&self.root))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(DiskLock { file, _directory: directory }))
    }
}

/// Locks a directory: unlike a file in it, it can't be replaced without what it holds. `None` where the file system or the
/// platform locks no directories: some want the file open for writing, as no directory ever is.
fn try_lock_directory(path: &Path) -> io::Result<Option<File>> {
    use rustix::io::Errno;
    let directory = File::open(path)?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::BADF | Errno::INVAL | Errno::ISDIR | Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Two `flock`s: the kernel drops them with the files, so a killed process leaves none behind.
struct DiskLock {
    file: File,
    /// Held for as long; `None` where directories can't be locked.
    _directory: Option<File>,
}

impl LockGuard for DiskLock {
    fn describe(&self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

struct DiskFile {
    file: File,
    direct: bool,
}

impl DiskFile {
    fn fill_with_zeros(&self, bytes: u64) -> io::Result<()> {
        let zeros = super::AlignedBuffer::zeroed(ZERO_FILL_BYTES);
        let mut at = self.size()?;
        while at < bytes {
            let count = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_all_at(zeros.get(..count).unwrap_or_default(), at)?;
            at += count as u64;
        }
        Ok(())
    }
}

impl StorageFile for DiskFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = slices;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let call = rest.get(..rest.len().min(SLICES_PER_CALL_MAX)).unwrap_or_default();
            let count = match rustix::io::pwritev(&self.file, call, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            at = at.saturating_add(count as u64);
            IoSlice::advance_slices(&mut rest, count);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.fill_with_zeros(bytes),
            other => Ok(other?),
        }
    }

    fn advise_dont_need(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let bytes = std::num::NonZeroU64::new(bytes);
        Ok(rustix::fs::fadvise(&self.file, offset, bytes, Advice::DontNeed)?)
    }

    fn start_writeback(&self, offset: u64, bytes: u64) -> io::Result<()> {
        // What `fadvise(DONTNEED)` does on the way as well, but that goes on to drop clean pages, and where it can't (those that
        // are being written) makes every processor empty its lists first.
        let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        #[allow(unsafe_code, reason = "no safe crate has this call")]
        // SAFETY: takes numbers and a descriptor that `self` keeps open; touches none of our memory.
        let begun = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
        };
        match io::Error::last_os_error() {
            _ if begun == 0 => Ok(()),
            // A sandbox that does not know the call, or a file system that has nothing to begin.
            error if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                self.advise_dont_need(offset.unsigned_abs(), bytes.unsigned_abs())
            }
            error => Err(error),
        }
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}
