//! One shard's replica on this broker: the handle that everything else uses.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResult;
use openraft::{Raft, ReadPolicy, ServerState};
use tidemill_log::wal::{RecoveredShard, Wal};
use tidemill_protocol::{LogIndex, NodeId, ShardId};
use tidemill_shard::{CheckpointDone, Shard, Unit, UnitResult};
use tokio::sync::watch;

use crate::config::{ReplicaConfig, ReplicaLimits};
use crate::error::{CheckpointFailed, ProposeError, ReadError, ReplicaStartError};
use crate::flight::Flight;
use crate::follow::{ShardChanges, ShardHandle};
use crate::forward::Forwarder;
use crate::gate::{Gate, Held};
use crate::members::GroupMembers;
use crate::peer_network::PeerLinks;
use crate::pending::Pending;
use crate::proposer::{EntrySink, Permit, Proposer};
use crate::pulse::{self, LastWord};
use crate::responder::CallbackResponder;
use crate::runtime::blocking;
use crate::shared_log::SharedLog;
use crate::start;
use crate::state_machine::{Machine, StateMachine};
use crate::status::{ReplicaRole, ReplicaStatus};
use crate::supervisor::{self, Health};
use crate::telemetry::{StateTelemetry, Telemetry};
use crate::types::{Command, LogId, TypeConfig, entry_id};
use crate::unbroken::Unbroken;

/// How long openraft may take to notice a checkpoint before it is told again.
const NOTICE_PATIENCE: Duration = Duration::from_millis(100);

/// How often whoever waits for this replica to lead asks again whether it does.
const LEADING_RETRY: Duration = Duration::from_millis(250);

/// A replica of one shard. Cheap to clone; when the last clone is dropped the replica stops, as if the broker had been
/// killed (what was acknowledged is in the log).
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

/// What a running replica consists of.
pub(crate) struct Inner {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) limits: ReplicaLimits,
    /// How long another node may take to take the lead.
    pub(crate) transfer_patience: Duration,
    pub(crate) raft: Arc<Raft<TypeConfig, StateMachine>>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) log: Arc<SharedLog>,
    /// Noted by whoever serves a leader.
    pub(crate) last_word: Arc<LastWord>,
    /// `None` for a group of one.
    pub(crate) peers: Option<Peers>,
    pub(crate) gate: Option<Arc<dyn Gate>>,
    proposer: Arc<Proposer>,
    role: watch::Receiver<ReplicaRole>,
    pub(crate) members: watch::Receiver<GroupMembers>,
    checkpointing: tokio::sync::Mutex<()>,
    telemetry: StateTelemetry,
}

/// The way to the rest of the group.
pub(crate) struct Peers {
    pub(crate) links: Arc<PeerLinks>,
    pub(crate) forwarder: Forwarder,
}

impl Replica {
    /// Starts the replica of a shard: refuses what cannot be trusted, applies what is known to be committed, then takes
    /// part in its group. A group of one is led by it at once; see [`Self::wait_leading`].
    ///
    /// Boxed, so that openraft is compiled for our types here and nowhere else: whoever polls a future that is not compiles all of it.
    pub fn start(
        config: ReplicaConfig,
        wal: Wal,
        recovered: RecoveredShard,
        shard: Shard,
    ) -> BoxFuture<'static, Result<Self, ReplicaStartError>> {
        Box::pin(Self::begin(config, wal, recovered, shard))
    }

    async fn begin(
        config: ReplicaConfig,
        wal: Wal,
        recovered: RecoveredShard,
        shard: Shard,
    ) -> Result<Self, ReplicaStartError> {
        let started = start::start(&config, wal, recovered, shard).await?;
        started.machine.comparison().begin(config.node);
        let raft = Arc::new(started.raft);
        let sink = RaftSink { raft: Arc::clone(&raft), entry_bytes_max: started.log.wal().entry_bytes_max() };
        let telemetry = Telemetry::new(config.shard);
        let proposer = {
            let elsewhere = Arc::clone(&config.unit_bytes_elsewhere);
            Proposer::new(config.limits, elsewhere, config.clock.clone(), telemetry, Box::new(sink))
        };
        let health = Health { log: Arc::clone(&started.log), machine: Arc::clone(&started.machine) };
        let (role, members) =
            supervisor::spawn(config.shard, &raft, &proposer, health, (config.timing, config.beat));
        let last_word = LastWord::new();
        pulse::spawn((config.timing, config.beat), &raft, role.clone(), Arc::clone(&last_word));
        let peers = started.links.map(|links| {
            let forwarder = Forwarder::new(Arc::clone(&links), &config.limits);
            Peers { links, forwarder }
        });
        Ok(Self(Arc::new(Inner {
            shard: config.shard,
            node: config.node,
            limits: config.limits,
            transfer_patience: Duration::from_millis(config.timing.lease_ms.saturating_mul(4)),
            raft,
            machine: started.machine,
            log: started.log,
            last_word,
            peers,
            gate: config.gate,
            proposer,
            role,
            members,
            checkpointing: tokio::sync::Mutex::new(()),
            telemetry: StateTelemetry::new(config.shard),
        })))
    }

    /// Which shard this is.
    #[must_use]
    pub fn shard_id(&self) -> ShardId {
        self.0.shard
    }

    /// Whether both are handles of the same one.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Which replica of it.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The shard's state. What it shows is applied, and only [`Self::read_barrier`] makes it current. Not to be kept: an
    /// installed snapshot replaces it; see [`Self::handle`].
    #[must_use]
    pub fn shard(&self) -> Shard {
        self.0.machine.shard()
    }

    /// The shard for whoever keeps it: follows what is installed in its place, and keeps nothing of the replica.
    #[must_use]
    pub fn handle(&self) -> ShardHandle {
        ShardHandle::new(&self.0.machine)
    }

    /// Follows what [`Shard::changes`] counts, as [`Self::handle`] does the shard.
    #[must_use]
    pub fn changes(&self) -> ShardChanges {
        ShardChanges::of(&self.0.machine)
    }

    /// Waits for room for a unit of `bytes` with records, as [`Unit::bytes`] counts them: for proposals to be applied,
    /// and for what is applied to be written to segments.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] when there is none in time, [`ProposeError::TooLarge`], [`ProposeError::Stopped`], and
    /// [`ProposeError::NoQuorum`] where this replica leads without a majority.
    pub async fn reserve(&self, bytes: usize) -> Result<Permit, ProposeError> {
        if self.0.machine.lags() {
            self.wait_for_segments().await?;
        }
        self.0.proposer.reserve(bytes).await
    }

    /// The segments' disk is slower than the log's. Apply never waits for it, so whoever brings more does.
    async fn wait_for_segments(&self) -> Result<(), ProposeError> {
        let telemetry = &self.0.telemetry;
        telemetry.stalls.increment(1);
        let started = tokio::time::Instant::now();
        let patience = self.0.proposer.reserve_deadline();
        let waited = tokio::time::timeout(patience, self.0.machine.caught_up()).await;
        telemetry.stall_seconds.record(started.elapsed());
        waited.map_err(|_elapsed| self.0.proposer.overloaded())
    }

    /// Writes one unit: [`Self::reserve`], [`Permit::submit`], and the answer. One without records, such as retention's,
    /// does not wait for segments.
    ///
    /// # Errors
    /// Of these, only [`ProposeError::OutcomeUnknown`] leaves open whether the unit was written.
    pub async fn propose(&self, unit: Unit) -> Result<UnitResult, ProposeError> {
        self.queue(unit, None).await?.await
    }

    /// The same up to where the unit has its place behind those queued before it; its outcome comes later. See [`Permit::submit_held`].
    pub(crate) async fn queue(&self, unit: Unit, held: Option<Held>) -> Result<Pending, ProposeError> {
        let permit = match unit.has_records() {
            true => self.reserve(unit.bytes()).await?,
            false => self.0.proposer.reserve(unit.bytes()).await?,
        };
        Ok(permit.submit_with(unit, held))
    }

    /// The same where this replica leads.
    pub(crate) async fn read_barrier_here(&self) -> Result<(), ReadError> {
        let read = Unbroken::new(&self.0.raft, |raft| async move {
            raft.ensure_linearizable(ReadPolicy::ReadIndex).await
        });
        if self.0.peers.is_none() {
            return read.await.map(drop).map_err(|error| self.0.read_error(error));
        }
        // Cut off from the others, it would wait until it hears of another leader.
        match tokio::time::timeout(self.0.limits.reserve_deadline, read).await {
            Ok(Ok(_read)) => {
                // A majority answers.
                self.0.proposer.regain();
                Ok(())
            }
            Ok(Err(error)) => Err(self.0.read_error(error)),
            Err(_elapsed) => Err(ReadError::NoQuorum),
        }
    }

    /// Role and positions, now.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let role = self.0.role.borrow().clone();
        let last_taken = self.0.raft.metrics().borrow_watched().last_log_index;
        let ends = self.0.log.ends();
        ReplicaStatus {
            shard: self.0.shard,
            node: self.0.node,
            state: role.state,
            term: role.term,
            leader: role.leader,
            last_applied: self.0.machine.applied(),
            checkpointed: self.0.machine.checkpointed(),
            last_entry: ends.last.as_ref().map(entry_id),
            last_taken: last_taken.map(LogIndex::new),
            purged: ends.purged.as_ref().map(entry_id),
        }
    }

    /// The role whenever it changes; positions are not announced.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ReplicaRole> {
        self.0.role.clone()
    }

    /// Waits until this replica leads and its state shows all that was ever acknowledged.
    ///
    /// # Errors
    /// [`ReadError::NoQuorum`] when that takes longer than `patience`, [`ReadError::Stopped`].
    pub async fn wait_leading(&self, patience: Duration) -> Result<(), ReadError> {
        let mut role = self.watch();
        let leading = async {
            loop {
                let now = role.borrow_and_update().clone();
                if let Some(reason) = now.stopped() {
                    return Err(ReadError::Stopped { reason: Arc::clone(reason) });
                }
                if now.is_leader() {
                    match self.read_barrier_here().await {
                        Err(ReadError::NotLeader { .. } | ReadError::NoQuorum) => {}
                        done => return done,
                    }
                }
                // It may get its majority without a change of its role.
                if let Ok(Err(_gone)) = tokio::time::timeout(LEADING_RETRY, role.changed()).await {
                    return Err(ReadError::Stopped { reason: Arc::from("it was shut down") });
                }
            }
        };
        tokio::time::timeout(patience, leading).await.unwrap_or(Err(ReadError::NoQuorum))
    }

    /// Whether a snapshot that this replica sent does not read here, or was something else for its receiver than what it announces: another
    /// had better lead, and send its own. As long as nobody [forgets](Self::forget_unsound_snapshots) it.
    #[must_use]
    pub fn sends_unsound_snapshots(&self) -> bool {
        self.0.peers.as_ref().is_some_and(|peers| peers.links.is_unsound.load(Ordering::Relaxed))
    }

    /// Whether this replica sends a snapshot just now. Another leader would send its own: of that only segments and staged state of the same
    /// checkpoint need not be sent again.
    #[must_use]
    pub fn sends_snapshots(&self) -> bool {
        self.0.peers.as_ref().is_some_and(|peers| peers.links.snapshots_under_way.load(Ordering::Relaxed) > 0)
    }

    /// What this replica has is taken for sound again: until the next snapshot shows that it is not.
    pub fn forget_unsound_snapshots(&self) {
        if let Some(peers) = &self.0.peers {
            peers.links.is_unsound.store(false, Ordering::Relaxed);
        }
    }

    /// Writes the state down and frees the log up to there. Applying goes on meanwhile; checkpoints wait for each other.
    ///
    /// # Errors
    /// [`CheckpointFailed::NotWritten`] can be tried again, for example when the disk has room again.
    pub async fn checkpoint(&self) -> Result<CheckpointDone, CheckpointFailed> {
        let _one_at_a_time = self.0.checkpointing.lock().await;
        let started = tokio::time::Instant::now();
        let machine = Arc::clone(&self.0.machine);
        let written = blocking(self.0.log.wal().background(), move || machine.checkpoint()).await;
        let done = match written {
            Ok(Ok(done)) => done,
            Ok(Err(reason)) => return Err(self.not_written(reason)),
            Err(panicked) => return Err(self.not_written(panicked.to_string())),
        };
        self.0.telemetry.checkpoints.increment(1);
        self.0.telemetry.checkpoint_seconds.record(started.elapsed());
        if let Some(applied) = done.applied {
            self.purge(applied.index).await?;
        }
        Ok(done)
    }

    /// Tells openraft of the checkpoint, which is its snapshot, then that the log before it can go. It keeps what a
    /// follower is still being sent.
    async fn purge(&self, upto: LogIndex) -> Result<(), CheckpointFailed> {
        let raft = &self.0.raft;
        let stopped = |fatal| CheckpointFailed::Stopped { reason: self.0.stop_reason(&fatal) };
        let mut progress = raft.watch_snapshot_progress();
        let is_known = |snapshot: &Option<LogId>| snapshot.as_ref().is_some_and(|id| id.index >= upto.get());
        while !is_known(&progress.get()) {
            // Ignored while it still takes note of an earlier one, so it may have to be said again.
            raft.trigger().snapshot().await.map_err(stopped)?;
            if let Ok(Err(_gone)) = tokio::time::timeout(NOTICE_PATIENCE, progress.wait_until(is_known)).await
            {
                return Err(stopped(Fatal::Stopped));
            }
        }
        raft.trigger().purge_log(upto.get()).await.map_err(stopped)
    }

    fn not_written(&self, reason: String) -> CheckpointFailed {
        self.0.telemetry.checkpoint_failures.increment(1);
        CheckpointFailed::NotWritten { shard: self.0.shard, reason }
    }

    /// Notified when the shard has applied so much that a checkpoint is due.
    pub(crate) fn checkpoint_due(&self) -> &tokio::sync::Notify {
        self.0.machine.checkpoint_due()
    }

    /// Stops. What is queued is refused; what is in flight has an unknown outcome.
    pub async fn stop(&self) {
        self.0.proposer.stop(&Arc::from("it is shutting down"), self.others_vote());
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(shard = %self.0.shard, %error, "the replica did not shut down cleanly");
        }
        // Until the end is announced; the announcer gone means the same.
        drop(self.watch().wait_for(|role| role.stopped().is_some()).await);
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

impl Inner {
    pub(crate) fn stop_reason(&self, fatal: &Fatal<TypeConfig>) -> Arc<str> {
        self.role.borrow().stopped().cloned().unwrap_or_else(|| Arc::from(fatal.to_string()))
    }

    pub(crate) fn read_error(
        &self,
        error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    ) -> ReadError {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                ReadError::NotLeader { leader: forward.leader_id }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
            RaftError::Fatal(fatal) => ReadError::Stopped { reason: self.stop_reason(&fatal) },
        }
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Replica").field(&self.status()).finish()
    }
}

/// A leader whose lease has run out takes nothing either, and names nobody: what it took before may still be written.
fn not_taken(raft: &Weak<Raft<TypeConfig, StateMachine>>, leader: Option<NodeId>) -> ProposeError {
    let leads = raft
        .upgrade()
        .is_some_and(|raft| raft.server_metrics().borrow_watched().state == ServerState::Leader);
    match leader {
        None if leads => ProposeError::NoQuorum,
        leader => ProposeError::NotLeader { leader },
    }
}

struct RaftSink {
    raft: Arc<Raft<TypeConfig, StateMachine>>,
    /// What the log takes: an entry beyond it would end the replica.
    entry_bytes_max: usize,
}

impl EntrySink for RaftSink {
    fn propose(&self, command: Command, flight: Flight) {
        if command.bytes() > self.entry_bytes_max {
            let (bytes, bytes_max) = (command.bytes(), self.entry_bytes_max);
            return flight.refused(&ProposeError::TooLarge { bytes, bytes_max });
        }
        // Held weakly: an entry that never ends would keep its own core.
        let raft = Arc::downgrade(&self.raft);
        let responder =
            CallbackResponder::new(move |outcome: Option<ClientWriteResult<TypeConfig>>| match outcome {
                Some(Ok(applied)) => flight.committed(applied.data),
                Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
                    flight.failed(&not_taken(&raft, forward.leader_id));
                }
                Some(Err(_discarded)) => flight.failed(&ProposeError::OutcomeUnknown),
                None => drop(flight),
            });
        // The channel holds more than may be in flight, so this never has to wait; and outside of tokio's budget it is
        // never made to. Should the core be gone, the entry is dropped, and with it the flight, whose units learn that
        // their outcome is unknown; the call then waits for the core's end, which is not waited for here.
        let mut handed =
            Unbroken::new(
                &self.raft,
                |raft| async move { raft.client_write_ff(command, Some(responder)).await },
            );
        match tokio::task::coop::unconstrained(&mut handed).now_or_never() {
            Some(Ok(())) => {}
            Some(Err(fatal)) => tracing::debug!(%fatal, "an entry could not be handed to openraft"),
            None => handed.go_on(),
        }
    }
}
