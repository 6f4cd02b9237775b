//! Consumers: each goes on where it was, record by record, unless it is sent elsewhere.

use std::collections::HashMap;

use super::filters::Filters;
use super::reads::{Reader, damaged, read};
use crate::error::EventError;
use crate::event::Damaged;
use crate::facts::{Facts, Passed, Place, Skip};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::{Run, TopicPartition};

/// Consumers, and where they are.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
    consumers: Vec<Consumer>,
    pub(crate) filters: Filters,
}

#[derive(Debug, Default)]
struct Consumer {
    may_skip: bool,
    is_committed: bool,
    /// What comes next, by slot.
    next: HashMap<u16, u64>,
}

impl Polls {
    pub(crate) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", String::as_str)
    }

    pub(crate) fn begin(&mut self, process: &str, may_skip: bool, is_committed: bool) {
        let number = self.number(process);
        self.consumers[number as usize] = Consumer { may_skip, is_committed, next: HashMap::new() };
    }

    pub(crate) fn assign(
        &mut self,
        facts: &mut Facts,
        process: &str,
        partitions: &[TopicPartition],
    ) -> Result<(), EventError> {
        let slots: Result<Vec<u16>, _> = partitions.iter().map(|partition| facts.slot(partition)).collect();
        let (slots, number) = (slots?, self.number(process));
        self.consumers[number as usize].next.retain(|slot, _| slots.contains(slot));
        Ok(())
    }

    pub(crate) fn subscribe(&mut self, process: &str) {
        let number = self.number(process);
        self.consumers[number as usize].next.clear();
    }

    pub(crate) fn seek(
        &mut self,
        facts: &mut Facts,
        process: &str,
        partition: &TopicPartition,
        next: Option<u64>,
    ) -> Result<(), EventError> {
        let (slot, number) = (facts.slot(partition)?, self.number(process));
        let positions = &mut self.consumers[number as usize].next;
        match next {
            Some(next) => positions.insert(slot, next),
            None => positions.remove(&slot),
        };
        Ok(())
    }

    pub(crate) fn poll(
        &mut self,
        facts: &mut Facts,
        process: &str,
        partition: &TopicPartition,
        given: (&[Run], &[Damaged], Option<u64>),
    ) -> Result<(), EventError> {
        let (runs, bad, position) = given;
        let (slot, number) = (facts.slot(partition)?, self.number(process));
        let consumer = &mut self.consumers[number as usize];
        let reader = Reader { process, is_committed: consumer.is_committed, is_final: false };
        for record in bad {
            damaged(facts, reader, slot, record);
        }
        let mut next = consumer.next.get(&slot).copied();
        let first = runs.iter().map(|run| run.offset).chain(bad.iter().map(|record| record.offset)).min();
        let begun = next.or(first).or(position);
        let mut how = Passed::BetweenPolls;
        let records = runs.iter().flat_map(|run| run.records());
        for (offset, id) in records {
            check_step(facts, reader, slot, (next, offset), how);
            if !consumer.may_skip {
                passed_over(facts, number, reader, slot, (next.unwrap_or(offset), offset), how);
            }
            next = Some(offset + 1);
            how = Passed::WithinPoll;
            self.filters.given(process, slot, offset);
            read(facts, reader, id, Place { slot, offset })?;
        }
        let last_bad = bad.iter().map(|record| record.offset + 1).max();
        if let Some(position) = position.max(last_bad) {
            check_step(facts, reader, slot, (next, position), how);
            if !consumer.may_skip {
                passed_over(facts, number, reader, slot, (next.unwrap_or(position), position), how);
            }
            next = Some(position);
        }
        if let (Some(begun), Some(next)) = (begun, next) {
            consumer.next.insert(slot, next);
            self.filters.passed(process, slot, (begun, next), Passed::BetweenPolls);
        }
        Ok(())
    }

    pub(crate) fn drained(
        &mut self,
        facts: &mut Facts,
        process: &str,
        partition: &TopicPartition,
    ) -> Result<(), EventError> {
        let (slot, number) = (facts.slot(partition)?, self.number(process));
        let consumer = &self.consumers[number as usize];
        let Some(next) = consumer.next.get(&slot).copied() else { return Ok(()) };
        let Some((last, _)) = facts.log(slot).latest.of_all else { return Ok(()) };
        self.filters.passed(process, slot, (next, last + 1), Passed::AtEnd);
        if !consumer.may_skip {
            let reader = Reader { process, is_committed: consumer.is_committed, is_final: false };
            passed_over(facts, number, reader, slot, (next, last + 1), Passed::AtEnd);
        }
        Ok(())
    }

    fn number(&mut self, process: &str) -> u32 {
        if let Some(number) = self.numbers.get(process) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(process.to_owned(), number);
        self.names.push(process.to_owned());
        self.consumers.push(Consumer::default());
        number
    }
}

/// A consumer goes forward.
fn check_step(
    facts: &mut Facts,
    reader: Reader<'_>,
    slot: u16,
    (next, offset): (Option<u64>, u64),
    how: Passed,
) {
    let Some(next) = next else { return };
    facts.findings.check(offset >= next, place_key(slot, offset), || {
        let name = facts.topics.name(slot);
        let (kind, when) = match how {
            Passed::WithinPoll => (Kind::InternalNonmonotonicPoll, "within a poll"),
            Passed::BetweenPolls | Passed::AtEnd => (Kind::NonmonotonicPoll, "where nobody had sent it"),
        };
        let what =
            format!("{} was given {name} offset {offset} when {next} was next, {when}", reader.process);
        let offsets = [next.saturating_sub(1), offset];
        Finding::new(kind, what).at(name, &offsets).process(reader.process)
    });
}

/// Whether there was anything is seen at the end, when it is known what lies there.
fn passed_over(
    facts: &mut Facts,
    number: u32,
    reader: Reader<'_>,
    slot: u16,
    (from, to): (u64, u64),
    how: Passed,
) {
    if from < to {
        let skip = Skip { from, to, how, is_committed: reader.is_committed };
        facts.log(slot).skips.entry(skip).or_insert(number);
    }
}
