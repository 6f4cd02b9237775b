//! Errors that a disk answers with: it is full, or it fails.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rand::RngExt;
use tidemill_log::fs::{DIRECT_ALIGNMENT, MemoryStorage, StorageFile};

use super::{Call, Kind, SimDisk, State};

/// What the kernel says of a device that does not do what it was told.
const EIO: i32 = 5;

/// Why calls fail, until that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No file grows.
    Full,
    /// So many further writes and syncs are done. The one behind them is not, and those that follow are not either where it `lasts`.
    Fails { after: u64, lasts: bool },
}

/// What a sync was to bring to the device that failed: no later one does, as with a kernel that takes it for written. So it is there until
/// the power goes.
#[derive(Default)]
pub(super) struct Dropped(BTreeMap<PathBuf, File>);

/// A file at the time of its sync: as everybody saw it, and as the device had it.
struct File {
    shown: Vec<u8>,
    held: Vec<u8>,
}

impl Dropped {
    fn add(&mut self, path: &Path, memory: &MemoryStorage, seed: u64) {
        if let (Some(shown), Some(held)) = (memory.contents(path), memory.crash(seed).contents(path)) {
            self.0.entry(path.to_owned()).or_insert(File { shown, held });
        }
    }

    pub(super) fn written_again(&mut self, path: &Path, offset: u64, len: usize) {
        let Some(File { shown, held }) = self.0.get_mut(path) else { return };
        let first = usize::try_from(offset).unwrap_or(usize::MAX) / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT;
        let end = first.saturating_add(len).saturating_add(DIRECT_ALIGNMENT);
        for (held, shown) in held.iter_mut().zip(shown).take(end).skip(first) {
            *held = *shown;
        }
    }

    /// Takes from what a power loss left what was not written again.
    pub(super) fn take_from(&self, left: &MemoryStorage) {
        for (path, file) in self.0.iter().filter(|(path, _)| left.contents(path).is_some()) {
            left.edit(path, |bytes| {
                let blocks = bytes.chunks_mut(DIRECT_ALIGNMENT).zip(file.shown.chunks(DIRECT_ALIGNMENT));
                for ((now, shown), held) in blocks.zip(file.held.chunks(DIRECT_ALIGNMENT)) {
                    if *now == *shown && now.len() == held.len() {
                        now.copy_from_slice(held);
                    }
                }
            });
        }
    }
}

impl SimDisk {
    /// Begins or ends it. It outlasts the lives of the broker.
    pub(crate) fn set_trouble(&self, trouble: Option<Trouble>) {
        self.0.state.lock().trouble = trouble;
        self.0.trace.note(format_args!("{}: trouble {trouble:?}", self.0.name));
    }

    pub(crate) fn is_in_trouble(&self) -> bool {
        self.0.state.lock().trouble.is_some()
    }

    /// Whether it has answered with an error in this life.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.state.lock().has_failed
    }

    /// Whether a call goes well; of a write that does not, some blocks may be there all the same.
    pub(super) fn check(&self, call: &Call<'_>, file: Option<&dyn StorageFile>) -> io::Result<()> {
        let state = &mut *self.0.state.lock();
        let error = match state.trouble {
            None => return Ok(()),
            Some(Trouble::Full) => {
                let Some(file) = file.filter(|_| call.grows_to() > 0) else { return Ok(()) };
                if call.grows_to() <= file.size()? {
                    return Ok(());
                }
                io::ErrorKind::StorageFull.into()
            }
            Some(Trouble::Fails { .. }) if !matches!(call.kind, Kind::Write | Kind::Sync) => return Ok(()),
            Some(Trouble::Fails { after: 0, lasts }) => {
                state.trouble = lasts.then_some(Trouble::Fails { after: 0, lasts });
                if call.kind == Kind::Sync && file.is_some() {
                    let seed = state.rng.random();
                    state.dropped.add(call.path, &self.0.memory, seed);
                }
                if let (Some(file), [bytes]) = (file, call.bytes) {
                    state.write_some(file, call.offset, bytes)?;
                }
                io::Error::from_raw_os_error(EIO)
            }
            Some(Trouble::Fails { after, lasts }) => {
                state.trouble = Some(Trouble::Fails { after: after - 1, lasts });
                return Ok(());
            }
        };
        state.has_failed = true;
        Err(error)
    }
}

impl State {
    fn write_some(&mut self, file: &dyn StorageFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let blocks = self.rng.random_range(0..=bytes.len() / DIRECT_ALIGNMENT);
        match bytes.get(..blocks * DIRECT_ALIGNMENT) {
            Some(some) if !some.is_empty() => file.write_all_at(offset, some),
            _ => Ok(()),
        }
    }
}

impl Call<'_> {
    /// The size that the file has at least once the call is done.
    fn grows_to(&self) -> u64 {
        match self.kind {
            Kind::Write => self.offset + self.len() as u64,
            // Setting its length, and allocating.
            Kind::Other => self.offset,
            Kind::Read | Kind::Sync => 0,
        }
    }
}
