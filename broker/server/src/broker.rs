//! Start and stop of a broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tidemill_controller::ControllerCommand;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{self, Recovery, Wal, WalConfig, WalOpenError};
use tidemill_net::{
    BindError, ClientAuthentication, DevCa, Listener, NetConfig, PeerEndpoint, PeerNetConfig, PeerTls,
    ServerTls, TlsError,
};
use tidemill_protocol::{BrokerId, ClusterId, ShardId};
use tidemill_raft::{
    CheckpointConfig, CheckpointDriver, ReadError, ReplicaLimits, ReplicaStartError, SnapshotLimiter,
};
use tidemill_shard::{ShardConfig, ShardOpenError, Unit, UnitResult};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::adopter::Adopter;
use crate::cluster::registration::{self, register};
use crate::cluster::replicas::ReplicaStarter;
use crate::cluster::{
    ClusterDirectoryError, ClusterPlan, JoinError, Lives, Origin, handover, membership, steering,
};
use crate::config::{BrokerConfig, ConfigError, DurabilitySetting};
use crate::context::Context;
use crate::data_dir::{DataDir, DataDirError, Meta};
use crate::disk::{DiskBounds, DiskState, DiskWatch};
use crate::limits::{batch_bytes_max, net_limits, peer_limits, unit_bytes_max};
use crate::machine::Machine;
use crate::metrics_endpoint::MetricsEndpoint;
use crate::outbox::OutboxSignals;
use crate::peers::messages::KnownBroker;
use crate::peers::{Myself, PeerServices, Peers, ReplicaDialer};
use crate::producer_ids::ProducerIds;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};
use crate::{components, connection, errors, maintenance, outbox, telemetry, wiring};

/// A running broker.
pub struct Broker {
    context: Arc<Context>,
    listener: Arc<Listener>,
    metrics_addr: Option<SocketAddr>,
    data_dir: DataDir,
    wal: Wal,
    checkpoints: CheckpointDriver,
    accepting: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    peers: Peers,
    /// They are needed to the end: the last leads are handed over by them.
    peers_stopping: CancellationToken,
    running_peers: JoinHandle<()>,
    /// Why the cluster does not want this broker, once it has said so.
    dismissed: watch::Receiver<Option<String>>,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The settings name another broker than the data directory's.
    #[error(
        "the data directory {path} belongs to broker {found}, the settings say {asked}; name the right directory"
    )]
    WrongBroker {
        /// The directory.
        path: String,
        /// Whose it is.
        found: u32,
        /// Who asks.
        asked: u32,
    },
    /// The settings name something else than what was fixed when the data directory was made.
    #[error(
        "{setting}: the data directory {path} was made with {stored}, the settings say {asked}, and it can't be \
         changed any more; take {setting} out of the settings, or name another data directory"
    )]
    Fixed {
        /// Which setting.
        setting: &'static str,
        /// The directory.
        path: String,
        /// What it was made with.
        stored: String,
        /// What the settings say.
        asked: String,
    },
    /// The write-ahead log.
    #[error(transparent)]
    Wal(#[from] WalOpenError),
    /// A shard's state.
    #[error("shard {shard} can't be opened: {source}")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        source: Box<ShardOpenError>,
    },
    /// A shard's replica.
    #[error(transparent)]
    Replica(#[from] ReplicaStartError),
    /// A shard's replica does not lead.
    #[error("shard {shard} does not come up: {source}")]
    NotLeading {
        /// Which.
        shard: ShardId,
        /// Why.
        source: ReadError,
    },
    /// The cluster's first command failed.
    #[error("the cluster can't be initialised: {0}")]
    Init(String),
    /// The sandbox for plugins.
    #[error(transparent)]
    Hosting(#[from] tidemill_hosting::HostingStartError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket for metrics.
    #[error("metrics.listen: {address} can't be listened on: {source}")]
    Metrics {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory's identity can't be written.
    #[error("the data directory can't be written: {0}")]
    Write(std::io::Error),
    /// The directory of `tidemill cluster init`.
    #[error(transparent)]
    Cluster(#[from] ClusterDirectoryError),
    /// This broker is not among those that form the cluster.
    #[error(
        "broker {broker} is not one of those that form the cluster of {directory}; name one of them with --broker-id, or let it join the \
         running cluster with a token of `tidemill cluster add`"
    )]
    NotPlanned {
        /// Who is to start.
        broker: BrokerId,
        /// The cluster's plan.
        directory: PathBuf,
    },
    /// The cluster does not take the broker in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The data directory belongs to another cluster than the settings name.
    #[error(
        "the data directory {path} belongs to cluster {found}, and the settings name cluster {asked}; name the right directory, or take the \
         setting `cluster` out"
    )]
    OtherCluster {
        /// The directory.
        path: String,
        /// Whose it is.
        found: ClusterId,
        /// Which one the settings name.
        asked: ClusterId,
    },
    /// The socket for other brokers.
    #[error("peers.listen: {0}")]
    Peers(BindError),
    /// Starting was interrupted.
    #[error("starting was interrupted")]
    Interrupted,
}

impl Broker {
    /// Starts a broker on this machine. Returns when it serves.
    ///
    /// # Errors
    /// [`StartError`] says what stands in the way, and what to do.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        Self::start_on(config, Machine::this()).await
    }

    /// As [`Self::start`], on a machine with a clock and a boot of its own.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_on(config: BrokerConfig, machine: Machine) -> Result<Self, StartError> {
        config.check()?;
        let metrics = telemetry::recorder();
        let clock = machine.clock.clone();
        let (mut data_dir, known) = open_data_dir(&config).await?;
        let meta = data_dir.meta().clone();
        let alone = meta.forming == [BrokerId::new(meta.broker_id)];
        let lives = Lives::open(data_dir.storage(), &meta, data_dir.created()).map_err(StartError::Write)?;
        let lives = Arc::new(lives);
        if data_dir.created() && !alone {
            // Its group counts on what it answers from here on: the directory may not begin anew any more.
            data_dir.complete().map_err(StartError::Write)?;
        }
        let disk = Arc::new(DiskState::default());
        let disk_watch = Arc::new(disk_watch(&config, &data_dir, &disk));
        disk_watch.look();

        let peers_stopping = CancellationToken::new();
        let peers = open_peers(&config, &data_dir, &peers_stopping)?;
        peers.hear(known).await;
        let running_peers = tokio::spawn(peers.clone().run(config.peers.seeds.clone()));

        let (wal, recovery) = open_wal(&config, &data_dir, &machine).await?;
        let batch_bytes_max = batch_bytes_max(&config, unit_bytes_max(&wal));
        let shards = Shards::new(meta.shards, Arc::new(Admission::new(wal.clone(), &config.wal)));
        let (offer_context, context_there) = watch::channel(None);
        peers.serve(PeerServices {
            shards: shards.clone(),
            lives: Arc::clone(&lives),
            context: context_there,
        });
        let starter = replica_starter(&config, &data_dir, &machine, &wal, recovery, &lives, &peers);
        let lost = starter.start_all(&shards).await?;
        if data_dir.created() && alone {
            control(&shards, steering::forming(&meta)).await?;
            data_dir.complete().map_err(StartError::Write)?;
        }

        let listener = Listener::bind(NetConfig {
            listen: config.listen,
            tls: tls(&config, &data_dir)?,
            limits: net_limits(&config),
        })?;
        let endpoint = metrics_endpoint(&config, &metrics).await?;
        let metrics_addr = endpoint.as_ref().and_then(|endpoint| endpoint.local_addr().ok());
        let addresses = match config.advertise.as_slice() {
            [] => vec![listener.local_addr().to_string()],
            named => named.to_vec(),
        };

        let stopping = CancellationToken::new();
        let registration =
            registration::registration(&config, &meta, &addresses, &peers.myself().peer_addresses);
        let (refused, dismissed) = watch::channel(None);
        let mut background = Vec::new();
        if alone && peers.said().is_empty() {
            register(&shards, registration, &stopping).await.map_err(StartError::Init)?;
        } else {
            let (shards, stopping, refused) = (shards.clone(), stopping.clone(), refused.clone());
            background.push(tokio::spawn(async move {
                if let Err(reason) = register(&shards, registration, &stopping).await {
                    refused.send_replace(Some(reason));
                }
            }));
        }
        let (view, follower) = follow_controller(&shards, &meta, addresses, &stopping);
        background.push(tokio::spawn(registration::stay(meta.clone(), view.clone(), refused)));
        background.push(tokio::spawn(starter.tend(
            lost,
            shards.clone(),
            view.clone(),
            peers.clone(),
            stopping.clone(),
        )));
        let outboxes = OutboxSignals::new(&shards);
        let hosting = wiring::start_hosting(&config, &data_dir, &shards, &outboxes, &disk, &clock)?;
        let context = Arc::new(Context {
            producer_ids: ProducerIds::new(shards.clone()),
            requests: Default::default(),
            generations: Arc::default(),
            disk,
            attempts: Arc::default(),
            batch_bytes_max,
            wal: wal.clone(),
            unpacking: crate::unpacking::UnpackPool::new(),
            uploads: crate::context::uploads(),
            compiles: crate::context::compiles(),
            stopping: stopping.clone(),
            config,
            meta,
            view,
            shards,
            peers: Some(peers.clone()),
            freshness: Default::default(),
            hosting,
            outboxes,
            clock,
            metrics,
        });
        offer_context.send_replace(Some(Arc::clone(&context)));
        let checkpoints = CheckpointDriver::start(
            CheckpointConfig {
                wal_bytes_max: Admission::log_bytes_high(&context.config.wal),
                ..CheckpointConfig::default()
            },
            wal.clone(),
            {
                let shards = context.shards.clone();
                move || shards.iter().map(|(_, replica)| replica).collect()
            },
            context.disk.watch(),
        );
        context.shards.admission().relieve_with(checkpoints.pressure());
        background.extend(start_background(&context, &stopping));
        background.push(tokio::spawn(disk_watch.run(context.shards.clone(), stopping.clone())));
        background.extend(endpoint.map(|endpoint| tokio::spawn(endpoint.run(stopping.clone()))));
        background.push(follower);

        let listener = Arc::new(listener);
        let accepting = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&context)));
        tracing::info!(
            address = %listener.local_addr(),
            peers = %peers.local_addr(),
            cluster = %context.meta.cluster,
            "serving"
        );
        Ok(Self {
            context,
            listener,
            metrics_addr,
            data_dir,
            wal,
            checkpoints,
            accepting,
            background,
            peers,
            peers_stopping,
            running_peers,
            dismissed,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Where other brokers reach it.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peers.local_addr()
    }

    /// Where it answers for metrics over HTTP, if it does.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// The cluster that this broker belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.context.meta.cluster
    }

    /// PEM file of the authority that signed the broker's certificate; `None` where it was given one.
    #[must_use]
    pub fn authority(&self) -> Option<PathBuf> {
        self.context.config.tls_certificate.is_none().then(|| self.data_dir.path("tls").join("ca.pem"))
    }

    /// Waits until a shard has stopped for good, and says which and why: nothing of it can be acknowledged any more by this broker.
    pub async fn failed(&self) -> (ShardId, String) {
        /// Replicas come and go: all are looked at, now and then.
        const LOOK_INTERVAL: Duration = Duration::from_millis(500);
        loop {
            for (shard, replica) in self.context.shards.iter() {
                if let Some(reason) = replica.watch().borrow().stopped() {
                    return (shard, reason.to_string());
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the cluster has said that this broker is none of its own, and why: it was removed, say.
    pub async fn dismissed(&self) -> String {
        let mut dismissed = self.dismissed.clone();
        match dismissed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // It was registered at once.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops cleanly: clients are told, what is under way gets its time, everything is written down.
    pub async fn shutdown(mut self, reason: &str) {
        tracing::info!(reason, "shutting down");
        // First, so that whoever is told to go finds the new leaders.
        handover::hand_over_all(&self.context.shards).await;
        self.context.stopping.cancel();
        // Tasks would go on for as long as there is something to read.
        self.context.hosting.reconcile(Vec::new());
        let grace = Duration::from_millis(self.context.config.shutdown_grace_ms);
        if tokio::time::timeout(grace, self.drained()).await.is_err() {
            tracing::info!("what is under way takes too long, and is cut off");
        }
        self.listener.close(0, reason).await;
        self.accepting.abort();
        for task in &self.background {
            task.abort();
        }
        self.context.hosting.stop().await;
        drop(self.checkpoints);
        let mut clean = true;
        for (shard, replica) in self.context.shards.iter() {
            if let Err(error) = replica.checkpoint().await {
                tracing::warn!(%shard, %error, "no last checkpoint; the next start reads the log instead");
                clean = false;
            }
            replica.stop().await;
        }
        self.peers_stopping.cancel();
        let _ = self.running_peers.await;
        let wal = self.wal.clone();
        let closed = tokio::task::spawn_blocking(move || wal.close()).await;
        clean &= matches!(closed, Ok(Ok(())));
        if let Err(error) = self.data_dir.save(clean) {
            tracing::warn!(%error, "the clean stop could not be noted");
        }
        tracing::info!(clean, "stopped");
    }

    /// Waits until clients have gone, or have their answers and ask for nothing more: who only reads goes on elsewhere.
    async fn drained(&self) {
        const LOOK_INTERVAL: Duration = Duration::from_millis(20);
        /// For the last answers to arrive.
        const QUIET: Duration = Duration::from_millis(300);
        let mut quiet = Duration::ZERO;
        while self.listener.connections() > 0 && quiet < QUIET {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let answered = self.context.requests.all_answered() && self.context.shards.admission().is_idle();
            quiet = if answered { quiet + LOOK_INTERVAL } else { Duration::ZERO };
        }
    }
}

async fn metrics_endpoint(
    config: &BrokerConfig,
    metrics: &PrometheusHandle,
) -> Result<Option<MetricsEndpoint>, StartError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let bound = MetricsEndpoint::bind(address, metrics.clone()).await;
    bound.map(Some).map_err(|source| StartError::Metrics { address, source })
}

/// Opens the data directory; where there is none, finds out to which cluster a new one belongs. Answers whom that knows.
async fn open_data_dir(config: &BrokerConfig) -> Result<(DataDir, Vec<KnownBroker>), StartError> {
    let origin = match config.data_dir.join("meta").exists() {
        true => Origin::Alone,
        false => Origin::of(config).await?,
    };
    let new = || origin.meta(config);
    let mut data_dir = DataDir::open(&config.data_dir, config.storage.disk_reserve_bytes, new)?;
    check_identity(config, data_dir.meta())?;
    data_dir.begin().map_err(StartError::Write)?;
    if !data_dir.created() && !data_dir.meta().clean {
        tracing::info!("the last stop was not clean; reading the log");
    }
    Ok((data_dir, origin.known().to_vec()))
}

fn open_peers(
    config: &BrokerConfig,
    data_dir: &DataDir,
    stopping: &CancellationToken,
) -> Result<Peers, StartError> {
    let meta = data_dir.meta();
    let broker = BrokerId::new(meta.broker_id);
    let tls = data_dir.path("tls");
    // A broker that is a cluster of its own may have made its authority long ago, for its clients.
    let authority = DevCa::open_or_create(&tls)?;
    let certificate = authority.issue_peer(meta.cluster, broker, &tls)?;
    let endpoint = PeerEndpoint::bind(PeerNetConfig {
        listen: config.peer_listen(),
        tls: PeerTls::new(certificate, &authority),
        limits: peer_limits(config),
    })
    .map_err(StartError::Peers)?;
    let peer_addresses = match config.peers.advertise.as_slice() {
        [] => vec![endpoint.local_addr().to_string()],
        named => named.to_vec(),
    };
    let myself = Myself {
        cluster: meta.cluster,
        broker,
        incarnation: meta.incarnation,
        directory: meta.directory,
        starts: meta.starts,
        peer_addresses,
    };
    Peers::new(myself, endpoint, data_dir.storage(), stopping).map_err(StartError::Write)
}

/// Refuses settings that say otherwise than the directory was made.
fn check_identity(config: &BrokerConfig, meta: &Meta) -> Result<(), StartError> {
    let path = config.data_dir.display().to_string();
    if meta.broker_id != config.broker_id {
        return Err(StartError::WrongBroker { path, found: meta.broker_id, asked: config.broker_id });
    }
    let fixed = |setting, stored: String, asked: String| {
        let path = path.clone();
        Err(StartError::Fixed { setting, path, stored, asked })
    };
    if let Some(directory) = &config.cluster {
        let asked = ClusterPlan::read(directory)?.cluster;
        if asked != meta.cluster {
            return Err(StartError::OtherCluster { path, found: meta.cluster, asked });
        }
    }
    match (config.shards, config.durability) {
        (Some(asked), _) if asked != meta.shards => {
            fixed("shards", meta.shards.to_string(), asked.to_string())
        }
        (_, Some(asked)) if asked != meta.durability => {
            fixed("durability", meta.durability.to_string(), asked.to_string())
        }
        _ => Ok(()),
    }
}

fn disk_watch(config: &BrokerConfig, data_dir: &DataDir, state: &Arc<DiskState>) -> DiskWatch {
    let meta = data_dir.meta();
    let waiting_bytes = shard_config(config, meta, ShardId::new(1)).write_behind_bytes;
    let bounds = DiskBounds::new(config, waiting_bytes.saturating_mul(u64::from(meta.shards)));
    let reserve_bytes = config.storage.disk_reserve_bytes;
    if reserve_bytes < bounds.work_bytes {
        tracing::warn!(
            reserve_bytes,
            needed = bounds.work_bytes,
            "storage.disk_reserve_bytes is small: on a disk that is full to the last byte retention may not be able to \
             free space"
        );
    }
    DiskWatch {
        storage: Arc::clone(data_dir.storage()),
        state: Arc::clone(state),
        bounds,
        reserve: Arc::clone(data_dir.reserve()),
    }
}

async fn open_wal(
    config: &BrokerConfig,
    data_dir: &DataDir,
    machine: &Machine,
) -> Result<(Wal, Recovery), StartError> {
    let opening = Arc::clone(data_dir.storage());
    let wal_config = wal_config(config, data_dir.meta().durability, machine);
    let (wal, recovery) = tokio::task::spawn_blocking(move || Wal::open(opening, &wal_config))
        .await
        .map_err(|_| StartError::Interrupted)??;
    for line in &recovery.report {
        tracing::warn!("write-ahead log: {line}");
    }
    Ok((wal, recovery))
}

fn replica_starter(
    config: &BrokerConfig,
    data_dir: &DataDir,
    machine: &Machine,
    wal: &Wal,
    recovery: Recovery,
    lives: &Arc<Lives>,
    peers: &Peers,
) -> ReplicaStarter {
    let meta = data_dir.meta().clone();
    let unit_bytes_max = unit_bytes_max(wal);
    let defaults = ReplicaLimits::default();
    let limits = ReplicaLimits {
        pending_bytes_max: config.limits.proposal_bytes_max,
        write_behind_bytes_max: per_shard(config.storage.write_behind_bytes_max, &meta),
        checkpoint_bytes: config.storage.checkpoint_bytes,
        unit_bytes_max,
        entry_bytes_max: defaults.entry_bytes_max.min(unit_bytes_max),
        ..defaults
    };
    let dialer = ReplicaDialer { peers: peers.clone(), lives: Arc::clone(lives) };
    let shard_config = {
        let (config, meta) = (config.clone(), meta.clone());
        Arc::new(move |shard| shard_config(&config, &meta, shard))
    };
    ReplicaStarter {
        meta,
        lives: Arc::clone(lives),
        wal: wal.clone(),
        recovery: Arc::new(recovery),
        started: Arc::default(),
        leaving: Arc::default(),
        files: SegmentFiles::new(Arc::clone(data_dir.storage()), segment_files_config(config)),
        shard_config,
        limits,
        snapshot_limiter: Arc::new(SnapshotLimiter::new(None)),
        clock: machine.clock.clone(),
        dialer: Some(Arc::new(dialer)),
        accept_data_loss: config.accept_data_loss,
        others_may_help: !config.accept_data_loss && !peers.said().is_empty(),
    }
}

/// Bytes of frames that the write-ahead log writes at once: the largest gathered entry and what frames it, so that its
/// buffers need not grow for one.
const WAL_WRITE_BYTES_MAX: usize = (4 << 20) + (64 << 10);

fn wal_config(config: &BrokerConfig, durability: DurabilitySetting, machine: &Machine) -> WalConfig {
    if durability == DurabilitySetting::Replicated && machine.boot_id.is_none() {
        tracing::warn!(
            "the system does not tell one boot from another: a power loss, which under durability = \"replicated\" \
             loses what was acknowledged last, can't be told from a killed process"
        );
    }
    let defaults = WalConfig { segment_bytes: config.wal.segment_bytes, ..WalConfig::new("wal") };
    WalConfig {
        prepare_free_min_bytes: config.storage.disk_free_min_bytes,
        boot_id: machine.boot_id,
        write_bytes_max: WAL_WRITE_BYTES_MAX.min(defaults.entry_bytes_max()),
        cache_bytes: config.wal.cache_bytes,
        queue_bytes_max: config.wal.queue_bytes_max,
        spare_bytes_max: config.wal.bytes_max,
        direct: if config.wal.direct_io { wal::DirectIo::Auto } else { wal::DirectIo::Never },
        durability: match durability {
            DurabilitySetting::Fsync => wal::Durability::Fsync,
            DurabilitySetting::Replicated => wal::Durability::Replicated {
                flush_interval: Duration::from_millis(config.wal.flush_interval_ms),
            },
        },
        ..defaults
    }
}

fn segment_files_config(config: &BrokerConfig) -> SegmentFilesConfig {
    SegmentFilesConfig {
        page_cache_bytes: Some(config.storage.page_cache_bytes),
        ..SegmentFilesConfig::default()
    }
}

fn shard_config(config: &BrokerConfig, meta: &Meta, shard: ShardId) -> ShardConfig {
    let defaults = ShardConfig::new(shard);
    let write_behind_bytes_max = per_shard(config.storage.write_behind_bytes_max, meta);
    ShardConfig {
        tail_cache_bytes: per_shard(config.storage.tail_cache_bytes, meta),
        // Well before anybody has to wait.
        write_behind_bytes: defaults.write_behind_bytes.min(write_behind_bytes_max / 4),
        ..defaults
    }
}

/// A data shard's share of what all of them have.
fn per_shard(bytes: usize, meta: &Meta) -> u64 {
    (bytes / usize::from(meta.shards).max(1)) as u64
}

async fn control(shards: &Shards, command: ControllerCommand) -> Result<(), StartError> {
    match shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await {
        Ok(UnitResult::Control(Ok(_))) => Ok(()),
        Ok(other) => Err(StartError::Init(format!("{other:?}"))),
        Err(error) => Err(StartError::Init(error.to_string())),
    }
}

/// Keeps the view up to date with the controller's shard; where that is not here yet, it shows nothing.
fn follow_controller(
    shards: &Shards,
    meta: &Meta,
    addresses: Vec<String>,
    stopping: &CancellationToken,
) -> (ViewReader, JoinHandle<()>) {
    /// How often it is looked whether the controller's replica has come up.
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    let broker = BrokerId::new(meta.broker_id);
    let (shards, stopping) = (shards.clone(), stopping.clone());
    let picture = move |shards: &Shards| {
        let state = shards.state(ShardId::CONTROLLER)?.controller()?;
        Some(ClusterView::new(state, broker, addresses.clone()))
    };
    let (publish, view) = ViewReader::channel(picture(&shards).unwrap_or_default());
    let follower = tokio::spawn(async move {
        loop {
            let Some(controller) = shards.controller() else {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_INTERVAL) => continue,
                    () = stopping.cancelled() => return,
                }
            };
            let mut changes = controller.handle().changes();
            if let Some(view) = picture(&shards) {
                publish.send_if_modified(|held| {
                    let newer = view.version() != held.version();
                    if newer {
                        *held = Arc::new(view);
                    }
                    newer
                });
            }
            tokio::select! {
                () = changes.changed() => {}
                () = stopping.cancelled() => return,
            }
        }
    });
    (view, follower)
}

fn start_background(context: &Arc<Context>, stopping: &CancellationToken) -> Vec<JoinHandle<()>> {
    let (shards, view) = (&context.shards, &context.view);
    let adopter =
        Adopter { shards: shards.clone(), view: view.clone(), plugins: context.config.plugins.clone() };
    let every = Duration::from_millis(context.config.storage.retention_interval_ms.max(100));
    let mut tasks = vec![
        tokio::spawn(adopter.run(stopping.clone())),
        tokio::spawn(maintenance::retention(
            shards.clone(),
            every,
            context.clock.clone(),
            context.disk.watch(),
            stopping.clone(),
        )),
        tokio::spawn(wiring::follow_deployments(Arc::clone(context))),
        tokio::spawn(components::follow(Arc::clone(context))),
        tokio::spawn(components::fetch_missing(Arc::clone(context))),
        tokio::spawn(steering::steer(
            shards.clone(),
            context.meta.clone(),
            context.clock.clone(),
            stopping.clone(),
        )),
        tokio::spawn(handover::spread(shards.clone(), view.clone(), stopping.clone())),
        tokio::spawn(telemetry::upkeep(context.metrics.clone())),
    ];
    tasks.extend(outbox::start(shards, view, &context.outboxes, &context.disk, stopping));
    tasks.extend(membership::start(shards, view, stopping));
    tasks.extend(shards.numbers().map(|shard| {
        tokio::spawn(maintenance::ticks(shards.clone(), shard, context.clock.clone(), stopping.clone()))
    }));
    tasks
}

async fn accept(listener: Arc<Listener>, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some(connection) if context.stopping.is_cancelled() => {
                    let error = errors::stopping();
                    connection.close(error.code, &error.message);
                }
                Some(connection) => {
                    connections.spawn(connection::serve(Arc::clone(&context), connection));
                }
                None => return,
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; only that connection ended");
                }
            }
        }
    }
}

fn tls(config: &BrokerConfig, data_dir: &DataDir) -> Result<ServerTls, TlsError> {
    let clients = match &config.client_ca {
        // Who shows none is turned away with a code, before anything is served.
        Some(authorities) => ClientAuthentication::Asked { authorities: authorities.clone() },
        None => ClientAuthentication::None,
    };
    if let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) {
        return Ok(ServerTls { certificate: certificate.clone(), key: key.clone(), clients });
    }
    let mut names = config.tls_names.clone();
    names.extend(config.advertise.iter().filter_map(|address| Some(address.rsplit_once(':')?.0.to_owned())));
    if !config.listen.ip().is_unspecified() {
        names.push(config.listen.ip().to_string());
    }
    let authority = DevCa::open_or_create(data_dir.path("tls"))?;
    let server = authority.server(&names)?;
    Ok(ServerTls { clients, ..server })
}
