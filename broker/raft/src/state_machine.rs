//! openraft's state machine over a shard.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::{Mutex, RwLock};
use tidemill_log::wal::EntryId;
use tidemill_protocol::ShardId;
use tidemill_shard::{CheckpointDone, Shard, UnitResult};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::codec::{self, CodecError};
use crate::config::ReplicaLimits;
use crate::shared_log::{Lookup, SharedLog};
use crate::snapshot::{ShardHome, Snapshot};
use crate::types::{
    LogId, Payload, RaftLogEntry, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, entry_id, log_id,
};

/// A shard as openraft's callbacks, the checkpoint and the start see it.
pub(crate) struct Machine {
    id: ShardId,
    /// Replaced when a snapshot is installed.
    shard: RwLock<Shard>,
    home: Option<ShardHome>,
    log: Arc<SharedLog>,
    state: Mutex<MachineState>,
    checkpoint_due: Notify,
    checkpoint_bytes: u64,
    write_behind_bytes_max: u64,
}

struct MachineState {
    /// Memberships since the latest checkpoint, and the one in force at it; the last one is in force.
    memberships: Vec<StoredMembership>,
    /// What the latest checkpoint holds: openraft's snapshot.
    checkpoint: Option<SnapshotMeta>,
}

impl MachineState {
    fn membership(&self) -> StoredMembership {
        self.memberships.last().cloned().unwrap_or_default()
    }

    fn checkpointed(&mut self, last: Option<LogId>) {
        let Some(last) = last else { return };
        let within =
            |stored: &StoredMembership| stored.log_id().as_ref().is_none_or(|id| id.index <= last.index);
        let kept = self.memberships.iter().rposition(within).unwrap_or(0);
        self.memberships.drain(..kept);
        let last_membership = self.memberships.first().cloned().unwrap_or_default();
        self.checkpoint = Some(SnapshotMeta { last_log_id: Some(last), last_membership });
    }
}

impl Machine {
    /// Takes up the shard as it was opened: at its latest checkpoint.
    pub(crate) fn open(
        id: ShardId,
        shard: Shard,
        home: Option<ShardHome>,
        log: Arc<SharedLog>,
        limits: &ReplicaLimits,
    ) -> Result<Arc<Self>, CodecError> {
        let applied = shard.applied();
        let membership = applied
            .membership
            .as_deref()
            .map(codec::decode_stored_membership)
            .transpose()?
            .unwrap_or_default();
        let checkpoint = applied.last.map(|last| SnapshotMeta {
            last_log_id: Some(log_id(&last)),
            last_membership: membership.clone(),
        });
        let state = Mutex::new(MachineState { memberships: vec![membership], checkpoint });
        let checkpoint_due = Notify::new();
        let shard = RwLock::new(shard);
        let &ReplicaLimits { checkpoint_bytes, write_behind_bytes_max, .. } = limits;
        Ok(Arc::new(Self {
            id,
            shard,
            home,
            log,
            state,
            checkpoint_due,
            checkpoint_bytes,
            write_behind_bytes_max,
        }))
    }

    pub(crate) fn shard(&self) -> Shard {
        self.shard.read().clone()
    }

    pub(crate) fn applied(&self) -> Option<EntryId> {
        self.shard.read().applied().last
    }

    /// Bytes that are applied and not yet in segments.
    pub(crate) fn write_behind_lag_bytes(&self) -> u64 {
        self.shard.read().write_behind_lag_bytes()
    }

    /// Whether so much waits to be written to segments that nothing should be added.
    pub(crate) fn lags(&self) -> bool {
        self.write_behind_lag_bytes() > self.write_behind_bytes_max
    }

    /// Waits until it does not lag any more, or has stopped.
    pub(crate) async fn caught_up(&self) {
        /// An installed snapshot replaces the shard, and needs it let go of.
        const LOOK_INTERVAL: Duration = Duration::from_millis(100);
        while self.lags() && self.poisoned().is_none() {
            let shard = self.shard();
            let written = shard.written_up_to(self.write_behind_bytes_max);
            if tokio::time::timeout(LOOK_INTERVAL, written).await.is_ok() {
                return;
            }
        }
    }

    /// Why the shard stopped, if it has.
    pub(crate) fn poisoned(&self) -> Option<Arc<str>> {
        self.shard.read().poisoned()
    }

    /// The last entry in the latest checkpoint.
    pub(crate) fn checkpointed(&self) -> Option<EntryId> {
        self.state.lock().checkpoint.as_ref().and_then(|meta| meta.last_log_id.as_ref()).map(entry_id)
    }

    /// Notified when the shard has applied as much as a checkpoint is worth.
    pub(crate) fn checkpoint_due(&self) -> &Notify {
        &self.checkpoint_due
    }

    /// Writes a checkpoint; blocks.
    pub(crate) fn checkpoint(&self) -> Result<CheckpointDone, String> {
        let after_flush = |upto: EntryId| self.log.wait_flushed(upto);
        let done = self.shard().checkpoint(&after_flush).map_err(|error| error.to_string())?;
        self.state.lock().checkpointed(done.applied.as_ref().map(log_id));
        Ok(done)
    }

    /// Applies the entries that are known to be committed; blocks, on a thread of the runtime's. Returns how many there
    /// were.
    pub(crate) fn replay_committed(&self) -> io::Result<u64> {
        let committed = self.log.ends().committed.map_or(0, |id| id.index + 1);
        let mut next = self.applied().map_or(0, |id| id.index.get() + 1);
        let mut count = 0;
        while next < committed {
            let bytes_max = self.log.read_bytes_max();
            let entries = match self.log.lookup(next, committed, bytes_max) {
                Lookup::Nothing => break,
                Lookup::Recent(entries) => entries,
                Lookup::Older { from, to } => self.log.read_older(from, to, bytes_max)?,
            };
            match entries.first() {
                Some(first) if first.log_id.index == next => {}
                found => {
                    let found = found.map_or_else(|| "nothing".to_owned(), |entry| entry.log_id.to_string());
                    return Err(io::Error::other(format!(
                        "entry {next} is missing from the log: found {found}"
                    )));
                }
            }
            for entry in entries {
                next = entry.log_id.index + 1;
                count += 1;
                self.apply(entry)?;
            }
            self.log.applied(next - 1);
            if self.lags() {
                Handle::current().block_on(self.caught_up());
            }
        }
        Ok(count)
    }

    fn apply(&self, entry: RaftLogEntry) -> io::Result<Vec<UnitResult>> {
        let id = entry_id(&entry.log_id);
        let shard = self.shard.read();
        let applied = match entry.payload {
            Payload::Normal(command) => shard.apply(id, command.entry()),
            Payload::Blank => shard.apply_blank(id).map(|()| Vec::new()),
            Payload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership);
                let bytes = codec::encode_stored_membership(&stored);
                self.state.lock().memberships.push(stored);
                shard.apply_membership(id, &bytes).map(|()| Vec::new())
            }
        };
        applied.map_err(|stopped| io::Error::other(format!("shard {}: {}", self.id, stopped.reason)))
    }

    fn snapshot(&self) -> Option<RaftSnapshot> {
        let meta = self.state.lock().checkpoint.clone()?;
        let snapshot = Snapshot::new(self.shard(), meta.last_log_id);
        Some(RaftSnapshot { meta, snapshot })
    }

    /// Puts a snapshot in the place of the shard, which is closed for it and opened again; blocks. Whoever else holds
    /// the old one must have let go of it.
    fn install(&self, meta: &SnapshotMeta, snapshot: &Snapshot) -> io::Result<()> {
        let home = self.home.as_ref().ok_or_else(|| io::Error::other("this replica takes no snapshots"))?;
        let mut shard = self.shard.write();
        snapshot.install(home)?;
        *shard = Shard::open(home.config.clone(), &home.files).map_err(io::Error::other)?;
        if shard.applied().last.as_ref().map(log_id) != meta.last_log_id {
            return Err(io::Error::other("the installed snapshot does not end where it was said to"));
        }
        let mut state = self.state.lock();
        state.memberships = vec![meta.last_membership.clone()];
        state.checkpoint = Some(meta.clone());
        Ok(())
    }
}

/// The handle that openraft owns.
#[derive(Clone)]
pub(crate) struct StateMachine(Arc<Machine>);

impl StateMachine {
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        Self(machine)
    }
}

/// Builds a snapshot: names the latest checkpoint, or writes a new one first.
pub(crate) struct SnapshotBuilder {
    machine: Arc<Machine>,
    write: bool,
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let last = self.0.applied().as_ref().map(log_id);
        Ok((last, self.0.state.lock().membership()))
    }

    /// Applies entry by entry and answers each at once: the next entry of a busy shard is proposed from in here.
    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut last = None;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            last = Some(entry.log_id.index);
            let results = self.0.apply(entry)?;
            if let Some(responder) = responder {
                responder.send(results);
            }
            // A long catch-up must let others on this thread.
            tokio::task::coop::consume_budget().await;
        }
        if let Some(last) = last {
            self.0.log.applied(last);
        }
        let shard = self.0.shard.read();
        // An idle shard would keep the files of deleted partitions for good.
        if shard.bytes_since_checkpoint() >= self.0.checkpoint_bytes || shard.has_deleted_partitions() {
            self.0.checkpoint_due.notify_one();
        }
        Ok(())
    }

    /// Unless forced, a snapshot is the latest checkpoint: when to write one is decided by bytes, elsewhere.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let write = force || self.0.state.lock().checkpoint.is_none();
        Some(SnapshotBuilder { machine: Arc::clone(&self.0), write })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { machine: Arc::clone(&self.0), write: true }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        let (machine, meta) = (Arc::clone(&self.0), meta.clone());
        let installed = tokio::task::spawn_blocking(move || machine.install(&meta, &snapshot)).await;
        installed.map_err(io::Error::other)?
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        Ok(self.0.snapshot())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        if self.write {
            let machine = Arc::clone(&self.machine);
            let written = tokio::task::spawn_blocking(move || machine.checkpoint()).await;
            written.map_err(io::Error::other)?.map_err(io::Error::other)?;
        }
        // Nothing is applied yet: the snapshot of nothing.
        let nothing = || RaftSnapshot {
            meta: SnapshotMeta::default(),
            snapshot: Snapshot::new(self.machine.shard(), None),
        };
        Ok(self.machine.snapshot().unwrap_or_else(nothing))
    }
}
