//! The log as its users see it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tidemill_protocol::{LogIndex, ShardId};

use super::carry;
use super::config::{DirectIo, Durability, WalConfig};
use super::entry::{EntryBytes, EntryId, WalEntry};
use super::error::{WalCarryError, WalError, WalOpenError, WalReadError};
use super::frame::{FrameKind, NO_ENTRY};
use super::pool::{Pool, Preparer, READY_MIN};
use super::queue::{Completion, Queue, Queued, SharedQueue, WhenRoom};
use super::read;
use super::recovery::{self, Recovered, Recovery};
use super::shard_log::{ShardLog, Slot, SlotAt};
use super::state::State;
use super::writer::{Shared, Writer};
use crate::background::{Background, Running};
use crate::fs::{AlignedBuffer, OpenMode, Storage};

/// The write-ahead log of a broker: one for all shards, one stream of writes. Cheap to clone; the last clone to go
/// closes it.
///
/// Operations of one shard take effect, in memory and on disk, in the order of the calls; reads see them at once.
/// Each completion runs on the writer thread when its operation is durable as the log's [`Durability`] defines it, or
/// has failed. After a failure nothing is acknowledged any more ([`WalError::Poisoned`]).
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    workers: Mutex<Vec<Box<dyn Running>>>,
    background: Arc<dyn Background>,
    entry_bytes_max: usize,
}

/// Where a shard's log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogRange {
    /// Purged up to and with this entry.
    pub purged: Option<EntryId>,
    /// Index of the first entry held; `None` where there is none.
    pub first: Option<LogIndex>,
    /// The last entry; the purged one where none is held.
    pub last: Option<EntryId>,
}

impl Wal {
    /// Opens the log in `config.dir`, which is created if it is absent, and reads what it holds. Nothing is written
    /// to the log by that: whoever refuses to go on after a look at the [`Recovery`] finds the same the next time.
    ///
    /// # Errors
    /// Where a file can't be read or made. A file that can be read but is damaged is no error; see [`Recovery`].
    pub fn open(storage: Arc<dyn Storage>, config: &WalConfig) -> Result<(Self, Recovery), WalOpenError> {
        config.check().map_err(WalOpenError::Config)?;
        create_dir(&*storage, &config.dir)?;
        let direct = decide_direct(&*storage, config)?;
        let mut recovered = recovery::recover(&*storage, config, direct)?;
        let recovery = recovered.recovery.clone();
        let free = std::mem::take(&mut recovered.free);
        let state = std::mem::replace(&mut recovered.state, State::new(0));
        let used_bytes =
            state.segments_bytes() + recovered.cut_off.iter().map(|file| file.bytes()).sum::<u64>();
        let pool =
            Pool::new(storage, config, direct, free, used_bytes).map_err(io_error("list", &config.dir))?;
        let shared = Arc::new(Shared {
            queue: SharedQueue::new(config, recovered.chain),
            state: Mutex::new(state),
            pool: Arc::clone(&pool),
        });
        let inner = Inner {
            shared: Arc::clone(&shared),
            workers: Mutex::new(start_workers(shared, &pool, config, recovered)?),
            background: Arc::clone(&config.background),
            entry_bytes_max: config.entry_bytes_max(),
        };
        Ok((Self { inner: Arc::new(inner) }, recovery))
    }

    /// Appends entries, which must follow the shard's last one without gaps. Waits for nothing, and takes them also where
    /// the queue is full: ask [`Self::when_room`] first. Until `done` is called a crash may leave any number of them, the
    /// first ones first.
    pub fn append(&self, shard: ShardId, entries: Vec<WalEntry>, done: Completion) {
        let limit = self.inner.entry_bytes_max;
        if let Some(entry) = entries.iter().find(|entry| entry.payload.len() > limit) {
            return done(Err(WalError::TooLarge { shard, bytes: entry.payload.len(), limit }));
        }
        let Some(count) = entries.len().checked_sub(1) else {
            return done(Ok(()));
        };
        let mut queue = self.queue();
        let refusal = queue.refusal().or_else(|| check_order(&mut self.state(), shard, &entries).err());
        if let Some(error) = refusal {
            drop(queue);
            return done(Err(error));
        }
        {
            let mut state = self.state();
            for (serial, entry) in (queue.peek_serial()..).zip(&entries) {
                // `TooLarge` has been ruled out: a payload's length fits.
                let bytes = u32::try_from(entry.payload.len()).unwrap_or(u32::MAX);
                state.append(
                    shard,
                    entry.id,
                    Slot::new(SlotAt::Queued(serial), bytes),
                    entry.payload.clone(),
                );
            }
        }
        let mut done = Some(done);
        for (number, entry) in entries.into_iter().enumerate() {
            let serial = queue.take_serial();
            let queued = Queued::new(FrameKind::Entry, shard, entry.id, entry.payload).serial(serial);
            let done = if number == count { done.take() } else { None };
            queue.admit(match done {
                Some(done) => queued.done(done),
                None => queued,
            });
        }
        self.wake(&mut queue);
    }

    /// Whether so much is queued that who appends should wait: see [`Self::when_room`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue().is_full()
    }

    /// Calls `then` once less is queued than `queue_bytes_max` of the configuration, or nothing is taken any more; at once
    /// where that is so. If each of n callers asks before it appends, the queue exceeds its bound by n appends at most.
    pub fn when_room(&self, then: WhenRoom) {
        let mut queue = self.queue();
        if !queue.is_full() {
            drop(queue);
            return then();
        }
        queue.wait_for_room(then);
        self.wake(&mut queue);
    }

    /// Saves the shard's vote. Always synced before `done`.
    pub fn save_vote(&self, shard: ShardId, vote: Bytes, done: Completion) {
        self.note(shard, FrameKind::Vote, vote, Some(done));
    }

    /// Saves the shard's committed position, lazily: it rides with the next write.
    pub fn save_committed(&self, shard: ShardId, committed: Bytes) {
        self.note(shard, FrameKind::Committed, committed, None);
    }

    /// Notes that a snapshot was installed. Always synced before `done`.
    pub fn snapshot_installed(&self, shard: ShardId, note: Bytes, done: Completion) {
        self.note(shard, FrameKind::SnapshotInstalled, note, Some(done));
    }

    /// Removes all entries after `last_kept`; all there are for `None`.
    pub fn truncate_after(&self, shard: ShardId, last_kept: Option<EntryId>, done: Completion) {
        self.operate(done, |queue, state| {
            let serial = queue.peek_serial();
            let (kind, id, from) = match last_kept {
                Some(id) => (FrameKind::TruncateAfter, id, id.index.get().saturating_add(1)),
                None => (FrameKind::TruncateAll, NO_ENTRY, 0),
            };
            let freed = state.truncate_from(shard, from, serial);
            Queued::new(kind, shard, id, EntryBytes::default()).freed(freed)
        });
    }

    /// Forgets entries up to and with `up_to`, which need not be there: after a snapshot the log goes on behind it.
    pub fn purge(&self, shard: ShardId, up_to: EntryId, done: Completion) {
        self.operate(done, |_, state| {
            let freed = state.purge(shard, up_to);
            Queued::new(FrameKind::Purge, shard, up_to, EntryBytes::default()).freed(freed)
        });
    }

    /// Forgets everything about a shard, vote and doubt included: it is retired from this broker, or comes back
    /// under a new Raft node id.
    pub fn forget(&self, shard: ShardId, done: Completion) {
        self.operate(done, |queue, state| {
            let freed = state.forget(shard, queue.peek_serial());
            Queued::new(FrameKind::Forget, shard, NO_ENTRY, EntryBytes::default()).freed(freed).sync(true)
        });
    }

    /// Goes on with what is left of a doubtful shard: an operator accepted that acknowledged entries may be lost. To be
    /// called before anything is appended: what recovery left out, since entries before it are missing, goes for good.
    pub fn accept_doubt(&self, shard: ShardId, done: Completion) {
        self.operate(done, |queue, state| {
            let log = state.shard(shard);
            if log.doubt.take().is_some() {
                let (kind, id) = match log.last() {
                    Some(last) => (FrameKind::TruncateAfter, last),
                    None => (FrameKind::TruncateAll, NO_ENTRY),
                };
                queue.admit(Queued::new(kind, shard, id, EntryBytes::default()));
            }
            Queued::new(FrameKind::DoubtAccepted, shard, NO_ENTRY, EntryBytes::default()).sync(true)
        });
    }

    /// Completes when everything queued before is on the device, whatever the log's [`Durability`].
    pub fn flush(&self, done: Completion) {
        let mut queue = self.queue();
        if let Some(error) = queue.refusal() {
            drop(queue);
            return done(Err(error));
        }
        queue.admit_flush(done);
        self.wake(&mut queue);
    }

    /// Entries `from..to_exclusive`, at least one and otherwise at most `bytes_max` of payload; from memory where
    /// possible, else from the files (blocking: see [`Wal::is_cached`]).
    ///
    /// # Errors
    /// [`WalReadError::NotFound`] where `from` is not in the log.
    pub fn read(
        &self,
        shard: ShardId,
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<WalEntry>, WalReadError> {
        read::read(&self.inner.shared.state, shard, from, to_exclusive, bytes_max)
    }

    /// Whether [`Wal::read`] of this range touches no file.
    #[must_use]
    pub fn is_cached(&self, shard: ShardId, from: LogIndex, to_exclusive: LogIndex) -> bool {
        self.state().is_cached(shard, from.get(), to_exclusive.get())
    }

    /// The state machine applied up to and with `index`: entries up to there may leave the memory.
    pub fn applied(&self, shard: ShardId, index: LogIndex) {
        self.state().set_applied(shard, index.get());
    }

    /// Where the shard's log begins and ends.
    #[must_use]
    pub fn range(&self, shard: ShardId) -> LogRange {
        let state = self.state();
        state.shards.get(&shard).map_or_else(LogRange::default, |log| LogRange {
            purged: log.purged,
            first: log.first_index().map(LogIndex::new),
            last: log.last(),
        })
    }

    /// Payload bytes of the entries behind `index`; of all that are held for `None`.
    #[must_use]
    pub fn bytes_behind(&self, shard: ShardId, index: Option<LogIndex>) -> u64 {
        self.state()
            .shards
            .get(&shard)
            .map_or(0, |log| log.bytes_from(index.map_or(0, |index| index.get() + 1)))
    }

    /// The identity of an entry that is held, or of the one purged to.
    #[must_use]
    pub fn entry_id(&self, shard: ShardId, index: LogIndex) -> Option<EntryId> {
        let state = self.state();
        let log = state.shards.get(&shard)?;
        log.id_of(index.get()).or_else(|| log.purged.filter(|purged| purged.index == index))
    }

    /// The last entry that is on the device, whatever the log's [`Durability`]: checkpoints go no further.
    #[must_use]
    pub fn flushed(&self, shard: ShardId) -> Option<EntryId> {
        self.state().shards.get(&shard)?.flushed()
    }

    /// The vote saved last.
    #[must_use]
    pub fn vote(&self, shard: ShardId) -> Option<Bytes> {
        self.state().shards.get(&shard)?.vote.clone()
    }

    /// The committed position saved last.
    #[must_use]
    pub fn committed(&self, shard: ShardId) -> Option<Bytes> {
        self.state().shards.get(&shard)?.committed.clone()
    }

    /// Bytes of the segments that hold entries or are being written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state().segments_bytes()
    }

    /// Bytes of all its files: beside [`Self::bytes`] those that are recycled or made ready for the next segments.
    #[must_use]
    pub fn files_bytes(&self) -> u64 {
        self.inner.shared.pool.files_bytes()
    }

    /// Files that stand beside those in use at most, unless there were more in use before.
    pub const SPARE_FILES_MAX: u64 = READY_MIN as u64 + 1;

    /// Shards whose entries keep the oldest segment from being recycled until they are purged, or carried forward.
    /// Empty where only the segment being written is in use.
    #[must_use]
    pub fn pinning_shards(&self) -> Vec<ShardId> {
        self.state().pinning_shards()
    }

    /// Bytes of segments that a shard's entries need at least.
    #[must_use]
    pub fn bytes_held(&self, shard: ShardId) -> u64 {
        self.state().shards.get(&shard).map_or(0, ShardLog::bytes_framed)
    }

    /// Copies entries of a shard from the oldest segment to the log's end: at least one, and otherwise at most
    /// `bytes_max` of payload at a time. How many there were. Once none is left and all is flushed, the segment can be
    /// recycled, though the shard purges nothing. Nothing changes for its readers. May block on the disk, to read.
    ///
    /// # Errors
    /// Where an entry can't be read, or has more than [`Self::entry_bytes_max`]; then nothing was copied, and `done` is
    /// never called.
    pub fn carry_forward(
        &self,
        shard: ShardId,
        bytes_max: usize,
        done: Completion,
    ) -> Result<usize, WalCarryError> {
        carry::carry_forward(&self.inner.shared, shard, bytes_max, self.inner.entry_bytes_max, done)
    }

    /// Bytes that are queued or being written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue().queued_bytes
    }

    /// Largest payload that an entry may have.
    #[must_use]
    pub fn entry_bytes_max(&self) -> usize {
        self.inner.entry_bytes_max
    }

    /// On what the log works beside its callers.
    #[must_use]
    pub fn background(&self) -> &Arc<dyn Background> {
        &self.inner.background
    }

    /// The failure that stopped the log, if one did.
    #[must_use]
    pub fn poisoned(&self) -> Option<WalError> {
        self.queue().poison.clone()
    }

    /// Writes and flushes all that is queued, marks the log as closed in good order, and ends its threads. Later
    /// operations fail with [`WalError::Closed`]. Must not be called from a completion.
    ///
    /// # Errors
    /// The failure that stopped the log, if one did.
    pub fn close(&self) -> Result<(), WalError> {
        self.inner.stop();
        self.poisoned().map_or(Ok(()), Err)
    }

    fn note(&self, shard: ShardId, kind: FrameKind, note: Bytes, done: Option<Completion>) {
        let limit = self.inner.entry_bytes_max;
        if note.len() > limit {
            let error = WalError::TooLarge { shard, bytes: note.len(), limit };
            return done.into_iter().for_each(|done| done(Err(error.clone())));
        }
        let queued = |state: &mut State| {
            let log = state.shard(shard);
            let place = match kind {
                FrameKind::Vote => &mut log.vote,
                FrameKind::Committed => &mut log.committed,
                _ => &mut log.snapshot_installed,
            };
            *place = (!note.is_empty()).then(|| note.clone());
            Queued::new(kind, shard, NO_ENTRY, note.into())
        };
        match done {
            Some(done) => self.operate(done, |_, state| queued(state).sync(true)),
            None => {
                let mut queue = self.queue();
                if queue.refusal().is_none() {
                    let queued = queued(&mut self.state());
                    queue.admit(queued);
                }
            }
        }
    }

    /// Changes the memory and queues the frame that says so, as one step.
    fn operate(&self, done: Completion, change: impl FnOnce(&mut Queue, &mut State) -> Queued) {
        let mut queue = self.queue();
        if let Some(error) = queue.refusal() {
            drop(queue);
            return done(Err(error));
        }
        let queued = change(&mut queue, &mut self.state());
        queue.admit(queued.done(done));
        self.wake(&mut queue);
    }

    fn wake(&self, queue: &mut Queue) {
        if queue.urge() {
            self.inner.shared.queue.wake_writer(queue);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.inner.shared.queue.queue.lock()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.shared.state.lock()
    }
}

#[cfg(test)]
impl Wal {
    /// Waits until nothing is queued or unflushed, and counts anew what is kept counted.
    pub(super) fn assert_counts(&self) {
        let (done, flushed) = std::sync::mpsc::channel();
        self.flush(Box::new(move |result| drop(done.send(result))));
        flushed.recv().expect("a completion is always called").expect("a log that works");
        self.state().assert_counts();
    }

    pub(super) fn inner_cached_bytes(&self) -> usize {
        self.state().cached_bytes()
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").finish_non_exhaustive()
    }
}

impl Inner {
    fn stop(&self) {
        {
            let mut queue = self.shared.queue.queue.lock();
            queue.closing = true;
            self.shared.queue.wake_writer(&mut queue);
        }
        let workers = std::mem::take(&mut *self.workers.lock());
        // The last handle may go with a completion, in the writer's own work: both end by themselves then.
        if workers.iter().all(|worker| !worker.is_caller()) {
            for worker in workers {
                drop(worker.join());
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check_order(state: &mut State, shard: ShardId, entries: &[WalEntry]) -> Result<(), WalError> {
    let mut expected = state.shards.get(&shard).and_then(ShardLog::expected_next);
    for entry in entries {
        let got = entry.id.index;
        if let Some(expected) = expected.filter(|expected| *expected != got.get()) {
            return Err(WalError::OutOfOrder { shard, got, expected: LogIndex::new(expected) });
        }
        expected = Some(got.get().saturating_add(1));
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> WalOpenError {
    let path = path.to_owned();
    move |source| WalOpenError::Io { action, path, source }
}

fn create_dir(storage: &dyn Storage, dir: &Path) -> Result<(), WalOpenError> {
    storage.create_dir_all(dir).map_err(io_error("create", dir))?;
    for parent in dir.ancestors().skip(1) {
        storage.sync_dir(parent).map_err(io_error("sync", parent))?;
    }
    Ok(())
}

/// Whether this directory's file system takes direct I/O: tried out rather than guessed.
fn decide_direct(storage: &dyn Storage, config: &WalConfig) -> Result<bool, WalOpenError> {
    let direct = match (config.direct, config.durability) {
        (DirectIo::Never, _) | (_, Durability::Replicated { .. }) => false,
        (DirectIo::Auto, Durability::Fsync) => {
            let path = config.dir.join("direct-io-probe");
            let probed = storage
                .open(&path, OpenMode::CREATE.with_direct(true))
                .and_then(|file| file.write_all_at(0, &AlignedBuffer::zeroed(super::BLOCK_BYTES)));
            // A file system that refuses at open may have made the file all the same.
            drop(storage.remove(&path));
            match probed {
                Ok(()) => true,
                Err(error) if is_refusal(&error) => false,
                Err(error) => return Err(io_error("try direct I/O on", &path)(error)),
            }
        }
    };
    tracing::info!(dir = %config.dir.display(), direct, durability = ?config.durability, "write-ahead log");
    Ok(direct)
}

fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::Unsupported)
}

/// One worker writes, so that one write is in flight, and one prepares files; `close` joins both.
fn start_workers(
    shared: Arc<Shared>,
    pool: &Arc<Pool>,
    config: &WalConfig,
    recovered: Recovered,
) -> Result<Vec<Box<dyn Running>>, WalOpenError> {
    let writer = Writer::new(shared, config, recovered);
    let start = |name, worker| config.background.start(name, worker).map_err(WalOpenError::Thread);
    let preparing = start("wal-segments", Box::new(Preparer::new(Arc::clone(pool))))?;
    let writing = start("wal-writer", Box::new(writer)).inspect_err(|_| pool.close())?;
    Ok(vec![writing, preparing])
}
