//! Starts this broker's replicas: each as what it is, and one that lost what it may have promised, or stored, as a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_controller::{ClusterSettings, initial_placement};
use tidemill_log::segment::SegmentFiles;
use tidemill_log::wal::{LogRange, RecoveredShard, Recovery, Wal};
use tidemill_protocol::{NodeId, ShardId};
use tidemill_raft::{
    Beat, Begin, Clock, Gate, PeerDialer, Replica, ReplicaConfig, ReplicaLimits, ReplicaStartError,
    SnapshotLimiter, recovered_shard,
};
use tidemill_shard::{Shard, ShardConfig, StillOpen};
use tokio::task::JoinSet;

use super::Lives;
use super::losses::{Loss, Lost};
use crate::data_dir::Meta;
use crate::shards::Shards;
use crate::start_error::StartError;

/// How long a group of one may take to be led after its log was read: it needs milliseconds.
const LEADING_PATIENCE: Duration = Duration::from_secs(60);
/// How long what a former replica had open may stay in use before the start of the next one is given up for now.
const CLOSING_PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const CLOSING_LOOK: Duration = Duration::from_millis(10);

/// Everything that starting a replica takes.
#[derive(Clone)]
pub(crate) struct ReplicaStarter {
    pub(crate) meta: Meta,
    pub(crate) lives: Arc<Lives>,
    pub(crate) wal: Wal,
    pub(crate) recovery: Arc<Recovery>,
    /// Shards whose replicas were started in this life of the process.
    pub(crate) started: Arc<Mutex<BTreeSet<ShardId>>>,
    /// Shards whose replicas here have left their groups and are on their way out.
    pub(crate) leaving: Arc<Mutex<BTreeSet<ShardId>>>,
    /// What replicas that were ended here had open. Whoever still writes to that must not meet the next one.
    pub(crate) former: Arc<Mutex<BTreeMap<ShardId, StillOpen>>>,
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) shard_config: Arc<dyn Fn(ShardId) -> ShardConfig + Send + Sync>,
    pub(crate) limits: ReplicaLimits,
    /// See [`ReplicaConfig`].
    pub(crate) unit_bytes_elsewhere: Arc<AtomicUsize>,
    pub(crate) snapshot_limiter: Arc<SnapshotLimiter>,
    pub(crate) beat: Beat,
    pub(crate) clock: Clock,
    pub(crate) dialer: Option<Arc<dyn PeerDialer>>,
    /// What units of other brokers pass.
    pub(crate) gate: Option<Arc<dyn Gate>>,
    pub(crate) accept_data_loss: bool,
    /// This broker has heard of others, and was not told to do without them.
    pub(crate) others_may_help: bool,
}

/// What a replica that is started may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// What is on the disk is what it promised.
    Whole,
    /// It is a new one that has promised nothing; what is on the disk is taken as far as it can be read.
    New,
}

impl ReplicaStarter {
    /// Starts the replicas that are here, that form their groups now, or without which this broker would hear nothing, and puts each
    /// among the others as soon as it is there. Answers those that lost what they may have promised or stored: other brokers can make good
    /// for them.
    pub(crate) async fn start_all(&self, shards: &Shards) -> Result<Lost, StartError> {
        let mut starting = JoinSet::new();
        for shard in self.all() {
            let waits = matches!(self.begin(shard, Trust::Whole), Begin::Join);
            if waits && shard != ShardId::CONTROLLER {
                // The controller will say whether there is to be one here.
                if self.lives.has_left(shard)
                    && let Err(reason) = self.empty(shard).await
                {
                    tracing::warn!(%shard, reason, "what a replica had here is not removed yet; it only takes room");
                }
                continue;
            }
            let starter = self.clone();
            starting.spawn(async move { (shard, starter.start(shard, Trust::Whole).await) });
        }
        let mut lost = Lost::new();
        while let Some(started) = starting.join_next().await {
            match started.map_err(|_| StartError::Interrupted)? {
                (_, Ok(replica)) => shards.insert(replica),
                (shard, Err(error)) if self.others_may_help => {
                    lost.insert(shard, Loss::of(error)?);
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(lost)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..=self.meta.shards).map(ShardId::new)
    }

    /// Starts a replica under an id that was never used here.
    pub(super) async fn renew(&self, shard: ShardId, node: NodeId, shards: &Shards) -> Result<(), String> {
        let lives = Arc::clone(&self.lives);
        let noted = tokio::task::spawn_blocking(move || lives.renew(shard, node)).await;
        noted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.bring_up(shard, shards, Trust::New).await
    }

    pub(super) async fn bring_up(&self, shard: ShardId, shards: &Shards, trust: Trust) -> Result<(), String> {
        let replica = match self.start(shard, trust).await {
            // Of an earlier life, and half removed perhaps: it was to be taken as far as it can be read.
            Err(StartError::Shard { source, .. })
                if trust == Trust::New && self.others_may_help && source.is_damage() =>
            {
                self.clear(shard, shards).await.map_err(|reason| format!("{source}; {reason}"))?;
                self.start(shard, trust).await
            }
            started => started,
        };
        let replica = replica.map_err(|error| error.to_string())?;
        tracing::info!(%shard, node = %replica.node(), "a replica has come up");
        shards.insert(replica);
        Ok(())
    }

    /// A checkpoint under way, a snapshot that is read, or a reader may outlive their replica for a moment.
    async fn wait_closed(&self, shard: ShardId) -> Result<(), StartError> {
        let Some(former) = self.former.lock().get(&shard).cloned() else { return Ok(()) };
        let closing = async {
            while former.is_open() {
                tokio::time::sleep(CLOSING_LOOK).await;
            }
        };
        let closed = tokio::time::timeout(CLOSING_PATIENCE, closing).await;
        closed.map_err(|_elapsed| StartError::StillOpen { shard })?;
        self.former.lock().remove(&shard);
        Ok(())
    }

    async fn start(&self, shard_id: ShardId, trust: Trust) -> Result<Replica, StartError> {
        self.wait_closed(shard_id).await?;
        let (node, begin) = (self.lives.node(shard_id), self.begin(shard_id, trust));
        let forms = matches!(begin, Begin::Form(_));
        let shard_config = (self.shard_config)(shard_id);
        let config = ReplicaConfig {
            begin,
            peers: self.dialer.clone(),
            gate: self.gate.clone(),
            retired: trust == Trust::New,
            accept_data_loss: self.accept_data_loss,
            snapshot_limiter: Arc::clone(&self.snapshot_limiter),
            beat: self.beat,
            limits: self.limits,
            unit_bytes_elsewhere: Arc::clone(&self.unit_bytes_elsewhere),
            ..ReplicaConfig::new(shard_id, node, self.clock.clone())
        };
        let files = Arc::clone(&self.files);
        let opened = tokio::task::spawn_blocking(move || Shard::open(shard_config, &files)).await;
        let shard = opened
            .map_err(|_| StartError::Interrupted)?
            .map_err(|source| StartError::Shard { shard: shard_id, source: Box::new(source) })?;
        let recovered = self.recovered(shard_id, trust)?;
        let replica = Replica::start(config, self.wal.clone(), recovered, shard).await?;
        if forms {
            let lives = Arc::clone(&self.lives);
            let begun = tokio::task::spawn_blocking(move || lives.begin(shard_id, node)).await;
            begun.map_err(|_| StartError::Interrupted)?.map_err(StartError::Write)?;
        }
        if replica.members().voters.iter().eq([&replica.node()]) {
            let leading = replica.wait_leading(LEADING_PATIENCE).await;
            leading.map_err(|source| StartError::NotLeading { shard: shard_id, source })?;
        }
        Ok(replica)
    }

    /// What the log held of a shard when it was opened, for the replica's first start. Later the log itself knows what it holds, but not
    /// what was promised, or is in doubt: so only one that has promised nothing starts again.
    fn recovered(&self, shard: ShardId, trust: Trust) -> Result<RecoveredShard, StartError> {
        if self.started.lock().insert(shard) {
            return Ok(recovered_shard(&self.recovery, shard));
        }
        debug_assert_eq!(
            trust,
            Trust::New,
            "shard {shard}: a replica ends for good, or comes back as a new one"
        );
        if trust == Trust::Whole {
            let reason = "its replica was started before in this process, and what it promised is not known any more; restart the broker";
            return Err(ReplicaStartError::BadConfig { shard, reason: reason.to_owned() }.into());
        }
        let LogRange { purged, first, last } = self.wal.range(shard);
        Ok(RecoveredShard { purged, first, last, ..RecoveredShard::default() })
    }

    pub(super) fn begin(&self, shard: ShardId, trust: Trust) -> Begin {
        if self.lives.has_begun(shard) {
            return Begin::Existing;
        }
        let me = self.lives.node(shard);
        let factor = ClusterSettings::default().replication_factor_max;
        let mut placement = initial_placement(&self.meta.forming, self.meta.shards, factor);
        let nodes: BTreeSet<NodeId> = match placement.get_mut(usize::from(shard.get())) {
            Some(nodes) => std::mem::take(nodes).into_iter().collect(),
            None => BTreeSet::new(),
        };
        match trust == Trust::Whole && nodes.contains(&me) && !self.lives.has_left(shard) {
            true => Begin::Form(nodes),
            false => Begin::Join,
        }
    }
}
