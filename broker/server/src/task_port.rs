//! The shards, as hosted consumers' tasks see them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tidemill_hosting::{
    DueTimer, Fetched, PortError, StateEntries, StepOutcome, StepRefusal, TaskKey, TaskPort, TaskRunState,
    TaskStep, TaskView,
};
use tidemill_protocol::{Offset, Timestamp, TopicPartition};
use tidemill_raft::{ProposeError, Replica};
use tidemill_shard::{
    AdoptedStatus, Fetch, PositionStep, Progress, ProgressRefusal, StateWrite, TaskOutput, TaskStatus,
    TimerWrite, Unit, UnitResult,
};

use crate::admission::NoRoom;
use crate::disk::DiskState;
use crate::outbox::OutboxSignals;
use crate::room::Room;
use crate::shards::Shards;

/// A task that has timers looks for due ones at least this often.
const TIMER_INTERVAL: Duration = Duration::from_millis(100);
/// And one without looks whether anything changed that nobody told it of.
const SETTLE_INTERVAL: Duration = Duration::from_millis(200);
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// What a plugin may use as a key is what apply takes.
const _: () = assert!(tidemill_wasm::TASK_KEY_BYTES_MAX == tidemill_shard::TASK_KEY_BYTES_MAX);

/// What a task's log and its description say while the disk has no room.
pub(crate) const TASKS_WAIT: &str =
    "waits: the broker's disk is nearly full; it goes on by itself when there is room";

pub(crate) struct ShardPort {
    pub(crate) shards: Shards,
    pub(crate) outboxes: Arc<OutboxSignals>,
    pub(crate) disk: Arc<DiskState>,
    pub(crate) room: Room,
}

impl ShardPort {
    /// The replica that holds a partition, found by asking: tasks outlive changes of the cluster's metadata.
    fn replica(&self, partition: TopicPartition) -> Result<Replica, PortError> {
        self.shards
            .data()
            .find(|(_, replica)| replica.shard().partition(partition).is_some())
            .map(|(_, replica)| replica)
            .ok_or_else(|| PortError(format!("partition {partition} is not on this broker")))
    }
}

/// Runs a read that may touch the disk where blocking is allowed.
async fn blocking<T, E>(read: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, PortError>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(PortError(error.to_string())),
        Err(_) => Err(PortError("reading was interrupted".to_owned())),
    }
}

impl TaskPort for ShardPort {
    fn view(&self, task: TaskKey) -> Option<TaskView> {
        let replica = self.replica(task.home).ok()?;
        let known = replica.shard().task_now(task.deployment, task.partition)?;
        let running =
            known.deployment_status == AdoptedStatus::Running && known.status == TaskStatus::Running;
        Some(TaskView { epoch: known.epoch, running, positions: known.positions })
    }

    fn log_time(&self, task: TaskKey) -> Timestamp {
        self.replica(task.home).map_or(Timestamp::new(0), |replica| replica.shard().log_time())
    }

    fn fetch(
        &self,
        source: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Fetched, PortError>> {
        async move {
            let replica = self.replica(source)?;
            let mut from = from;
            let found = loop {
                match replica.shard().fetch(source, from, bytes_max) {
                    Fetch::Memory(batches) => break batches,
                    Fetch::Disk(read) => break blocking(move || read.run()).await?,
                    // What retention let go before the task came to it is gone: the first that is there is next.
                    Fetch::OutOfRange { log_start, .. } if from < log_start => from = log_start,
                    Fetch::OutOfRange { .. } => {
                        return Ok(Fetched { start: from, batches: Vec::new(), next: from });
                    }
                    Fetch::Unknown => return Err(PortError(format!("partition {source} is gone"))),
                }
            };
            Ok(Fetched { start: from, batches: found.contiguous().collect(), next: found.next })
        }
        .boxed()
    }

    fn wait(&self, task: TaskKey, sources: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, ()> {
        async move {
            let Ok(replica) = self.replica(task.home) else {
                return tokio::time::sleep(TIMER_INTERVAL).await;
            };
            let shard = replica.shard();
            let mut changes = shard.changes();
            let timers = shard.has_timers(task.deployment, task.partition);
            let mut more: Vec<BoxFuture<'_, ()>> = sources
                .into_iter()
                .filter_map(|(source, from)| {
                    let mut high_watermark = shard.watch(source)?;
                    Some(
                        async move {
                            if high_watermark.wait_for(|end| *end > from).await.is_err() {
                                std::future::pending::<()>().await;
                            }
                        }
                        .boxed(),
                    )
                })
                .collect();
            more.push(async move { _ = changes.changed().await }.boxed());
            let patience = if timers { TIMER_INTERVAL } else { IDLE_INTERVAL };
            let _ = tokio::time::timeout(patience, select_all(more)).await;
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
            let shard = self.replica(task.home)?.shard().clone();
            blocking(move || shard.state_get_within(task.deployment, task.partition, &keys, bytes_max)).await
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
            let shard = self.replica(task.home)?.shard().clone();
            let page = blocking(move || {
                let end = end.as_deref();
                shard.state_scan_within(task.deployment, task.partition, &start, end, limit, bytes_max)
            })
            .await?;
            let entries = page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
            Ok(StateEntries { entries, next: page.next })
        }
        .boxed()
    }

    fn due_timers(&self, task: TaskKey, limit: usize) -> BoxFuture<'_, Result<Vec<DueTimer>, PortError>> {
        async move {
            let shard = self.replica(task.home)?.shard().clone();
            if !shard.has_timers(task.deployment, task.partition) {
                return Ok(Vec::new());
            }
            let due = move || shard.due_timers(task.deployment, task.partition, shard.log_time(), limit);
            let due = blocking(due).await?;
            Ok(due.into_iter().map(|(key, at)| DueTimer { key, at }).collect())
        }
        .boxed()
    }

    fn refuses(&self) -> Option<&'static str> {
        self.disk.is_nearly_full().then_some(TASKS_WAIT)
    }

    fn takes_again(&self) -> BoxFuture<'_, ()> {
        self.disk.room().boxed()
    }

    fn commit(&self, task: TaskKey, step: TaskStep) -> BoxFuture<'_, Result<StepOutcome, PortError>> {
        async move {
            let replica = self.replica(task.home)?;
            let emits = !step.outputs.is_empty();
            let unit = Unit::Progress(progress(task, step));
            if let Some(broker) = self.room.lacking(&replica) {
                return Err(PortError(format!(
                    "the disk of broker {broker}, which keeps a replica of the shard, has no room for the step"
                )));
            }
            let admitted = self.shards.admission().admit(unit.bytes()).await;
            let _admitted = admitted.map_err(|no_room| {
                let what = match no_room {
                    NoRoom::Log => "the write-ahead log waits for checkpoints",
                    NoRoom::Disk => "the disk has no room for the step",
                };
                PortError(what.to_owned())
            })?;
            let answer = match replica.propose(unit).await {
                Ok(answer) => answer,
                // Trying again would not help; fewer records at once may.
                Err(error @ ProposeError::TooLarge { .. }) => {
                    return Ok(StepOutcome::Refused(StepRefusal::Failed(error.to_string())));
                }
                Err(error) => return Err(PortError(error.to_string())),
            };
            if emits {
                self.outboxes.wake(replica.shard_id());
            }
            match answer {
                UnitResult::Progressed => Ok(StepOutcome::Committed),
                UnitResult::ProgressRefused(refusal) => Ok(StepOutcome::Refused(refused(&refusal))),
                other => Err(PortError(format!("the shard answered {other:?}"))),
            }
        }
        .boxed()
    }

    /// A unit behind all that were proposed before it: with its answer they have theirs.
    fn settled(&self, task: TaskKey) -> BoxFuture<'_, ()> {
        async move {
            while let Ok(replica) = self.replica(task.home) {
                match replica.propose(Unit::Tick).await {
                    // Without a majority what is under way may yet be written.
                    Err(ProposeError::Overloaded | ProposeError::OutcomeUnknown | ProposeError::NoQuorum) => {
                        tokio::time::sleep(SETTLE_INTERVAL).await;
                    }
                    // What was under way ended with the replica's lead.
                    _ => return,
                }
            }
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
            let replica = self.replica(task.home)?;
            let status = match state {
                TaskRunState::Running => TaskStatus::Running,
                TaskRunState::Paused(reason) => TaskStatus::Paused { reason },
            };
            let unit =
                Unit::TaskStatus { deployment: task.deployment, epoch, partition: task.partition, status };
            match replica.propose(unit).await {
                Ok(UnitResult::Done | UnitResult::Refused(_)) => Ok(()),
                Ok(other) => Err(PortError(format!("the shard answered {other:?}"))),
                Err(error) => Err(PortError(error.to_string())),
            }
        }
        .boxed()
    }
}

fn progress(task: TaskKey, step: TaskStep) -> Progress {
    Progress {
        deployment: task.deployment,
        epoch: step.epoch,
        partition: task.partition,
        positions: step
            .positions
            .into_iter()
            .map(|position| PositionStep {
                source: position.source,
                expected: position.expected,
                next: position.next,
            })
            .collect(),
        state: step
            .state
            .into_iter()
            .map(|change| StateWrite { key: change.key, value: change.value, expires_at: change.expires_at })
            .collect(),
        timers: step.timers.into_iter().map(|change| TimerWrite { key: change.key, at: change.at }).collect(),
        fired: step.fired.into_iter().map(|timer| (timer.key, timer.at)).collect(),
        outputs: step
            .outputs
            .into_iter()
            .map(|output| TaskOutput { target: output.target, batch: output.batch })
            .collect(),
    }
}

fn refused(refusal: &ProgressRefusal) -> StepRefusal {
    match refusal {
        ProgressRefusal::OutboxFull { .. } => StepRefusal::OutboxFull,
        ProgressRefusal::UnknownTask
        | ProgressRefusal::WrongEpoch { .. }
        | ProgressRefusal::NotRunning
        | ProgressRefusal::WrongPosition { .. }
        | ProgressRefusal::WrongTimer { .. } => StepRefusal::Outdated(refusal.to_string()),
        ProgressRefusal::StateFull { .. }
        | ProgressRefusal::TargetDeleted { .. }
        | ProgressRefusal::Invalid(_) => StepRefusal::Failed(refusal.to_string()),
    }
}
