//! What tasks need of the shards: a port that the broker's wiring implements.

use bytes::Bytes;
use futures::future::BoxFuture;
use tidemill_protocol::{DeploymentId, Offset, PartitionId, Timestamp, TopicPartition};

/// One task, and where it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The task's number.
    pub partition: PartitionId,
    /// A partition that it reads: its shard is the task's.
    pub home: TopicPartition,
}

/// Whether a task runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskRunState {
    /// It runs.
    Running,
    /// It stopped itself; the reason.
    Paused(String),
}

/// A task as its shard has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// The deployment's epoch that the shard has adopted.
    pub epoch: u32,
    /// Whether deployment and task run.
    pub running: bool,
    /// The next offset to read, by source.
    pub positions: Vec<(TopicPartition, Offset)>,
}

/// Stored batches on their way to a task.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Where it was read from: the offset asked for, or the first one that the log still has.
    pub start: Offset,
    /// Whole record batches, in order; the first may begin before the offset asked for.
    pub batches: Vec<Bytes>,
    /// The offset behind the last of them.
    pub next: Offset,
}

/// A timer that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTimer {
    /// Its key.
    pub key: Bytes,
    /// When it was to fire.
    pub at: Timestamp,
}

/// A step in one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionStep {
    /// Which source.
    pub source: TopicPartition,
    /// Where the task stands.
    pub expected: Offset,
    /// Where it stands then.
    pub next: Offset,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The key.
    pub key: Bytes,
    /// Its value; `None` deletes.
    pub value: Option<Bytes>,
    /// Gone from then on, by the log's time.
    pub expires_at: Option<Timestamp>,
}

/// A change of one timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerChange {
    /// Its key.
    pub key: Bytes,
    /// When it is due; `None` cancels.
    pub at: Option<Timestamp>,
}

/// A record batch for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOutput {
    /// Where to.
    pub target: TopicPartition,
    /// The whole batch, without a producer.
    pub batch: Bytes,
}

/// Everything that one call did: committed as one, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskStep {
    /// The deployment's epoch under which it was computed.
    pub epoch: u32,
    /// The sources that were read.
    pub positions: Vec<PositionStep>,
    /// Changes of the keyed state.
    pub state: Vec<StateChange>,
    /// Timers set and cancelled.
    pub timers: Vec<TimerChange>,
    /// Timers that were handled.
    pub fired: Vec<DueTimer>,
    /// What was emitted, in order.
    pub outputs: Vec<TaskOutput>,
}

/// Why a step was not taken; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepRefusal {
    /// The task stands elsewhere, is at another epoch, or does not run: look again.
    Outdated(String),
    /// Too much is on its way to a target: wait.
    OutboxFull,
    /// The step itself can't be: too much state, a target that is gone. The reason.
    Failed(String),
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutcome {
    /// It is done.
    Committed,
    /// It is not.
    Refused(StepRefusal),
}

/// The shard can't be reached or its disk not be read; try again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PortError(pub String);

/// State entries in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateEntries {
    /// Keys and values. None does not mean that there are none: entries that expired are left out.
    pub entries: Vec<(Bytes, Bytes)>,
    /// The first key that was not looked at, if there may be more.
    pub next: Option<Bytes>,
}

/// The shards, as tasks see them.
pub trait TaskPort: Send + Sync + 'static {
    /// The task as its shard has it now; `None` where it is not there.
    fn view(&self, task: TaskKey) -> Option<TaskView>;

    /// The log's time in the task's shard.
    fn log_time(&self, task: TaskKey) -> Timestamp;

    /// Stored batches of a source from an offset on, about `bytes_max` of them; none at the end.
    fn fetch(
        &self,
        source: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Fetched, PortError>>;

    /// Waits until a source has records at or beyond its offset, a timer is due, or the task may have changed.
    fn wait(&self, task: TaskKey, sources: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, ()>;

    /// Waits until whatever was proposed for the task before is applied, or never will be: a step of unknown outcome must not come
    /// behind the look at the state that the next one is computed from.
    fn settled(&self, _task: TaskKey) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Values by key; `None` where there is none. All of them together `None` where they are larger than `bytes_max`:
    /// those beyond are not collected.
    fn state_get(
        &self,
        task: TaskKey,
        keys: Vec<Bytes>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Option<Vec<Option<Bytes>>>, PortError>>;

    /// Entries from `start` on, before `end`: at most `limit`, and the one that brings them to `bytes_max` is the last.
    fn state_scan(
        &self,
        task: TaskKey,
        start: Bytes,
        end: Option<Bytes>,
        limit: usize,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<StateEntries, PortError>>;

    /// Timers that are due by the log's time, earliest first.
    fn due_timers(&self, task: TaskKey, limit: usize) -> BoxFuture<'_, Result<Vec<DueTimer>, PortError>>;

    /// Why nothing of a task is taken at the moment, for people; `None` where it is.
    fn refuses(&self) -> Option<&'static str> {
        None
    }

    /// Waits until something is taken again.
    fn takes_again(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Commits a step.
    fn commit(&self, task: TaskKey, step: TaskStep) -> BoxFuture<'_, Result<StepOutcome, PortError>>;

    /// Notes that the task stops itself, or goes on.
    fn set_state(
        &self,
        task: TaskKey,
        epoch: u32,
        state: TaskRunState,
    ) -> BoxFuture<'_, Result<(), PortError>>;
}
