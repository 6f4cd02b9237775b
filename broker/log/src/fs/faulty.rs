//! A storage whose calls fail when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{DirEntry, LockGuard, OpenMode, Space, Storage, StorageFile};

/// The kinds of calls that are counted and can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// Opening or creating a file.
    Open,
    /// Creating a directory.
    CreateDir,
    /// Listing a directory.
    List,
    /// Removing a file or a directory.
    Remove,
    /// Renaming a file.
    Rename,
    /// Syncing a directory.
    SyncDir,
    /// Syncing the whole file system.
    SyncAll,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Syncing a file.
    Sync,
    /// Changing a file's length or allocating.
    Resize,
}

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails with EIO and does nothing; later calls work.
    Fail,
    /// It fails as on a full disk and does nothing; later calls work.
    DiskFull,
    /// A write puts down only this many bytes and then fails with EIO. Other calls just fail.
    ShortWrite(usize),
    /// A read succeeds with this bit (modulo what was read) flipped. Other calls are left alone.
    FlipBit(usize),
    /// A sync claims success and does nothing. Other calls are left alone.
    LoseSync,
    /// This call and every later one fail: the plug was pulled.
    Halt,
}

/// Wraps any storage, counts its calls, and applies an [`Effect`] to chosen ones. Clones share the plan.
#[derive(Clone)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    shared: Arc<Shared>,
}

impl FaultyStorage {
    /// Wraps `inner`; no call fails yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, shared: Arc::default() }
    }

    /// Applies `effect` to the `nth` (from 1) call of this kind, or of any kind for `None`, counted from now on.
    pub fn on_nth(&self, call: Option<Call>, nth: u64, effect: Effect) {
        self.shared.plan.lock().faults.push(Fault { call, remaining: nth.max(1), effect });
    }

    /// Lets every call of this kind wait from now on, as a device that is busy does, until [`Self::go_on`].
    pub fn hold(&self, call: Call) {
        self.shared.plan.lock().held.insert(call);
    }

    /// Lets the calls go on that were held.
    pub fn go_on(&self) {
        self.shared.plan.lock().held.clear();
        self.shared.going_on.notify_all();
    }

    /// Forgets all faults, spent and to come, and ends a [`Effect::Halt`].
    pub fn heal(&self) {
        let mut plan = self.shared.plan.lock();
        plan.faults.clear();
        plan.halted = false;
    }

    /// Number of calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.plan.lock().counts.values().sum()
    }

    /// Number of calls of one kind so far.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.shared.plan.lock().counts.get(&call).copied().unwrap_or(0)
    }

    /// Whether a fault has struck since the start or the last [`FaultyStorage::heal`].
    #[must_use]
    pub fn has_struck(&self) -> bool {
        let plan = self.shared.plan.lock();
        plan.halted || plan.faults.iter().any(|fault| fault.remaining == 0)
    }

    fn enter(&self, call: Call) -> io::Result<Option<Effect>> {
        self.shared.enter(call)
    }
}

impl std::fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyStorage").field("calls", &self.calls()).finish_non_exhaustive()
    }
}

/// What all clones and files share.
#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    going_on: Condvar,
}

impl Shared {
    fn enter(&self, call: Call) -> io::Result<Option<Effect>> {
        let mut plan = self.plan.lock();
        self.going_on.wait_while(&mut plan, |plan| plan.held.contains(&call));
        plan.enter(call)
    }
}

#[derive(Default)]
struct Plan {
    held: BTreeSet<Call>,
    counts: BTreeMap<Call, u64>,
    faults: Vec<Fault>,
    halted: bool,
}

struct Fault {
    call: Option<Call>,
    remaining: u64,
    effect: Effect,
}

impl Plan {
    /// Counts a call and decides its fate; `Some` is an effect that the caller must carry out itself.
    fn enter(&mut self, call: Call) -> io::Result<Option<Effect>> {
        *self.counts.entry(call).or_default() += 1;
        if self.halted {
            return Err(eio());
        }
        let mut struck = None;
        for fault in self.faults.iter_mut().filter(|fault| fault.remaining > 0) {
            if fault.call.is_none_or(|wanted| wanted == call) {
                fault.remaining -= 1;
                if fault.remaining == 0 {
                    struck = Some(fault.effect);
                }
            }
        }
        match struck {
            Some(Effect::Halt) => {
                self.halted = true;
                Err(eio())
            }
            Some(Effect::Fail) => Err(eio()),
            Some(Effect::DiskFull) => Err(io::ErrorKind::StorageFull.into()),
            Some(Effect::ShortWrite(_)) if call != Call::Write => Err(eio()),
            other => Ok(other),
        }
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl Storage for FaultyStorage {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.enter(Call::Open)?;
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultyFile { inner, shared: Arc::clone(&self.shared) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::CreateDir)?;
        self.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.enter(Call::List)?;
        self.inner.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::Remove)?;
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.enter(Call::Remove)?;
        self.inner.remove_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter(Call::Rename)?;
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.enter(Call::SyncDir)? {
            Some(Effect::LoseSync) => Ok(()),
            _ => self.inner.sync_dir(path),
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        match self.enter(Call::SyncAll)? {
            Some(Effect::LoseSync) => Ok(()),
            _ => self.inner.sync_all(),
        }
    }

    fn free_space(&self) -> io::Result<Space> {
        self.inner.free_space()
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.enter(Call::Open)?;
        self.inner.try_lock(path)
    }
}

struct FaultyFile {
    inner: Arc<dyn StorageFile>,
    shared: Arc<Shared>,
}

impl FaultyFile {
    fn enter(&self, call: Call) -> io::Result<Option<Effect>> {
        self.shared.enter(call)
    }
}

impl StorageFile for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let effect = self.enter(Call::Read)?;
        let count = self.inner.read_at(offset, buffer)?;
        if let (Some(Effect::FlipBit(bit)), 1..) = (effect, count) {
            let bit = bit % (count * 8);
            if let Some(byte) = buffer.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(count)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(Effect::ShortWrite(count)) = self.enter(Call::Write)? {
            // Direct files take whole blocks only, so does a device that stops midway.
            let unit = if self.inner.is_direct() { super::DIRECT_ALIGNMENT } else { 1 };
            let count = count.min(bytes.len()) / unit * unit;
            self.inner.write_all_at(offset, bytes.get(..count).unwrap_or_default())?;
            return Err(eio());
        }
        self.inner.write_all_at(offset, bytes)
    }

    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        if let Some(Effect::ShortWrite(count)) = self.enter(Call::Write)? {
            let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(count).collect();
            self.inner.write_all_at(offset, &joined)?;
            return Err(eio());
        }
        self.inner.write_all_vectored_at(offset, slices)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.enter(Call::Sync)? {
            Some(Effect::LoseSync) => Ok(()),
            _ => self.inner.sync_data(),
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.enter(Call::Resize)?;
        self.inner.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.enter(Call::Resize)?;
        self.inner.allocate(bytes)
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
