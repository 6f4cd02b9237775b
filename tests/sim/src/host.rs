//! One life of a broker: its log, one shard, the shard's replica, and the checkpoint driver.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{Wal, WalConfig};
use tidemill_protocol::{NodeId, ShardId, Timestamp};
use tidemill_raft::{
    Begin, CheckpointConfig, CheckpointDriver, Replica, ReplicaConfig, ReplicaLimits, recovered_shard,
};
use tidemill_shard::{Shard, ShardConfig};
use tokio::sync::watch;

use crate::background::SimBackground;
use crate::disk::SimDisk;
use crate::trace::Trace;

/// The shard that the host keeps.
pub(crate) const SHARD: ShardId = ShardId::new(1);
/// When a simulation begins, by its brokers' clocks.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Small, so that short runs roll, recycle, checkpoint and purge.
const WAL_SEGMENT_BYTES: u64 = 256 << 10;
const WAL_BYTES_MAX: u64 = 1 << 20;
const CHECKPOINT_BYTES: u64 = 96 << 10;
/// States are compared all the time.
const STATE_HASH_INTERVAL: Duration = Duration::from_secs(1);
const WRITE_BEHIND_BYTES: u64 = 16 << 10;
/// How long a start may take until the shard is led, in simulated time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that runs.
#[derive(Debug)]
pub struct Host {
    replica: Replica,
    wal: Wal,
    background: SimBackground,
    driver: CheckpointDriver,
    _short_of_room: watch::Sender<bool>,
}

/// How a simulated broker keeps its log.
pub(crate) fn wal_config(salt_seed: u64, background: &SimBackground) -> WalConfig {
    WalConfig {
        segment_bytes: WAL_SEGMENT_BYTES,
        write_bytes_max: 64 << 10,
        salt_seed: Some(salt_seed),
        background: Arc::new(background.clone()),
        ..WalConfig::new("wal")
    }
}

pub(crate) fn shard_config(shard: ShardId, background: &SimBackground) -> ShardConfig {
    ShardConfig {
        write_behind_bytes: WRITE_BEHIND_BYTES,
        write_coalesce_bytes: WRITE_BEHIND_BYTES / 4,
        tail_cache_bytes: 4 * WRITE_BEHIND_BYTES,
        state_cache_bytes: 1 << 20,
        background: Arc::new(background.clone()),
        ..ShardConfig::new(shard)
    }
}

pub(crate) fn replica_limits() -> ReplicaLimits {
    ReplicaLimits {
        unit_bytes_max: 32 << 10,
        entry_bytes_max: 32 << 10,
        write_behind_bytes_max: 4 * WRITE_BEHIND_BYTES,
        checkpoint_bytes: CHECKPOINT_BYTES,
        state_hash_bytes: CHECKPOINT_BYTES,
        state_hash_interval: STATE_HASH_INTERVAL,
        ..ReplicaLimits::default()
    }
}

pub(crate) fn checkpoint_config() -> CheckpointConfig {
    CheckpointConfig { wal_bytes_max: WAL_BYTES_MAX, ..CheckpointConfig::default() }
}

/// What a broker's clock shows that is wrong by so much.
pub(crate) fn wall_clock(trace: &Trace, wrong_ms: i64) -> Timestamp {
    let right = i64::try_from(EPOCH_MS + trace.elapsed_ms()).unwrap_or(i64::MAX);
    Timestamp::new(right.saturating_add(wrong_ms))
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The write-ahead log.
    #[error(transparent)]
    Wal(#[from] tidemill_log::wal::WalOpenError),
    /// The shard.
    #[error(transparent)]
    Shard(#[from] tidemill_shard::ShardOpenError),
    /// The replica.
    #[error(transparent)]
    Replica(#[from] tidemill_raft::ReplicaStartError),
    /// Nobody leads the shard.
    #[error("the shard is not led: {0}")]
    NotLed(#[from] tidemill_raft::ReadError),
}

impl Host {
    /// Starts a broker on what the disk holds, as a group of one, and waits until it leads.
    ///
    /// # Errors
    /// See [`HostError`]; nothing of it runs on.
    pub async fn start(
        disk: &SimDisk,
        node: NodeId,
        salt_seed: u64,
        trace: &Trace,
    ) -> Result<Self, HostError> {
        let background = SimBackground::new(disk.clone());
        let started = Self::start_on(disk, node, salt_seed, trace, &background).await;
        if started.is_err() {
            background.kill();
        }
        started
    }

    async fn start_on(
        disk: &SimDisk,
        node: NodeId,
        salt_seed: u64,
        trace: &Trace,
        background: &SimBackground,
    ) -> Result<Self, HostError> {
        let wal_config = wal_config(salt_seed, background);
        let (wal, recovery) = Wal::open(Arc::new(disk.clone()), &wal_config)?;
        disk.settle().await;
        let files = SegmentFiles::new(Arc::new(disk.clone()), SegmentFilesConfig::default());
        let shard = Shard::open(shard_config(SHARD, background), &files)?;
        disk.settle().await;
        let clock = trace.clone();
        let now = move || wall_clock(&clock, 0);
        let mut config = ReplicaConfig::new(SHARD, node, Arc::new(now));
        config.begin = Begin::Form(BTreeSet::from([node]));
        config.limits = replica_limits();
        let replica = Replica::start(config, wal.clone(), recovered_shard(&recovery, SHARD), shard).await?;
        replica.wait_leading(PATIENCE).await?;
        let (room, short_of_room) = watch::channel(false);
        let checkpoints = checkpoint_config();
        let driver = {
            let replicas = vec![replica.clone()];
            CheckpointDriver::start(checkpoints, wal.clone(), move || replicas.clone(), short_of_room)
        };
        Ok(Self { replica, wal, background: background.clone(), driver, _short_of_room: room })
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Ends in good order.
    pub async fn stop(self) {
        drop(self.driver);
        self.replica.stop().await;
        drop(self.wal.close());
    }

    /// Ends as a killed process does: nothing is finished.
    pub fn kill(self) {
        self.background.kill();
    }
}
