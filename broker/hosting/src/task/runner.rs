//! The loop of one task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_protocol::{Offset, TopicPartition};
use tidemill_wasm::{CallError, Failure, LogLevel, Timer};

use super::ahead::Ahead;
use super::attempts::Attempts;
use super::instance::Running;
use super::notes::{Given, Notes};
use super::outputs::Outputs;
use super::reading::{CALL_RECORDS_MAX, SourceRecords};
use super::sources::{Read, Unreadable};
use crate::failure::CallFailure;
use crate::hosting::Inner;
use crate::logs::{DeploymentLog, micros};
use crate::meter::{Meter, measured};
use crate::plan::{TaskPlan, TaskPolicy};
use crate::port::{DueTimer, PositionStep, StepOutcome, StepRefusal, TaskKey, TaskPort, TaskStep};

/// Wait for room in an outbox, and the first one for what is not the plugin's fault; that doubles up to the other.
const BROKER_BACKOFF: Duration = Duration::from_millis(100);
const BROKER_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// So many waits for an outbox, or refusals of what the task took for its place, are nothing to tell of.
const OUTBOX_WAITS_UNTOLD: u32 = 10;
const OUTDATED_UNTOLD: u32 = 20;
/// Timers that one call gets.
const TIMERS_MAX: usize = 1000;

/// What is told of a task whose outputs do not get away.
const OUTBOX_FULL: &str = "what it emitted before is still on its way to partitions of another shard, and no more may be; it goes on \
                           by itself when that has arrived";

/// What a task is made of.
pub(crate) struct TaskParts {
    pub(crate) plan: TaskPlan,
    pub(crate) hosting: Arc<Inner>,
    pub(crate) port: Arc<dyn TaskPort>,
    pub(crate) log: Arc<DeploymentLog>,
    /// Where calls are measured.
    pub(crate) meter: Option<Arc<Meter>>,
}

/// One task, until it is stopped from outside.
pub(crate) struct TaskRunner {
    pub(super) parts: TaskParts,
    pub(super) task: TaskKey,
    pub(super) instance: Option<Running>,
    /// Which source comes next. It stays with one whose records fail until they are settled.
    turn: usize,
    pub(super) records: Attempts,
    pub(super) timers: Attempts,
    /// What was read and not done yet.
    pub(super) ahead: Ahead,
    /// What could not be read when it was last tried.
    pub(super) unreadable: Unreadable,
    /// What the last round did.
    pub(super) notes: Notes,
    /// Why nothing was committed lately, and for how many rounds.
    trouble: Option<(String, u32)>,
    /// Steps that were refused, since the last that was not, because the task stands elsewhere.
    outdated: u32,
    /// The last failure of the plugin that was told, until a step is committed.
    told: Option<String>,
}

/// Why nothing was committed.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The plugin's fault: it counts as a try. Whether the same batch may succeed later.
    Plugin { failure: CallFailure, may_pass: bool },
    /// No record's fault: it is tried again for as long as it takes.
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
                TopicPartition::new(
                    parts.plan.targets.first().map_or_else(no_topic, |target| target.topic),
                    parts.plan.partition,
                )
            }),
        };
        // An earlier run's.
        parts.log.set_waits(parts.plan.partition.get(), None);
        let ahead = Ahead::new(Arc::clone(parts.hosting.kept_ahead()));
        Self {
            parts,
            task,
            instance: None,
            turn: 0,
            records: Attempts::new(CALL_RECORDS_MAX),
            timers: Attempts::new(TIMERS_MAX),
            ahead,
            unreadable: Unreadable::default(),
            notes: Notes::default(),
            trouble: None,
            outdated: 0,
            told: None,
        }
    }

    pub(crate) async fn run(mut self) {
        // An earlier run may have ended in the middle of a step.
        self.parts.port.settled(self.task).await;
        loop {
            match self.round().await {
                Ok(Progress::More) => {}
                Ok(Progress::Idle(sources)) => {
                    self.comes_on();
                    let changed = self.parts.port.wait(self.task, sources);
                    match self.unreadable.next_look() {
                        None => changed.await,
                        Some(look) => _ = tokio::time::timeout_at(look, changed).await,
                    }
                }
                Ok(Progress::NotRunning) => {
                    // What was wrong is so no longer, and the task does not go on either.
                    self.forgets_trouble();
                    self.parts.port.wait(self.task, Vec::new()).await;
                }
                Err(Setback::Outdated(reason)) => {
                    tracing::debug!(task = ?self.task, reason, "a task looks again where it stands");
                    self.discard();
                    self.ahead.clear();
                    self.outdated += 1;
                    if self.outdated > OUTDATED_UNTOLD {
                        self.troubled(reason);
                    }
                    tokio::time::sleep(BROKER_BACKOFF).await;
                }
                // Rounds settle a plugin's faults themselves; what comes here could not be settled.
                Err(
                    Setback::Broker(reason)
                    | Setback::Plugin { failure: CallFailure { message: reason, .. }, .. },
                ) => {
                    self.discard();
                    self.ahead.clear();
                    let wait = self.troubled(reason);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Due timers, else records of one source: one call, and what becomes of it.
    pub(crate) async fn round(&mut self) -> Result<Progress, Setback> {
        self.notes = Notes::default();
        let view = self.parts.port.view(self.task);
        let Some(view) = view.filter(|view| view.running && view.epoch == self.parts.plan.epoch) else {
            self.discard();
            self.ahead.clear();
            if self.unreadable.clear() {
                self.show_waits();
            }
            return Ok(Progress::NotRunning);
        };
        if self.parts.port.refuses().is_some() {
            self.wait_to_be_taken().await;
            // Who knows for how long that was.
            return Ok(Progress::More);
        }
        let due =
            self.parts.port.due_timers(self.task, TIMERS_MAX).await.map_err(|e| Setback::Broker(e.0))?;
        if !due.is_empty() {
            self.fire(due).await?;
            return Ok(Progress::More);
        }
        let sources = self.parts.plan.sources.len();
        let first = self.turn;
        for index in (0..sources).map(|index| (first + index) % sources) {
            let (topic, source) = self.parts.plan.sources[index];
            let position = view.positions.iter().find(|(known, _)| *known == source).map(|(_, at)| *at);
            let Some(position) = position else {
                return Err(Setback::Outdated(format!("its shard does not know its source {source}")));
            };
            if self.unreadable.rests(source, tokio::time::Instant::now()) {
                continue;
            }
            let done = match self.read_or_tell(topic, source, position).await {
                Read::Nothing => continue,
                Read::Lost { until } => {
                    self.go_past_lost(topic, source, position, until).await?;
                    true
                }
                Read::Records(records) => {
                    let done = self.consume(&records).await;
                    // Whatever became of them: they are still what comes next.
                    if !self.ahead.keep(records) {
                        self.parts.log.count("unpacked_again", 1);
                    }
                    done?
                }
            };
            // In turn: a source that always has more must not starve the others.
            self.turn = if done { index + 1 } else { index };
            return Ok(Progress::More);
        }
        let mut waits_for = view.positions;
        waits_for.retain(|(source, _)| !self.unreadable.contains(*source));
        Ok(Progress::Idle(waits_for))
    }

    /// What the last round did.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// At most so many timers in the next call.
    pub(crate) fn limit_timers(&mut self, at_most: usize) {
        self.timers.limit(at_most);
    }

    /// The next call gets a fresh instance.
    pub(crate) fn discard(&mut self) {
        self.instance = None;
    }

    /// Tells of what is wrong, once, and how long to wait.
    fn troubled(&mut self, reason: String) -> Duration {
        let rounds = match self.trouble.take() {
            Some((before, rounds)) if before == reason => rounds + 1,
            _ => {
                self.error(&format!("the task waits and tries again: {reason}"));
                0
            }
        };
        self.trouble = Some((reason, rounds));
        self.show_waits();
        BROKER_BACKOFF.saturating_mul(1 << rounds.min(16)).min(BROKER_BACKOFF_MAX)
    }

    /// A step was committed, or there is nothing to do.
    fn comes_on(&mut self) {
        if self.forgets_trouble() {
            self.parts.log.line(LogLevel::Info, Some(self.parts.plan.partition.get()), "goes on");
        }
    }

    /// Answers whether there was any.
    fn forgets_trouble(&mut self) -> bool {
        (self.outdated, self.told) = (0, None);
        let was_troubled = self.trouble.take().is_some();
        if was_troubled {
            self.show_waits();
        }
        was_troubled
    }

    /// Why the task, or a source of it, does not come on.
    pub(crate) fn waits(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(reason, _)| reason.as_str()).or_else(|| self.unreadable.reason())
    }

    /// To whoever looks at the deployment.
    pub(super) fn show_waits(&self) {
        self.parts.log.set_waits(self.parts.plan.partition.get(), self.waits());
    }

    /// Tells of a failure of the plugin: once, however often it is tried again.
    pub(super) fn tell(&mut self, failure: &CallFailure) {
        if self.told.as_ref() != Some(&failure.message) {
            self.error(&failure.message);
            self.told = Some(failure.message.clone());
        }
    }

    /// Gets a source's records done, or as many as one round allows. Answers whether the task has gone past any.
    async fn consume(&mut self, records: &SourceRecords) -> Result<bool, Setback> {
        if records.records.is_empty() {
            // Nothing but offsets that a filter left out.
            self.skip_to(records, 0, Vec::new()).await?;
            return Ok(true);
        }
        let count = records.records.len().min(self.records.at_most());
        let first = records.records.first().map_or(records.position, |record| record.offset);
        self.notes.given = Some(Given::Records { first, count });
        match self.call(records, count).await {
            Ok(Called::Committed) => {
                self.records.succeeded();
                Ok(true)
            }
            // As many as were said, and no more.
            Ok(Called::Again) => Ok(false),
            Err(Setback::Plugin { failure, may_pass }) => {
                self.discard();
                self.settle(records, count, failure, may_pass).await
            }
            Err(other) => Err(other),
        }
    }

    /// One call and its step.
    async fn call(&mut self, records: &SourceRecords, count: usize) -> Result<Called, Setback> {
        let now = self.parts.port.log_time(self.task);
        let meter = self.parts.meter.clone();
        let running = self.running(now).await?;
        let started = Instant::now();
        let view = records.view(count, running.instance.fields(), now);
        let answer = measured(meter.as_ref(), running.instance.handle(&view)).await;
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
        let rejected = Self::rejected(records, &outcome);
        made.extend(self.dead_letters(records, &rejected).await?);
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
        if !rejected.is_empty() {
            self.parts.log.count("rejections", rejected.len() as u64);
            self.tell_disposed(records, rejected);
        }
        self.parts.log.count("records_in", processed as u64);
        self.parts.log.count("records_out", emitted);
        Ok(Called::Committed)
    }

    /// Hands due timers over; they fire together, and alone where that fails.
    async fn fire(&mut self, due: Vec<DueTimer>) -> Result<(), Setback> {
        let due = due.get(..self.timers.at_most()).unwrap_or(&due);
        self.notes.given = Some(Given::Timers(due.to_vec()));
        match self.fire_call(due).await {
            Ok(()) => {
                self.timers.succeeded();
                Ok(())
            }
            Err(Setback::Plugin { failure, may_pass }) => {
                self.discard();
                self.settle_timers(due, failure, may_pass).await
            }
            Err(other) => Err(other),
        }
    }

    async fn fire_call(&mut self, due: &[DueTimer]) -> Result<(), Setback> {
        let now = self.parts.port.log_time(self.task);
        let meter = self.parts.meter.clone();
        let running = self.running(now).await?;
        let timers: Vec<Timer> =
            due.iter().map(|timer| Timer { key: timer.key.to_vec(), at: timer.at.get() }).collect();
        let answer = measured(meter.as_ref(), running.instance.on_timers(&timers, now.get())).await;
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
    pub(super) async fn commit(&mut self, step: TaskStep) -> Result<(), Setback> {
        let mut waits = 0;
        loop {
            self.wait_to_be_taken().await;
            match self.parts.port.commit(self.task, step.clone()).await {
                Ok(StepOutcome::Committed) => {
                    self.comes_on();
                    return Ok(());
                }
                Ok(StepOutcome::Refused(StepRefusal::OutboxFull)) => {
                    self.parts.log.count("outbox_waits", 1);
                    waits += 1;
                    if waits > OUTBOX_WAITS_UNTOLD {
                        self.troubled(OUTBOX_FULL.to_owned());
                    }
                    tokio::time::sleep(BROKER_BACKOFF).await;
                }
                Ok(StepOutcome::Refused(StepRefusal::Outdated(reason))) => {
                    return Err(Setback::Outdated(reason));
                }
                Ok(StepOutcome::Refused(StepRefusal::Failed(reason))) => {
                    return Err(self.plugin_failure(&reason, false));
                }
                // It may have been written or not: the task's view tells, once it can't be written any more.
                Err(error) => {
                    self.parts.port.settled(self.task).await;
                    return Err(Setback::Broker(error.0));
                }
            }
        }
    }

    /// Waits while the broker takes nothing. One line when that begins and one when it ends, however long it takes.
    async fn wait_to_be_taken(&self) {
        let port = &self.parts.port;
        let Some(reason) = port.refuses() else { return };
        let partition = Some(self.parts.plan.partition.get());
        self.parts.log.line(LogLevel::Warn, partition, reason);
        self.parts.log.count("room_waits", 1);
        while port.refuses().is_some() {
            port.takes_again().await;
        }
        self.parts.log.line(LogLevel::Info, partition, "goes on");
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

    /// To the deployment's log; and to the broker's, for whoever runs it, as far as that one takes lines.
    pub(super) fn error(&self, message: &str) {
        let plan = &self.parts.plan;
        if self.parts.log.line(LogLevel::Error, Some(plan.partition.get()), message) {
            tracing::warn!(deployment = plan.plugin.deployment, partition = %plan.partition, "a task: {message}");
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
#[derive(Debug)]
pub(crate) enum Progress {
    /// Something was done: there may be more.
    More,
    /// Nothing to do before one of these has records.
    Idle(Vec<(TopicPartition, Offset)>),
    /// It is paused, of another epoch, or its shard is not here.
    NotRunning,
}

fn no_topic() -> tidemill_protocol::TopicId {
    tidemill_protocol::TopicId::from_slice(&[0; 16]).expect("16 bytes make an id")
}
