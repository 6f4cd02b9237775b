//! A broker's storage, and what opens on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_coordinator::{CommittedPosition, GroupCommand, PositionCommit};
use tidemill_log::fs::{MemoryStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{Wal, WalConfig};
use tidemill_protocol::{Offset, PartitionId, ShardId, Timestamp, TopicId, TopicPartition};
use tidemill_shard::{Shard, ShardConfig, Unit, UnitResult};

use crate::config::{ReplicaConfig, ReplicaLimits};
use crate::error::ReplicaStartError;
use crate::node::NodeId;
use crate::replica::Replica;
use crate::snapshot::ShardHome;
use crate::start::recovered_shard;

pub(super) const SHARD: ShardId = ShardId::new(1);
pub(super) const NODE: NodeId = NodeId::from_raw(1 << 32 | 1);
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One life of a broker: its log, and how its replicas start.
pub(super) struct Broker {
    pub(super) wal: Wal,
    recovery: tidemill_log::wal::Recovery,
    files: Arc<SegmentFiles>,
    pub(super) limits: ReplicaLimits,
    pub(super) init: bool,
    pub(super) accept_data_loss: bool,
    pub(super) node: NodeId,
}

impl Broker {
    pub(super) fn open(storage: Arc<dyn Storage>) -> Self {
        let config = WalConfig { segment_bytes: 1 << 20, write_bytes_max: 64 << 10, ..WalConfig::new("wal") };
        let (wal, recovery) = Wal::open(Arc::clone(&storage), &config).unwrap();
        let limits = ReplicaLimits {
            unit_bytes_max: 256 << 10,
            entry_bytes_max: 128 << 10,
            ..ReplicaLimits::default()
        };
        let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
        Self { wal, recovery, files, limits, init: true, accept_data_loss: false, node: NODE }
    }

    pub(super) fn in_memory(storage: &MemoryStorage) -> Self {
        Self::open(Arc::new(storage.clone()))
    }

    pub(super) fn shard(&self, shard: ShardId) -> Shard {
        Shard::open(ShardConfig::new(shard), &self.files).unwrap()
    }

    pub(super) fn home(&self, shard: ShardId) -> ShardHome {
        ShardHome { config: ShardConfig::new(shard), files: Arc::clone(&self.files) }
    }

    pub(super) fn recovered(&self, shard: ShardId) -> tidemill_log::wal::RecoveredShard {
        recovered_shard(&self.recovery, shard)
    }

    pub(super) async fn try_start(&self, shard: ShardId) -> Result<Replica, ReplicaStartError> {
        let clock = Arc::new(|| Timestamp::new(1_700_000_000_000));
        let mut config = ReplicaConfig::new(shard, self.node, clock);
        config.limits = self.limits;
        config.init = self.init;
        config.accept_data_loss = self.accept_data_loss;
        Replica::start(config, self.wal.clone(), self.recovered(shard), self.shard(shard)).await
    }

    pub(super) async fn start(&self, shard: ShardId) -> Replica {
        let replica = self.try_start(shard).await.unwrap();
        replica.wait_leading(PATIENCE).await.unwrap();
        replica
    }
}

/// A unit that a fresh shard takes: `group` stands at `offset` from now on.
pub(super) fn commit_position(group: &str, offset: i64) -> Unit {
    let offset = Some(Offset::new(offset));
    let position =
        PositionCommit { partition: partition(7), offset, leader_epoch: None, note: String::new() };
    Unit::Group(GroupCommand::Commit { group: group.to_owned(), positions: vec![position] })
}

/// A unit of about that many bytes that changes nothing: a batch for a topic that nobody adopted.
pub(super) fn bulk(bytes: usize) -> Unit {
    Unit::Append { partition: partition(8), batch: Bytes::from(vec![0x5a; bytes]), leader_epoch: None }
}

fn partition(topic: u8) -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&[topic; 16]).unwrap(), PartitionId::new(0))
}

/// What all groups have committed: this fixture's state of a shard.
pub(super) fn groups(replica: &Replica) -> BTreeMap<String, Vec<(TopicPartition, CommittedPosition)>> {
    let shard = replica.shard();
    shard.group_names().into_iter().map(|name| (name.clone(), shard.group(&name).unwrap())).collect()
}

/// Commits positions `from..to` of a group one after the other.
pub(super) async fn commit_all(replica: &Replica, group: &str, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        let result = replica.propose(commit_position(group, offset)).await.unwrap();
        assert!(matches!(result, UnitResult::Group(_)), "{result:?}");
    }
}
