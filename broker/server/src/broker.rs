//! Start and stop of a broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{BrokerRegistration, ClusterIdentity, ControllerCommand, Durability};
use tidemill_log::fs::Storage;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{self, Wal, WalConfig, WalOpenError};
use tidemill_net::{BindError, ClientAuthentication, DevCa, Listener, NetConfig, ServerTls, TlsError};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ClusterId, ErrorCode, ShardId};
use tidemill_raft::{
    CheckpointConfig, CheckpointDriver, NodeId, ReadError, Replica, ReplicaConfig, ReplicaLimits,
    ReplicaStartError,
};
use tidemill_shard::{Shard, ShardConfig, ShardOpenError, Unit, UnitResult};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::adopter::Adopter;
use crate::clock::{Clock, system_clock};
use crate::config::{BrokerConfig, ConfigError, DurabilitySetting};
use crate::context::{Context, DiskState};
use crate::data_dir::{DataDir, DataDirError, Meta};
use crate::limits::{batch_bytes_max, net_limits, unit_bytes_max};
use crate::outbox::OutboxSignals;
use crate::producer_ids::ProducerIds;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};
use crate::{connection, maintenance, outbox, telemetry, wiring};

/// How long a shard may take to lead after its log was read: a group of one needs milliseconds.
const LEADING_PATIENCE: Duration = Duration::from_secs(60);

/// A running broker.
pub struct Broker {
    context: Arc<Context>,
    listener: Arc<Listener>,
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
    /// The data directory's identity can't be written.
    #[error("the data directory can't be written: {0}")]
    Write(std::io::Error),
    /// Starting was interrupted.
    #[error("starting was interrupted")]
    Interrupted,
}

impl Broker {
    /// Starts a broker with the system's clock. Returns when it serves.
    ///
    /// # Errors
    /// [`StartError`] says what stands in the way, and what to do.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        config.check()?;
        let metrics = telemetry::recorder();
        let clock = system_clock();
        let mut data_dir = open_data_dir(&config)?;
        let meta = data_dir.meta().clone();
        let storage = Arc::clone(data_dir.storage());
        let reserve = Arc::new(maintenance::reserve(&storage, config.storage.disk_reserve_bytes));
        if let Err(error) = reserve.ensure() {
            tracing::warn!(%error, "no room for the disk reserve");
        }

        let (wal, replicas) = open_shards(&config, &data_dir, &storage, &clock).await?;
        let batch_bytes_max = batch_bytes_max(&config, unit_bytes_max(&wal));
        let shards = Shards::new(replicas, Arc::new(Admission::new(wal.clone(), &config.wal)));
        if data_dir.created() {
            init_cluster(&shards, &config, &meta).await?;
            data_dir.complete().map_err(StartError::Write)?;
        }

        let listener = Listener::bind(NetConfig {
            listen: config.listen,
            tls: tls(&config, &data_dir)?,
            limits: net_limits(&config),
        })?;
        let addresses = match config.advertise.as_slice() {
            [] => vec![listener.local_addr().to_string()],
            named => named.to_vec(),
        };
        register(&shards, &meta, &addresses).await?;

        let stopping = CancellationToken::new();
        let (view, follower) = follow_controller(&shards, &meta, addresses, &stopping)?;
        let outboxes = OutboxSignals::new(&shards);
        let hosting = wiring::start_hosting(&config, &data_dir, &shards, &outboxes, &clock)?;
        let context = Arc::new(Context {
            producer_ids: ProducerIds::new(shards.clone()),
            generations: Arc::default(),
            disk: DiskState::default(),
            attempts: Arc::default(),
            batch_bytes_max,
            wal: wal.clone(),
            uploads: crate::context::uploads(),
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
        );
        context.shards.admission().relieve_with(checkpoints.pressure());
        let mut background = start_background(&context, &storage, &reserve, &stopping);
        background.push(follower);

        let listener = Arc::new(listener);
        let accepting = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&context)));
        tracing::info!(address = %listener.local_addr(), cluster = %context.meta.cluster, "serving");
        Ok(Self { context, listener, data_dir, wal, checkpoints, accepting, background })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
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
        let grace = Duration::from_millis(self.context.config.shutdown_grace_ms);
        let drained = async {
            while self.listener.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(grace, drained).await;
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
}

fn open_data_dir(config: &BrokerConfig) -> Result<DataDir, StartError> {
    let new = || Meta::new(ClusterId::new(uuid::Uuid::new_v4()), config.broker_id, config.shards);
    let data_dir = DataDir::open(&config.data_dir, new)?;
    let found = data_dir.meta().broker_id;
    if found != config.broker_id {
        return Err(StartError::WrongBroker {
            path: config.data_dir.display().to_string(),
            found,
            asked: config.broker_id,
        });
    }
    if !data_dir.created() && !data_dir.meta().clean {
        tracing::info!("the last stop was not clean; reading the log");
    }
    Ok(data_dir)
}

/// Opens the write-ahead log and every shard, and waits until all of them serve.
async fn open_shards(
    config: &BrokerConfig,
    data_dir: &DataDir,
    storage: &Arc<dyn Storage>,
    clock: &Clock,
) -> Result<(Wal, BTreeMap<ShardId, Replica>), StartError> {
    let (opening, wal_config) = (Arc::clone(storage), wal_config(config));
    let (wal, mut recovery) = tokio::task::spawn_blocking(move || Wal::open(opening, &wal_config))
        .await
        .map_err(|_| StartError::Interrupted)??;
    let meta = data_dir.meta();
    let node = NodeId::new(BrokerId::new(meta.broker_id), meta.incarnation);
    let page_cache_bytes = Some(config.storage.page_cache_bytes);
    let files_config = SegmentFilesConfig { page_cache_bytes, ..SegmentFilesConfig::default() };
    let files = SegmentFiles::new(Arc::clone(storage), files_config);
    let unit_bytes_max = unit_bytes_max(&wal);
    let defaults = ReplicaLimits::default();
    let mut starting = JoinSet::new();
    for number in 0..=meta.shards {
        let shard_id = ShardId::new(number);
        let recovered = recovery.shards.remove(&shard_id).unwrap_or_default();
        let replica_config = ReplicaConfig {
            init: data_dir.created(),
            accept_data_loss: config.accept_data_loss,
            limits: ReplicaLimits {
                pending_bytes_max: config.limits.proposal_bytes_max,
                checkpoint_bytes: config.storage.checkpoint_bytes,
                unit_bytes_max,
                entry_bytes_max: defaults.entry_bytes_max.min(unit_bytes_max),
                ..ReplicaLimits::default()
            },
            ..ReplicaConfig::new(shard_id, node, clock.clone())
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

fn wal_config(config: &BrokerConfig) -> WalConfig {
    let defaults = WalConfig { segment_bytes: config.wal.segment_bytes, ..WalConfig::new("wal") };
    WalConfig {
        write_bytes_max: WAL_WRITE_BYTES_MAX.min(defaults.entry_bytes_max()),
        cache_bytes: config.wal.cache_bytes,
        queue_bytes_max: config.wal.queue_bytes_max,
        spare_bytes_max: config.wal.bytes_max,
        direct: if config.wal.direct_io { wal::DirectIo::Auto } else { wal::DirectIo::Never },
        durability: match config.durability {
            DurabilitySetting::Fsync => wal::Durability::Fsync,
            DurabilitySetting::Replicated => wal::Durability::Replicated {
                flush_interval: Duration::from_millis(config.wal.flush_interval_ms),
            },
        },
        ..defaults
    }
}

fn shard_config(config: &BrokerConfig, meta: &Meta, shard: ShardId) -> ShardConfig {
    let data_shards = usize::from(meta.shards).max(1);
    ShardConfig {
        tail_cache_bytes: (config.storage.tail_cache_bytes / data_shards) as u64,
        ..ShardConfig::new(shard)
    }
}

async fn init_cluster(shards: &Shards, config: &BrokerConfig, meta: &Meta) -> Result<(), StartError> {
    let identity = ClusterIdentity {
        cluster: meta.cluster,
        data_shards: meta.shards,
        durability: match config.durability {
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
    let controller = shards.controller().ok_or(StartError::Interrupted)?.shard().clone();
    let broker = BrokerId::new(meta.broker_id);
    let mut changes = controller.changes();
    let picture = move || {
        let state = controller.controller()?;
        Some(ClusterView::new(state, broker, addresses.clone()))
    };
    let (publish, view) = ViewReader::channel(picture().ok_or(StartError::Interrupted)?);
    let stopping = stopping.clone();
    let follower = tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = stopping.cancelled() => return,
            }
            changes.borrow_and_update();
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

fn start_background(
    context: &Arc<Context>,
    storage: &Arc<dyn Storage>,
    reserve: &Arc<tidemill_log::fs::DiskReserve>,
    stopping: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let (shards, view) = (&context.shards, &context.view);
    let adopter =
        Adopter { shards: shards.clone(), view: view.clone(), plugins: context.config.plugins.clone() };
    let watch = maintenance::DiskWatch {
        storage: Arc::clone(storage),
        state: Arc::clone(context),
        free_min_bytes: context.config.storage.disk_free_min_bytes,
        reserve: Arc::clone(reserve),
    };
    let every = Duration::from_millis(context.config.storage.retention_interval_ms.max(100));
    let mut tasks = vec![
        tokio::spawn(adopter.run(stopping.clone())),
        tokio::spawn(watch.run(stopping.clone())),
        tokio::spawn(maintenance::retention(shards.clone(), every, stopping.clone())),
        tokio::spawn(wiring::follow_deployments(Arc::clone(context))),
        tokio::spawn(telemetry::upkeep(context.metrics.clone())),
    ];
    tasks.extend(outbox::start(shards, view, &context.outboxes, stopping));
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
                    let error = Error::new(ErrorCode::ShuttingDown, "the broker is shutting down");
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
