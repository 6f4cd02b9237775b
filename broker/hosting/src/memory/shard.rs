//! The shard itself: steps are planned as a whole, then carried out as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use tidemill_protocol::record_batch::{BatchLimits, RecordBatch, stored_prefix};
use tidemill_protocol::{DeploymentId, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicPartition};

use super::MemoryLimits;
use super::task::{Entry, Task};
use crate::port::{Fetched, StepRefusal, TaskOutput, TaskRunState, TaskStep};

/// Longest key of state or of a timer.
const KEY_BYTES_MAX: usize = 4096;

pub(super) type TaskId = (DeploymentId, PartitionId);

pub(super) struct MemoryShard {
    limits: MemoryLimits,
    log_time: Timestamp,
    partitions: BTreeMap<TopicPartition, Partition>,
    deleted: BTreeSet<TopicId>,
    tasks: BTreeMap<TaskId, Task>,
    outboxes: BTreeMap<(TaskId, TopicPartition), VecDeque<Bytes>>,
}

#[derive(Default)]
struct Partition {
    batches: Vec<(Offset, Bytes)>,
    /// What is before it was let go.
    start: Offset,
    end: Offset,
}

/// Everything that a step changes, checked.
struct Plan<'a> {
    positions: BTreeMap<TopicPartition, Offset>,
    entries: BTreeMap<&'a Bytes, Option<Entry>>,
    timers: BTreeMap<&'a Bytes, Option<Timestamp>>,
    outputs: Vec<(&'a TaskOutput, RecordBatch)>,
}

impl MemoryShard {
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            log_time: Timestamp::new(0),
            partitions: BTreeMap::new(),
            deleted: BTreeSet::new(),
            tasks: BTreeMap::new(),
            outboxes: BTreeMap::new(),
        }
    }

    pub(super) fn create_partition(&mut self, partition: TopicPartition) {
        self.partitions.entry(partition).or_default();
    }

    pub(super) fn create_task(&mut self, id: TaskId, epoch: u32, positions: &[(TopicPartition, Offset)]) {
        self.tasks.insert(id, Task::new(epoch, positions));
    }

    pub(super) fn delete_topic(&mut self, topic: TopicId) {
        self.deleted.insert(topic);
        self.partitions.retain(|partition, _| partition.topic != topic);
    }

    pub(super) fn log_time(&self) -> Timestamp {
        self.log_time
    }

    pub(super) fn pass(&mut self, now: Timestamp) {
        self.log_time = self.log_time.max(now);
        self.tasks.values_mut().for_each(|task| task.expire(self.log_time));
    }

    pub(super) fn append(&mut self, partition: TopicPartition, batch: &RecordBatch) -> Option<Offset> {
        let partition = self.partitions.get_mut(&partition)?;
        let base = partition.end;
        let body = batch.body();
        let mut stored = BytesMut::with_capacity(batch.bytes().len());
        stored.extend_from_slice(&stored_prefix(base, body.len(), LeaderEpoch::new(0)));
        stored.extend_from_slice(&body);
        let offsets = u64::from(batch.header().last_offset_delta.unsigned_abs()) + 1;
        partition.end = base.plus(offsets);
        partition.batches.push((base, stored.freeze()));
        Some(base)
    }

    pub(super) fn advance_start(&mut self, partition: TopicPartition, start: Offset) {
        let Some(partition) = self.partitions.get_mut(&partition) else { return };
        partition.start = start.clamp(partition.start, partition.end);
        let (start, end) = (partition.start, partition.end);
        // As the log does it: what is cut goes, a batch that holds the first that stays does not.
        let kept = partition.batches.partition_point(|(base, _)| *base <= start).saturating_sub(1);
        partition.batches.drain(..if start == end { partition.batches.len() } else { kept });
    }

    pub(super) fn end(&self, partition: TopicPartition) -> Option<Offset> {
        self.partitions.get(&partition).map(|partition| partition.end)
    }

    pub(super) fn batches(&self, partition: TopicPartition, from: usize) -> Vec<Bytes> {
        let batches = self.partitions.get(&partition).and_then(|partition| partition.batches.get(from..));
        batches.unwrap_or_default().iter().map(|(_, batch)| batch.clone()).collect()
    }

    pub(super) fn fetch(&self, partition: TopicPartition, from: Offset, bytes_max: usize) -> Option<Fetched> {
        let partition = self.partitions.get(&partition)?;
        let from = from.max(partition.start);
        if from >= partition.end {
            return Some(Fetched { start: from, batches: Vec::new(), next: from });
        }
        let first = partition.batches.partition_point(|(base, _)| *base <= from).saturating_sub(1);
        let mut fetched = Fetched { start: from, batches: Vec::new(), next: partition.end };
        let mut bytes = 0;
        for (base, batch) in partition.batches.get(first..)? {
            if bytes >= bytes_max {
                fetched.next = *base;
                break;
            }
            bytes += batch.len();
            fetched.batches.push(batch.clone());
        }
        Some(fetched)
    }

    pub(super) fn set_epoch(&mut self, id: TaskId, epoch: u32) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.epoch = epoch;
        }
    }

    pub(super) fn set_state(&mut self, id: TaskId, epoch: u32, state: TaskRunState) {
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| task.epoch == epoch) {
            task.state = state;
        }
    }

    pub(super) fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    pub(super) fn deliver(&mut self, target: TopicPartition) -> Option<Bytes> {
        self.outboxes.iter_mut().find(|((_, to), _)| *to == target)?.1.pop_front()
    }

    pub(super) fn progress(&mut self, id: TaskId, step: &TaskStep) -> Result<(), StepRefusal> {
        let plan = self.plan(id, step)?;
        self.carry_out(id, plan);
        Ok(())
    }

    fn plan<'a>(&self, id: TaskId, step: &'a TaskStep) -> Result<Plan<'a>, StepRefusal> {
        let outdated = |reason: String| StepRefusal::Outdated(reason);
        let task = self.tasks.get(&id).ok_or_else(|| outdated("there is no such task".to_owned()))?;
        if task.epoch != step.epoch {
            return Err(outdated(format!("the deployment is at epoch {}", task.epoch)));
        }
        if task.state != TaskRunState::Running {
            return Err(outdated("the task does not run".to_owned()));
        }
        let plan = Plan {
            positions: self.plan_positions(task, step)?,
            timers: self.plan_timers(task, step)?,
            entries: plan_entries(step)?,
            outputs: self.plan_outputs(id, step)?,
        };
        let limit = self.limits.state_bytes_max;
        let entries = plan.entries.iter().map(|(key, entry)| task.entry_bytes(key, entry.as_ref()));
        let timers = plan.timers.iter().map(|(key, at)| task.timer_bytes(key, *at));
        let (before, after) = entries.chain(timers).fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        let bytes = task.bytes().saturating_sub(before).saturating_add(after);
        if bytes > limit && after > before {
            let reason = format!("the task's state would have {bytes} bytes, {limit} are allowed");
            return Err(StepRefusal::Failed(reason));
        }
        Ok(plan)
    }

    fn plan_positions(
        &self,
        task: &Task,
        step: &TaskStep,
    ) -> Result<BTreeMap<TopicPartition, Offset>, StepRefusal> {
        let mut planned = BTreeMap::new();
        for position in &step.positions {
            let source = position.source;
            let at = task.positions.get(&source).copied();
            let at = at.ok_or_else(|| StepRefusal::Failed(format!("the task does not read {source}")))?;
            if at != position.expected {
                return Err(StepRefusal::Outdated(format!("the task stands at {at} in {source}")));
            }
            if position.next < at || self.end(source).is_none_or(|end| position.next > end) {
                let reason = format!("there is no way from {at} to {} in {source}", position.next);
                return Err(StepRefusal::Failed(reason));
            }
            if planned.insert(source, position.next).is_some() {
                return Err(StepRefusal::Failed(format!("it names {source} twice")));
            }
        }
        Ok(planned)
    }

    fn plan_timers<'a>(
        &self,
        task: &Task,
        step: &'a TaskStep,
    ) -> Result<BTreeMap<&'a Bytes, Option<Timestamp>>, StepRefusal> {
        let mut planned = BTreeMap::new();
        for fired in &step.fired {
            let repeated = planned.insert(&fired.key, None).is_some();
            if task.timers().get(&fired.key) != Some(&fired.at) || fired.at > self.log_time || repeated {
                return Err(StepRefusal::Outdated("a timer is not set as it was".to_owned()));
            }
        }
        for change in &step.timers {
            planned.insert(checked_key(&change.key)?, change.at);
        }
        Ok(planned)
    }

    fn plan_outputs<'a>(
        &self,
        id: TaskId,
        step: &'a TaskStep,
    ) -> Result<Vec<(&'a TaskOutput, RecordBatch)>, StepRefusal> {
        let limits = BatchLimits { batch_bytes_max: usize::MAX, ..BatchLimits::default() };
        let mut queued: BTreeMap<TopicPartition, usize> = BTreeMap::new();
        let mut planned = Vec::with_capacity(step.outputs.len());
        for output in &step.outputs {
            let target = output.target;
            let batch = RecordBatch::decode(output.batch.clone(), &limits)
                .map_err(|error| StepRefusal::Failed(error.to_string()))?;
            if self.deleted.contains(&target.topic) {
                return Err(StepRefusal::Failed(format!("{target} was deleted")));
            }
            if !self.is_local(id, target) {
                let before = self.waiting(id, target).map(Bytes::len).sum();
                let queued = queued.entry(target).or_insert(before);
                *queued += output.batch.len();
                // One step into an empty outbox always passes, or it would never.
                if before > 0 && *queued as u64 > self.limits.outbox_bytes_max {
                    return Err(StepRefusal::OutboxFull);
                }
            }
            planned.push((output, batch));
        }
        Ok(planned)
    }

    /// What is emitted later must not overtake what is still on its way from before the target came here.
    fn is_local(&self, id: TaskId, target: TopicPartition) -> bool {
        self.partitions.contains_key(&target) && self.waiting(id, target).next().is_none()
    }

    fn waiting(&self, id: TaskId, target: TopicPartition) -> impl Iterator<Item = &Bytes> {
        self.outboxes.get(&(id, target)).into_iter().flatten()
    }

    fn carry_out(&mut self, id: TaskId, plan: Plan<'_>) {
        for (output, batch) in plan.outputs {
            if self.is_local(id, output.target) {
                self.append(output.target, &batch);
            } else {
                self.outboxes.entry((id, output.target)).or_default().push_back(output.batch.clone());
            }
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.positions.extend(plan.positions);
        plan.entries.into_iter().for_each(|(key, entry)| task.put(key, entry));
        plan.timers.into_iter().for_each(|(key, at)| task.set_timer(key, at));
    }
}

fn plan_entries(step: &TaskStep) -> Result<BTreeMap<&Bytes, Option<Entry>>, StepRefusal> {
    let mut planned = BTreeMap::new();
    for change in &step.state {
        let entry = change.value.clone().map(|value| (value, change.expires_at));
        planned.insert(checked_key(&change.key)?, entry);
    }
    Ok(planned)
}

fn checked_key(key: &Bytes) -> Result<&Bytes, StepRefusal> {
    if key.len() > KEY_BYTES_MAX {
        let reason = format!("a key of {} bytes is too long; {KEY_BYTES_MAX} are allowed", key.len());
        return Err(StepRefusal::Failed(reason));
    }
    Ok(key)
}
