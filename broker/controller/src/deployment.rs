//! Deployments: a plugin version bound to a place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_protocol::{DeploymentId, Offset, Timestamp, TopicId, TopicPartition};

use crate::names::Name;
use crate::plugin::PluginKind;

/// Where a plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeploymentKind {
    /// Places the records of a topic.
    Partitioner,
    /// A named, configured filter that subscriptions may ask for.
    SubscriptionFilter,
    /// Filters what is produced to a topic.
    ProduceFilter,
    /// A hosted consumer.
    Consumer,
}

impl DeploymentKind {
    /// The world that a plugin must export to be bound here.
    #[must_use]
    pub const fn plugin_kind(self) -> PluginKind {
        match self {
            Self::Partitioner => PluginKind::Partitioner,
            Self::SubscriptionFilter | Self::ProduceFilter => PluginKind::Filter,
            Self::Consumer => PluginKind::Consumer,
        }
    }
}

/// What becomes of a record that a hosted consumer can't handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// Counted, logged, left out.
    Skip,
    /// Sent to the dead-letter topic with the reason.
    DeadLetter,
    /// The task stops before it and says so.
    Pause,
}

/// Whether a deployment runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeploymentStatus {
    /// It runs.
    Running,
    /// Somebody paused it.
    Paused,
    /// It can't run; the reason.
    Failed(String),
}

/// Where a hosted consumer begins in each source partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// At the log start.
    Earliest,
    /// After the last record.
    Latest,
    /// At these offsets (found for a time, or one offset for all, by who proposes); others at the log start.
    Offsets(Vec<(TopicPartition, Offset)>),
}

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentSpec {
    /// Unique among deployments.
    pub name: Name,
    /// Where it runs.
    pub kind: DeploymentKind,
    /// The plugin.
    pub plugin: Name,
    /// Its version; `None`: the newest.
    pub version: Option<Name>,
    /// Handed to the plugin's `init`.
    pub config: BTreeMap<String, String>,
    /// Partitioner and produce filter: exactly one. Consumer: at least one, co-partitioned.
    pub topics: Vec<Name>,
    /// Consumer: topics that it may emit to.
    pub targets: Vec<Name>,
    /// Consumer: where to begin.
    pub start: StartAt,
    /// Consumer: what becomes of a record that fails.
    pub policy: FailurePolicy,
    /// Consumer with [`FailurePolicy::DeadLetter`]: where to.
    pub dead_letter: Option<Name>,
    /// Consumer: tries of a batch before the failure policy decides.
    pub attempts: u32,
    /// Consumer: wait between tries, doubled each time.
    pub backoff_ms: u32,
    /// Memory of one instance.
    pub memory_bytes_max: u64,
    /// Produce filter: leave refused records out instead of refusing the batch.
    pub drop_rejected: bool,
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentRecord {
    /// Never reused.
    pub id: DeploymentId,
    /// As asked for; `version` is filled in.
    pub spec: DeploymentSpec,
    /// blake3 of the component.
    pub digest: [u8; 32],
    /// The topics' ids, in the order of `spec.topics`.
    pub topics: Vec<TopicId>,
    /// The targets' ids, in the order of `spec.targets`.
    pub targets: Vec<TopicId>,
    /// The dead-letter topic's id.
    pub dead_letter: Option<TopicId>,
    /// The controller's version when it changed last; shards adopt rising versions only.
    pub version: u64,
    /// Fences tasks: rises with each change of status, and further where a majority was lost for good.
    pub epoch: u32,
    /// Whether it runs.
    pub status: DeploymentStatus,
    /// The log's time of its creation.
    pub created_at: Timestamp,
    /// Deleted: kept until every shard has adopted that.
    pub deleted: bool,
}

impl DeploymentRecord {
    /// Whether it reads from, writes to or places records of a topic.
    #[must_use]
    pub fn uses(&self, topic: TopicId) -> bool {
        self.topics.contains(&topic) || self.targets.contains(&topic) || self.dead_letter == Some(topic)
    }
}
