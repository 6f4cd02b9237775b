//! Entries and units: what a shard's log says.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_controller::{ControllerCommand, TopicConfig};
use tidemill_coordinator::GroupCommand;
use tidemill_protocol::{
    DeploymentId, LeaderEpoch, LogIndex, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, Timestamp,
    TopicId, TopicPartition,
};

use crate::wire;

/// One entry of a shard's log: what its leader gathered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// The leader's clock when it proposed.
    pub time: Timestamp,
    /// Applied in order; each alone succeeds or fails.
    pub units: Vec<Unit>,
}

/// An atomic change with its own preconditions and its own result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Appends one batch to one partition, deduplicated by the producer's sequence in its header.
    Append {
        /// Where to.
        partition: TopicPartition,
        /// The whole batch, verified by who proposes.
        #[serde(with = "wire::body")]
        batch: Bytes,
        /// Refused where another epoch is in force; `None`: whatever it is.
        leader_epoch: Option<LeaderEpoch>,
    },
    /// A plugin refused a batch of an idempotent producer: it takes its sequences and no offsets.
    Refuse {
        /// Where the batch would have gone.
        partition: TopicPartition,
        /// Whose batch.
        producer: ProducerId,
        /// The producer's epoch.
        epoch: ProducerEpoch,
        /// Sequence of the batch's first record.
        base_sequence: Sequence,
        /// How many sequences it takes, at least 1.
        record_count: u32,
    },
    /// One batch that the broker partitioned: its parts for this shard, deduplicated by topic sequence.
    RoutedAppend(RoutedAppend),
    /// A change of a consumer group.
    Group(GroupCommand),
    /// A change of the cluster's metadata; the controller's shard only.
    Control(ControllerCommand),
    /// What the controller decided about a topic with partitions here.
    AdoptTopic(AdoptTopic),
    /// What the controller decided about a deployment.
    AdoptDeployment(AdoptDeployment),
    /// A task's step.
    Progress(Progress),
    /// An item of another shard's outbox.
    Deliver {
        /// Which stream of items.
        stream: OutboxStream,
        /// Its number, from 1, without gaps.
        number: u64,
        /// The whole batch.
        #[serde(with = "wire::body")]
        batch: Bytes,
    },
    /// The items up to a number are at their target: the outbox here may forget them.
    Delivered {
        /// Which stream of items.
        stream: OutboxStream,
        /// The last one that is there.
        up_to: u64,
    },
    /// Lets everything before an offset go: retention, delete-records.
    AdvanceLogStart {
        /// Which partition.
        partition: TopicPartition,
        /// The first offset to keep.
        offset: Offset,
    },
    /// A task stopped, or goes on.
    TaskStatus {
        /// Which deployment.
        deployment: DeploymentId,
        /// The deployment's epoch as the proposer knows it.
        epoch: u32,
        /// Which task.
        partition: PartitionId,
        /// What it is from now on.
        status: TaskStatus,
    },
    /// Nothing but time: expiry and clean-up take a bounded step.
    Tick,
    /// Every replica finds the hash of its state as of this entry, and reports it. Changes nothing.
    TakeStateHash,
    /// What a replica found its state's hash to be. Changes nothing: whoever compares reads it off the log.
    ReportStateHash(StateHash),
}

/// See [`Unit::ReportStateHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The last entry in the state.
    pub index: LogIndex,
    /// The node id of the replica.
    pub node: u64,
    /// Of its state: see [`MarkedState::hash`](crate::MarkedState::hash).
    pub hash: [u8; 32],
}

/// See [`Unit::RoutedAppend`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedAppend {
    /// The topic.
    pub topic: TopicId,
    /// [`ProducerId::NONE`] without idempotence.
    pub producer: ProducerId,
    /// The producer's epoch.
    pub epoch: ProducerEpoch,
    /// Counts this producer's batches to this topic, from 0, without gaps.
    pub topic_sequence: u64,
    /// What it passed before it was split; `None`: no filter.
    pub filtered: Option<FilterPass>,
    /// The parts for partitions of this shard; none is common.
    #[serde(with = "wire::partition_bodies")]
    pub batches: Vec<(PartitionId, Bytes)>,
}

/// The produce filter that a routed batch passed. A second attempt passes the same: it must be split as the first was, of which
/// one shard may have its part and another not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPass {
    /// The filter's deployment.
    pub filter: DeploymentId,
    /// The time that it was told.
    pub now: Timestamp,
}

/// See [`Unit::AdoptTopic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptTopic {
    /// The topic.
    pub topic: TopicId,
    /// The controller's version of it; only rising ones are adopted.
    pub version: u64,
    /// For people.
    pub name: String,
    /// Every setting, defaults filled in.
    pub config: TopicConfig,
    /// The partitions that live in this shard; one that is here already stays.
    pub partitions: Vec<PartitionId>,
    /// The topic is gone: its partitions here go with it.
    pub deleted: bool,
}

/// Whether a deployment runs, as a shard sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdoptedStatus {
    /// It runs.
    Running,
    /// It does not.
    Paused,
    /// It is gone: its tasks' state here goes with it, step by step; what it emitted is still delivered.
    Deleted,
}

/// See [`Unit::AdoptDeployment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptDeployment {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The controller's version of it; only rising ones are adopted.
    pub version: u64,
    /// Fences progress that was computed under an older one.
    pub epoch: u32,
    /// Whether it runs.
    pub status: AdoptedStatus,
    /// The tasks that live in this shard.
    pub tasks: Vec<TaskAssignment>,
    /// Bytes of keyed state and timers of one task.
    pub state_bytes_max: u64,
    /// Bytes that one task may have on the way to one target partition.
    pub outbox_bytes_max: u64,
}

/// One task: a partition number over the deployment's topics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAssignment {
    /// Its number.
    pub partition: PartitionId,
    /// What it reads, and where it begins if it is new. All of this shard.
    pub sources: Vec<(TopicPartition, StartAt)>,
}

/// Where a task begins in a source, decided when the unit is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAt {
    /// At this offset, or the nearest that is there.
    Offset(Offset),
    /// At the log start.
    Earliest,
    /// After the last record.
    Latest,
}

/// A task's step: its positions, its state, its timers and its outputs, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which deployment.
    pub deployment: DeploymentId,
    /// The deployment's epoch under which it was computed.
    pub epoch: u32,
    /// Which task.
    pub partition: PartitionId,
    /// The sources that were read.
    pub positions: Vec<PositionStep>,
    /// Changes of the keyed state; the last of a key counts.
    pub state: Vec<StateWrite>,
    /// Timers set and cancelled, after those in `fired` are gone; the last of a key counts.
    pub timers: Vec<TimerWrite>,
    /// Timers that were handled; each must be set for exactly that time.
    #[serde(with = "wire::timers")]
    pub fired: Vec<(Bytes, Timestamp)>,
    /// What it emits, in order.
    pub outputs: Vec<TaskOutput>,
}

/// A step in one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionStep {
    /// Which source.
    pub source: TopicPartition,
    /// Where the task must stand.
    pub expected: Offset,
    /// Where it stands then.
    pub next: Offset,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateWrite {
    /// The key.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// Its value; `None` deletes.
    #[serde(with = "wire::optional_bytes")]
    pub value: Option<Bytes>,
    /// Gone from then on by the log's time.
    pub expires_at: Option<Timestamp>,
}

/// A change of one timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerWrite {
    /// Names the timer: one time per key.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// When it is due; `None` cancels.
    pub at: Option<Timestamp>,
}

/// A batch that a task emits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// Where to, frozen here.
    pub target: TopicPartition,
    /// The whole batch, without producer.
    #[serde(with = "wire::body")]
    pub batch: Bytes,
}

/// What one task emits to one partition, numbered without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OutboxStream {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Which life of the task: numbers begin anew with it.
    pub incarnation: u64,
    /// The task.
    pub source: PartitionId,
    /// Where to.
    pub target: TopicPartition,
}

/// Whether one task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskStatus {
    /// It runs.
    Running,
    /// Its failure policy, or somebody, stopped it.
    Paused {
        /// Why.
        reason: String,
    },
    /// It can't run.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Unit {
    /// The batches in it, in the order in which an encoded entry holds them.
    pub(crate) fn bodies(&self) -> Vec<&Bytes> {
        match self {
            Self::Append { batch, .. } | Self::Deliver { batch, .. } => vec![batch],
            Self::RoutedAppend(routed) => routed.batches.iter().map(|(_, batch)| batch).collect(),
            Self::Progress(progress) => progress.outputs.iter().map(|output| &output.batch).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn bodies_mut(&mut self) -> Vec<&mut Bytes> {
        match self {
            Self::Append { batch, .. } | Self::Deliver { batch, .. } => vec![batch],
            Self::RoutedAppend(routed) => routed.batches.iter_mut().map(|(_, batch)| batch).collect(),
            Self::Progress(progress) => progress.outputs.iter_mut().map(|output| &mut output.batch).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it brings records, which wait in memory until they are in segments.
    #[must_use]
    pub fn has_records(&self) -> bool {
        match self {
            Self::Append { .. } | Self::Deliver { .. } | Self::RoutedAppend(_) => true,
            Self::Progress(progress) => !progress.outputs.is_empty(),
            _ => false,
        }
    }

    /// About how many bytes it takes in the log and in memory: what queues and budgets count.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const UNIT_BYTES: usize = 64;
        let bodies: usize = self.bodies().iter().map(|body| body.len()).sum();
        let own = match self {
            Self::Progress(progress) => {
                let state =
                    progress.state.iter().map(|w| w.key.len() + w.value.as_ref().map_or(0, Bytes::len) + 16);
                let timers = progress.timers.iter().map(|w| w.key.len() + 16);
                let fired = progress.fired.iter().map(|(key, _)| key.len() + 16);
                state.chain(timers).chain(fired).sum::<usize>() + progress.positions.len() * 40
            }
            Self::AdoptTopic(adopt) => adopt.name.len() + adopt.partitions.len() * 4,
            Self::AdoptDeployment(adopt) => adopt.tasks.iter().map(|task| 8 + task.sources.len() * 40).sum(),
            Self::Group(GroupCommand::Commit { group, positions }) => {
                group.len() + positions.iter().map(|position| 48 + position.note.len()).sum::<usize>()
            }
            // Rare, and as large as a plugin's description or a deployment's configuration.
            Self::Control(command) => {
                postcard::to_extend(command, Vec::<u8>::new()).map_or(0, |bytes| bytes.len())
            }
            _ => 0,
        };
        UNIT_BYTES + own + bodies
    }
}
