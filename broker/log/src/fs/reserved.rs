//! A storage whose last room is the reserve.
//!
//! A watch over the free space looks now and then; a disk fills up in between. So the reserve stands behind every call
//! too: the first one that finds no room gives it up and is made once more. That repeats no failed sync (the kernel
//! may have dropped what it could not write; those fail for good), and no write of which anybody was told: a write that
//! is made again puts the same bytes to the same place.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::{DirEntry, DiskReserve, LockGuard, OpenMode, Space, Storage, StorageFile, is_disk_full};

/// Wraps a storage; what its reserve was made on. Clones share both.
#[derive(Clone)]
pub struct ReservedStorage {
    inner: Arc<dyn Storage>,
    reserve: Arc<DiskReserve>,
}

impl ReservedStorage {
    /// The same files, with the reserve as their last room.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>, reserve: Arc<DiskReserve>) -> Self {
        Self { inner, reserve }
    }
}

impl std::fmt::Debug for ReservedStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReservedStorage").field("reserve", &self.reserve).finish_non_exhaustive()
    }
}

/// Makes a call that takes room; where there is none, gives the reserve up and makes it once more.
fn with_room<T>(reserve: &DiskReserve, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if is_disk_full(&error) => {
            // Another call may have given it up a moment ago: then this one finds room too.
            if let Err(error) = reserve.give_up() {
                tracing::error!(%error, "the disk is full, and the reserve can't be given up");
            }
            call()
        }
        other => other,
    }
}

impl Storage for ReservedStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let file = with_room(&self.reserve, || self.inner.open(path, mode))?;
        Ok(Arc::new(ReservedFile { inner: file, reserve: Arc::clone(&self.reserve) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        with_room(&self.reserve, || self.inner.create_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        with_room(&self.reserve, || self.inner.rename(from, to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.inner.sync_all()
    }

    fn free_space(&self) -> io::Result<Space> {
        self.inner.free_space()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        // Who has no lock must not touch the reserve: it may be somebody else's.
        self.inner.try_lock(path)
    }
}

struct ReservedFile {
    inner: Arc<dyn StorageFile>,
    reserve: Arc<DiskReserve>,
}

impl StorageFile for ReservedFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        with_room(&self.reserve, || self.inner.write_all_at(offset, bytes))
    }

    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // The call uses its slices up, as far as it comes.
        with_room(&self.reserve, || self.inner.write_all_vectored_at(offset, &mut slices.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        with_room(&self.reserve, || self.inner.set_len(bytes))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        with_room(&self.reserve, || self.inner.allocate(bytes))
    }

    fn advise_dont_need(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.inner.advise_dont_need(offset, bytes)
    }

    fn start_writeback(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.inner.start_writeback(offset, bytes)
    }

    fn is_direct(&self) -> bool {
        self.inner.is_direct()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Effect, FaultyStorage, MemoryStorage};
    use super::*;

    /// A full disk of 100,000 bytes, half of it the reserve.
    fn full() -> (MemoryStorage, ReservedStorage, Arc<dyn StorageFile>) {
        let memory = MemoryStorage::with_capacity(100_000);
        let reserve = Arc::new(DiskReserve::new(Arc::new(memory.clone()), "reserve", 50_000));
        reserve.ensure().unwrap();
        let storage = ReservedStorage::new(Arc::new(memory.clone()), reserve);
        let file = storage.open("data".as_ref(), OpenMode::CREATE).unwrap();
        file.write_all_at(0, &[1; 50_000]).unwrap();
        assert_eq!(storage.free_space().unwrap().free, 0);
        (memory, storage, file)
    }

    #[test]
    fn whatever_takes_room_finds_the_reserves() {
        type Call = fn(&dyn StorageFile) -> io::Result<()>;
        let calls: [Call; 4] = [
            |file| file.write_all_at(50_000, &[2; 10_000]),
            |file| {
                file.write_all_vectored_at(
                    50_000,
                    &mut [IoSlice::new(&[2; 9_000]), IoSlice::new(&[2; 1_000])],
                )
            },
            |file| file.set_len(60_000),
            |file| file.allocate(60_000),
        ];
        for call in calls {
            let (memory, storage, file) = full();
            call(file.as_ref()).unwrap();
            assert_eq!(file.size().unwrap(), 60_000);
            assert!(memory.contents("reserve".as_ref()).is_none(), "it is given up");
            assert_eq!(storage.free_space().unwrap().free, 40_000);
            let more = file.write_all_at(60_000, &[3; 40_001]).unwrap_err();
            assert!(is_disk_full(&more), "once only: {more}");
        }
    }

    #[test]
    fn a_sync_is_never_made_again_and_other_errors_are_left_alone() {
        let memory = MemoryStorage::new();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let reserve = Arc::new(DiskReserve::new(Arc::new(memory.clone()), "reserve", 1_000));
        reserve.ensure().unwrap();
        let storage = ReservedStorage::new(Arc::new(faulty.clone()), reserve);
        let file = storage.open("data".as_ref(), OpenMode::CREATE).unwrap();
        faulty.on_nth(Some(Call::Sync), 1, Effect::DiskFull);
        file.sync_data().unwrap_err();
        faulty.on_nth(Some(Call::Write), 1, Effect::Fail);
        file.write_all_at(0, b"x").unwrap_err();
        assert!(memory.contents("reserve".as_ref()).is_some(), "the reserve does not help there");
        faulty.on_nth(Some(Call::Write), 1, Effect::DiskFull);
        file.write_all_at(0, b"x").unwrap();
        assert!(memory.contents("reserve".as_ref()).is_none());
    }
}
