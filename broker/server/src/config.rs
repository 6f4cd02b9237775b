//! The broker's settings: defaults < TOML file < `TIDEMILL_*` environment < flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_protocol::record_batch::BatchLimits;

mod addresses;
mod environment;

/// Batches of a producer without an answer, at most.
const PRODUCE_IN_FLIGHT_MAX: u32 = 32;
const _: () = assert!(PRODUCE_IN_FLIGHT_MAX as usize <= tidemill_partition::BATCHES_IN_FLIGHT_MAX);
/// Between two comparisons of replicas' states, at least: more than what these write themselves.
const STATE_HASH_BYTES_MIN: u64 = 64 << 10;
/// As often as it is looked whether one is due.
const STATE_HASH_INTERVAL_MS_MIN: u64 = 1_000;

/// Every setting of a broker. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Where everything is kept. One broker, one directory.
    pub data_dir: PathBuf,
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// `host:port` that clients are told to use; empty: the listening address.
    pub advertise: Vec<String>,
    /// This broker's number in the cluster.
    pub broker_id: u32,
    /// Where this broker stands: replicas of a shard are put into distinct racks where there are such. Empty: nowhere in particular.
    pub rack: String,
    /// The directory that `tidemill cluster init` wrote: for the first start of a broker that forms the cluster with others.
    pub cluster: Option<PathBuf>,
    /// A token of `tidemill cluster add`: for the first start of a broker that an existing cluster takes in.
    pub join: Option<String>,
    /// Number of data shards, fixed when the cluster is initialised; `None`: as it was, [`SHARDS_DEFAULT`] for a new one.
    pub shards: Option<u16>,
    /// When a record counts as written, fixed when the cluster is initialised; `None`: as it was, `fsync` for a new one.
    pub durability: Option<DurabilitySetting>,
    /// Listen beyond loopback without asking clients who they are.
    pub insecure: bool,
    /// PEM file of authorities that sign clients' certificates: every client must show one.
    pub client_ca: Option<PathBuf>,
    /// PEM certificate chain of this broker; without it the broker is its own authority.
    pub tls_certificate: Option<PathBuf>,
    /// PEM key of that certificate.
    pub tls_key: Option<PathBuf>,
    /// Further names and addresses for the certificate that the broker makes itself.
    pub tls_names: Vec<String>,
    /// Start although entries that were acknowledged may be lost (`--accept-data-loss`).
    pub accept_data_loss: bool,
    /// The other brokers.
    pub peers: PeerSettings,
    /// The write-ahead log.
    pub wal: WalSettings,
    /// Checkpoints and caches of the shards.
    pub storage: StorageSettings,
    /// What clients may do.
    pub limits: LimitSettings,
    /// Plugins.
    pub plugins: PluginSettings,
    /// Metrics over HTTP.
    pub metrics: MetricsSettings,
    /// How long a shutdown waits for what is under way.
    pub shutdown_grace_ms: u64,
}

/// When a record counts as written: a cluster's for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilitySetting {
    /// fsync before the acknowledgement.
    Fsync,
    /// In the page cache of a majority, flushed soon after.
    Replicated,
}

/// The other brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// The UDP address for other brokers; none: that of `listen`, ten ports further.
    pub listen: Option<SocketAddr>,
    /// `host:port` that other brokers are told to use; empty: the listening address.
    pub advertise: Vec<String>,
    /// `host:port` of other brokers' `peers.listen`, from which all of them are found the first time.
    pub seeds: Vec<String>,
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WalSettings {
    /// One file of the log; files are written once ahead of time and recycled.
    pub segment_bytes: u64,
    /// Segments in use take no more: from half of it on shards that hold it up are made to checkpoint, at it writes wait.
    pub bytes_max: u64,
    /// Recent entries kept in memory for apply and readers.
    pub cache_bytes: usize,
    /// Entries queued and not yet written.
    pub queue_bytes_max: usize,
    /// Use direct I/O where the file system allows it.
    pub direct_io: bool,
    /// With `durability = "replicated"`: flush at least this often.
    pub flush_interval_ms: u64,
}

/// Checkpoints and caches of the shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// A shard checkpoints after so many bytes of entries.
    pub checkpoint_bytes: u64,
    /// Newest records kept in memory over all shards.
    pub tail_cache_bytes: usize,
    /// Records that are acknowledged and not yet in segments, over all shards, before more have to wait.
    pub write_behind_bytes_max: usize,
    /// Newest bytes of segments left in the page cache; older ones are given back to the system.
    pub page_cache_bytes: u64,
    /// How often retention looks for what may go.
    pub retention_interval_ms: u64,
    /// Segments are checked for damage at this rate, round and round; 0: only when they are read.
    pub scrub_bytes_per_second: u64,
    /// The replicas of a shard compare hashes of their states after so many bytes of entries, if
    /// [`state_hash_interval_ms`](Self::state_hash_interval_ms) has passed, too. Who leads decides.
    pub state_hash_bytes: u64,
    /// They do so no more often than this; where less is written, after six times as long.
    pub state_hash_interval_ms: u64,
    /// Produce is refused when less than this is free; retention may still free space.
    pub disk_free_min_bytes: u64,
    /// A file of this size is kept in reserve, and given up when the disk is full.
    pub disk_reserve_bytes: u64,
}

/// What clients may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Connections at once.
    pub connections_max: usize,
    /// Streams of one connection at once.
    pub streams_max: u32,
    /// One frame.
    pub frame_bytes_max: usize,
    /// Frames on their way in, over all connections; one connection may take a quarter of it.
    pub receiving_bytes_max: usize,
    /// One record.
    pub record_bytes_max: u32,
    /// Records of one batch, decompressed.
    pub decompressed_bytes_max: usize,
    /// Batches in flight on one produce stream.
    pub produce_in_flight_max: u32,
    /// Bytes in flight on one produce stream.
    pub produce_window_bytes: u32,
    /// Bytes proposed and not yet applied, per shard.
    pub proposal_bytes_max: usize,
    /// Partitions of one subscription.
    pub subscription_partitions_max: u32,
    /// Partitions of all subscriptions of one connection.
    pub connection_partitions_max: u32,
    /// Credit of one partition of a subscription; their sum is the client's business, which QUIC's windows bound.
    pub subscription_credit_bytes_max: u64,
    /// A request's deadline where it names none.
    pub request_deadline_ms: u32,
    /// An uploaded component.
    pub plugin_bytes_max: u64,
}

/// Plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginSettings {
    /// One call of a partitioner or filter.
    pub call_ms_max: u64,
    /// One call of a hosted consumer.
    pub task_call_ms_max: u64,
    /// Memory of one instance where the deployment names none.
    pub memory_bytes_default: u64,
    /// Memory of one instance at the most.
    pub memory_bytes_max: u64,
    /// Compiling one component.
    pub compile_ms_max: u64,
    /// Memory of the compiling process.
    pub compile_memory_bytes_max: u64,
    /// State of one task.
    pub state_bytes_max: u64,
    /// Outbox of one task towards one target partition.
    pub outbox_bytes_max: u64,
    /// Log lines kept per deployment.
    pub log_bytes_max: usize,
}

/// Metrics over HTTP, for scrapers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// The TCP address that answers `GET /metrics`; none: there is none.
    pub listen: Option<SocketAddr>,
    /// Answer beyond loopback: whoever reaches the address may read the metrics.
    pub insecure: bool,
}

const MIB: usize = 1 << 20;

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("tidemill-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            advertise: Vec::new(),
            broker_id: 1,
            rack: String::new(),
            cluster: None,
            join: None,
            shards: None,
            durability: None,
            insecure: false,
            client_ca: None,
            tls_certificate: None,
            tls_key: None,
            tls_names: Vec::new(),
            accept_data_loss: false,
            peers: PeerSettings::default(),
            wal: WalSettings::default(),
            storage: StorageSettings::default(),
            limits: LimitSettings::default(),
            plugins: PluginSettings::default(),
            metrics: MetricsSettings::default(),
            shutdown_grace_ms: 10_000,
        }
    }
}

/// Data shards of a cluster that is made without a word about it.
pub const SHARDS_DEFAULT: u16 = 4;

/// The same for one that several brokers form.
pub const SHARDS_OF_SEVERAL_DEFAULT: u16 = 12;

/// Between the port for clients and the one for brokers, where none is named: brokers on one machine have ports side by side.
const PEER_PORT_DISTANCE: u16 = 10;

/// UDP port of a broker where none is named.
pub const DEFAULT_PORT: u16 = 9630;

impl Default for WalSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            bytes_max: 2 << 30,
            cache_bytes: 16 * MIB,
            queue_bytes_max: 64 * MIB,
            direct_io: true,
            flush_interval_ms: 50,
        }
    }
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            checkpoint_bytes: 256 << 20,
            tail_cache_bytes: 64 * MIB,
            write_behind_bytes_max: 256 * MIB,
            page_cache_bytes: 256 << 20,
            retention_interval_ms: 30_000,
            scrub_bytes_per_second: 4 << 20,
            state_hash_bytes: 64 << 20,
            state_hash_interval_ms: 600_000,
            disk_free_min_bytes: 1 << 30,
            disk_reserve_bytes: 160 << 20,
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            streams_max: 4096,
            frame_bytes_max: 18 * MIB,
            receiving_bytes_max: 1 << 30,
            record_bytes_max: 8 << 20,
            decompressed_bytes_max: 64 * MIB,
            produce_in_flight_max: 32,
            produce_window_bytes: 32 << 20,
            proposal_bytes_max: 64 * MIB,
            subscription_partitions_max: 10_000,
            connection_partitions_max: 20_000,
            subscription_credit_bytes_max: 256 << 20,
            request_deadline_ms: 30_000,
            plugin_bytes_max: 64 << 20,
        }
    }
}

impl Default for PluginSettings {
    fn default() -> Self {
        Self {
            call_ms_max: 200,
            task_call_ms_max: 10_000,
            memory_bytes_default: 64 << 20,
            memory_bytes_max: 1 << 30,
            compile_ms_max: 120_000,
            compile_memory_bytes_max: 4 << 30,
            state_bytes_max: 1 << 30,
            outbox_bytes_max: 64 << 20,
            log_bytes_max: MIB,
        }
    }
}

/// Why the settings do not stand.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment holds something else than a setting.
    #[error("the configuration does not read: {0}")]
    Read(#[from] config::ConfigError),
    /// A variable that looks like a setting and is none.
    #[error("{variable} names no setting{}", near.as_ref().map(|near| format!("; is {near} meant?")).unwrap_or_default())]
    Variable {
        /// As it is set.
        variable: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// Settings that contradict each other.
    #[error("{setting}: {reason}")]
    Invalid {
        /// Which setting.
        setting: &'static str,
        /// What to change.
        reason: String,
    },
}

impl std::fmt::Display for DurabilitySetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
        })
    }
}

impl BrokerConfig {
    /// Defaults, then the TOML file, then `TIDEMILL_*` variables (`TIDEMILL_WAL__BYTES_MAX` for `wal.bytes_max`), then
    /// `flags` as `(dotted key, value)`.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Self, ConfigError> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self::load_with(file, std::env::vars_os().map(|(name, value)| (text(name), text(value))), flags)
    }

    /// As [`load`](Self::load), in another environment.
    fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file).format(config::FileFormat::Toml));
        }
        for (key, value) in environment::settings_in(environment)?.iter().chain(flags) {
            builder = if LISTS.contains(&key.as_str()) {
                let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
                builder.set_override(key, items.collect::<Vec<_>>())?
            } else {
                builder.set_override(key, value.as_str())?
            };
        }
        let settings: Self = builder.build()?.try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    /// Where other brokers reach this one.
    #[must_use]
    pub fn peer_listen(&self) -> SocketAddr {
        self.peers.listen.unwrap_or_else(|| {
            let port = match self.listen.port() {
                0 => 0,
                port => port.saturating_add(PEER_PORT_DISTANCE),
            };
            SocketAddr::new(self.listen.ip(), port)
        })
    }

    /// Whether the settings fit together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the one to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid =
            |setting, reason: &str| Err(ConfigError::Invalid { setting, reason: reason.to_owned() });
        if !self.listen.ip().is_loopback() && self.client_ca.is_none() && !self.insecure {
            return invalid(
                "listen",
                "beyond loopback clients must show who they are: give --client-ca FILE, or say --insecure",
            );
        }
        if self.metrics.listen.is_some_and(|listen| !listen.ip().is_loopback()) && !self.metrics.insecure {
            return invalid(
                "metrics.listen",
                "metrics are served without TLS and to whoever asks: stay on loopback, or say metrics.insecure = true",
            );
        }
        if self.shards.is_some_and(|shards| shards == 0 || shards > 1024) {
            return invalid("shards", "between 1 and 1024");
        }
        if self.broker_id == 0 {
            return invalid("broker_id", "brokers are numbered from 1");
        }
        if self.peer_listen().ip().is_unspecified() && self.peers.advertise.is_empty() {
            return invalid(
                "peers.advertise",
                "other brokers can't reach an address that stands for all of this machine's: name one with --peers-advertise HOST:PORT, or \
                 listen on one with --peers-listen",
            );
        }
        for (setting, named) in [
            ("advertise", &self.advertise),
            ("peers.advertise", &self.peers.advertise),
            ("peers.seeds", &self.peers.seeds),
        ] {
            if let Some(fault) = named.iter().find_map(|address| addresses::fault_of(address)) {
                return invalid(setting, &fault);
            }
        }
        if self.cluster.is_some() && self.join.is_some() {
            return invalid(
                "join",
                "a broker forms a cluster with others (cluster) or is taken in by one (join), not both",
            );
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return invalid("tls_certificate", "a certificate and its key go together");
        }
        if self.wal.segment_bytes < 4 << 20 || self.wal.bytes_max < 4 * self.wal.segment_bytes {
            return invalid("wal.bytes_max", "at least four segments of at least 4 MiB each");
        }
        if self.wal.cache_bytes < 8 * MIB || self.wal.queue_bytes_max < 8 * MIB {
            return invalid("wal.cache_bytes", "cache and queue need at least 8 MiB each");
        }
        if self.storage.write_behind_bytes_max < 16 * MIB {
            return invalid(
                "storage.write_behind_bytes_max",
                "at least 16 MiB: writing behind gathers large writes",
            );
        }
        if self.storage.state_hash_bytes < STATE_HASH_BYTES_MIN {
            return invalid(
                "storage.state_hash_bytes",
                "at least 64 KiB: what the replicas report is written to the same log, and must not begin the next comparison",
            );
        }
        if self.storage.state_hash_interval_ms < STATE_HASH_INTERVAL_MS_MIN {
            return invalid(
                "storage.state_hash_interval_ms",
                "at least 1000: each comparison costs a checkpoint, and reads the whole state",
            );
        }
        let most = BatchLimits::DECOMPRESSED_BYTES_MOST;
        if self.limits.decompressed_bytes_max > most || self.limits.record_bytes_max as usize > most {
            return invalid(
                "limits.decompressed_bytes_max",
                "at most 256 MiB, and so limits.record_bytes_max: what is stored must stay readable",
            );
        }
        if self.limits.frame_bytes_max < 64 << 10 {
            return invalid("limits.frame_bytes_max", "at least 64 KiB");
        }
        if self.limits.receiving_bytes_max < self.limits.frame_bytes_max {
            return invalid("limits.receiving_bytes_max", "at least limits.frame_bytes_max");
        }
        if !(1..=PRODUCE_IN_FLIGHT_MAX).contains(&self.limits.produce_in_flight_max) {
            return invalid(
                "limits.produce_in_flight_max",
                "between 1 and 32: no more results than that are sure to be remembered",
            );
        }
        Ok(())
    }
}

/// Settings that are lists: their items stand between commas.
const LISTS: [&str; 4] = ["advertise", "tls_names", "peers.advertise", "peers.seeds"];

#[cfg(test)]
mod tests;
