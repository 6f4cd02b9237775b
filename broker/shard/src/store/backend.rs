//! redb's storage over the file-system seam, so that the tests that own the disk own this file too.

use std::fmt;
use std::io;
use std::sync::Arc;

use redb::StorageBackend;
use tidemill_log::fs::StorageFile;

/// One file as redb wants it. Exclusive by the data directory's lock: redb's own locks are not needed.
pub(super) struct FileBackend(pub(super) Arc<dyn StorageFile>);

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").finish_non_exhaustive()
    }
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, data)
    }
}
