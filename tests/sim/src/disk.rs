//! A disk that takes simulated time, notes what is done to it, and can lose its power between any two calls.
//!
//! A call itself takes no time: it adds to what the disk still owes, and whoever made it passes that time afterwards
//! ([`SimDisk::settle`]). The log's writer is driven a step at a time, so that a write, its sync and the answers to those who
//! wait are apart in time, and others run in between.

mod trouble;

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_log::fs::{DirEntry, LockGuard, MemoryStorage, OpenMode, Space, Storage, StorageFile};
use tokio::sync::Notify;

use trouble::Dropped;
pub(crate) use trouble::Trouble;

use crate::astray;
use crate::trace::Trace;

/// What the runtime's clock tells apart: less time than that is owed on.
const TICK: Duration = Duration::from_millis(1);
/// One call in so many is one that a busy device holds up.
const STALL_ONE_IN: u32 = 200;
/// Calls from a write that goes astray to the one behind which the power goes, where it goes by itself; the write counts.
const CALLS_BEFORE_POWER_LOSS: std::ops::Range<u64> = 2..7;
/// How much of a file is changed when it is damaged.
const DAMAGE_BYTES: usize = 16;

/// What a disk says it has synced, and has not: bugs that are put back to see whether they are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The write-ahead log.
    Wal,
    /// Shards' state files.
    State,
    /// Everything of shards but their state.
    Segments,
    /// Directories.
    Names,
}

/// A simulated disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Inner>);

struct Inner {
    name: String,
    memory: MemoryStorage,
    trace: Trace,
    state: Mutex<State>,
    power_lost: Notify,
}

struct State {
    rng: StdRng,
    owed: Duration,
    calls: u64,
    /// The power goes after this call.
    last_call: Option<u64>,
    /// What a power loss left, once there was one.
    left: Option<MemoryStorage>,
    off: bool,
    /// How many times as long as usual a call takes.
    slowness: u32,
    lie: Option<Lie>,
    /// So many further writes to the write-ahead log arrive where they should, and the one behind them does not.
    astray_after: Option<u64>,
    trouble: Option<Trouble>,
    has_failed: bool,
    dropped: Dropped,
}

impl SimDisk {
    /// An empty disk.
    pub(crate) fn new(name: &str, seed: u64, trace: &Trace) -> Self {
        Self::with(name, MemoryStorage::new(), StdRng::seed_from_u64(seed), trace, None)
    }

    fn with(name: &str, memory: MemoryStorage, rng: StdRng, trace: &Trace, lie: Option<Lie>) -> Self {
        let state = State {
            rng,
            owed: Duration::ZERO,
            calls: 0,
            last_call: None,
            left: None,
            off: false,
            slowness: 1,
            lie,
            astray_after: None,
            trouble: None,
            has_failed: false,
            dropped: Dropped::default(),
        };
        Self(Arc::new(Inner {
            name: name.to_owned(),
            memory,
            trace: trace.clone(),
            state: Mutex::new(state),
            power_lost: Notify::new(),
        }))
    }

    /// Lets the power go once so many further calls were made.
    pub(crate) fn lose_power_after(&self, calls: u64) {
        let mut state = self.0.state.lock();
        state.last_call = Some(state.calls + calls.max(1));
    }

    /// The power goes now.
    pub(crate) fn lose_power(&self) {
        self.0.lose_power(&mut self.0.state.lock());
    }

    /// The power stays on, whatever was to come.
    pub(crate) fn keep_power(&self) {
        self.0.state.lock().last_call = None;
    }

    pub(crate) fn set_lie(&self, lie: Option<Lie>) {
        self.0.state.lock().lie = lie;
    }

    pub(crate) fn set_slowness(&self, times: u32) {
        self.0.state.lock().slowness = times.max(1);
        self.0.trace.note(format_args!("{} takes {times} times as long", self.0.name));
    }

    /// Nothing moves on the disk for a while.
    pub(crate) fn stall(&self, duration: Duration) {
        self.0.state.lock().owed += duration;
    }

    /// Changes a few bytes of the write-ahead log, where it has been written; for a disk that nobody uses. False where there
    /// is nothing yet.
    pub(crate) fn damage_log(&self, rng: &mut StdRng) -> bool {
        let memory = &self.0.memory;
        let Ok(entries) = memory.list(Path::new("wal")) else { return false };
        let written = entries.iter().filter(|entry| !entry.is_dir).filter_map(|entry| {
            let path = Path::new("wal").join(&entry.name);
            let used = memory.contents(&path)?.iter().rposition(|byte| *byte != 0)?;
            Some((path, used))
        });
        let written: Vec<_> = written.collect();
        if written.is_empty() {
            return false;
        }
        let (path, used) = &written[rng.random_range(0..written.len())];
        let at = rng.random_range(0..=*used);
        memory.edit(path, |bytes| {
            for byte in bytes.iter_mut().skip(at).take(DAMAGE_BYTES) {
                *byte ^= 0x5a;
            }
        });
        self.0.trace.note(format_args!("{}: {} is damaged at {at}", self.0.name, path.display()));
        true
    }

    /// Of the writes to the write-ahead log that are to come, the one behind so many others lands elsewhere in the log, and says that
    /// it did not. In this life of the disk only.
    pub(crate) fn lead_astray_after(&self, writes: u64) {
        self.0.state.lock().astray_after = Some(writes);
    }

    /// Whether the write of `bytes` at `offset` was led astray.
    fn is_led_astray(&self, path: &Path, offset: u64, bytes: &[u8]) -> bool {
        let mut state = self.0.state.lock();
        if !path.starts_with("wal") || state.off {
            return false;
        }
        match &mut state.astray_after {
            None => return false,
            Some(0) => {}
            Some(writes) => {
                *writes -= 1;
                return false;
            }
        }
        let Some((other, at)) = astray::place(&self.0.memory, &mut state.rng, path, offset, bytes.len())
        else {
            return false;
        };
        state.astray_after = None;
        if state.rng.random() {
            // Soon enough that what is written behind it does not give it away.
            state.last_call = Some(state.calls + state.rng.random_range(CALLS_BEFORE_POWER_LOSS));
        }
        drop(state);
        self.0.memory.edit(&other, |file| astray::put(file, at, bytes));
        self.0.trace.note(format_args!(
            "{}: what is written to {} at {offset} lands in {} at {at}",
            self.0.name,
            path.display(),
            other.display()
        ));
        true
    }

    /// Resolves when the power is gone.
    pub(crate) async fn power_lost(&self) {
        loop {
            let mut lost = std::pin::pin!(self.0.power_lost.notified());
            lost.as_mut().enable();
            if self.has_lost_power() {
                return;
            }
            lost.await;
        }
    }

    pub(crate) fn has_lost_power(&self) -> bool {
        self.0.state.lock().left.is_some()
    }

    /// The disk as the next process finds it: after a power loss what that left, else all that was written. This one
    /// answers nobody any more.
    pub(crate) fn next_life(&self) -> Self {
        let mut state = self.0.state.lock();
        state.off = true;
        let memory = state.left.take().unwrap_or_else(|| self.0.memory.kill());
        let rng = StdRng::seed_from_u64(state.rng.random());
        let next = Self::with(&self.0.name, memory, rng, &self.0.trace, state.lie);
        next.0.state.lock().trouble = state.trouble;
        next
    }

    /// Passes the time that calls took since this was called last.
    pub(crate) async fn settle(&self) {
        let due = {
            let mut state = self.0.state.lock();
            let ticks = state.owed.as_millis();
            let due = TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
            state.owed -= due;
            due
        };
        match due.is_zero() {
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(due).await,
        }
    }

    /// Makes a call: notes it, lets it take its time, and lets the power go behind it if this is the last.
    fn call<T>(&self, call: &Call<'_>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let inner = &*self.0;
        if inner.state.lock().off {
            return Err(io::Error::other("the power is off"));
        }
        let made = make();
        if call.kind != Kind::Read {
            let outcome =
                made.as_ref().err().map_or(String::new(), |error| format!(" -> {:?}", error.kind()));
            inner.trace.note(format_args!("{} {}{outcome}", inner.name, call.text()));
        }
        let mut state = inner.state.lock();
        if made.is_ok() && call.kind == Kind::Write {
            state.dropped.written_again(call.path, call.offset, call.len());
        }
        let takes = call.takes(&mut state.rng);
        let slowness = state.slowness;
        state.owed += takes * slowness;
        state.calls += 1;
        if state.last_call == Some(state.calls) {
            inner.lose_power(&mut state);
        }
        made
    }

    /// Syncs, or says so.
    fn sync(&self, path: &Path, names: bool, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let lies = self.0.state.lock().lie.is_some_and(|lie| lie.is_about(path, names));
        if lies { Ok(()) } else { sync() }
    }
}

impl Inner {
    fn lose_power(&self, state: &mut State) {
        if state.off {
            return;
        }
        let seed = state.rng.random();
        let left = self.memory.crash(seed);
        state.dropped.take_from(&left);
        state.left = Some(left);
        state.off = true;
        self.trace.note(format_args!("{} loses its power", self.name));
        self.power_lost.notify_waiters();
    }
}

impl Lie {
    fn is_about(self, path: &Path, names: bool) -> bool {
        let (wal, state) = (path.starts_with("wal"), path.file_stem().is_some_and(|name| name == "state"));
        match self {
            Self::Names => names,
            Self::Wal => !names && wal,
            Self::State => !names && !wal && state,
            Self::Segments => !names && !wal && !state,
        }
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SimDisk").field(&self.0.name).finish()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
    Other,
}

/// What is noted of a call.
struct Call<'a> {
    kind: Kind,
    name: &'static str,
    path: &'a Path,
    offset: u64,
    bytes: &'a [&'a [u8]],
}

impl<'a> Call<'a> {
    fn new(kind: Kind, name: &'static str, path: &'a Path) -> Self {
        Self { kind, name, path, offset: 0, bytes: &[] }
    }

    fn text(&self) -> String {
        let (name, path) = (self.name, self.path.display());
        if self.kind != Kind::Write {
            return format!("{name} {path} {}", self.offset);
        }
        let mut hasher = blake3::Hasher::new();
        for piece in self.bytes {
            hasher.update(piece);
        }
        let digest = &hasher.finalize().to_hex()[..16];
        format!("{name} {path} {}+{} {digest}", self.offset, self.len())
    }

    fn len(&self) -> usize {
        self.bytes.iter().map(|piece| piece.len()).sum()
    }

    /// In the manner of a solid-state drive: a few hundred MB/s, syncs of a fraction of a millisecond and more, and now and
    /// then a pause.
    fn takes(&self, rng: &mut StdRng) -> Duration {
        let stall = matches!(self.kind, Kind::Write | Kind::Sync) && rng.random_ratio(1, STALL_ONE_IN);
        let stalled = if stall { rng.random_range(20_000..300_000) } else { 0 };
        let micros = match self.kind {
            Kind::Read => rng.random_range(5..120),
            Kind::Write => rng.random_range(10..60) + self.len() as u64 / 400,
            Kind::Sync => rng.random_range(150..3_000),
            Kind::Other => rng.random_range(5..40),
        };
        Duration::from_micros(micros + stalled)
    }
}

impl Storage for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let file = self.call(&Call::new(Kind::Other, "open", path), || self.0.memory.open(path, mode))?;
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call(&Call::new(Kind::Other, "create-dir", path), || self.0.memory.create_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.call(&Call::new(Kind::Read, "list", path), || self.0.memory.list(path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(&Call::new(Kind::Other, "remove", path), || self.0.memory.remove(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call(&Call::new(Kind::Other, "remove-dir", path), || self.0.memory.remove_dir_all(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(&Call::new(Kind::Other, "rename", from), || self.0.memory.rename(from, to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let call = Call::new(Kind::Sync, "sync-dir", path);
        let sync = || self.sync(path, true, || self.0.memory.sync_dir(path));
        self.call(&call, || self.check(&call, None).and_then(|()| sync()))
    }

    fn sync_all(&self) -> io::Result<()> {
        let all = Path::new("");
        let call = Call::new(Kind::Sync, "sync-all", all);
        let sync = || self.sync(all, false, || self.0.memory.sync_all());
        self.call(&call, || self.check(&call, None).and_then(|()| sync()))
    }

    fn free_space(&self) -> io::Result<Space> {
        let space = self.0.memory.free_space()?;
        let is_full = self.0.state.lock().trouble == Some(Trouble::Full);
        Ok(if is_full { Space { free: 0, ..space } } else { space })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.call(&Call::new(Kind::Other, "lock", path), || self.0.memory.try_lock(path))
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
}

impl SimFile {
    fn call<T>(
        &self,
        kind: Kind,
        name: &'static str,
        offset: u64,
        bytes: &[&[u8]],
        make: impl FnOnce(&dyn StorageFile) -> io::Result<T>,
    ) -> io::Result<T> {
        let call = Call { kind, name, path: &self.path, offset, bytes };
        let file = &*self.file;
        self.disk.call(&call, || self.disk.check(&call, Some(file)).and_then(|()| make(file)))
    }
}

impl StorageFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.call(Kind::Read, "read", offset, &[], |file| file.read_at(offset, buffer))
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.call(Kind::Write, "write", offset, &[bytes], |file| {
            if self.disk.is_led_astray(&self.path, offset, bytes) {
                return Ok(());
            }
            file.write_all_at(offset, bytes)
        })
    }

    fn write_all_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.call(Kind::Write, "write", offset, &[&joined], |file| file.write_all_vectored_at(offset, slices))
    }

    fn sync_data(&self) -> io::Result<()> {
        let (disk, path) = (&self.disk, &self.path);
        self.call(Kind::Sync, "sync", 0, &[], |file| disk.sync(path, false, || file.sync_data()))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.call(Kind::Other, "set-len", bytes, &[], |file| file.set_len(bytes))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.call(Kind::Other, "allocate", bytes, &[], |file| file.allocate(bytes))
    }

    fn advise_dont_need(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.advise_dont_need(offset, bytes)
    }

    fn start_writeback(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.start_writeback(offset, bytes)
    }

    fn is_direct(&self) -> bool {
        self.file.is_direct()
    }
}
