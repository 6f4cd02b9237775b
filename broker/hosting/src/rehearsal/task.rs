//! Runs of consumers: one task on a shard in memory, driven round by round.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tidemill_protocol::{Offset, PartitionId, Timestamp, TopicId, TopicPartition};

use super::record::{PlainRecord, batch_of, offset, records_of};
use super::run::{Answer, EmittedRecord, FailedAt, FiredTimer, Run, Verdict};
use super::{Manner, RehearsalError, Stage};
use crate::failure::{CallFailure, CallFailureKind};
use crate::memory::{MemoryLimits, MemoryPort};
use crate::meter::Meter;
use crate::plan::{TargetPlan, TaskPlan, TaskPolicy};
use crate::port::{TaskKey, TaskPort};
use crate::task::{Given, Progress, Setback, TaskParts, TaskRunner};

/// The task's number, and its partition of the source.
const PARTITION: PartitionId = PartitionId::new(0);
const EPOCH: u32 = 1;
/// Calls with timers while the log's time stands still.
const TIMER_CALLS_AT_ONCE_MAX: u32 = 10_000;
/// Calls with timers in a whole run.
const TIMER_CALLS_MAX: u32 = 1_000_000;
/// What a run may emit, since it is all kept.
const EMITTED_BYTES_MAX: usize = 1 << 30;

pub(super) async fn consumer(
    stage: &Stage<'_>,
    manner: Manner,
    meter: Arc<Meter>,
) -> Result<Run, RehearsalError> {
    let mut play = Play::new(stage, manner, meter);
    play.records().await?;
    play.time_passes().await?;
    Ok(play.finish())
}

struct Play<'a> {
    records: &'a [PlainRecord],
    run_timers_for_ms: i64,
    manner: Manner,
    meter: Arc<Meter>,
    port: Arc<MemoryPort>,
    source: TopicPartition,
    runner: TaskRunner,
    task: TaskKey,
    targets: Vec<Target>,
    emitted_bytes: usize,
    timer_calls: u32,
    timer_calls_at_once: (Timestamp, u32),
    run: Run,
    /// Nothing more is to be seen.
    over: bool,
}

/// A partition that outputs go to, and how many of its batches have been seen.
struct Target {
    target: usize,
    partition: TopicPartition,
    seen: usize,
}

impl<'a> Play<'a> {
    fn new(stage: &Stage<'a>, manner: Manner, meter: Arc<Meter>) -> Self {
        let rehearsal = stage.rehearsal;
        let id = stage.deployment();
        let source = TopicPartition::new(topic(0), PARTITION);
        let port = Arc::new(MemoryPort::new(MemoryLimits {
            state_bytes_max: rehearsal.state_bytes_max,
            // Every target is in the shard: nothing waits to be carried away.
            outbox_bytes_max: 0,
        }));
        port.create_partition(source);
        let mut targets = Vec::new();
        let mut plans = Vec::new();
        for (number, name) in rehearsal.plugin.targets.iter().enumerate() {
            let partitions = rehearsal.target_partitions.get(number).copied().unwrap_or(1).max(1);
            let topic = topic(number as u64 + 1);
            plans.push(TargetPlan { topic, name: name.clone(), partitions, partitioner: None });
            for partition in
                (0..partitions).map(|number| TopicPartition::new(topic, PartitionId::new(number)))
            {
                port.create_partition(partition);
                targets.push(Target { target: number, partition, seen: 0 });
            }
        }
        port.create_task(id, PARTITION, EPOCH, &[(source, Offset::ZERO)]);
        let plan = TaskPlan {
            plugin: Arc::new(rehearsal.plugin.clone()),
            epoch: EPOCH,
            partition: PARTITION,
            sources: vec![(0, source)],
            targets: plans,
            // A failing record is what is looked for: it is found by halving, without trying again.
            policy: TaskPolicy::Skip,
            attempts: 1,
            backoff_ms: 1,
        };
        let runner = TaskRunner::new(TaskParts {
            plan,
            hosting: Arc::clone(stage.hosting),
            port: Arc::clone(&port) as Arc<_>,
            log: stage.hosting.log(id),
            meter: Some(Arc::clone(&meter)),
        });
        Self {
            records: &rehearsal.records,
            run_timers_for_ms: rehearsal.run_timers_for_ms,
            manner,
            meter,
            port,
            source,
            runner,
            task: TaskKey { deployment: id, partition: PARTITION, home: source },
            targets,
            emitted_bytes: 0,
            timer_calls: 0,
            timer_calls_at_once: (Timestamp::new(0), 0),
            run: Run::default(),
            over: false,
        }
    }

    /// The records come, one call's at a time; timers that are due before them fire first.
    async fn records(&mut self) -> Result<(), RehearsalError> {
        let mut from = 0;
        let mut time = Timestamp::new(i64::MIN);
        while let Some(record) = self.records.get(from).filter(|_| !self.over) {
            time = time.max(record.timestamp);
            self.pass(time).await?;
            let next_timer = self.port.next_timer(self.task.deployment, PARTITION);
            // A call that is given records from before and behind a timer would be one of a task that lags.
            let behind = |record: &PlainRecord| next_timer.is_some_and(|timer| record.timestamp >= timer);
            let later = self.records.get(from + 1..).unwrap_or_default().iter().position(behind);
            let end = later.map_or(self.records.len(), |later| from + 1 + later);
            let call = self.manner.cuts.next(self.records, from, end);
            let batch = batch_of(&self.records[call.clone()], from)?;
            time = time.max(batch.header().max_timestamp);
            self.run.bytes_in += batch.bytes().len() as u64;
            self.port.append(self.source, &batch, time);
            while !self.over && self.position() < offset(call.end) {
                self.round().await?;
            }
            from = call.end;
        }
        Ok(())
    }

    /// Behind the last record, the log's time goes on.
    async fn time_passes(&mut self) -> Result<(), RehearsalError> {
        let last = self.records.iter().map(|record| record.timestamp).max().unwrap_or_default();
        let end = last.plus_ms(self.run_timers_for_ms);
        self.pass(end).await?;
        self.port.tick(end);
        // Those that were set in the past.
        self.pass(end).await
    }

    fn finish(mut self) -> Run {
        if let Some(task) = self.port.task(self.task.deployment, PARTITION) {
            self.run.entries = task.entries;
            self.run.timers = task.timers;
        }
        self.run
    }

    /// Fires the timers that are due up to a time, each at its own.
    async fn pass(&mut self, to: Timestamp) -> Result<(), RehearsalError> {
        while let Some(at) = self.port.next_timer(self.task.deployment, PARTITION).filter(|at| *at <= to) {
            if self.over {
                break;
            }
            self.port.tick(at);
            self.round().await?;
        }
        Ok(())
    }

    fn position(&self) -> Offset {
        let view = self.port.view(self.task);
        let position = view.and_then(|view| view.positions.first().map(|(_, at)| *at));
        position.unwrap_or(Offset::ZERO)
    }

    async fn round(&mut self) -> Result<(), RehearsalError> {
        if self.manner.fresh {
            self.runner.discard();
            // Timers that are due together need not come together.
            self.runner.limit_timers(1);
        }
        self.meter.take();
        let before = self.position();
        match self.runner.round().await {
            Ok(Progress::More) => self.look(before)?,
            Ok(Progress::Idle(_) | Progress::NotRunning) => {
                let reason = self.runner.waits().unwrap_or("the task has nothing to do").to_owned();
                self.stop(reason);
            }
            Err(Setback::Plugin { failure, .. }) => self.stop(failure.message),
            Err(Setback::Broker(reason) | Setback::Outdated(reason)) => self.stop(reason),
        }
        Ok(())
    }

    /// What the round did.
    fn look(&mut self, before: Offset) -> Result<(), RehearsalError> {
        let cost = self.meter.take();
        let now = self.port.now();
        let after = self.position();
        let notes = self.runner.notes();
        let Some(given) = &notes.given else { return Ok(()) };
        if let Some(failure) = &notes.failure {
            let at = match given {
                Given::Records { first, count: 1 } => FailedAt::Record(number(*first)),
                Given::Records { first, count } => FailedAt::Records(number(*first)..number(*first) + count),
                Given::Timers(due) => match &due[..] {
                    [one] => FailedAt::Timer(one.key.clone()),
                    several => FailedAt::Timers(several.len()),
                },
            };
            // Behind what fails even alone there is nothing to learn. What fails only together goes on in halves.
            self.over = matches!(at, FailedAt::Record(_) | FailedAt::Timer(_));
            if self.over {
                // More exact than what it was part of.
                self.run.failure = None;
            }
            self.run.failed(at, failure.clone());
            return Ok(());
        }
        let call = self.run.calls.len();
        match given {
            Given::Records { .. } => {
                let rejected: BTreeMap<Offset, &String> =
                    notes.disposed.iter().map(|(offset, reason)| (*offset, reason)).collect();
                let handled: Range<usize> = number(before)..number(after);
                self.run.verdicts.extend(handled.clone().map(|record| Verdict {
                    answer: match rejected.get(&offset(record)) {
                        Some(reason) => Answer::Rejected((*reason).clone()),
                        None => Answer::Handled,
                    },
                    call,
                }));
                self.run.answered(handled, 0, now, cost);
            }
            Given::Timers(due) => {
                let fired = due.iter().map(|due| FiredTimer { key: due.key.clone(), at: due.at, call });
                self.run.fired.extend(fired);
                self.run.answered(0..0, due.len(), now, cost);
                self.count_timer_call(now);
            }
        }
        self.emitted(call)
    }

    fn count_timer_call(&mut self, now: Timestamp) {
        self.timer_calls += 1;
        let (at, calls) = self.timer_calls_at_once;
        self.timer_calls_at_once = if at == now { (at, calls + 1) } else { (now, 1) };
        if self.timer_calls_at_once.1 > TIMER_CALLS_AT_ONCE_MAX {
            self.stop(format!(
                "timers set each other for ever: {TIMER_CALLS_AT_ONCE_MAX} calls with timers at one time of the log"
            ));
        } else if self.timer_calls > TIMER_CALLS_MAX {
            self.stop(format!(
                "{TIMER_CALLS_MAX} calls with timers: rehearse with records that lie closer together"
            ));
        }
    }

    /// What the call has put into the targets.
    fn emitted(&mut self, call: usize) -> Result<(), RehearsalError> {
        for target in &mut self.targets {
            for batch in self.port.batches(target.partition, target.seen) {
                target.seen += 1;
                self.emitted_bytes += batch.len();
                self.run.bytes_out += batch.len() as u64;
                // The step was checked with it.
                let records = records_of(&batch).unwrap_or_default();
                self.run.emitted.extend(records.into_iter().map(|(_, record)| EmittedRecord {
                    target: target.target,
                    partition: target.partition.partition.get(),
                    record,
                    call,
                }));
            }
        }
        if self.emitted_bytes > EMITTED_BYTES_MAX {
            let record = self.run.verdicts.len().saturating_sub(1);
            return Err(RehearsalError::TooMuchOutput { record, bytes_max: EMITTED_BYTES_MAX });
        }
        Ok(())
    }

    /// The task can't go on.
    fn stop(&mut self, reason: String) {
        self.over = true;
        let at = number(self.position()).min(self.records.len().saturating_sub(1));
        self.run.failed(FailedAt::Record(at), CallFailure { kind: CallFailureKind::Broker, message: reason });
    }
}

fn number(offset: Offset) -> usize {
    usize::try_from(offset.since(Offset::ZERO)).unwrap_or(usize::MAX)
}

/// Topics of a rehearsal need no more than to differ.
fn topic(number: u64) -> TopicId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&(number + 1).to_be_bytes());
    TopicId::from_slice(&bytes).expect("16 bytes make an id")
}
