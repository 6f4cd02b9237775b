//! `tidemill cluster recover`: a majority is lost for good, and one broker's directory is gone on with. Offline.
//!
//! ```text
//!   lock -> look at every shard -> play the controller's log forward -> report
//!                                                                         | --accept-loss
//!   `recovered`: begun -> log of each shard: alone under a new node id -> `replicas`: those ids -> `recovered`: complete
//!                                       '-- the controller's: AcceptLoss behind it
//! ```
//!
//! What the controller is told stands in its log behind all else that is there, and a group of one is led before a broker serves: so
//! no client is served before it is applied.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use tidemill_controller::{Controller, ControllerCommand};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{RecoveredShard, Recovery, Wal};
use tidemill_protocol::{BrokerId, ClusterId, NodeId, ShardId, Timestamp};
use tidemill_raft::{HeldReplica, ReplicaStartError, entries_behind, examine, go_on_alone, recovered_shard};
use tidemill_shard::{Entry, Shard, ShardConfig, Unit};
use tokio::runtime::Handle;

use super::Lives;
use super::recovered::{self, Recovered};
use crate::config::BrokerConfig;
use crate::data_dir::{DataDir, DataDirError, RELEASE};
use crate::machine::Machine;
use crate::opening::open_wal;
use crate::start_error::StartError;

/// What is to be done with which directory.
#[derive(Debug, Clone)]
pub struct RecoverRequest {
    /// Of the broker that is left; it must not run.
    pub data_dir: PathBuf,
    /// Go on with what is there. Otherwise it is only looked at.
    pub accept_loss: bool,
    /// Also where shards have no replica here, whose records are then gone.
    pub leave_missing: bool,
    /// The time, for the record that is left of it.
    pub now: Timestamp,
}

/// What a directory holds, and what becomes of it.
#[derive(Debug, Clone)]
pub struct RecoverReport {
    /// Whose directory it is.
    pub cluster: ClusterId,
    /// Which broker's.
    pub broker: BrokerId,
    /// Under which its replicas go on: one that was never used.
    pub incarnation: u32,
    /// Every shard of the cluster, the controller's first.
    pub shards: Vec<ShardFinding>,
    /// The other brokers of the cluster, as far as this one knows, those included that an attempt which was broken off threw
    /// out: they are no part of it any more.
    pub others: Vec<BrokerId>,
    /// Whether it was done.
    pub recovered: bool,
}

/// What there is of one shard.
#[derive(Debug, Clone)]
pub struct ShardFinding {
    /// Which shard.
    pub shard: ShardId,
    /// What is here, or why there is nothing to go on with.
    pub held: Result<HeldReplica, String>,
}

/// Why a directory can't be gone on with; nothing changed unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Not a directory of a broker.
    #[error(
        "{0} is no broker's data directory: there is no file `meta`; name the one of the broker that is left"
    )]
    NoDirectory(PathBuf),
    /// In use, or not this release's.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log does not open.
    #[error(transparent)]
    Open(Box<StartError>),
    /// Nothing goes on without the controller.
    #[error(
        "what this broker has of the controller (shard 0) can't be gone on with: {0}. Run this on the directory of another broker that \
         is left, if there is one"
    )]
    NoController(String),
    /// Shards without a replica here that can be gone on with.
    #[error(
        "broker {broker} has no replica of {} that can be gone on with (what is wrong with those that are here is said without --accept-loss): their records would be gone. Run this on the directory of a broker that has them, or say \
         --leave-missing to go on without them for good", shards(.missing)
    )]
    Missing {
        /// Whose directory it is.
        broker: BrokerId,
        /// Which shards.
        missing: Vec<ShardId>,
    },
    /// Writing failed.
    #[error(
        "the recovery broke off: {0}. The broker does not start on this directory until it was run again; that may be done as often as \
         needed"
    )]
    BrokenOff(String),
    /// The process is ending.
    #[error("the recovery was interrupted; run it again")]
    Interrupted,
}

fn shards(shards: &[ShardId]) -> String {
    let named: Vec<String> = shards.iter().map(ToString::to_string).collect();
    format!("shard{} {}", if named.len() == 1 { "" } else { "s" }, named.join(", "))
}

/// Looks at the directory of a stopped broker whose peers are lost, and goes on with it where that is said.
///
/// # Errors
/// See [`RecoverError`].
pub fn recover(request: RecoverRequest) -> BoxFuture<'static, Result<RecoverReport, RecoverError>> {
    // Boxed, so that it is compiled here, and not in each program and test that calls it.
    Box::pin(async {
        // Logs and states are read where it stands.
        let runtime = Handle::current();
        let done = tokio::task::spawn_blocking(move || runtime.block_on(recover_here(request)));
        done.await.map_err(|_| RecoverError::Interrupted)?
    })
}

async fn recover_here(request: RecoverRequest) -> Result<RecoverReport, RecoverError> {
    let root = &request.data_dir;
    if !root.join("meta").is_file() {
        return Err(RecoverError::NoDirectory(root.clone()));
    }
    let mut data_dir = DataDir::open_existing(root)?;
    let io = |source| DataDirError::Io { path: root.clone(), source };
    let lives = Lives::open(data_dir.storage(), data_dir.meta(), false).map_err(io)?;
    let mut config = BrokerConfig { data_dir: root.clone(), ..BrokerConfig::default() };
    config.wal.segment_bytes = segment_bytes(&data_dir).map_err(io)?.unwrap_or(config.wal.segment_bytes);
    let opened = open_wal(&config, &data_dir, &Machine::this()).await;
    let (wal, recovery) = opened.map_err(|error| RecoverError::Open(Box::new(error)))?;
    let (mut plan, replicas) = Plan::of(&data_dir, &lives, &wal, &recovery, request.now)?;
    plan.count_in(recovered::lost_before(&**data_dir.storage()).map_err(io)?);
    let mut report = plan.report(&data_dir);
    let missing: Vec<ShardId> = plan.findings.iter().filter(|f| f.held.is_err()).map(|f| f.shard).collect();
    if !request.accept_loss {
        // Nothing was written to the log: what its end tells of a power loss, say, it tells again.
        return Ok(report);
    }
    if !missing.is_empty() && !request.leave_missing {
        return Err(RecoverError::Missing { broker: plan.node.broker(), missing });
    }
    let done = plan.carry_out(&mut data_dir, &lives, &wal, replicas, &missing, request.now).await;
    done.map_err(RecoverError::BrokenOff)?;
    wal.close().map_err(|error| RecoverError::BrokenOff(error.to_string()))?;
    report.recovered = true;
    Ok(report)
}

/// The size of the log's files: new ones are made like those that are there, since the settings are not at hand.
fn segment_bytes(data_dir: &DataDir) -> io::Result<Option<u64>> {
    let files = match data_dir.storage().list(Path::new("wal")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        listed => listed?,
    };
    Ok(files.iter().filter(|file| file.name.ends_with(".wal")).map(|file| file.len).max())
}

/// A shard's replica that is gone on with.
struct Held {
    shard: Shard,
    recovered: RecoveredShard,
}

/// What is to become of a directory.
struct Plan {
    findings: Vec<ShardFinding>,
    node: NodeId,
    others: Vec<BrokerId>,
    /// What the controller is told.
    told: ControllerCommand,
}

impl Plan {
    fn of(
        data_dir: &DataDir,
        lives: &Lives,
        wal: &Wal,
        recovery: &Recovery,
        now: Timestamp,
    ) -> Result<(Self, Vec<Held>), RecoverError> {
        let files = SegmentFiles::new(Arc::clone(data_dir.storage()), SegmentFilesConfig::default());
        let (mut findings, mut replicas) = (Vec::new(), Vec::new());
        for id in (0..=data_dir.meta().shards).map(ShardId::new) {
            let found = find(id, lives, wal, recovery, &files);
            let held = found.map(|(held, replica)| {
                replicas.push(replica);
                held
            });
            findings.push(ShardFinding { shard: id, held });
        }
        let controller = match findings.first().map(|finding| &finding.held) {
            Some(Ok(_)) => played_forward(wal, &replicas[0])?,
            Some(Err(reason)) => return Err(RecoverError::NoController(reason.clone())),
            None => return Err(RecoverError::NoController("it is not there".to_owned())),
        };
        let broker = BrokerId::new(data_dir.meta().broker_id);
        let held = findings.iter().filter_map(|finding| finding.held.as_ref().ok());
        let shards: Vec<ShardId> = held.clone().map(|held| held.shard).collect();
        let known = held.flat_map(|held| held.voters.iter().chain(&held.learners).copied());
        let used = known.chain(shards.iter().map(|shard| lives.node(*shard)));
        let used = used.filter(|node| node.broker() == broker).map(NodeId::incarnation);
        let next = used.max().unwrap_or(0).max(data_dir.meta().incarnation).saturating_add(1);
        let incarnation = next.max(controller.broker(broker).map_or(1, |known| known.next_incarnation));
        let node = NodeId::new(broker, incarnation);
        let others = controller.brokers().filter(|other| other.is_member() && other.broker != broker);
        let others = others.map(|other| other.broker).collect();
        let told = ControllerCommand::AcceptLoss { survivor: broker, incarnation, shards };
        // Before anything is written it is known that it will be taken.
        let mut after = controller.clone();
        let taken = after.apply(&told, now).map_err(|error| RecoverError::NoController(error.to_string()));
        taken?;
        let own = after.shard(ShardId::CONTROLLER).map(|record| record.replicas.as_slice());
        if own != Some(&[node]) {
            let reason = format!("it would not go on as replica {node} alone");
            return Err(RecoverError::NoController(reason));
        }
        Ok((Self { findings, node, others, told }, replicas))
    }

    /// Names those among the others, too, whom an attempt that was broken off threw out: what it told the controller may have been
    /// played forward, where they are no members any more.
    fn count_in(&mut self, lost_before: Vec<u32>) {
        let before = lost_before.into_iter().map(BrokerId::new);
        let all: BTreeSet<BrokerId> = before.chain(self.others.iter().copied()).collect();
        self.others = all.into_iter().collect();
    }

    fn report(&self, data_dir: &DataDir) -> RecoverReport {
        RecoverReport {
            cluster: data_dir.meta().cluster,
            broker: self.node.broker(),
            incarnation: self.node.incarnation(),
            shards: self.findings.clone(),
            others: self.others.clone(),
            recovered: false,
        }
    }

    async fn carry_out(
        &self,
        data_dir: &mut DataDir,
        lives: &Lives,
        wal: &Wal,
        replicas: Vec<Held>,
        missing: &[ShardId],
        now: Timestamp,
    ) -> Result<(), String> {
        let said = |error: io::Error| error.to_string();
        let held: Vec<ShardId> = self
            .findings
            .iter()
            .filter(|finding| finding.held.is_ok())
            .map(|finding| finding.shard)
            .collect();
        let numbers = |shards: &[ShardId]| shards.iter().map(|shard| shard.get()).collect();
        let mut record = Recovered {
            at_ms: now.get(),
            by: RELEASE.to_owned(),
            incarnation: self.node.incarnation(),
            shards: numbers(&held),
            missing: numbers(missing),
            lost_brokers: self.others.iter().map(|broker| broker.get()).collect(),
            complete: false,
        };
        recovered::note(&**data_dir.storage(), record.clone()).map_err(said)?;
        data_dir.form_nothing().map_err(said)?;
        for (id, replica) in held.iter().zip(replicas) {
            let tell = || Entry { time: now, units: vec![Unit::Control(self.told.clone())] };
            let then = (*id == ShardId::CONTROLLER).then(tell);
            let Held { shard, recovered } = replica;
            let alone = go_on_alone(wal, *id, recovered, &shard, self.node, then).await;
            alone.map_err(|error: ReplicaStartError| error.to_string())?;
        }
        lives.go_on_as(&held, self.node.incarnation()).map_err(said)?;
        // Whom it knew is none of the cluster's any more, and need not be looked for.
        match data_dir.storage().remove(Path::new("peers")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(said(error)),
            _ => {}
        }
        record.complete = true;
        recovered::note(&**data_dir.storage(), record).map_err(said)
    }
}

/// What there is of one shard; else why it can't be gone on with.
fn find(
    id: ShardId,
    lives: &Lives,
    wal: &Wal,
    recovery: &Recovery,
    files: &Arc<SegmentFiles>,
) -> Result<(HeldReplica, Held), String> {
    if !lives.has_begun(id) {
        return Err("this broker has no replica of it".to_owned());
    }
    let shard = Shard::open(ShardConfig::new(id), files).map_err(|error| error.to_string())?;
    let recovered = recovered_shard(recovery, id);
    let held = examine(wal, id, &recovered, &shard).map_err(|error| error.to_string())?;
    Ok((held, Held { shard, recovered }))
}

/// The controller as it will be once everything in its log is applied, committed by now or not.
fn played_forward(wal: &Wal, replica: &Held) -> Result<Controller, RecoverError> {
    let refuse = |reason: String| RecoverError::NoController(reason);
    let state = replica.shard.controller().ok_or_else(|| refuse("it has no state".to_owned()))?;
    let mut controller = Controller::clone(&state);
    let mut now = replica.shard.log_time();
    let play = |entry: &Entry| {
        now = now.max(entry.time);
        for unit in &entry.units {
            if let Unit::Control(command) = unit {
                // What is refused changes nothing.
                let _outcome = controller.apply(command, now);
            }
        }
    };
    let played = entries_behind(wal, ShardId::CONTROLLER, &replica.recovered, &replica.shard, play);
    played.map_err(|error| refuse(error.to_string()))?;
    Ok(controller)
}
