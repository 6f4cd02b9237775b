//! A task's step: checked as a whole, then done as a whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_partition::AppendRequest;
use tidemill_protocol::{Offset, TopicPartition};

use super::task_rows::{StateChange, TimerChange, expiry};
use super::{Context, Effects};
use crate::batch::BatchHead;
use crate::keys::TaskKey;
use crate::result::{ProgressRefusal, UnitResult};
use crate::state::{DeploymentState, State, TaskState};
use crate::store::StoreError;
use crate::unit::{AdoptedStatus, OutboxStream, Progress, TaskStatus};

/// Longest key of state or of a timer.
pub const TASK_KEY_BYTES_MAX: usize = 4096;

/// Everything that a step changes, checked.
struct Plan<'a> {
    task: TaskKey,
    positions: Vec<(TopicPartition, Offset)>,
    state: Vec<StateChange<'a>>,
    timers: Vec<TimerChange<'a>>,
    state_bytes: u64,
    outputs: Vec<Output<'a>>,
}

enum Output<'a> {
    Local { target: TopicPartition, config: TopicConfig, request: AppendRequest, batch: &'a Bytes },
    Remote { stream: OutboxStream, batch: &'a Bytes },
}

/// A refusal is an answer; a failing store is not.
type Planned<T> = Result<Result<T, ProgressRefusal>, StoreError>;

impl State {
    pub(super) fn progress(
        &mut self,
        progress: &Progress,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, StoreError> {
        match self.plan(progress, context)? {
            Ok(plan) => {
                self.carry_out(plan, context, effects);
                Ok(UnitResult::Progressed)
            }
            Err(refusal) => Ok(UnitResult::ProgressRefused(refusal)),
        }
    }

    fn plan<'a>(&self, progress: &'a Progress, context: Context) -> Planned<Plan<'a>> {
        let key = (progress.deployment, progress.partition);
        let (deployment, task) = match self.running_task(key, progress.epoch) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let positions = match self.plan_positions(progress, task) {
            Ok(positions) => positions,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let timers = match self.plan_timers(progress, &key, context)? {
            Ok(timers) => timers,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let state = match self.plan_state(progress, &key)? {
            Ok(state) => state,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let before: u64 = state.iter().map(StateChange::bytes_before).sum::<u64>()
            + timers.iter().map(TimerChange::bytes_before).sum::<u64>();
        let after: u64 = state.iter().map(StateChange::bytes_after).sum::<u64>()
            + timers.iter().map(TimerChange::bytes_after).sum::<u64>();
        let state_bytes = task.state_bytes.saturating_sub(before).saturating_add(after);
        // A task above a limit that was lowered may still shrink.
        if state_bytes > deployment.state_bytes_max && after > before {
            let limit = deployment.state_bytes_max;
            return Ok(Err(ProgressRefusal::StateFull { bytes: state_bytes, limit }));
        }
        Ok(self.plan_outputs(progress, task, deployment).map(|outputs| Plan {
            task: key,
            positions,
            state,
            timers,
            state_bytes,
            outputs,
        }))
    }

    fn running_task(
        &self,
        key: TaskKey,
        epoch: u32,
    ) -> Result<(&DeploymentState, &TaskState), ProgressRefusal> {
        let deployment = self.deployments.get(&key.0).filter(|known| known.status != AdoptedStatus::Deleted);
        let deployment = deployment.ok_or(ProgressRefusal::UnknownTask)?;
        let task = self.tasks.get(&key).ok_or(ProgressRefusal::UnknownTask)?;
        if deployment.epoch != epoch {
            return Err(ProgressRefusal::WrongEpoch { current: deployment.epoch });
        }
        if deployment.status != AdoptedStatus::Running || task.status != TaskStatus::Running {
            return Err(ProgressRefusal::NotRunning);
        }
        Ok((deployment, task))
    }

    fn plan_positions(
        &self,
        progress: &Progress,
        task: &TaskState,
    ) -> Result<Vec<(TopicPartition, Offset)>, ProgressRefusal> {
        let mut planned = BTreeMap::new();
        for step in &progress.positions {
            let source = step.source;
            let Some(at) = task.positions.get(&source).copied() else {
                return Err(ProgressRefusal::Invalid(format!("the task does not read {source}")));
            };
            if at != step.expected {
                return Err(ProgressRefusal::WrongPosition { source_partition: source, expected: at });
            }
            let end = self.partitions.get(&source).map(|partition| partition.header().log_end);
            if step.next < at || end.is_none_or(|end| step.next > end) {
                return Err(ProgressRefusal::Invalid(format!(
                    "there is no way from {at} to {} in {source}",
                    step.next
                )));
            }
            if planned.insert(source, step.next).is_some() {
                return Err(ProgressRefusal::Invalid(format!("it names {source} twice")));
            }
        }
        Ok(planned.into_iter().collect())
    }

    fn plan_timers<'a>(
        &self,
        progress: &'a Progress,
        task: &TaskKey,
        context: Context,
    ) -> Planned<Vec<TimerChange<'a>>> {
        let mut planned: BTreeMap<&[u8], TimerChange<'a>> = BTreeMap::new();
        for (key, at) in &progress.fired {
            let old = self.stored_timer(task, key)?;
            let repeated = planned.insert(key, TimerChange { key, old, new: None }).is_some();
            if old != Some(*at) || *at > context.now || repeated {
                return Ok(Err(ProgressRefusal::WrongTimer { key: key.clone() }));
            }
        }
        for write in &progress.timers {
            if write.key.len() > TASK_KEY_BYTES_MAX {
                return Ok(Err(key_too_long(write.key.len())));
            }
            if let Some(change) = planned.get_mut(&write.key[..]) {
                change.new = write.at;
                continue;
            }
            let old = self.stored_timer(task, &write.key)?;
            planned.insert(&write.key, TimerChange { key: &write.key, old, new: write.at });
        }
        Ok(Ok(planned.into_values().collect()))
    }

    fn plan_state<'a>(&self, progress: &'a Progress, task: &TaskKey) -> Planned<Vec<StateChange<'a>>> {
        let mut planned: BTreeMap<&[u8], StateChange<'a>> = BTreeMap::new();
        for write in &progress.state {
            if write.key.len() > TASK_KEY_BYTES_MAX {
                return Ok(Err(key_too_long(write.key.len())));
            }
            let new = write.value.as_ref().map(|value| (value, expiry(write.expires_at)));
            if let Some(change) = planned.get_mut(&write.key[..]) {
                change.new = new;
                continue;
            }
            let old = self.stored_state(task, &write.key)?;
            planned.insert(&write.key, StateChange { key: &write.key, old, new });
        }
        Ok(Ok(planned.into_values().collect()))
    }

    fn plan_outputs<'a>(
        &self,
        progress: &'a Progress,
        task: &TaskState,
        deployment: &DeploymentState,
    ) -> Result<Vec<Output<'a>>, ProgressRefusal> {
        let mut on_the_way: BTreeMap<OutboxStream, u64> = BTreeMap::new();
        let mut offsets = 0_i64;
        let mut planned = Vec::with_capacity(progress.outputs.len());
        for output in &progress.outputs {
            let (target, batch) = (output.target, &output.batch);
            let head =
                BatchHead::parse(batch).map_err(|fault| ProgressRefusal::Invalid(fault.to_string()))?;
            offsets += i64::from(head.offset_count);
            let stream = OutboxStream {
                deployment: progress.deployment,
                incarnation: task.incarnation,
                source: progress.partition,
                target,
            };
            let topic = self.topics.get(&target.topic);
            if topic.is_some_and(|topic| topic.deleted_at.is_some()) {
                return Err(ProgressRefusal::TargetDeleted { target });
            }
            let waiting = self.outboxes.get(&stream).map_or(0, |outbox| outbox.next - outbox.first);
            let local = topic.zip(self.partitions.get(&target));
            // What is emitted later must not overtake what is still on its way from before the target came here.
            if let Some((topic, partition)) = local.filter(|_| waiting == 0) {
                if partition.header().log_end.get().checked_add(offsets).is_none() {
                    return Err(ProgressRefusal::Invalid(format!("{target} has no offsets left")));
                }
                let request = head.request(false);
                planned.push(Output::Local { target, config: topic.config, request, batch });
                continue;
            }
            let before = self.outboxes.get(&stream).map_or(0, |outbox| outbox.bytes);
            let queued = on_the_way.entry(stream).or_insert(before);
            *queued += u64::from(head.bytes);
            // One step into an empty outbox always passes, or it would never.
            if before > 0 && *queued > deployment.outbox_bytes_max {
                return Err(ProgressRefusal::OutboxFull { target });
            }
            planned.push(Output::Remote { stream, batch });
        }
        Ok(planned)
    }

    fn carry_out(&mut self, plan: Plan<'_>, context: Context, effects: &mut Effects) {
        let key = plan.task;
        let timers: i64 = plan.timers.iter().map(|change| self.write_timer(&key, change)).sum();
        let expiring: i64 = plan.state.iter().map(|change| self.write_state(&key, change)).sum();
        if let Some(task) = self.tasks.get_mut(&key) {
            task.positions.extend(plan.positions);
            task.state_bytes = plan.state_bytes;
            task.timers = task.timers.saturating_add_signed(timers);
            task.expiring = task.expiring.saturating_add_signed(expiring);
        }
        for output in plan.outputs {
            match output {
                Output::Local { target, config, request, batch } => {
                    self.put_batch(target, &config, &request, batch, context, effects);
                }
                Output::Remote { stream, batch } => self.emit(stream, batch),
            }
        }
    }
}

fn key_too_long(bytes: usize) -> ProgressRefusal {
    ProgressRefusal::Invalid(format!("a key of {bytes} bytes is too long; {TASK_KEY_BYTES_MAX} are allowed"))
}
