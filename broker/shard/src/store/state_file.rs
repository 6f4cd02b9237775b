//! The redb file: opening, reading a pinned version, committing a checkpoint's changes.

use std::io;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, TableDefinition};
use tidemill_log::fs::{OpenMode, Storage};

use super::backend::{FileBackend, StillOpen};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

/// The state file can't be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the state store {doing}: {reason}")]
pub struct StoreError {
    doing: &'static str,
    reason: String,
    disk_full: bool,
    damage: bool,
}

impl StoreError {
    pub(crate) fn new(doing: &'static str, error: impl Into<redb::Error>) -> Self {
        let error = error.into();
        let disk_full = matches!(&error, redb::Error::Io(error) if tidemill_log::fs::is_disk_full(error));
        Self { doing, reason: error.to_string(), disk_full, damage: is_damage(&error) }
    }

    pub(crate) fn no_table() -> Self {
        let reason = "its table is missing".to_owned();
        Self { doing: "can't be read", reason, disk_full: false, damage: true }
    }

    /// Whether the disk, or the broker's share of it, is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.disk_full
    }

    /// Whether what the file holds is not what was written. Otherwise the storage refused, and it may be whole.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        self.damage
    }
}

/// A file in the format of another redb is none that is damaged.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) => true,
        // Of a file that is none of redb's, or that ends before what it says that it holds.
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// A version of the rows that does not change any more; the file keeps its pages as long as it is held.
#[derive(Clone)]
pub(crate) struct BaseRows(Arc<ReadOnlyTable<&'static [u8], &'static [u8]>>);

/// Rows in order, as shared as redb hands them out.
pub(crate) type BaseRange = redb::Range<'static, &'static [u8], &'static [u8]>;

impl BaseRows {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.0.get(key).map_err(|error| StoreError::new("can't be read", error))?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
    }

    pub(crate) fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<BaseRange, StoreError> {
        self.0.range::<&[u8]>((start, end)).map_err(|error| StoreError::new("can't be read", error))
    }
}

/// Takes a key and its value, `None` to delete.
pub(crate) type Put<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), StoreError> + 'a;

/// The open state file.
pub(crate) struct StateFile {
    database: Database,
    still_open: StillOpen,
}

impl StateFile {
    /// Opens the file. Where there is none, one with what `first` puts is made under another name and moved into its place when it is
    /// durable: redb gives a new file its length before its first page, so one that a loss of power cut short looks like a damaged one, and
    /// to take a damaged one for new would lose all that it held.
    pub(crate) fn open_whole(
        storage: &dyn Storage,
        path: &Path,
        cache_bytes: usize,
        first: impl FnOnce(&mut Put<'_>) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let making = |error| StoreError::new("can't be made", error_io(error));
        match storage.open(path, OpenMode::READ) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let unfinished = path.with_extension("new");
                match storage.remove(&unfinished) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(making(error)),
                    _ => {}
                }
                Self::open(storage, &unfinished, cache_bytes)?.commit(first)?;
                storage.rename(&unfinished, path).map_err(making)?;
                storage.sync_dir(path.parent().unwrap_or(Path::new(""))).map_err(making)?;
            }
            Err(error) => return Err(making(error)),
        }
        Self::open(storage, path, cache_bytes)
    }

    /// Opens or creates the file, whose first commit comes from the caller.
    pub(crate) fn open(storage: &dyn Storage, path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let opening = "can't be opened";
        let file = storage
            .open(path, OpenMode::CREATE)
            .map_err(|error| StoreError::new(opening, error_io(error)))?;
        let (backend, still_open) = FileBackend::new(file);
        let create = || Builder::new().set_cache_size(cache_bytes).create_with_backend(backend);
        // On a file that was altered behind its back redb may panic where it should fail.
        let created = std::panic::catch_unwind(AssertUnwindSafe(create)).map_err(|_| StoreError {
            doing: opening,
            reason: "it is damaged".to_owned(),
            disk_full: false,
            damage: true,
        })?;
        Ok(Self { database: created.map_err(|error| StoreError::new(opening, error))?, still_open })
    }

    pub(crate) fn still_open(&self) -> StillOpen {
        self.still_open.clone()
    }

    /// The newest version; `None` before the first commit.
    pub(crate) fn rows(&self) -> Result<Option<BaseRows>, StoreError> {
        let reading = "can't be read";
        let transaction = self.database.begin_read().map_err(|error| StoreError::new(reading, error))?;
        match transaction.open_table(ROWS) {
            Ok(table) => Ok(Some(BaseRows(Arc::new(table)))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(StoreError::new(reading, error)),
        }
    }

    /// Makes changes durable, all of them or none.
    pub(crate) fn commit(
        &self,
        changes: impl FnOnce(&mut Put<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let writing = "can't be written";
        let mut transaction = self.database.begin_write().map_err(|error| StoreError::new(writing, error))?;
        // Without it, opening after a crash walks the whole file; and it makes the commit valid without its checksums.
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS).map_err(|error| StoreError::new(writing, error))?;
            changes(&mut |key, value| {
                let changed = match value {
                    Some(value) => table.insert(key, value).map(drop),
                    None => table.remove(key).map(drop),
                };
                changed.map_err(|error| StoreError::new(writing, error))
            })?;
        }
        transaction.commit().map_err(|error| StoreError::new(writing, error))
    }
}

fn error_io(error: io::Error) -> redb::StorageError {
    redb::StorageError::Io(error)
}
