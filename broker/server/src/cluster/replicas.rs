//! Starts this broker's replicas: each as what it is, and one that lost what it may have promised, or stored, as a new one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_controller::{BrokerRecord, ClusterSettings, Controller, ShardRecord, initial_placement};
use tidemill_log::segment::SegmentFiles;
use tidemill_log::wal::{LogRange, RecoveredShard, Recovery, Wal};
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{
    Begin, Clock, Gate, PeerDialer, Replica, ReplicaConfig, ReplicaLimits, SnapshotLimiter, recovered_shard,
};
use tidemill_shard::{Shard, ShardConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Lives;
use super::losses::{Loss, Lost};
use crate::data_dir::Meta;
use crate::peers::Peers;
use crate::shards::Shards;
use crate::start_error::StartError;
use crate::view::ViewReader;

/// How long a group of one may take to be led after its log was read: it needs milliseconds.
const LEADING_PATIENCE: Duration = Duration::from_secs(60);
/// So long a replica that has left its group answers that it does not lead, before it stops.
const LEAVING_GRACE: Duration = Duration::from_secs(5);
/// What is not as planned is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

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
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) shard_config: Arc<dyn Fn(ShardId) -> ShardConfig + Send + Sync>,
    pub(crate) limits: ReplicaLimits,
    /// See [`ReplicaConfig`].
    pub(crate) unit_bytes_elsewhere: Arc<AtomicUsize>,
    pub(crate) snapshot_limiter: Arc<SnapshotLimiter>,
    pub(crate) clock: Clock,
    pub(crate) dialer: Option<Arc<dyn PeerDialer>>,
    /// What units of other brokers pass.
    pub(crate) gate: Option<Arc<dyn Gate>>,
    pub(crate) accept_data_loss: bool,
    /// This broker has heard of others, and was not told to do without them.
    pub(crate) others_may_help: bool,
}

/// What brings a shard here to what is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Its replica comes up.
    Start,
    /// It comes up, or goes on, under this id, which is new.
    Renew(NodeId),
    /// It is to be elsewhere, and its group goes on without this one.
    LetGo,
}

/// What a replica that is started may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
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

    /// Keeps the replicas here in step with what the controller plans: starts those that are to be here, those of another life anew,
    /// and those that were lost under new ids; and lets go of those that are to be here no longer.
    pub(crate) async fn tend(
        self,
        mut lost: Lost,
        shards: Shards,
        view: ViewReader,
        peers: Peers,
        stopping: CancellationToken,
    ) {
        for (shard, loss) in &lost {
            loss.report(*shard);
        }
        let mut view = view;
        loop {
            let mut failed = !self.replace_lost(&mut lost, &shards, &peers).await;
            let now = view.now();
            self.snapshot_limiter.set(now.controller().settings().snapshot_bytes_per_second);
            let limit = self.snapshot_limiter.bytes_per_second().unwrap_or(0);
            metrics::gauge!("tidemill_snapshot_rate_limit_bytes_per_second").set(limit as f64);
            for shard in self.all().filter(|shard| !lost.contains_key(shard)) {
                if self.due(now.controller(), shard, &shards).is_none() {
                    continue;
                }
                // A replica of the controller that catches up shows what was planned once, and is no more.
                let Some(due) = self.due_now(shard, &shards).await else {
                    failed = true;
                    continue;
                };
                if let Err(reason) = self.take(shard, due, &shards).await {
                    tracing::warn!(%shard, reason, "a replica is not as planned yet");
                    failed = true;
                }
            }
            tokio::select! {
                changed = view.changed() => if changed.is_none() { return },
                () = tokio::time::sleep(RETRY_INTERVAL), if failed => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..=self.meta.shards).map(ShardId::new)
    }

    /// What is to be done so that a shard is here as planned; `None`: nothing.
    fn due(&self, controller: &Controller, shard: ShardId, shards: &Shards) -> Option<Due> {
        let (me, record) = (BrokerId::new(self.meta.broker_id), controller.shard(shard)?);
        // Where another directory has this broker's place, what is planned for the broker is that one's: two must never live under one id.
        let is_mine = |known: &BrokerRecord| known.is_member() && known.incarnation == self.meta.incarnation;
        if self.leaving.lock().contains(&shard) || !controller.broker(me).is_none_or(is_mine) {
            return None;
        }
        let planned = record.node_of(me);
        let last = self.lives.node(shard);
        match (planned, shards.replica(shard)) {
            (Some(node), None) if node == last => Some(Due::Start),
            (Some(node), None) if node.incarnation() > last.incarnation() => Some(Due::Renew(node)),
            (Some(node), Some(replica)) if node.incarnation() > replica.node().incarnation() => {
                Some(Due::Renew(node))
            }
            // Whoever is a broker of the cluster follows the controller.
            (None, Some(replica)) if shard != ShardId::CONTROLLER && has_left(record, replica.node()) => {
                Some(Due::LetGo)
            }
            _ => None,
        }
    }

    /// The same by what the controller has decided up to now; `None` where it can't be asked.
    async fn due_now(&self, shard: ShardId, shards: &Shards) -> Option<Option<Due>> {
        let state = shards.controller_now().await?;
        Some(self.due(&state, shard, shards))
    }

    async fn take(&self, shard: ShardId, due: Option<Due>, shards: &Shards) -> Result<(), String> {
        let Some(due) = due else { return Ok(()) };
        if due == Due::Start {
            // One that has not begun has promised nothing, whatever an earlier life left on the disk: this broker may have been killed
            // before what was left was put away.
            let waits = matches!(self.begin(shard, Trust::Whole), Begin::Join);
            return self.bring_up(shard, shards, if waits { Trust::New } else { Trust::Whole }).await;
        }
        if let Some(replica) = shards.replica(shard) {
            tracing::info!(%shard, node = %replica.node(), ?due, "a replica's life here ends");
            shards.remove(shard);
            if due == Due::LetGo {
                self.leaving.lock().insert(shard);
                tokio::spawn(self.clone().leave(shard, replica));
                return Ok(());
            }
            replica.stop().await;
        }
        match due {
            Due::Renew(node) => self.renew(shard, node, shards).await,
            Due::LetGo | Due::Start => self.empty(shard).await,
        }
    }

    /// Stops a replica that has left its group, when streams that were opened to it have heard that it does not lead any more; then removes
    /// what it had.
    async fn leave(self, shard: ShardId, replica: Replica) {
        tokio::time::sleep(LEAVING_GRACE).await;
        replica.stop().await;
        drop(replica);
        if let Err(reason) = self.empty(shard).await {
            tracing::warn!(%shard, reason, "what a replica had here is not removed; it only takes room");
        }
        self.leaving.lock().remove(&shard);
    }

    /// Removes what a replica that has left its group had here.
    async fn empty(&self, shard: ShardId) -> Result<(), String> {
        let (lives, wal) = (Arc::clone(&self.lives), self.wal.clone());
        let (storage, directory) = (Arc::clone(self.files.storage()), (self.shard_config)(shard).dir);
        let emptied = tokio::task::spawn_blocking(move || {
            // First, so that what is half removed is never taken for whole.
            lives.leave(shard)?;
            storage.remove_dir_all(&directory)?;
            if let Some(last) = wal.range(shard).last {
                wal.purge(shard, last, Box::new(|_| ()));
            }
            Ok::<_, std::io::Error>(())
        });
        emptied.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Starts a replica under an id that was never used here.
    pub(super) async fn renew(&self, shard: ShardId, node: NodeId, shards: &Shards) -> Result<(), String> {
        let lives = Arc::clone(&self.lives);
        let noted = tokio::task::spawn_blocking(move || lives.renew(shard, node)).await;
        noted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.bring_up(shard, shards, Trust::New).await
    }

    async fn bring_up(&self, shard: ShardId, shards: &Shards, trust: Trust) -> Result<(), String> {
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

    async fn start(&self, shard_id: ShardId, trust: Trust) -> Result<Replica, StartError> {
        let begin = self.begin(shard_id, trust);
        let forms = matches!(begin, Begin::Form(_));
        let shard_config = (self.shard_config)(shard_id);
        let config = ReplicaConfig {
            begin,
            peers: self.dialer.clone(),
            gate: self.gate.clone(),
            retired: trust == Trust::New,
            accept_data_loss: self.accept_data_loss,
            snapshot_limiter: Arc::clone(&self.snapshot_limiter),
            limits: self.limits,
            unit_bytes_elsewhere: Arc::clone(&self.unit_bytes_elsewhere),
            ..ReplicaConfig::new(shard_id, self.lives.node(shard_id), self.clock.clone())
        };
        let files = Arc::clone(&self.files);
        let opened = tokio::task::spawn_blocking(move || Shard::open(shard_config, &files)).await;
        let shard = opened
            .map_err(|_| StartError::Interrupted)?
            .map_err(|source| StartError::Shard { shard: shard_id, source: Box::new(source) })?;
        // What recovery found holds for the first start only; later the log itself knows.
        let recovered = match self.started.lock().insert(shard_id) {
            true => recovered_shard(&self.recovery, shard_id),
            false => {
                let LogRange { purged, first, last } = self.wal.range(shard_id);
                RecoveredShard { purged, first, last, ..RecoveredShard::default() }
            }
        };
        let replica = Replica::start(config, self.wal.clone(), recovered, shard).await?;
        if forms {
            let lives = Arc::clone(&self.lives);
            let begun = tokio::task::spawn_blocking(move || lives.begin(shard_id)).await;
            begun.map_err(|_| StartError::Interrupted)?.map_err(StartError::Write)?;
        }
        if replica.members().voters.iter().eq([&replica.node()]) {
            let leading = replica.wait_leading(LEADING_PATIENCE).await;
            leading.map_err(|source| StartError::NotLeading { shard: shard_id, source })?;
        }
        Ok(replica)
    }

    fn begin(&self, shard: ShardId, trust: Trust) -> Begin {
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
        match trust == Trust::Whole && nodes.contains(&me) {
            true => Begin::Form(nodes),
            false => Begin::Join,
        }
    }
}

/// Whether a shard's group has gone on without a node, as its leader said.
fn has_left(record: &ShardRecord, node: NodeId) -> bool {
    record
        .members
        .as_ref()
        .is_some_and(|members| !members.voters.contains(&node) && !members.learners.contains(&node))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidemill_controller::{ControllerCommand, SettingsChange};
    use tidemill_protocol::Timestamp;

    use super::*;
    use crate::admission::Admission;
    use crate::cluster::steering;
    use crate::config::BrokerConfig;
    use crate::machine::Machine;
    use crate::opening::{open_data_dir, open_peers, open_wal, replica_starter};
    use crate::view::ClusterView;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn config(data_dir: &Path) -> BrokerConfig {
        let mut config = BrokerConfig {
            data_dir: data_dir.to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            shards: Some(1),
            ..BrokerConfig::default()
        };
        config.wal.segment_bytes = 8 << 20;
        config.wal.bytes_max = 64 << 20;
        config.storage.disk_reserve_bytes = 0;
        config.storage.disk_free_min_bytes = 0;
        config
    }

    /// An operator says it to one broker, the controller decides it, and every broker follows the controller: what it decided comes to the
    /// one limiter that all replicas here send by.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_rate_that_the_controller_decided_is_what_snapshots_are_sent_at() {
        let home = tempfile::tempdir().expect("a directory");
        let config = config(home.path());
        let (machine, stopping) = (Machine::this(), CancellationToken::new());
        let (data_dir, _) = open_data_dir(&config).await.expect("made");
        let meta = data_dir.meta().clone();
        let lives = Lives::open(data_dir.storage(), &meta, data_dir.created()).expect("opened");
        let lives = Arc::new(lives);
        let peers = open_peers(&config, &data_dir, &stopping).expect("bound");
        let (wal, recovery) = open_wal(&config, &data_dir, &machine).await.expect("opened");
        let starter = replica_starter(&config, &data_dir, &machine, &wal, recovery, &lives, &peers);
        let shards = Shards::new(meta.shards, Arc::new(Admission::new(wal.clone(), &config.wal)));
        let limiter = Arc::clone(&starter.snapshot_limiter);
        let holders = Arc::strong_count(&limiter);
        assert!(starter.start_all(&shards).await.expect("started").is_empty());
        let replicas: Vec<Replica> = shards.iter().map(|(_, replica)| replica).collect();
        assert_eq!(replicas.len(), 2, "the controller's and the one of data");
        assert!(Arc::strong_count(&limiter) >= holders + replicas.len(), "each replica sends by it");

        let mut controller = Controller::default();
        let now = Timestamp::new(1_700_000_000_000);
        controller.apply(&steering::forming(&meta), now).expect("formed");
        let me = BrokerId::new(meta.broker_id);
        let picture =
            |controller: &Controller| ClusterView::new(Arc::new(controller.clone()), me, Vec::new());
        let (publish, view) = ViewReader::channel(picture(&controller));
        let tending = tokio::spawn(starter.tend(Lost::new(), shards.clone(), view, peers, stopping.clone()));
        assert_eq!(limiter.bytes_per_second(), None);
        for rate in [50 << 20, 1 << 20, 0] {
            let change =
                SettingsChange { snapshot_bytes_per_second: Some(rate), ..SettingsChange::default() };
            controller.apply(&ControllerCommand::AlterSettings(change), now).expect("decided");
            publish.send_replace(Arc::new(picture(&controller)));
            // 0 is no limit.
            let decided = Some(rate).filter(|rate| *rate > 0);
            let comes_to_it = async {
                while limiter.bytes_per_second() != decided {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, comes_to_it).await.expect("the rate is set");
        }

        stopping.cancel();
        tending.await.expect("it ends");
        for replica in replicas {
            replica.stop().await;
        }
    }
}
