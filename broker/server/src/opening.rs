//! What a broker opens before it serves: its directory, its log, its sockets, and with which settings.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{self, Recovery, Wal, WalConfig};
use tidemill_net::{
    ClientAuthentication, DevCa, JoinToken, PeerEndpoint, PeerNetConfig, PeerTls, ServerTls, TlsError,
};
use tidemill_protocol::{BrokerId, ShardId};
use tidemill_raft::{Beat, ReplicaLimits, SnapshotLimiter};
use tidemill_shard::ShardConfig;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::cluster::replicas::ReplicaStarter;
use crate::cluster::{ClusterDirectoryError, ClusterPlan, Lives, Origin, forget, recovered};
use crate::config::{BrokerConfig, DurabilitySetting};
use crate::data_dir::{DataDir, Meta};
use crate::disk::{DiskBounds, DiskState, DiskWatch};
use crate::limits::{peer_limits, unit_bytes_max};
use crate::machine::Machine;
use crate::metrics_endpoint::MetricsEndpoint;
use crate::peers::messages::KnownBroker;
use crate::peers::{Myself, Peers, ReplicaDialer};
use crate::start_error::StartError;

/// Opens the data directory; where there is none, finds out to which cluster a new one belongs. Answers whom that knows.
pub(crate) async fn open_data_dir(config: &BrokerConfig) -> Result<(DataDir, Vec<KnownBroker>), StartError> {
    let origin = match config.data_dir.join("meta").exists() {
        true => Origin::Alone,
        false => Origin::of(config).await?,
    };
    let new = || origin.meta(config);
    let mut data_dir = DataDir::open(&config.data_dir, config.storage.disk_reserve_bytes, new)?;
    check_identity(config, data_dir.meta())?;
    check_recovered(&data_dir)?;
    data_dir.begin().map_err(StartError::Write)?;
    if !data_dir.created() {
        // A new one is not whole yet: after a crash it joins again under the same name.
        forget(&config.data_dir).map_err(StartError::Write)?;
    }
    if !data_dir.created() && config.join.is_some() {
        tracing::info!(
            broker = data_dir.meta().broker_id,
            "the data directory holds a broker: the join token is not used"
        );
    }
    if !data_dir.created() && !data_dir.meta().clean {
        tracing::info!("the last stop was not clean; reading the log");
    }
    Ok((data_dir, origin.known().to_vec()))
}

pub(crate) fn open_peers(
    config: &BrokerConfig,
    data_dir: &DataDir,
    stopping: &CancellationToken,
) -> Result<Peers, StartError> {
    let meta = data_dir.meta();
    let broker = BrokerId::new(meta.broker_id);
    let endpoint = PeerEndpoint::bind(PeerNetConfig {
        listen: config.peer_listen(),
        tls: peer_tls(meta, &data_dir.path("tls"))?,
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
        unit_bytes_max: unit_bytes_max(config),
    };
    Peers::new(myself, endpoint, data_dir.storage(), stopping).map_err(StartError::Write)
}

/// A new certificate for this broker's peers.
pub(crate) fn peer_tls(meta: &Meta, directory: &Path) -> Result<PeerTls, TlsError> {
    // A broker that is a cluster of its own may have made its authority long ago, for its clients.
    let authority = DevCa::open_or_create(directory)?;
    let certificate = authority.issue_peer(meta.cluster, BrokerId::new(meta.broker_id), directory)?;
    Ok(PeerTls::new(certificate, &authority))
}

/// Refuses a directory that is half recovered, and says at each start that one was recovered.
fn check_recovered(data_dir: &DataDir) -> Result<(), StartError> {
    let recoveries = recovered::read(&**data_dir.storage()).map_err(StartError::Read)?;
    if recoveries.iter().any(|recovery| !recovery.complete) {
        let path = data_dir.path("").display().to_string();
        return Err(StartError::HalfRecovered { path });
    }
    for recovery in &recoveries {
        tracing::warn!(
            at_ms = recovery.at_ms, incarnation = recovery.incarnation, without_shards = ?recovery.missing,
            lost_brokers = ?recovery.lost_brokers,
            "this cluster was recovered with --accept-loss from this broker's directory: what only others had is lost, and the brokers of \
             before must never start again on the directories that they had"
        );
    }
    Ok(())
}

/// Why the cluster does not want this broker, and beside it what became of a token that was to let it in: that is for an empty directory.
pub(crate) fn unwanted(config: &BrokerConfig, data_dir: &DataDir, reason: String) -> String {
    if config.join.is_none() || data_dir.created() {
        return reason;
    }
    format!(
        "{reason}; {} is not empty, so the token was not used: delete what is in it, and start again with the same token, or with another where \
         this broker joined with it before",
        config.data_dir.display()
    )
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
    // One that does not read names no other.
    let token = config.join.as_ref().and_then(|token| token.parse::<JoinToken>().ok());
    let named = match (&config.cluster, token) {
        (Some(directory), _) => match ClusterPlan::read(directory) {
            // Only a first start needs it.
            Err(ClusterDirectoryError::NoPlan(_)) => None,
            plan => Some(("cluster", plan?.cluster)),
        },
        (None, token) => token.map(|token| ("join", token.cluster)),
    };
    if let Some((setting, asked)) = named
        && asked != meta.cluster
    {
        return Err(StartError::OtherCluster { path, found: meta.cluster, setting, asked });
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

pub(crate) fn disk_watch(config: &BrokerConfig, data_dir: &DataDir, state: &Arc<DiskState>) -> DiskWatch {
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

pub(crate) async fn open_wal(
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

pub(crate) async fn metrics_endpoint(
    config: &BrokerConfig,
    metrics: &PrometheusHandle,
) -> Result<Option<MetricsEndpoint>, StartError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let bound = MetricsEndpoint::bind(address, metrics.clone()).await;
    bound.map(Some).map_err(|source| StartError::Metrics { address, source })
}

pub(crate) fn replica_starter(
    config: &BrokerConfig,
    data_dir: &DataDir,
    machine: &Machine,
    wal: &Wal,
    recovery: Recovery,
    lives: &Arc<Lives>,
    peers: &Peers,
) -> ReplicaStarter {
    let meta = data_dir.meta().clone();
    let unit_bytes_max = unit_bytes_max(config);
    let defaults = ReplicaLimits::default();
    let limits = ReplicaLimits {
        pending_bytes_max: config.limits.proposal_bytes_max,
        write_behind_bytes_max: per_shard(config.storage.write_behind_bytes_max, &meta),
        log_bytes_high: Admission::log_bytes_high(&config.wal),
        checkpoint_bytes: config.storage.checkpoint_bytes,
        state_hash_bytes: config.storage.state_hash_bytes,
        state_hash_interval: Duration::from_millis(config.storage.state_hash_interval_ms),
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
        former: Arc::default(),
        files: SegmentFiles::new(Arc::clone(data_dir.storage()), segment_files_config(config)),
        shard_config,
        limits,
        unit_bytes_elsewhere: peers.unit_bytes_elsewhere(),
        snapshot_limiter: Arc::new(SnapshotLimiter::new(None)),
        beat: Beat::new(),
        clock: machine.clock.clone(),
        dialer: Some(Arc::new(dialer)),
        gate: None,
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

/// Whether clients must show a certificate.
pub(crate) fn client_authentication(config: &BrokerConfig) -> ClientAuthentication {
    match &config.client_ca {
        // Who shows none is turned away with a code, before anything is served.
        Some(authorities) => ClientAuthentication::Asked { authorities: authorities.clone() },
        None => ClientAuthentication::None,
    }
}

/// The certificate for clients: the operator's, or a new one.
pub(crate) fn tls(config: &BrokerConfig, directory: &Path) -> Result<ServerTls, TlsError> {
    let clients = client_authentication(config);
    if let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) {
        return Ok(ServerTls { certificate: certificate.clone(), key: key.clone(), clients });
    }
    let mut names = config.tls_names.clone();
    names.extend(config.advertise.iter().filter_map(|address| Some(address.rsplit_once(':')?.0.to_owned())));
    if !config.listen.ip().is_unspecified() {
        names.push(config.listen.ip().to_string());
    }
    let authority = DevCa::open_or_create(directory)?;
    let server = authority.server(&names)?;
    Ok(ServerTls { clients, ..server })
}
