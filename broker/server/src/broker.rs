//! Start and stop of a broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tidemill_controller::{BrokerRegistration, ClusterIdentity, ControllerCommand, Durability};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{self, Wal, WalConfig, WalOpenError};
use tidemill_net::{BindError, ClientAuthentication, DevCa, Listener, NetConfig, ServerTls, TlsError};
use tidemill_protocol::{BrokerId, ClusterId, ShardId};
use tidemill_raft::{
    CheckpointConfig, CheckpointDriver, NodeId, ReadError, Replica, ReplicaConfig, ReplicaLimits,
    ReplicaStartError, recovered_shard,
};
use tidemill_shard::{Shard, ShardConfig, ShardOpenError, Unit, UnitResult};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::adopter::Adopter;
use crate::config::{BrokerConfig, ConfigError, DurabilitySetting, SHARDS_DEFAULT};
use crate::context::Context;
use crate::data_dir::{DataDir, DataDirError, Meta};
use crate::disk::{DiskBounds, DiskState, DiskWatch};
use crate::limits::{batch_bytes_max, net_limits, unit_bytes_max};
use crate::machine::Machine;
use crate::metrics_endpoint::MetricsEndpoint;
use crate::outbox::OutboxSignals;
use crate::producer_ids::ProducerIds;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};
use crate::{components, connection, errors, maintenance, outbox, telemetry, wiring};

/// How long a shard may take to lead after its log was read: a group of one needs milliseconds.
const LEADING_PATIENCE: Duration = Duration::from_secs(60);

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
        let mut data_dir = open_data_dir(&config)?;
        let meta = data_dir.meta().clone();
        let disk = Arc::new(DiskState::default());
        let disk_watch = Arc::new(disk_watch(&config, &data_dir, &disk));
        disk_watch.look();

        let (wal, replicas) = open_shards(&config, &data_dir, &machine).await?;
        let batch_bytes_max = batch_bytes_max(&config, unit_bytes_max(&wal));
        let shards = Shards::new(replicas, Arc::new(Admission::new(wal.clone(), &config.wal)));
        if data_dir.created() {
            init_cluster(&shards, &meta).await?;
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
        register(&shards, &meta, &addresses).await?;

        let stopping = CancellationToken::new();
        let (view, follower) = follow_controller(&shards, &meta, addresses, &stopping)?;
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
            hosting,
            outboxes,
            clock,
            metrics,
        });
        let checkpoints = CheckpointDriver::start(
            CheckpointConfig {
                wal_bytes_max: Admission::log_bytes_high(&context.config.wal),
                ..CheckpointConfig::default()
            },
            wal.clone(),
            context.shards.iter().map(|(_, replica)| replica.clone()).collect(),
            context.disk.watch(),
        );
        context.shards.admission().relieve_with(checkpoints.pressure());
        let mut background = start_background(&context, &stopping);
        background.push(tokio::spawn(disk_watch.run(context.shards.clone(), stopping.clone())));
        background.extend(endpoint.map(|endpoint| tokio::spawn(endpoint.run(stopping.clone()))));
        background.push(follower);

        let listener = Arc::new(listener);
        let accepting = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&context)));
        tracing::info!(address = %listener.local_addr(), cluster = %context.meta.cluster, "serving");
        Ok(Self { context, listener, metrics_addr, data_dir, wal, checkpoints, accepting, background })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
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
    pub fn authority(&self) -> Option<std::path::PathBuf> {
        self.context.config.tls_certificate.is_none().then(|| self.data_dir.path("tls").join("ca.pem"))
    }

    /// Waits until a shard has stopped for good, and says which and why: nothing of it can be acknowledged any more.
    pub async fn failed(&self) -> (ShardId, String) {
        let watches = self.context.shards.iter().map(|(shard, replica)| {
            let mut role = replica.watch();
            Box::pin(async move {
                let stopped = role.wait_for(|role| role.stopped().is_some()).await;
                let reason = match &stopped {
                    Ok(role) => role.stopped().map(ToString::to_string).unwrap_or_default(),
                    Err(_) => "its replica is gone".to_owned(),
                };
                (shard, reason)
            })
        });
        futures::future::select_all(watches).await.0
    }

    /// Stops cleanly: clients are told, what is under way gets its time, everything is written down.
    pub async fn shutdown(mut self, reason: &str) {
        tracing::info!(reason, "shutting down");
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

fn open_data_dir(config: &BrokerConfig) -> Result<DataDir, StartError> {
    let new = || {
        let cluster = ClusterId::new(uuid::Uuid::new_v4());
        let shards = config.shards.unwrap_or(SHARDS_DEFAULT);
        Meta::new(cluster, config.broker_id, shards, config.durability.unwrap_or(DurabilitySetting::Fsync))
    };
    let mut data_dir = DataDir::open(&config.data_dir, config.storage.disk_reserve_bytes, new)?;
    check_identity(config, data_dir.meta())?;
    data_dir.begin().map_err(StartError::Write)?;
    if !data_dir.created() && !data_dir.meta().clean {
        tracing::info!("the last stop was not clean; reading the log");
    }
    Ok(data_dir)
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

/// Opens the write-ahead log and every shard, and waits until all of them serve.
async fn open_shards(
    config: &BrokerConfig,
    data_dir: &DataDir,
    machine: &Machine,
) -> Result<(Wal, BTreeMap<ShardId, Replica>), StartError> {
    let (storage, meta) = (data_dir.storage(), data_dir.meta());
    let (opening, wal_config) = (Arc::clone(storage), wal_config(config, meta.durability, machine));
    let (wal, recovery) = tokio::task::spawn_blocking(move || Wal::open(opening, &wal_config))
        .await
        .map_err(|_| StartError::Interrupted)??;
    for line in &recovery.report {
        tracing::warn!("write-ahead log: {line}");
    }
    let node = NodeId::new(BrokerId::new(meta.broker_id), meta.incarnation);
    let files = SegmentFiles::new(Arc::clone(storage), segment_files_config(config));
    let unit_bytes_max = unit_bytes_max(&wal);
    let defaults = ReplicaLimits::default();
    let mut starting = JoinSet::new();
    for number in 0..=meta.shards {
        let shard_id = ShardId::new(number);
        let recovered = recovered_shard(&recovery, shard_id);
        let replica_config = ReplicaConfig {
            init: data_dir.created(),
            accept_data_loss: config.accept_data_loss,
            limits: ReplicaLimits {
                pending_bytes_max: config.limits.proposal_bytes_max,
                write_behind_bytes_max: per_shard(config.storage.write_behind_bytes_max, meta),
                checkpoint_bytes: config.storage.checkpoint_bytes,
                unit_bytes_max,
                entry_bytes_max: defaults.entry_bytes_max.min(unit_bytes_max),
                ..ReplicaLimits::default()
            },
            ..ReplicaConfig::new(shard_id, node, machine.clock.clone())
        };
        let shard_config = shard_config(config, meta, shard_id);
        let (files, wal) = (Arc::clone(&files), wal.clone());
        starting.spawn(async move {
            let opened = tokio::task::spawn_blocking(move || Shard::open(shard_config, &files)).await;
            let shard = opened
                .map_err(|_| StartError::Interrupted)?
                .map_err(|source| StartError::Shard { shard: shard_id, source: Box::new(source) })?;
            let replica = Replica::start(replica_config, wal, recovered, shard).await?;
            let leading = replica.wait_leading(LEADING_PATIENCE).await;
            leading.map_err(|source| StartError::NotLeading { shard: shard_id, source })?;
            Ok::<_, StartError>((shard_id, replica))
        });
    }
    let mut replicas = BTreeMap::new();
    while let Some(started) = starting.join_next().await {
        let (shard, replica) = started.map_err(|_| StartError::Interrupted)??;
        replicas.insert(shard, replica);
    }
    Ok((wal, replicas))
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

async fn init_cluster(shards: &Shards, meta: &Meta) -> Result<(), StartError> {
    let identity = ClusterIdentity {
        cluster: meta.cluster,
        data_shards: meta.shards,
        durability: match meta.durability {
            DurabilitySetting::Fsync => Durability::Fsync,
            DurabilitySetting::Replicated => Durability::Replicated,
        },
    };
    control(shards, ControllerCommand::InitCluster(identity)).await
}

async fn register(shards: &Shards, meta: &Meta, addresses: &[String]) -> Result<(), StartError> {
    let registration = BrokerRegistration {
        broker: BrokerId::new(meta.broker_id),
        incarnation: meta.starts,
        addresses: addresses.to_vec(),
        software: concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    control(shards, ControllerCommand::RegisterBroker(registration)).await
}

async fn control(shards: &Shards, command: ControllerCommand) -> Result<(), StartError> {
    match shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await {
        Ok(UnitResult::Control(Ok(_))) => Ok(()),
        Ok(other) => Err(StartError::Init(format!("{other:?}"))),
        Err(error) => Err(StartError::Init(error.to_string())),
    }
}

/// Keeps the view up to date with the controller's shard.
fn follow_controller(
    shards: &Shards,
    meta: &Meta,
    addresses: Vec<String>,
    stopping: &CancellationToken,
) -> Result<(ViewReader, JoinHandle<()>), StartError> {
    let controller = shards.controller().ok_or(StartError::Interrupted)?.handle();
    let broker = BrokerId::new(meta.broker_id);
    let mut changes = controller.changes();
    let picture = move || {
        let state = controller.now().controller()?;
        Some(ClusterView::new(state, broker, addresses.clone()))
    };
    let (publish, view) = ViewReader::channel(picture().ok_or(StartError::Interrupted)?);
    let stopping = stopping.clone();
    let follower = tokio::spawn(async move {
        loop {
            tokio::select! {
                () = changes.changed() => {}
                () = stopping.cancelled() => return,
            }
            if let Some(view) = picture() {
                publish.send_if_modified(|held| {
                    let newer = view.version() != held.version();
                    if newer {
                        *held = Arc::new(view);
                    }
                    newer
                });
            }
        }
    });
    Ok((view, follower))
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
        tokio::spawn(telemetry::upkeep(context.metrics.clone())),
    ];
    tasks.extend(outbox::start(shards, view, &context.outboxes, &context.disk, stopping));
    tasks.extend(shards.data().map(|(_, replica)| {
        tokio::spawn(maintenance::ticks(replica.clone(), context.clock.clone(), stopping.clone()))
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
