//! A shard, its storage, and the log that would stand before it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_log::fs::{FaultyStorage, MemoryStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::EntryId;
use tidemill_protocol::{
    DeploymentId, LogIndex, Offset, PartitionId, ShardId, Term, Timestamp, TopicId, TopicPartition,
};
use uuid::Uuid;

use crate::testing::read_all;
use crate::*;

pub(super) const SHARD: ShardId = ShardId::new(1);

pub(super) fn topic(number: u128) -> TopicId {
    TopicId::new(Uuid::from_u128(number))
}

pub(super) fn partition(topic_number: u128, number: u32) -> TopicPartition {
    TopicPartition::new(topic(topic_number), PartitionId::new(number))
}

pub(super) fn at(ms: i64) -> Timestamp {
    Timestamp::new(ms)
}

pub(super) fn offset(offset: i64) -> Offset {
    Offset::new(offset)
}

pub(super) fn adopt_topic(number: u128, version: u64, partitions: u32, config: TopicConfig) -> Unit {
    Unit::AdoptTopic(AdoptTopic {
        topic: topic(number),
        version,
        name: format!("topic-{number}"),
        config,
        partitions: (0..partitions).map(PartitionId::new).collect(),
        deleted: false,
    })
}

pub(super) fn delete_topic(number: u128, version: u64) -> Unit {
    let Unit::AdoptTopic(adopt) = adopt_topic(number, version, 0, TopicConfig::default()) else {
        unreachable!()
    };
    Unit::AdoptTopic(AdoptTopic { deleted: true, ..adopt })
}

pub(super) fn append(partition: TopicPartition, batch: Bytes) -> Unit {
    Unit::Append { partition, batch, leader_epoch: None }
}

pub(super) fn deployment(number: u64) -> DeploymentId {
    DeploymentId::new(number)
}

/// A shard with everything around it that outlives it.
pub(super) struct World {
    pub(super) memory: MemoryStorage,
    pub(super) faulty: FaultyStorage,
    pub(super) shard: Shard,
    pub(super) config: ShardConfig,
    /// The log: what a write-ahead log would bring again.
    pub(super) log: Vec<(EntryId, Entry)>,
    pub(super) now: i64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(ShardConfig::new(SHARD))
    }

    pub(super) fn with(config: ShardConfig) -> Self {
        Self::on(MemoryStorage::new(), config)
    }

    pub(super) fn on(memory: MemoryStorage, config: ShardConfig) -> Self {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let shard = open(&faulty, &config).unwrap();
        Self { memory, faulty, shard, config, log: Vec::new(), now: 1_000_000 }
    }

    pub(super) fn apply(&mut self, units: Vec<Unit>) -> Vec<UnitResult> {
        let index = LogIndex::new(self.log.len() as u64 + 1);
        let id = EntryId { index, term: Term::new(3), leader_node: 1 };
        let entry = Entry { time: at(self.now), units };
        self.log.push((id, entry.clone()));
        // What is applied has been through the log.
        let entry = Entry::decode(&entry.encode()).unwrap();
        self.shard.apply(id, &entry).unwrap()
    }

    pub(super) fn one(&mut self, unit: Unit) -> UnitResult {
        self.apply(vec![unit]).remove(0)
    }

    pub(super) fn checkpoint(&self) -> CheckpointDone {
        self.shard.checkpoint(&|_| Ok(())).unwrap()
    }

    /// The machine loses power and the shard starts again from what is left.
    pub(super) fn crash(&mut self, seed: u64) {
        self.restart(self.memory.crash(seed));
    }

    /// The process is killed and starts again.
    pub(super) fn kill(&mut self) {
        self.restart(self.memory.kill());
    }

    fn restart(&mut self, memory: MemoryStorage) {
        self.faulty = FaultyStorage::new(Arc::new(memory.clone()));
        self.memory = memory;
        self.shard = open(&self.faulty, &self.config).unwrap();
        self.replay();
    }

    fn replay(&self) {
        self.replay_on(&self.shard);
    }

    /// Applies the entries that a shard's last checkpoint does not cover.
    pub(super) fn replay_on(&self, shard: &Shard) {
        let applied = shard.applied().last.map_or(0, |id| id.index.get());
        for (id, entry) in &self.log[usize::try_from(applied).unwrap()..] {
            shard.apply(*id, entry).unwrap();
        }
    }

    /// All bytes of a partition, read in small steps.
    pub(super) fn read_all(&self, id: TopicPartition) -> Vec<u8> {
        read_all(&self.shard, id, 300)
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        self.shard.state_hash().unwrap()
    }

    /// Names of what is in a directory.
    pub(super) fn list(&self, path: &Path) -> Vec<String> {
        self.memory.list(path).unwrap_or_default().into_iter().map(|entry| entry.name).collect()
    }
}

pub(super) fn open(storage: &FaultyStorage, config: &ShardConfig) -> Result<Shard, ShardOpenError> {
    let files = SegmentFiles::new(Arc::new(storage.clone()), SegmentFilesConfig::default());
    Shard::open(config.clone(), &files)
}
