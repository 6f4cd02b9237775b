//! A broker's storage, and what opens on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_coordinator::{CommittedPosition, GroupCommand, PositionCommit};
use tidemill_log::fs::{MemoryStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{Wal, WalConfig};
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{NodeId, Offset, PartitionId, ShardId, Timestamp, TopicId, TopicPartition};
use tidemill_shard::{AdoptTopic, Fetch, Shard, ShardConfig, Unit, UnitResult};

use crate::config::{Begin, RaftTiming, ReplicaConfig, ReplicaLimits};
use crate::error::ReplicaStartError;
use crate::gate::Gate;
use crate::peers::PeerDialer;
use crate::replica::Replica;
use crate::snapshot::SnapshotLimiter;
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
    /// Instead of what `init` says.
    pub(super) begin: Option<Begin>,
    pub(super) peers: Option<Arc<dyn PeerDialer>>,
    pub(super) gate: Option<Arc<dyn Gate>>,
    pub(super) snapshot_limiter: Arc<SnapshotLimiter>,
    pub(super) retired: bool,
    pub(super) timing: RaftTiming,
    pub(super) accept_data_loss: bool,
    pub(super) node: NodeId,
    pub(super) shard_config: fn(ShardId) -> ShardConfig,
}

impl Broker {
    pub(super) fn open(storage: Arc<dyn Storage>) -> Self {
        Self::open_with(Arc::clone(&storage), storage, &wal_config())
    }

    /// The log and the segments each on a storage of their own.
    pub(super) fn open_with(log: Arc<dyn Storage>, storage: Arc<dyn Storage>, config: &WalConfig) -> Self {
        let (wal, recovery) = Wal::open(log, config).unwrap();
        let limits = ReplicaLimits {
            unit_bytes_max: 256 << 10,
            entry_bytes_max: 128 << 10,
            ..ReplicaLimits::default()
        };
        let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
        let shard_config = ShardConfig::new;
        Self {
            wal,
            recovery,
            files,
            limits,
            init: true,
            begin: None,
            peers: None,
            gate: None,
            snapshot_limiter: Arc::new(SnapshotLimiter::new(None)),
            retired: false,
            timing: RaftTiming::default(),
            accept_data_loss: false,
            node: NODE,
            shard_config,
        }
    }

    pub(super) fn in_memory(storage: &MemoryStorage) -> Self {
        Self::open(Arc::new(storage.clone()))
    }

    pub(super) fn shard(&self, shard: ShardId) -> Shard {
        Shard::open((self.shard_config)(shard), &self.files).unwrap()
    }

    pub(super) fn recovered(&self, shard: ShardId) -> tidemill_log::wal::RecoveredShard {
        recovered_shard(&self.recovery, shard)
    }

    pub(super) async fn try_start(&self, shard: ShardId) -> Result<Replica, ReplicaStartError> {
        self.try_start_on(shard, self.shard(shard)).await
    }

    /// With a shard that is open already.
    pub(super) async fn try_start_on(
        &self,
        shard: ShardId,
        opened: Shard,
    ) -> Result<Replica, ReplicaStartError> {
        let clock = Arc::new(|| Timestamp::new(1_700_000_000_000));
        let mut config = ReplicaConfig::new(shard, self.node, clock);
        config.limits = self.limits;
        config.begin = match &self.begin {
            Some(begin) => begin.clone(),
            None if self.init => Begin::Form([self.node].into()),
            None => Begin::Existing,
        };
        config.peers = self.peers.clone();
        config.gate = self.gate.clone();
        config.snapshot_limiter = Arc::clone(&self.snapshot_limiter);
        config.retired = self.retired;
        config.timing = self.timing;
        config.accept_data_loss = self.accept_data_loss;
        Replica::start(config, self.wal.clone(), self.recovered(shard), opened).await
    }

    pub(super) async fn start(&self, shard: ShardId) -> Replica {
        let replica = self.try_start(shard).await.unwrap();
        replica.wait_leading(PATIENCE).await.unwrap();
        replica
    }
}

pub(super) fn wal_config() -> WalConfig {
    WalConfig { segment_bytes: 1 << 20, write_bytes_max: 64 << 10, ..WalConfig::new("wal") }
}

/// Gives the shard a topic of one partition, with segments of that many bytes.
pub(super) async fn adopt(replica: &Replica, segment_bytes: u64) -> TopicPartition {
    let partition = partition(9);
    let config = TopicConfig { segment_bytes, ..TopicConfig::default() };
    let adopt = AdoptTopic {
        topic: partition.topic,
        version: 1,
        name: "t".to_owned(),
        config,
        partitions: vec![partition.partition],
        deleted: false,
    };
    assert_eq!(replica.propose(Unit::AdoptTopic(adopt)).await, Ok(UnitResult::Adopted));
    partition
}

/// A batch of one record of that many bytes for a partition that the shard has.
pub(super) fn record(partition: TopicPartition, bytes: usize) -> Unit {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    builder.append(Timestamp::new(1_000), None, Some(&vec![7; bytes]), []).unwrap();
    Unit::Append { partition, batch: builder.build().unwrap(), leader_epoch: None }
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

/// The batches of a partition from an offset to the end, as they are stored.
pub(super) fn records(shard: &Shard, partition: TopicPartition, mut from: Offset) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let batches = match shard.fetch(partition, from, 1 << 20) {
            Fetch::Memory(batches) => batches,
            Fetch::Disk(disk) => disk.run().unwrap(),
            other => panic!("{other:?}"),
        };
        if batches.is_empty() {
            return bytes;
        }
        bytes.extend(batches.parts.concat());
        from = batches.next;
    }
}
