//! One shard's replica on this broker: the handle that everything else uses.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResult;
use openraft::{Raft, ReadPolicy};
use tidemill_log::wal::{RecoveredShard, Wal};
use tidemill_protocol::{LogIndex, ShardId};
use tidemill_shard::{CheckpointDone, Shard, Unit, UnitResult};
use tokio::sync::watch;

use crate::config::ReplicaConfig;
use crate::error::{CheckpointFailed, ProposeError, ReadError, ReplicaStartError};
use crate::flight::Flight;
use crate::follow::ShardHandle;
use crate::node::NodeId;
use crate::proposer::{EntrySink, Permit, Proposer};
use crate::responder::CallbackResponder;
use crate::shared_log::SharedLog;
use crate::start;
use crate::state_machine::{Machine, StateMachine};
use crate::status::{ReplicaRole, ReplicaStatus};
use crate::supervisor::{self, Health};
use crate::telemetry::{StateTelemetry, Telemetry};
use crate::types::{Command, LogId, TypeConfig, entry_id};

/// How long openraft may take to notice a checkpoint before it is told again.
const NOTICE_PATIENCE: Duration = Duration::from_millis(100);

/// A replica of one shard. Cheap to clone; when the last clone is dropped the replica stops, as if the broker had been
/// killed (what was acknowledged is in the log).
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    shard: ShardId,
    node: NodeId,
    raft: Arc<Raft<TypeConfig, StateMachine>>,
    machine: Arc<Machine>,
    log: Arc<SharedLog>,
    proposer: Arc<Proposer>,
    role: watch::Receiver<ReplicaRole>,
    checkpointing: tokio::sync::Mutex<()>,
    telemetry: StateTelemetry,
}

impl Replica {
    /// Starts the replica of a shard: refuses what cannot be trusted, applies what is known to be committed, then takes
    /// part in its group. A group of one is led by it at once; see [`Self::wait_leading`].
    pub async fn start(
        config: ReplicaConfig,
        wal: Wal,
        recovered: RecoveredShard,
        shard: Shard,
    ) -> Result<Self, ReplicaStartError> {
        let started = start::start(&config, wal, recovered, shard).await?;
        let raft = Arc::new(started.raft);
        let sink = RaftSink { raft: Arc::clone(&raft), entry_bytes_max: started.log.wal().entry_bytes_max() };
        let telemetry = Telemetry::new(config.shard);
        let proposer = Proposer::new(config.limits, config.clock.clone(), telemetry, Box::new(sink));
        let health = Health { log: Arc::clone(&started.log), machine: Arc::clone(&started.machine) };
        let role = supervisor::spawn(config.shard, &raft, &proposer, health);
        Ok(Self(Arc::new(Inner {
            shard: config.shard,
            node: config.node,
            raft,
            machine: started.machine,
            log: started.log,
            proposer,
            role,
            checkpointing: tokio::sync::Mutex::new(()),
            telemetry: StateTelemetry::new(config.shard),
        })))
    }

    /// Which shard this is.
    #[must_use]
    pub fn shard_id(&self) -> ShardId {
        self.0.shard
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

    /// The shard for whoever keeps it: follows what is installed in its place.
    #[must_use]
    pub fn handle(&self) -> ShardHandle {
        ShardHandle::new(Arc::clone(&self.0.machine))
    }

    /// Waits for room for a unit of `bytes` with records, as [`Unit::bytes`] counts them: for proposals to be applied,
    /// and for what is applied to be written to segments.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] when there is none in time, [`ProposeError::TooLarge`], [`ProposeError::Stopped`].
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
        let permit = match unit.has_records() {
            true => self.reserve(unit.bytes()).await?,
            false => self.0.proposer.reserve(unit.bytes()).await?,
        };
        permit.submit(unit).await
    }

    /// Returns once this replica's state shows everything that was acknowledged before the call, by whichever replica.
    ///
    /// # Errors
    /// [`ReadError::NotLeader`] where another must be asked.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        match self.0.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(ReadError::Stopped { reason: self.stop_reason(&fatal) }),
        }
    }

    /// Role and positions, now.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let role = self.0.role.borrow().clone();
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
                    match self.read_barrier().await {
                        Err(ReadError::NotLeader { .. } | ReadError::NoQuorum) => {}
                        done => return done,
                    }
                }
                if role.changed().await.is_err() {
                    return Err(ReadError::Stopped { reason: Arc::from("it was shut down") });
                }
            }
        };
        tokio::time::timeout(patience, leading).await.unwrap_or(Err(ReadError::NoQuorum))
    }

    /// How much was applied since the last checkpoint, in bytes.
    #[must_use]
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.shard().bytes_since_checkpoint()
    }

    /// Writes the state down and frees the log up to there. Applying goes on meanwhile; checkpoints wait for each other.
    ///
    /// # Errors
    /// [`CheckpointFailed::NotWritten`] can be tried again, for example when the disk has room again.
    pub async fn checkpoint(&self) -> Result<CheckpointDone, CheckpointFailed> {
        let _one_at_a_time = self.0.checkpointing.lock().await;
        let started = tokio::time::Instant::now();
        let machine = Arc::clone(&self.0.machine);
        let written = tokio::task::spawn_blocking(move || machine.checkpoint()).await;
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
        let stopped = |fatal| CheckpointFailed::Stopped { reason: self.stop_reason(&fatal) };
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
        self.0.proposer.stop(&Arc::from("it is shutting down"));
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(shard = %self.0.shard, %error, "the replica did not shut down cleanly");
        }
        // Until the end is announced; the announcer gone means the same.
        drop(self.watch().wait_for(|role| role.stopped().is_some()).await);
    }

    fn stop_reason(&self, fatal: &Fatal<TypeConfig>) -> Arc<str> {
        self.0.role.borrow().stopped().cloned().unwrap_or_else(|| Arc::from(fatal.to_string()))
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Replica").field(&self.status()).finish()
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
        let responder =
            CallbackResponder::new(move |outcome: Option<ClientWriteResult<TypeConfig>>| match outcome {
                Some(Ok(applied)) => flight.committed(applied.data),
                Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
                    flight.failed(&ProposeError::NotLeader { leader: forward.leader_id });
                }
                Some(Err(_discarded)) => flight.failed(&ProposeError::OutcomeUnknown),
                None => drop(flight),
            });
        // The channel holds more than may be in flight, so this never has to wait; and outside of tokio's budget it is
        // never made to. Should it be full all the same, or the core be gone, the entry is dropped, and with it the
        // flight, whose units learn that their outcome is unknown.
        let handed = self.raft.client_write_ff(command, Some(responder));
        if !matches!(tokio::task::coop::unconstrained(handed).now_or_never(), Some(Ok(()))) {
            tracing::debug!("an entry could not be handed to openraft");
        }
    }
}
