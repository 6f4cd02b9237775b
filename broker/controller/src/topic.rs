//! Topics and their configuration.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{DeploymentId, PartitionId, ShardId, TopicId};

use crate::names::Name;

/// A topic's settings with every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfig {
    /// Records older than this may go; -1: never by age.
    pub retention_ms: i64,
    /// A partition larger than this loses its oldest segments; -1: never by size.
    pub retention_bytes: i64,
    /// A segment that would grow beyond this is sealed.
    pub segment_bytes: u64,
    /// A segment older than this, by the log's time, is sealed by the next append.
    pub segment_ms: i64,
    /// Largest record batch, as sent.
    pub batch_bytes_max: u32,
    /// The broker's time instead of the producer's.
    pub log_append_time: bool,
}

impl Default for TopicConfig {
    fn default() -> Self {
        const DAY_MS: i64 = 24 * 60 * 60 * 1000;
        Self {
            retention_ms: 7 * DAY_MS,
            retention_bytes: -1,
            segment_bytes: 128 << 20,
            segment_ms: 7 * DAY_MS,
            batch_bytes_max: 8 << 20,
            log_append_time: false,
        }
    }
}

/// Settings that somebody named; the others keep what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TopicOverrides {
    /// See [`TopicConfig::retention_ms`].
    pub retention_ms: Option<i64>,
    /// See [`TopicConfig::retention_bytes`].
    pub retention_bytes: Option<i64>,
    /// See [`TopicConfig::segment_bytes`].
    pub segment_bytes: Option<u64>,
    /// See [`TopicConfig::segment_ms`].
    pub segment_ms: Option<i64>,
    /// See [`TopicConfig::batch_bytes_max`].
    pub batch_bytes_max: Option<u32>,
    /// See [`TopicConfig::log_append_time`].
    pub log_append_time: Option<bool>,
}

const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;
const SEGMENT_MS_MIN: i64 = 1000;
const BATCH_BYTES: std::ops::RangeInclusive<u32> = 1024..=16 << 20;

impl TopicConfig {
    /// This configuration with `overrides` laid over it.
    ///
    /// # Errors
    /// The setting that is out of its range, and the range, as a sentence.
    pub fn with(self, overrides: &TopicOverrides) -> Result<Self, String> {
        let config = Self {
            retention_ms: overrides.retention_ms.unwrap_or(self.retention_ms),
            retention_bytes: overrides.retention_bytes.unwrap_or(self.retention_bytes),
            segment_bytes: overrides.segment_bytes.unwrap_or(self.segment_bytes),
            segment_ms: overrides.segment_ms.unwrap_or(self.segment_ms),
            batch_bytes_max: overrides.batch_bytes_max.unwrap_or(self.batch_bytes_max),
            log_append_time: overrides.log_append_time.unwrap_or(self.log_append_time),
        };
        if config.retention_ms < -1 {
            return Err("retention_ms must be -1 (for ever) or a number of milliseconds".into());
        }
        if config.retention_bytes < -1 {
            return Err("retention_bytes must be -1 (no limit) or a number of bytes".into());
        }
        if !SEGMENT_BYTES.contains(&config.segment_bytes) {
            return Err("segment_bytes must lie between 64 KiB and 1 GiB".into());
        }
        if config.segment_ms < SEGMENT_MS_MIN {
            return Err("segment_ms must be at least 1000".into());
        }
        if !BATCH_BYTES.contains(&config.batch_bytes_max) {
            return Err("batch_bytes_max must lie between 1 KiB and 16 MiB".into());
        }
        Ok(config)
    }
}

/// Which deployment places a topic's records, and since which change of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionerBinding {
    /// The deployment; `None`: the broker places by murmur2 of the key.
    pub deployment: Option<DeploymentId>,
    /// Rises with each change of the binding, from 0: by one, and by more where a majority was lost for good.
    pub epoch: u32,
}

/// A binding that was replaced: kept, so that a batch whose first attempt it placed is placed the same way again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPartitioner {
    /// The binding's epoch.
    pub epoch: u32,
    /// The deployment, which is kept for as long as it stands here; `None`: murmur2 of the key.
    pub deployment: Option<DeploymentId>,
}

/// How many past bindings a topic remembers; a retry from before them ends with `PARTITIONER_CHANGED`.
const PAST_PARTITIONERS_MAX: usize = 8;

/// How many past produce filters a topic remembers; a retry of a batch that passed an older one ends with
/// `PARTITIONER_CHANGED`.
pub(crate) const PAST_FILTERS_MAX: usize = 8;

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// For its whole life.
    pub id: TopicId,
    /// Unique among topics that are not deleted.
    pub name: Name,
    /// The controller's version when this topic changed last; shards adopt rising versions only.
    pub version: u64,
    /// Every setting, defaults filled in.
    pub config: TopicConfig,
    /// The shard of each partition, by partition number.
    pub shards: Vec<ShardId>,
    /// Who places records when a producer leaves it to the broker.
    pub partitioner: PartitionerBinding,
    /// Earlier bindings, oldest first.
    pub past_partitioners: Vec<PastPartitioner>,
    /// The deployment that filters what is produced.
    pub produce_filter: Option<DeploymentId>,
    /// Earlier produce filters, oldest first: kept, so that a batch whose first attempt passed one passes it again.
    pub past_filters: Vec<DeploymentId>,
    /// Deleted: kept until every shard has adopted that.
    pub deleted: bool,
}

impl TopicRecord {
    /// Number of partitions.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap_or(u32::MAX)
    }

    /// Who placed records at an epoch of the binding, the current one included; `None` where it is forgotten.
    #[must_use]
    pub fn partitioner_at(&self, epoch: u32) -> Option<Option<DeploymentId>> {
        if epoch == self.partitioner.epoch {
            return Some(self.partitioner.deployment);
        }
        self.past_partitioners.iter().find(|past| past.epoch == epoch).map(|past| past.deployment)
    }

    /// Places records by a deployment, or by none, from an epoch on that is so many later, and remembers who did before.
    pub(crate) fn bind_partitioner(&mut self, deployment: Option<DeploymentId>, epochs: u32) {
        let PartitionerBinding { deployment: replaced, epoch } = self.partitioner;
        self.past_partitioners.push(PastPartitioner { epoch, deployment: replaced });
        if self.past_partitioners.len() > PAST_PARTITIONERS_MAX {
            self.past_partitioners.remove(0);
        }
        self.partitioner = PartitionerBinding { deployment, epoch: epoch.saturating_add(epochs) };
    }

    /// Whether a retry may still need a deployment that is gone from its place.
    #[must_use]
    pub fn remembers(&self, deployment: DeploymentId) -> bool {
        self.past_filters.contains(&deployment)
            || self.past_partitioners.iter().any(|past| past.deployment == Some(deployment))
    }

    /// The shard that holds a partition.
    #[must_use]
    pub fn shard_of(&self, partition: PartitionId) -> Option<ShardId> {
        self.shards.get(usize::try_from(partition.get()).ok()?).copied()
    }

    /// The partitions that one shard holds, ascending.
    pub fn partitions_of(&self, shard: ShardId) -> impl Iterator<Item = PartitionId> + '_ {
        (0u32..).zip(&self.shards).filter(move |(_, s)| **s == shard).map(|(p, _)| PartitionId::new(p))
    }
}
