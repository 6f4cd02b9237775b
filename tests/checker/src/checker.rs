use crate::checks::groups::Groups;
use crate::checks::polls::Polls;
use crate::checks::replicas::LogStarts;
use crate::checks::sends::Sends;
use crate::checks::tasks::Tasks;
use crate::checks::{losses, order, places, replicas, transactions};
use crate::error::EventError;
use crate::event::Event;
use crate::facts::{Facts, Producer, Topic};
use crate::ids::RecordId;
use crate::limits;
use crate::model::Model;
use crate::report::Report;

/// Looks at a history's events in their order, and says in the end what was wrong.
///
/// It remembers sixteen bytes of each record, eight by its producer and eight by its place, and of consumers, groups and transactions
/// where they stand.
#[derive(Default)]
pub struct Checker {
    facts: Facts,
    sends: Sends,
    polls: Polls,
    groups: Groups,
    log_starts: LogStarts,
    tasks: Tasks,
    events: u64,
    acknowledged: u64,
    read: u64,
}

impl Checker {
    /// A checker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a task must have done. A task without a model is checked for where it stands only.
    #[must_use]
    pub fn with_model(mut self, task: &str, model: impl Model + 'static) -> Self {
        self.tasks.add(task, Box::new(model));
        self
    }

    /// What passes the filter of a consumer, which must have been told of as one with gaps. Without this nobody knows which records it
    /// should have been given.
    #[must_use]
    pub fn with_filter(mut self, process: &str, passes: impl Fn(RecordId) -> bool + 'static) -> Self {
        self.polls.filters.add(process, Box::new(passes));
        self
    }

    /// The next event.
    ///
    /// # Errors
    ///
    /// An event that can't be: the history is broken, not what it tells of.
    pub fn observe(&mut self, event: &Event) -> Result<(), EventError> {
        limits::check(event)?;
        self.events += 1;
        match event {
            Event::Note { .. } => Ok(()),
            Event::Topic { topic, partitions, dense, compacted } => {
                let holds = Topic { partitions: *partitions, is_dense: *dense, is_compacted: *compacted };
                self.facts.topics.declare(topic, holds);
                Ok(())
            }
            Event::Producer { .. }
            | Event::Send { .. }
            | Event::Sent { .. }
            | Event::Failed { .. }
            | Event::Unknown { .. } => self.produce(event),
            Event::Consumer { .. }
            | Event::Assign { .. }
            | Event::Subscribe { .. }
            | Event::Seek { .. }
            | Event::Poll { .. }
            | Event::Drained { .. } => self.consume(event),
            Event::LogStart { process, partition, offset } => {
                self.log_starts.told(&mut self.facts, process, partition, *offset)
            }
            Event::Commit { group, partition, offset } => {
                self.groups.commit(&mut self.facts, group, partition, *offset)
            }
            Event::Committed { group, partition, offset } => {
                self.groups.committed(&mut self.facts, group, partition, *offset)
            }
            Event::Position { group, partition, offset } => {
                self.groups.position(&mut self.facts, group, partition, *offset)
            }
            Event::Begin { transaction, .. } => {
                transactions::begin(&mut self.facts, *transaction);
                Ok(())
            }
            Event::End { transaction, commit } => {
                transactions::end(&mut self.facts, *transaction, *commit);
                Ok(())
            }
            Event::Ended { transaction, committed } => {
                transactions::ended(&mut self.facts, *transaction, *committed);
                Ok(())
            }
            Event::Replica { broker, partition, log_start, end, segments } => {
                replicas::replica(&mut self.facts, *broker, partition, (*log_start, *end), segments)
            }
            Event::Stored { broker, partition, runs, damaged } => {
                self.read += runs.iter().map(|run| u64::from(run.span.count)).sum::<u64>();
                replicas::stored(&mut self.facts, *broker, partition, runs, damaged)
            }
            Event::Output { task, partition, offset, value } => {
                self.tasks.output(task, partition, *offset, value);
                Ok(())
            }
            Event::State { task, key, value } => {
                self.tasks.state(task, key, value);
                Ok(())
            }
            Event::Task { task, inputs, drained } => self.tasks.end(&mut self.facts, task, inputs, *drained),
        }
    }

    fn produce(&mut self, event: &Event) -> Result<(), EventError> {
        let facts = &mut self.facts;
        match event {
            Event::Producer { producer, process, topic, idempotent } => {
                facts
                    .producers
                    .entry(*producer)
                    .or_insert_with(|| Producer::new(process, topic, *idempotent));
                Ok(())
            }
            Event::Send { records, partition, transaction } => {
                self.sends.send(facts, *records, *partition, *transaction)
            }
            Event::Sent { records, partition, offset, .. } => {
                self.acknowledged += u64::from(records.count);
                self.sends.sent(facts, *records, *partition, *offset)
            }
            Event::Failed { records } => self.sends.failed(facts, *records),
            // It is what a record is without another outcome.
            Event::Unknown { records } => facts.producer(records.first.producer).map(|_| ()),
            _ => Ok(()),
        }
    }

    fn consume(&mut self, event: &Event) -> Result<(), EventError> {
        let (facts, polls) = (&mut self.facts, &mut self.polls);
        match event {
            Event::Consumer { process, gaps, committed } => {
                polls.begin(process, *gaps, *committed);
                Ok(())
            }
            Event::Assign { process, partitions } => polls.assign(facts, process, partitions),
            Event::Subscribe { process } => {
                polls.subscribe(process);
                Ok(())
            }
            Event::Seek { process, partition, next } => polls.seek(facts, process, partition, *next),
            Event::Poll { process, partition, runs, damaged, next } => {
                self.read += runs.iter().map(|run| u64::from(run.span.count)).sum::<u64>();
                polls.poll(facts, process, partition, (runs, damaged, *next))
            }
            Event::Drained { process, partition } => polls.drained(facts, process, partition),
            _ => Ok(()),
        }
    }

    /// The history is over.
    ///
    /// # Errors
    ///
    /// As [`observe`](Self::observe).
    pub fn finish(mut self) -> Result<Report, EventError> {
        places::at_end(&mut self.facts);
        order::at_end(&mut self.facts);
        losses::at_end(&mut self.facts, &self.polls);
        self.polls.filters.at_end(&mut self.facts);
        replicas::segments_at_end(&mut self.facts);
        self.tasks.at_end(&mut self.facts)?;
        let findings = self.facts.findings;
        Ok(Report {
            events: self.events,
            acknowledged: self.acknowledged,
            read: self.read,
            checks: findings.checks,
            tasks_without_model: self.tasks.without_model(),
            counts: findings.counts,
            findings: findings.kept,
        })
    }
}
