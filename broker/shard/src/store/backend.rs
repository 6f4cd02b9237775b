//! redb's storage over the file-system seam, so that the tests that own the disk own this file too.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use redb::StorageBackend;
use tidemill_log::fs::StorageFile;

/// One file as redb wants it. The data directory's lock keeps other processes away from it, [`StillOpen`] this one: redb's own locks are not
/// needed.
pub(super) struct FileBackend {
    file: Arc<dyn StorageFile>,
    /// Lives as long as redb writes to the file, which may be longer than its `Database`.
    _open: Arc<()>,
}

impl FileBackend {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> (Self, StillOpen) {
        let open = Arc::new(());
        let still_open = StillOpen(Arc::downgrade(&open));
        (Self { file, _open: open }, still_open)
    }
}

/// Whether a state file that was opened is open still. Two handles would each change it as if it were alone.
#[derive(Debug, Clone)]
pub struct StillOpen(Weak<()>);

impl StillOpen {
    /// Whether anybody may still write to the file by that handle.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").finish_non_exhaustive()
    }
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(offset, data)
    }
}
