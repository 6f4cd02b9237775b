//! A snapshot that is being staged beside the shard, or is all there.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_shard::{InstallError, Shard, Snapshot, SnapshotError, SnapshotInstall, SnapshotManifest};
use tokio::sync::{OwnedMutexGuard, watch};

/// How much of a segment is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Who may use a shard's staging directory: one at a time. Whoever comes last is to have it, for it is the newest leader's, or the same one's
/// that knows that the stream before is broken; the one before hears of it and lets go.
pub(crate) struct StagingTurns {
    turn: Arc<tokio::sync::Mutex<()>>,
    newest: watch::Sender<u64>,
}

/// Held by whoever uses the directory, its blocking calls and openraft's install included.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl StagingTurns {
    pub(crate) fn new() -> Self {
        Self { turn: Arc::default(), newest: watch::Sender::new(0) }
    }

    /// Asks whoever has it to let go. What is returned changes when somebody else comes.
    pub(super) fn come(&self) -> watch::Receiver<u64> {
        self.newest.send_modify(|newest| *newest += 1);
        self.newest.subscribe()
    }

    pub(super) async fn take(&self) -> Turn {
        Arc::clone(&self.turn).lock_owned().await
    }

    pub(super) fn take_blocking(&self) -> Turn {
        self.come();
        Arc::clone(&self.turn).blocking_lock_owned()
    }
}

/// Shared by the transfer, its blocking calls, and openraft at the end.
#[derive(Clone)]
pub(crate) struct Staged(Arc<Staging>);

struct Staging {
    /// Taken when it is put in its place.
    install: Mutex<Option<SnapshotInstall>>,
    _turn: Turn,
}

impl Staged {
    /// Begins beside `live`, or goes on where an earlier try ended; blocks, like all of it.
    pub(super) fn begin(live: &Shard, manifest: SnapshotManifest, turn: Turn) -> Result<Self, InstallError> {
        let install = SnapshotInstall::begin(live, manifest)?;
        Ok(Self(Arc::new(Staging { install: Mutex::new(Some(install)), _turn: turn })))
    }

    /// Does something with it; `None` where it was put in its place already.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut SnapshotInstall) -> T) -> Option<T> {
        self.0.install.lock().as_mut().map(action)
    }

    /// Takes it, to put it in its place.
    pub(crate) fn take(&self) -> Option<SnapshotInstall> {
        self.0.install.lock().take()
    }

    /// Fetches what is missing from a snapshot in this process.
    pub(super) fn copy(&self, from: &Snapshot) -> Result<(), CopyError> {
        self.with(|install| copy(from, install)).unwrap_or(Ok(()))
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Staged").field(&*self.0.install.lock()).finish()
    }
}

/// Why a snapshot could not be copied within the process.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error(transparent)]
    Source(#[from] SnapshotError),
    #[error(transparent)]
    Install(#[from] InstallError),
}

fn copy(from: &Snapshot, install: &mut SnapshotInstall) -> Result<(), CopyError> {
    for number in install.missing_chunks().collect::<Vec<_>>() {
        install.put_chunk(number, from.chunk(number)?)?;
    }
    let mut buffer = vec![0; COPY_BYTES];
    for number in install.missing_segments().collect::<Vec<_>>() {
        let segment = *from.manifest().segments.get(number).ok_or(SnapshotError::UnknownPart)?;
        let mut position = install.received(number)?;
        loop {
            let read =
                from.read_segment(segment.partition, segment.end.base_offset, position, &mut buffer)?;
            if read == 0 {
                break;
            }
            install.put_segment(number, position, &buffer[..read])?;
            position += read as u64;
        }
        install.finish_segment(number)?;
    }
    Ok(())
}
