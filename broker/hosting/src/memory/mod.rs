//! Shards in memory, for rehearsals and tests: one shard with its partitions and tasks behind the port that tasks reach the
//! broker's shards through.
//!
//! A step is taken by the rules of the broker's own apply: checked as a whole against the expected positions, the timers that are set,
//! the room for state and on the way to targets, then done as a whole, or refused without any change. What it has no part of is what a step can't see: a log on
//! disk, other replicas, delivery to other shards (what is on its way there waits until it is taken out).

mod shard;
mod task;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_protocol::record_batch::RecordBatch;
use tidemill_protocol::{DeploymentId, Offset, PartitionId, Timestamp, TopicId, TopicPartition};
use tokio::sync::watch;

use crate::port::{
    DueTimer, Fetched, PortError, StateEntries, StepOutcome, TaskKey, TaskPort, TaskRunState, TaskStep,
    TaskView,
};
use shard::MemoryShard;
use task::Task;

/// What a task may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// State and timers of one task, counted as the broker does.
    pub state_bytes_max: u64,
    /// On its way from one task to one target partition.
    pub outbox_bytes_max: u64,
}

/// A task as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryTask {
    /// The deployment's epoch.
    pub epoch: u32,
    /// Whether it runs.
    pub state: TaskRunState,
    /// The next offset to read, by source.
    pub positions: Vec<(TopicPartition, Offset)>,
    /// Keys and values that have not expired.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Timers that are set, by key.
    pub timers: Vec<(Bytes, Timestamp)>,
    /// What state and timers take.
    pub state_bytes: u64,
}

/// One shard in memory.
pub struct MemoryPort {
    shard: Mutex<MemoryShard>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

impl MemoryPort {
    /// An empty shard, whose log time is 0.
    #[must_use]
    pub fn new(limits: MemoryLimits) -> Self {
        Self { shard: Mutex::new(MemoryShard::new(limits)), changes: watch::channel(0).0 }
    }

    /// Puts an empty partition into the shard. Outputs to partitions that are not in it leave by the outbox.
    pub fn create_partition(&self, partition: TopicPartition) {
        self.change(|shard| shard.create_partition(partition));
    }

    /// Puts a task into the shard: it runs, and stands at these offsets.
    pub fn create_task(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        epoch: u32,
        positions: &[(TopicPartition, Offset)],
    ) {
        self.change(|shard| shard.create_task((deployment, partition), epoch, positions));
    }

    /// Appends a batch to a partition, and moves the log's time. Answers the offset of its first record; `None` where the partition is not in
    /// the shard.
    pub fn append(&self, partition: TopicPartition, batch: &RecordBatch, now: Timestamp) -> Option<Offset> {
        self.change(|shard| {
            shard.pass(now);
            shard.append(partition, batch)
        })
    }

    /// Lets go of a partition's records before an offset, as retention does.
    pub fn advance_start(&self, partition: TopicPartition, start: Offset) {
        self.change(|shard| shard.advance_start(partition, start));
    }

    /// Moves the log's time, which never goes back; what expires by it is gone.
    pub fn tick(&self, now: Timestamp) {
        self.change(|shard| shard.pass(now));
    }

    /// The log's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shard.lock().log_time()
    }

    /// The deployment is at another epoch from now on.
    pub fn set_epoch(&self, deployment: DeploymentId, partition: PartitionId, epoch: u32) {
        self.change(|shard| shard.set_epoch((deployment, partition), epoch));
    }

    /// A topic is gone, with its partitions.
    pub fn delete_topic(&self, topic: TopicId) {
        self.change(|shard| shard.delete_topic(topic));
    }

    /// Takes the oldest batch out that is on its way to a partition that is not in the shard.
    pub fn deliver(&self, target: TopicPartition) -> Option<Bytes> {
        self.change(|shard| shard.deliver(target))
    }

    /// The task as it stands.
    #[must_use]
    pub fn task(&self, deployment: DeploymentId, partition: PartitionId) -> Option<MemoryTask> {
        let shard = self.shard.lock();
        let task = shard.task((deployment, partition))?;
        Some(MemoryTask {
            epoch: task.epoch,
            state: task.state.clone(),
            positions: task.positions.iter().map(|(source, at)| (*source, *at)).collect(),
            entries: task.entries(),
            timers: task.timers().iter().map(|(key, at)| (key.clone(), *at)).collect(),
            state_bytes: task.bytes(),
        })
    }

    /// The batches of a partition from the given number on, with their offsets.
    #[must_use]
    pub fn batches(&self, partition: TopicPartition, from: usize) -> Vec<Bytes> {
        self.shard.lock().batches(partition, from)
    }

    /// When the task's next timer is due.
    #[must_use]
    pub fn next_timer(&self, deployment: DeploymentId, partition: PartitionId) -> Option<Timestamp> {
        self.shard.lock().task((deployment, partition))?.next_timer()
    }

    fn change<T>(&self, change: impl FnOnce(&mut MemoryShard) -> T) -> T {
        let answer = change(&mut self.shard.lock());
        self.changes.send_modify(|changes| *changes += 1);
        answer
    }
}

fn known(task: TaskKey) -> shard::TaskId {
    (task.deployment, task.partition)
}

impl TaskPort for MemoryPort {
    fn view(&self, task: TaskKey) -> Option<TaskView> {
        let shard = self.shard.lock();
        let found = shard.task(known(task))?;
        let running = found.state == TaskRunState::Running;
        let positions = found.positions.iter().map(|(source, at)| (*source, *at)).collect();
        Some(TaskView { epoch: found.epoch, running, positions })
    }

    fn log_time(&self, _task: TaskKey) -> Timestamp {
        self.shard.lock().log_time()
    }

    fn fetch(
        &self,
        source: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Fetched, PortError>> {
        async move {
            let found = self.shard.lock().fetch(source, from, bytes_max);
            found.ok_or_else(|| PortError(format!("partition {source} is gone")))
        }
        .boxed()
    }

    fn wait(&self, task: TaskKey, sources: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, ()> {
        async move {
            let mut changes = self.changes.subscribe();
            let ready = {
                let shard = self.shard.lock();
                let next_timer = shard.task(known(task)).and_then(Task::next_timer);
                next_timer.is_some_and(|at| at <= shard.log_time())
                    || sources.iter().any(|(source, from)| shard.end(*source).is_some_and(|end| end > *from))
            };
            if !ready {
                // The sender lives as long as this port.
                let _ = changes.changed().await;
            }
        }
        .boxed()
    }

    fn state_get(
        &self,
        task: TaskKey,
        keys: Vec<Bytes>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Option<Vec<Option<Bytes>>>, PortError>> {
        async move {
            let shard = self.shard.lock();
            let found = shard.task(known(task));
            let values: Vec<Option<Bytes>> =
                keys.iter().map(|key| found.and_then(|task| task.get(key)).cloned()).collect();
            let bytes: usize = values.iter().flatten().map(Bytes::len).sum();
            Ok((bytes <= bytes_max).then_some(values))
        }
        .boxed()
    }

    fn state_scan(
        &self,
        task: TaskKey,
        start: Bytes,
        end: Option<Bytes>,
        limit: usize,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<StateEntries, PortError>> {
        async move {
            let shard = self.shard.lock();
            let task = shard.task(known(task));
            Ok(task.map(|task| task.scan(&start, end.as_ref(), limit, bytes_max)).unwrap_or_default())
        }
        .boxed()
    }

    fn due_timers(&self, task: TaskKey, limit: usize) -> BoxFuture<'_, Result<Vec<DueTimer>, PortError>> {
        async move {
            let shard = self.shard.lock();
            Ok(shard.task(known(task)).map(|task| task.due(shard.log_time(), limit)).unwrap_or_default())
        }
        .boxed()
    }

    fn commit(&self, task: TaskKey, step: TaskStep) -> BoxFuture<'_, Result<StepOutcome, PortError>> {
        async move {
            Ok(match self.change(|shard| shard.progress(known(task), &step)) {
                Ok(()) => StepOutcome::Committed,
                Err(refusal) => StepOutcome::Refused(refusal),
            })
        }
        .boxed()
    }

    fn set_state(
        &self,
        task: TaskKey,
        epoch: u32,
        state: TaskRunState,
    ) -> BoxFuture<'_, Result<(), PortError>> {
        async move {
            self.change(|shard| shard.set_state(known(task), epoch, state));
            Ok(())
        }
        .boxed()
    }
}
