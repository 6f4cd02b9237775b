//! The loop of one task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidemill_protocol::Offset;
use tidemill_wasm::{CallError, ConsumerInstance, Failure, LogLevel, Outcome, Timer};

use super::effects::{Effects, EffectsHost};
use super::outputs::Outputs;
use super::reading::{CALL_BYTES_MAX, CALL_RECORDS_MAX, SourceRecords, TaskRecord};
use crate::failure::CallFailure;
use crate::hosting::{Inner, context};
use crate::logs::{DeploymentLog, micros};
use crate::plan::{TaskPlan, TaskPolicy};
use crate::port::{
    DueTimer, PositionStep, StepOutcome, StepRefusal, TaskKey, TaskOutput, TaskPort, TaskRunState, TaskStep,
};

/// Longest wait between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Wait for room in an outbox, and for what is not the plugin's fault.
const BROKER_BACKOFF: Duration = Duration::from_millis(100);
/// Timers that one call gets.
const TIMERS_MAX: usize = 1000;

/// What a task is made of.
pub(crate) struct TaskParts {
    pub(crate) plan: TaskPlan,
    pub(crate) hosting: Arc<Inner>,
    pub(crate) port: Arc<dyn TaskPort>,
    pub(crate) log: Arc<DeploymentLog>,
}

/// One task, until it is stopped from outside.
pub(crate) struct TaskRunner {
    parts: TaskParts,
    task: TaskKey,
    instance: Option<Running>,
    /// How many records the next call gets: halved while a batch fails, doubled while it does not.
    records_max: usize,
    /// Tries of what comes next.
    tries: u32,
}

/// An instance, and what its calls did.
struct Running {
    instance: ConsumerInstance,
    effects: Arc<Mutex<Effects>>,
}

/// Why nothing was committed.
enum Setback {
    /// The plugin's fault: it counts as a try. Whether the same batch may succeed later.
    Plugin { failure: CallFailure, may_pass: bool },
    /// Not the plugin's fault: it is tried again for as long as it takes.
    Broker(String),
    /// The task stands elsewhere: look again at once.
    Outdated(String),
}

impl TaskRunner {
    pub(crate) fn new(parts: TaskParts) -> Self {
        let home = parts.plan.sources.first().map(|(_, source)| *source);
        let deployment = parts.plan.plugin.deployment_id;
        // The plans of tasks always have both; without them the task would find no view and wait.
        let task = TaskKey {
            deployment: deployment.unwrap_or_default(),
            partition: parts.plan.partition,
            home: home.unwrap_or_else(|| {
                tidemill_protocol::TopicPartition::new(
                    parts.plan.targets.first().map_or_else(no_topic, |target| target.topic),
                    parts.plan.partition,
                )
            }),
        };
        Self { parts, task, instance: None, records_max: CALL_RECORDS_MAX, tries: 0 }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.round().await {
                Ok(Progress::More) => {}
                Ok(Progress::Idle(sources)) => self.parts.port.wait(self.task, sources).await,
                Err(Setback::Outdated(reason)) => {
                    tracing::debug!(task = ?self.task, reason, "a task looks again where it stands");
                    self.instance = None;
                    self.parts.port.wait(self.task, Vec::new()).await;
                }
                Err(Setback::Broker(reason)) => {
                    tracing::debug!(task = ?self.task, reason, "a task waits for the broker");
                    self.instance = None;
                    tokio::time::sleep(BROKER_BACKOFF).await;
                }
                Err(Setback::Plugin { failure, .. }) => {
                    // Rounds settle these themselves; what comes here could not be settled.
                    self.error(&failure.message);
                    self.instance = None;
                    tokio::time::sleep(BROKER_BACKOFF).await;
                }
            }
        }
    }

    async fn round(&mut self) -> Result<Progress, Setback> {
        let view = self.parts.port.view(self.task);
        let Some(view) = view.filter(|view| view.running && view.epoch == self.parts.plan.epoch) else {
            self.instance = None;
            return Ok(Progress::Idle(Vec::new()));
        };
        let due =
            self.parts.port.due_timers(self.task, TIMERS_MAX).await.map_err(|e| Setback::Broker(e.0))?;
        if !due.is_empty() {
            self.fire(due).await?;
            return Ok(Progress::More);
        }
        for index in 0..self.parts.plan.sources.len() {
            let (topic, source) = self.parts.plan.sources[index];
            let position = view.positions.iter().find(|(known, _)| *known == source).map(|(_, at)| *at);
            let Some(position) = position else {
                return Err(Setback::Outdated(format!("its shard does not know its source {source}")));
            };
            let fetched = self.parts.port.fetch(source, position, CALL_BYTES_MAX).await;
            let fetched = fetched.map_err(|error| Setback::Broker(error.0))?;
            if fetched.batches.is_empty() {
                continue;
            }
            let limits = self.parts.hosting.batch_limits();
            let records = SourceRecords::read(topic, source, position, fetched, &limits)
                .map_err(|error| Setback::Broker(format!("{source} does not read: {error}")))?;
            self.consume(records).await?;
            // In turn: a source that always has more must not starve the others.
            self.parts.plan.sources.rotate_left(index + 1);
            return Ok(Progress::More);
        }
        Ok(Progress::Idle(view.positions))
    }

    /// Gets a source's records done, or as many as one round allows.
    async fn consume(&mut self, records: SourceRecords) -> Result<(), Setback> {
        if records.records.is_empty() {
            // Nothing but offsets that a filter left out.
            return self.skip_to(&records, 0, Vec::new()).await;
        }
        let count = records.records.len().min(self.records_max.max(1));
        match self.call(&records, count).await {
            Ok(Called::Committed) => {
                self.tries = 0;
                self.records_max = (self.records_max * 2).min(CALL_RECORDS_MAX);
                Ok(())
            }
            // As many as were said, and no more.
            Ok(Called::Again) => Ok(()),
            Err(Setback::Plugin { failure, may_pass }) => {
                self.instance = None;
                self.settle(&records, count, failure, may_pass).await
            }
            Err(other) => Err(other),
        }
    }

    /// One call and its step.
    async fn call(&mut self, records: &SourceRecords, count: usize) -> Result<Called, Setback> {
        let now = self.parts.port.log_time(self.task);
        let started = Instant::now();
        let running = self.running(now).await?;
        let view = records.view(count, running.instance.fields(), now);
        let answer = running.instance.handle(&view).await;
        let effects = std::mem::take(&mut *running.effects.lock());
        self.parts.log.count("calls", 1);
        self.parts.log.count("call_micros", micros(started.elapsed()));
        let outcome = answer.map_err(|error| self.setback(&error))?;
        let processed = usize::try_from(outcome.processed).unwrap_or(count).min(count);
        if processed == 0 {
            return Err(self.plugin_failure("it handled none of the records", true));
        }
        if matches!(self.parts.plan.policy, TaskPolicy::Pause) && !outcome.rejections.is_empty() {
            self.stop_before_rejected(records, &outcome).await?;
            return Ok(Called::Again);
        }
        let outputs = Outputs { plan: &self.parts.plan, hosting: &self.parts.hosting };
        let made = outputs.of(&effects.emitted, records.first(count), now).await;
        let mut made = made.map_err(|failure| Setback::Plugin { failure, may_pass: false })?;
        made.extend(self.rejected(records, &outcome).await?);
        let emitted = effects.emitted.iter().map(|(_, records)| records.len() as u64).sum();
        let step = TaskStep {
            epoch: self.parts.plan.epoch,
            positions: vec![PositionStep {
                source: records.source,
                expected: records.position,
                next: records.position_after(processed),
            }],
            state: effects.state_changes(),
            timers: effects.timer_changes(),
            fired: Vec::new(),
            outputs: made,
        };
        self.commit(step).await?;
        self.parts.log.count("records_in", processed as u64);
        self.parts.log.count("records_out", emitted);
        Ok(Called::Committed)
    }

    /// The instance, started if there is none, with nothing done yet.
    async fn running(&mut self, now: tidemill_protocol::Timestamp) -> Result<&mut Running, Setback> {
        let usable = self.instance.as_ref().is_some_and(|running| running.instance.is_usable());
        if !usable {
            self.instance = None;
            let started = self.start().await?;
            self.instance = Some(started);
        }
        let running = self.instance.as_mut().ok_or_else(|| Setback::Broker("no instance".to_owned()))?;
        *running.effects.lock() = Effects { now, ..Effects::default() };
        Ok(running)
    }

    async fn start(&self) -> Result<Running, Setback> {
        let plan = &self.parts.plan;
        let compiled = self.parts.hosting.compiled(&plan.plugin).await;
        let compiled = compiled.map_err(|error| Setback::Broker(error.to_string()))?;
        let effects = Arc::new(Mutex::new(Effects::default()));
        let host = EffectsHost {
            task: self.task,
            port: Arc::clone(&self.parts.port),
            targets: plan.targets.clone().into(),
            effects: Arc::clone(&effects),
        };
        let limits = self.parts.hosting.task_limits(plan.plugin.memory_bytes_max);
        let sink = self.parts.hosting.sink(&plan.plugin, Some(plan.partition.get()));
        let instance =
            ConsumerInstance::start(compiled, context(&plan.plugin), limits, sink, Box::new(host)).await;
        let instance = instance.map_err(|error| self.setback(&error))?;
        Ok(Running { instance, effects })
    }

    /// What the policy does with records that the plugin rejected among those that it handled.
    async fn rejected(&self, records: &SourceRecords, outcome: &Outcome) -> Result<Vec<TaskOutput>, Setback> {
        let mut failed: Vec<(TaskRecord, String)> = Vec::new();
        for rejection in &outcome.rejections {
            let record =
                usize::try_from(rejection.ordinal).ok().and_then(|ordinal| records.records.get(ordinal));
            if let Some(record) = record {
                self.parts.log.count("rejections", 1);
                failed.push((record.clone(), rejection.reason.clone()));
            }
        }
        self.dispose(records, failed).await
    }

    /// Skip or dead-letter: logged, counted, and the outputs that carry them away.
    async fn dispose(
        &self,
        records: &SourceRecords,
        failed: Vec<(TaskRecord, String)>,
    ) -> Result<Vec<TaskOutput>, Setback> {
        for (record, reason) in &failed {
            self.error(&format!(
                "record at offset {} of {}: {reason}",
                record.offset,
                self.source_name(records)
            ));
        }
        match &self.parts.plan.policy {
            TaskPolicy::DeadLetter(target) if !failed.is_empty() => {
                self.parts.log.count("dead_lettered", failed.len() as u64);
                let outputs = Outputs { plan: &self.parts.plan, hosting: &self.parts.hosting };
                outputs
                    .dead_letters(target, &self.source_name(records), &failed)
                    .await
                    .map_err(|failure| Setback::Broker(failure.message))
            }
            _ => {
                self.parts.log.count("skipped", failed.len() as u64);
                Ok(Vec::new())
            }
        }
    }

    /// With the pause policy nothing behind a rejected record may be done, and nothing before it be lost.
    async fn stop_before_rejected(
        &mut self,
        records: &SourceRecords,
        outcome: &Outcome,
    ) -> Result<(), Setback> {
        self.instance = None;
        let Some(first) = outcome.rejections.first() else { return Ok(()) };
        match usize::try_from(first.ordinal).unwrap_or(0) {
            0 => self.pause(records, &first.reason).await,
            before => {
                // The records before it alone, in a call of their own.
                self.records_max = before;
                Ok(())
            }
        }
    }

    /// After a failed call: the same again, fewer records, or the policy.
    async fn settle(
        &mut self,
        records: &SourceRecords,
        count: usize,
        failure: CallFailure,
        may_pass: bool,
    ) -> Result<(), Setback> {
        self.tries += 1;
        self.error(&failure.message);
        if may_pass && self.tries < self.parts.plan.attempts {
            self.parts.log.count("retries", 1);
            tokio::time::sleep(self.backoff()).await;
            return Ok(());
        }
        self.tries = 0;
        if count > 1 {
            self.records_max = count / 2;
            return Ok(());
        }
        self.records_max = 1;
        let Some(record) = records.records.first() else { return Ok(()) };
        if matches!(self.parts.plan.policy, TaskPolicy::Pause) {
            return self.pause(records, &failure.message).await;
        }
        let outputs = self.dispose(records, vec![(record.clone(), failure.message)]).await?;
        self.skip_to(records, 1, outputs).await
    }

    fn backoff(&self) -> Duration {
        let base = Duration::from_millis(u64::from(self.parts.plan.backoff_ms.max(1)));
        base.saturating_mul(1 << (self.tries.saturating_sub(1)).min(16)).min(BACKOFF_MAX)
    }

    /// Goes past records without having handled them.
    async fn skip_to(
        &mut self,
        records: &SourceRecords,
        count: usize,
        outputs: Vec<TaskOutput>,
    ) -> Result<(), Setback> {
        let next: Offset = records.position_after(count);
        let step = TaskStep {
            epoch: self.parts.plan.epoch,
            positions: vec![PositionStep { source: records.source, expected: records.position, next }],
            outputs,
            ..TaskStep::default()
        };
        self.commit(step).await
    }

    async fn pause(&mut self, records: &SourceRecords, reason: &str) -> Result<(), Setback> {
        let at = records.records.first().map_or(records.position, |record| record.offset);
        let reason = format!(
            "stopped before offset {at} of {}: {reason}; mend the plugin or the record, then resume the deployment",
            self.source_name(records)
        );
        self.stop_with(reason).await
    }

    async fn stop_with(&mut self, reason: String) -> Result<(), Setback> {
        self.error(&reason);
        self.parts.log.count("pauses", 1);
        let state = TaskRunState::Paused(reason);
        let noted = self.parts.port.set_state(self.task, self.parts.plan.epoch, state).await;
        noted.map_err(|error| Setback::Broker(error.0))
    }

    /// Hands due timers over; they fire together, and alone where that fails.
    async fn fire(&mut self, due: Vec<DueTimer>) -> Result<(), Setback> {
        let count = due.len().min(self.records_max.max(1));
        let due = &due[..count];
        match self.fire_call(due).await {
            Ok(()) => {
                self.tries = 0;
                self.records_max = (self.records_max * 2).min(CALL_RECORDS_MAX);
                Ok(())
            }
            Err(Setback::Plugin { failure, may_pass }) => {
                self.instance = None;
                self.tries += 1;
                self.error(&failure.message);
                if may_pass && self.tries < self.parts.plan.attempts {
                    tokio::time::sleep(self.backoff()).await;
                    return Ok(());
                }
                self.tries = 0;
                if count > 1 {
                    self.records_max = count / 2;
                    return Ok(());
                }
                if matches!(self.parts.plan.policy, TaskPolicy::Pause) {
                    return self.stop_with(format!("stopped at a timer: {}", failure.message)).await;
                }
                self.parts.log.count("skipped", 1);
                let step =
                    TaskStep { epoch: self.parts.plan.epoch, fired: due.to_vec(), ..TaskStep::default() };
                self.commit(step).await
            }
            Err(other) => Err(other),
        }
    }

    async fn fire_call(&mut self, due: &[DueTimer]) -> Result<(), Setback> {
        let now = self.parts.port.log_time(self.task);
        let running = self.running(now).await?;
        let timers: Vec<Timer> =
            due.iter().map(|timer| Timer { key: timer.key.to_vec(), at: timer.at.get() }).collect();
        let answer = running.instance.on_timers(&timers, now.get()).await;
        let effects = std::mem::take(&mut *running.effects.lock());
        self.parts.log.count("timer_calls", 1);
        answer.map_err(|error| self.setback(&error))?;
        let outputs = Outputs { plan: &self.parts.plan, hosting: &self.parts.hosting };
        let made = outputs.of(&effects.emitted, &[], now).await;
        let outputs = made.map_err(|failure| Setback::Plugin { failure, may_pass: false })?;
        let step = TaskStep {
            epoch: self.parts.plan.epoch,
            state: effects.state_changes(),
            timers: effects.timer_changes(),
            fired: due.to_vec(),
            outputs,
            ..TaskStep::default()
        };
        self.commit(step).await
    }

    /// Commits a step. An instance whose step did not commit is thrown away: its memory is ahead of the log.
    async fn commit(&mut self, step: TaskStep) -> Result<(), Setback> {
        loop {
            match self.parts.port.commit(self.task, step.clone()).await {
                Ok(StepOutcome::Committed) => return Ok(()),
                Ok(StepOutcome::Refused(StepRefusal::OutboxFull)) => {
                    self.parts.log.count("outbox_waits", 1);
                    tokio::time::sleep(BROKER_BACKOFF).await;
                }
                Ok(StepOutcome::Refused(StepRefusal::Outdated(reason))) => {
                    return Err(Setback::Outdated(reason));
                }
                Ok(StepOutcome::Refused(StepRefusal::Failed(reason))) => {
                    return Err(self.plugin_failure(&reason, false));
                }
                // It may have been written or not: the task's view tells.
                Err(error) => return Err(Setback::Broker(error.0)),
            }
        }
    }

    fn setback(&self, error: &CallError) -> Setback {
        let counter = match error {
            CallError::TimedOut { .. } => "timeouts",
            error if error.is_incident() => "traps",
            CallError::HostFailed(_) | CallError::NoCapacity(_) | CallError::Discarded => {
                return Setback::Broker(error.to_string());
            }
            _ => "failures",
        };
        self.parts.log.count(counter, 1);
        let may_pass = !matches!(error, CallError::Failed(Failure::Reject(_)));
        let failure = CallFailure::of(&self.parts.plan.plugin.deployment, error);
        Setback::Plugin { failure, may_pass }
    }

    fn plugin_failure(&self, reason: &str, may_pass: bool) -> Setback {
        self.parts.log.count("failures", 1);
        Setback::Plugin { failure: CallFailure::answer(&self.parts.plan.plugin.deployment, reason), may_pass }
    }

    fn error(&self, message: &str) {
        self.parts.log.line(LogLevel::Error, Some(self.parts.plan.partition.get()), message);
    }

    fn source_name(&self, records: &SourceRecords) -> String {
        let topics = &self.parts.plan.plugin.topics;
        let topic = usize::try_from(records.topic).ok().and_then(|index| topics.get(index));
        match topic {
            Some(topic) => format!("{topic}-{}", records.source.partition),
            None => records.source.to_string(),
        }
    }
}

/// What a call came to.
enum Called {
    /// Its step is committed.
    Committed,
    /// Nothing is: the next round has other records.
    Again,
}

/// What a round came to.
enum Progress {
    /// Something was done: there may be more.
    More,
    /// Nothing to do before one of these has records.
    Idle(Vec<(tidemill_protocol::TopicPartition, Offset)>),
}

fn no_topic() -> tidemill_protocol::TopicId {
    tidemill_protocol::TopicId::from_slice(&[0; 16]).expect("16 bytes make an id")
}
