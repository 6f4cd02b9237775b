//! What becomes of a call that failed, and of records that a plugin rejects.

use tidemill_protocol::{Offset, TopicPartition};
use tidemill_wasm::Outcome;

use super::attempts::Next;
use super::outputs::Outputs;
use super::reading::{SourceRecords, TaskRecord};
use super::runner::{Setback, TaskRunner};
use crate::failure::CallFailure;
use crate::plan::TaskPolicy;
use crate::port::{DueTimer, PositionStep, TaskOutput, TaskRunState, TaskStep};

/// A record that is left out or sent away.
pub(super) struct Disposed {
    pub(super) record: TaskRecord,
    pub(super) reason: String,
}

/// A failure with its kind, which is stable, unlike the words.
fn told(failure: &CallFailure) -> String {
    format!("{} ({})", failure.message, failure.kind.name())
}

impl TaskRunner {
    /// After a call with records that failed: the same again, fewer of them, or the policy. Answers whether the task
    /// has gone past any.
    pub(super) async fn settle(
        &mut self,
        records: &SourceRecords,
        count: usize,
        failure: CallFailure,
        may_pass: bool,
    ) -> Result<bool, Setback> {
        self.tell(&failure);
        self.notes.failure = Some(failure.clone());
        let (attempts, backoff_ms) = (self.parts.plan.attempts, self.parts.plan.backoff_ms);
        match self.records.failed(count, may_pass, attempts, backoff_ms) {
            Next::Again(wait) => {
                self.parts.log.count("retries", 1);
                tokio::time::sleep(wait).await;
                Ok(false)
            }
            Next::Fewer => Ok(false),
            Next::Policy if matches!(self.parts.plan.policy, TaskPolicy::Pause) => {
                self.pause(records, &told(&failure)).await?;
                Ok(false)
            }
            Next::Policy => {
                let alone = records.first(1).iter().cloned();
                let reason = told(&failure);
                let disposed: Vec<Disposed> =
                    alone.map(|record| Disposed { record, reason: reason.clone() }).collect();
                let outputs = self.dead_letters(records, &disposed).await?;
                self.skip_to(records, 1, outputs).await?;
                self.tell_disposed(records, disposed);
                Ok(true)
            }
        }
    }

    /// The same for timers. There is nothing to send away of one.
    pub(super) async fn settle_timers(
        &mut self,
        due: &[DueTimer],
        failure: CallFailure,
        may_pass: bool,
    ) -> Result<(), Setback> {
        self.tell(&failure);
        self.notes.failure = Some(failure.clone());
        let (attempts, backoff_ms) = (self.parts.plan.attempts, self.parts.plan.backoff_ms);
        match self.timers.failed(due.len(), may_pass, attempts, backoff_ms) {
            Next::Again(wait) => {
                self.parts.log.count("retries", 1);
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Next::Fewer => Ok(()),
            Next::Policy if matches!(self.parts.plan.policy, TaskPolicy::Pause) => {
                self.stop_with(format!("stopped at a timer: {}", told(&failure))).await
            }
            Next::Policy => {
                self.parts.log.count("skipped", 1);
                let epoch = self.parts.plan.epoch;
                self.commit(TaskStep { epoch, fired: due.to_vec(), ..TaskStep::default() }).await
            }
        }
    }

    /// The records that the plugin rejected among those that it handled.
    pub(super) fn rejected(records: &SourceRecords, outcome: &Outcome) -> Vec<Disposed> {
        let record = |ordinal: u32| records.records.get(usize::try_from(ordinal).ok()?).cloned();
        outcome
            .rejections
            .iter()
            .filter_map(|rejection| {
                record(rejection.ordinal).map(|record| Disposed { record, reason: rejection.reason.clone() })
            })
            .collect()
    }

    /// What carries records to the dead-letter topic, where that is the policy.
    pub(super) async fn dead_letters(
        &self,
        records: &SourceRecords,
        disposed: &[Disposed],
    ) -> Result<Vec<TaskOutput>, Setback> {
        let TaskPolicy::DeadLetter(target) = &self.parts.plan.policy else { return Ok(Vec::new()) };
        let outputs = Outputs { plan: &self.parts.plan, hosting: &self.parts.hosting };
        let made = outputs.dead_letters(target, &self.source_name(records), disposed).await;
        made.map_err(|failure| Setback::Broker(failure.message))
    }

    /// Logs and counts them, once the step that goes past them is committed.
    pub(super) fn tell_disposed(&mut self, records: &SourceRecords, disposed: Vec<Disposed>) {
        let dead_lettered = matches!(self.parts.plan.policy, TaskPolicy::DeadLetter(_));
        let counter = if dead_lettered { "dead_lettered" } else { "skipped" };
        self.parts.log.count(counter, disposed.len() as u64);
        metrics::counter!("tidemill_task_records_disposed_total", "as" => counter)
            .increment(disposed.len() as u64);
        let source = self.source_name(records);
        for Disposed { record, reason } in disposed {
            self.error(&format!("record at offset {} of {source}: {reason}", record.offset));
            self.notes.disposed.push((record.offset, reason));
        }
    }

    /// With the pause policy nothing behind a rejected record may be done, and nothing before it be lost.
    pub(super) async fn stop_before_rejected(
        &mut self,
        records: &SourceRecords,
        outcome: &Outcome,
    ) -> Result<(), Setback> {
        self.discard();
        let Some(first) = outcome.rejections.first() else { return Ok(()) };
        match usize::try_from(first.ordinal).unwrap_or(0) {
            0 => self.pause(records, &first.reason).await,
            before => {
                // The records before it alone, in a call of their own.
                self.records.limit(before);
                Ok(())
            }
        }
    }

    /// Goes past records without having handled them.
    pub(super) async fn skip_to(
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

    /// Goes past records that retention let go before the task came to them: committed, counted and told, in a step of its own.
    pub(super) async fn go_past_lost(
        &mut self,
        topic: u32,
        source: TopicPartition,
        expected: Offset,
        next: Offset,
    ) -> Result<(), Setback> {
        let step = TaskStep {
            epoch: self.parts.plan.epoch,
            positions: vec![PositionStep { source, expected, next }],
            ..TaskStep::default()
        };
        self.commit(step).await?;
        self.parts.log.count("records_lost", next.since(expected));
        let name = self.name_of(topic, source);
        self.error(&format!(
            "the log of {name} begins at offset {next} now, and the task stood at {expected}: retention let go of what lies \
             between before the task had handled it; it goes on at {next}"
        ));
        Ok(())
    }

    async fn pause(&mut self, records: &SourceRecords, reason: &str) -> Result<(), Setback> {
        let at = records.records.first().map_or(records.position, |record| record.offset);
        let reason = format!(
            "stopped before offset {at} of {}: {reason}; `tidemill deployment resume` tries it again; where it can never \
             be handled, delete the deployment, which forgets its state, and deploy it with another plugin version or \
             --policy, and --from where it is to begin",
            self.source_name(records)
        );
        self.stop_with(reason).await
    }

    async fn stop_with(&mut self, reason: String) -> Result<(), Setback> {
        self.error(&reason);
        metrics::counter!("tidemill_task_pauses_total").increment(1);
        self.parts.log.count("pauses", 1);
        let state = TaskRunState::Paused(reason);
        let noted = self.parts.port.set_state(self.task, self.parts.plan.epoch, state).await;
        noted.map_err(|error| Setback::Broker(error.0))
    }

    fn source_name(&self, records: &SourceRecords) -> String {
        self.name_of(records.topic, records.source)
    }

    pub(super) fn name_of(&self, topic: u32, source: TopicPartition) -> String {
        let topics = &self.parts.plan.plugin.topics;
        match usize::try_from(topic).ok().and_then(|index| topics.get(index)) {
            Some(topic) => format!("{topic}-{}", source.partition),
            None => source.to_string(),
        }
    }
}
