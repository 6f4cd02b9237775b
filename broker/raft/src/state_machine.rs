//! openraft's state machine over a shard.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::{Mutex, RwLock};
use tidemill_log::background::Background;
use tidemill_log::wal::{EntryId, Wal};
use tidemill_protocol::{NodeId, ShardId};
use tidemill_shard::{CheckpointDone, Shard, Unit, UnitResult};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::codec::{self, CodecError};
use crate::compare::{Alarm, Comparison};
use crate::config::ReplicaLimits;
use crate::runtime::blocking;
use crate::shared_log::{Lookup, SharedLog};
use crate::snapshot::{Snapshot, StagingTurns, note_install, stage_here};
use crate::types::{
    Command, LogId, Payload, RaftLogEntry, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote,
    entry_id, log_id,
};

/// How often whoever waits looks for itself. An installed snapshot replaces the shard, and needs it let go of.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A shard as openraft's callbacks, the checkpoint and the start see it.
pub(crate) struct Machine {
    id: ShardId,
    /// Replaced when a snapshot is installed.
    shard: RwLock<Shard>,
    staging: StagingTurns,
    log: Arc<SharedLog>,
    comparison: Comparison,
    state: Mutex<MachineState>,
    checkpoint_due: Notify,
    checkpoint_bytes: u64,
    write_behind_bytes_max: u64,
    apply_backlog_bytes_max: usize,
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
        // One that was under way when a snapshot took the shard's place.
        if self.checkpoint.as_ref().is_some_and(|meta| meta.last_log_id > Some(last)) {
            return;
        }
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
        let &ReplicaLimits { checkpoint_bytes, write_behind_bytes_max, apply_backlog_bytes_max, .. } = limits;
        Ok(Arc::new(Self {
            id,
            shard,
            staging: StagingTurns::new(),
            log,
            comparison: Comparison::new(limits),
            state,
            checkpoint_due,
            checkpoint_bytes,
            write_behind_bytes_max,
            apply_backlog_bytes_max,
        }))
    }

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    /// The vote that was saved last.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.log.vote()
    }

    /// What this replica knows of the others' states.
    pub(crate) fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// Who may stage a snapshot beside the shard.
    pub(crate) fn staging_turns(&self) -> &StagingTurns {
        &self.staging
    }

    pub(crate) fn shard(&self) -> Shard {
        self.shard.read().clone()
    }

    /// The log that all shards of the broker share.
    pub(crate) fn wal(&self) -> &Wal {
        self.log.wal()
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

    /// Waits until a follower may take more entries from its leader: what is committed is nearly applied, and what is applied
    /// nearly in segments. Else memory would hold the difference between the leader's disks and this one's.
    pub(crate) async fn room_to_append(&self) {
        loop {
            self.caught_up().await;
            if !self.log.apply_lags(self.apply_backlog_bytes_max) || self.poisoned().is_some() {
                return;
            }
            self.log.wait_some_applied(LOOK_INTERVAL).await;
        }
    }

    /// Waits until it does not lag any more, or has stopped.
    pub(crate) async fn caught_up(&self) {
        while self.lags() && self.poisoned().is_none() {
            let shard = self.shard();
            let written = shard.written_up_to(self.write_behind_bytes_max);
            if tokio::time::timeout(LOOK_INTERVAL, written).await.is_ok() {
                return;
            }
        }
    }

    /// The same; blocks.
    fn wait_caught_up(&self) {
        let Some(one_thread) = self.background().one_thread() else {
            return Handle::current().block_on(self.caught_up());
        };
        while self.lags() && self.poisoned().is_none() {
            one_thread.help();
        }
    }

    /// On what the log works.
    pub(crate) fn background(&self) -> &Arc<dyn Background> {
        self.log.wal().background()
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
                self.wait_caught_up();
            }
        }
        Ok(count)
    }

    fn apply(&self, entry: RaftLogEntry) -> io::Result<Vec<UnitResult>> {
        let id = entry_id(&entry.log_id);
        let shard = self.shard.read();
        let applied = match entry.payload {
            Payload::Normal(command) => {
                shard.apply(id, command.entry()).inspect(|_| self.compare(&shard, &id, &command))
            }
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

    /// Sees to what an entry that was just applied says of the replicas' states.
    fn compare(&self, shard: &Shard, id: &EntryId, command: &Command) {
        let units = &command.entry().units;
        if self.comparison.applied(command.bytes(), units) && !shard.mark_state() {
            tracing::debug!(shard = %self.id, entry = %id.index, "a checkpoint is under way: this replica takes no part in this comparison");
        }
        let reports = units.iter().filter_map(|unit| match unit {
            Unit::ReportStateHash(report) => Some(report),
            _ => None,
        });
        for report in reports {
            let voters = self.state.lock().membership().membership().voter_ids().collect();
            let alarm = self.comparison.report(self.id, report, NodeId::from_raw(id.leader_node), &voters);
            let Some(alarm) = alarm else { continue };
            metrics::counter!("tidemill_state_hash_mismatches_total", "shard" => self.id.to_string())
                .increment(1);
            match alarm {
                Alarm::Told(what) => tracing::error!(shard = %self.id, "{what}"),
                Alarm::Stops(why) => shard.give_up(&why),
            }
        }
    }

    fn snapshot(&self) -> Option<RaftSnapshot> {
        let meta = self.state.lock().checkpoint.clone()?;
        let snapshot = Snapshot::source(self.shard(), meta.last_log_id);
        Some(RaftSnapshot { meta, snapshot })
    }

    /// Puts a snapshot in the place of the shard, which goes on until then; blocks. Whoever holds the old one may finish reading; whoever
    /// follows it is led to the new one.
    fn install(&self, meta: &SnapshotMeta, snapshot: Snapshot) -> io::Result<()> {
        #[allow(clippy::disallowed_methods, reason = "measured, and nothing depends on it")]
        let started = std::time::Instant::now();
        let old = self.shard();
        let staged = match snapshot {
            Snapshot::Staged(staged) => staged,
            Snapshot::Source { shard, last } => stage_here(&shard, last, &old, &self.staging)?,
        };
        let install = staged.take().ok_or_else(|| io::Error::other("the snapshot was installed already"))?;
        let last = Some(log_id(&install.manifest().applied())).filter(|last| Some(*last) == meta.last_log_id);
        let last = last.ok_or_else(|| io::Error::other("the snapshot does not end where it was said to"))?;
        // Before anything of the shard changes: see the module for the order.
        note_install(self.log.wal(), self.id, &last)?;
        let closed = old.close().map_err(io::Error::other)?;
        let opened = install.finish(&closed).map_err(|error| {
            tracing::error!(shard = %self.id, %error, "a snapshot could not be put in its place");
            io::Error::other(error)
        })?;
        *self.shard.write() = opened.clone();
        {
            let mut state = self.state.lock();
            state.memberships = vec![meta.last_membership.clone()];
            state.checkpoint = Some(meta.clone());
        }
        self.log.applied(last.index);
        closed.give_way(&opened);
        metrics::histogram!("tidemill_snapshot_install_seconds", "shard" => self.id.to_string())
            .record(started.elapsed());
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
        if shard.bytes_since_checkpoint() >= self.0.checkpoint_bytes
            || shard.has_deleted_partitions()
            || shard.has_marked_state()
        {
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
        blocking(self.0.background(), move || machine.install(&meta, snapshot)).await?
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
            let written = blocking(self.machine.background(), move || machine.checkpoint()).await?;
            written.map_err(io::Error::other)?;
        }
        // Nothing is applied yet: the snapshot of nothing.
        let nothing = || RaftSnapshot {
            meta: SnapshotMeta::default(),
            snapshot: Snapshot::source(self.machine.shard(), None),
        };
        Ok(self.machine.snapshot().unwrap_or_else(nothing))
    }
}
