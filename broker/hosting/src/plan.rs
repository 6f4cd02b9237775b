//! What is to run: the controller's decisions in this room's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_protocol::{DeploymentId, PartitionId, TopicId, TopicPartition};

/// Which world a plugin exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PluginKind {
    /// Places records.
    Partitioner,
    /// Passes, drops or rewrites records.
    Filter,
    /// Runs as a hosted consumer.
    Consumer,
}

impl PluginKind {
    pub(crate) fn of(kind: tidemill_wasm::ComponentKind) -> Self {
        match kind {
            tidemill_wasm::ComponentKind::Partitioner => Self::Partitioner,
            tidemill_wasm::ComponentKind::Filter => Self::Filter,
            tidemill_wasm::ComponentKind::Consumer => Self::Consumer,
        }
    }
}

/// A plugin version with everything that its `init` is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginPlan {
    /// The deployment's name, for people and for the plugin.
    pub deployment: String,
    /// Whose logs and counters; `None`: nobody's, such as a filter of one subscription.
    pub deployment_id: Option<DeploymentId>,
    /// blake3 of the component.
    pub digest: [u8; 32],
    /// What it must be.
    pub kind: PluginKind,
    /// Its configuration.
    pub config: BTreeMap<String, String>,
    /// Names of the topics that it reads.
    pub topics: Vec<String>,
    /// Names of the topics that it may emit to.
    pub targets: Vec<String>,
    /// Memory of one instance.
    pub memory_bytes_max: u64,
}

/// Where a batch is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlace {
    /// Counts in the plan's topics.
    pub topic: u32,
    /// The partition's number.
    pub partition: u32,
}

impl BatchPlace {
    /// The number where a batch's records have no partition yet: a filter in front of the partitioner, and a partitioner.
    pub const UNPLACED: u32 = u32::MAX;
}

/// What waits for a call: how it goes on when it takes longer than a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A producer waits for its acknowledgement.
    Produce,
    /// A reader waits for records.
    Subscribe,
}

/// A topic that a task may emit to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPlan {
    /// The topic.
    pub topic: TopicId,
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: u32,
    /// What places its records; `None`: murmur2 of the key.
    pub partitioner: Option<PluginPlan>,
}

/// What becomes of a record that a task can't handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskPolicy {
    /// Counted, logged, left out.
    Skip,
    /// Sent there with the reason.
    DeadLetter(Box<TargetPlan>),
    /// The task stops before it.
    Pause,
}

/// One task of a hosted consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlan {
    /// The plugin.
    pub plugin: Arc<PluginPlan>,
    /// The deployment's epoch: progress under another one is refused.
    pub epoch: u32,
    /// The task's number.
    pub partition: PartitionId,
    /// What it reads: the topic's place in the plan's topics, and the partition.
    pub sources: Vec<(u32, TopicPartition)>,
    /// Where it may emit to, in the order of the plan's targets.
    pub targets: Vec<TargetPlan>,
    /// What becomes of a record that fails.
    pub policy: TaskPolicy,
    /// Tries of a batch before it is split, and of a record before the policy decides.
    pub attempts: u32,
    /// Wait between tries, doubled each time.
    pub backoff_ms: u32,
}
