//! Hosted consumers, beside their models.

use std::collections::BTreeMap;

use crate::error::EventError;
use crate::event::TaskInput;
use crate::facts::{Entry, Facts};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::TopicPartition;
use crate::model::{Input, Mismatch, Model};

/// Models by task, and where the tasks stand.
#[derive(Default)]
pub(crate) struct Tasks {
    models: BTreeMap<String, Box<dyn Model>>,
    ends: BTreeMap<String, (Vec<TaskInput>, bool)>,
}

impl Tasks {
    pub(crate) fn add(&mut self, task: &str, model: Box<dyn Model>) {
        self.models.insert(task.to_owned(), model);
    }

    pub(crate) fn output(&mut self, task: &str, partition: &TopicPartition, offset: u64, value: &str) {
        if let Some(model) = self.models.get_mut(task) {
            model.output(partition, offset, value);
        }
    }

    pub(crate) fn state(&mut self, task: &str, key: &str, value: &str) {
        if let Some(model) = self.models.get_mut(task) {
            model.state(key, value);
        }
    }

    pub(crate) fn end(
        &mut self,
        facts: &mut Facts,
        task: &str,
        inputs: &[TaskInput],
        is_drained: bool,
    ) -> Result<(), EventError> {
        for input in inputs {
            facts.slot(&input.partition)?;
        }
        self.ends.insert(task.to_owned(), (inputs.to_vec(), is_drained));
        Ok(())
    }

    /// Tasks that the history ends, and that have no model.
    pub(crate) fn without_model(&self) -> u64 {
        self.ends.keys().filter(|task| !self.models.contains_key(*task)).count() as u64
    }

    pub(crate) fn at_end(&mut self, facts: &mut Facts) -> Result<(), EventError> {
        for (number, (task, (inputs, is_drained))) in (0u64..).zip(&self.ends) {
            for input in inputs {
                check_position(facts, task, input, *is_drained)?;
            }
            let Some(model) = self.models.get_mut(task) else { continue };
            for input in inputs {
                replay(facts, model.as_mut(), input)?;
            }
            let mismatches = model.finish();
            facts.findings.checks += 1;
            for (nth, mismatch) in (0u64..).zip(mismatches) {
                let finding = match mismatch {
                    Mismatch::State { what } => Finding::new(Kind::TaskState, format!("{task}: {what}")),
                    Mismatch::Output { at, what } => {
                        let finding = Finding::new(Kind::TaskOutput, format!("{task}: {what}"));
                        match at {
                            Some((partition, offset)) => finding.at(&partition, &[offset]),
                            None => finding,
                        }
                    }
                };
                facts.findings.add((number << 32) | nth, finding.process(task));
            }
        }
        // A task of which nobody said where it stands has no inputs to replay.
        Ok(())
    }
}

fn check_position(
    facts: &mut Facts,
    task: &str,
    input: &TaskInput,
    is_drained: bool,
) -> Result<(), EventError> {
    let slot = facts.slot(&input.partition)?;
    let log = facts.log(slot);
    if !log.is_settled() {
        return Ok(());
    }
    let end = log.replicas.values().map(|replica| replica.end).max().unwrap_or(0);
    let is_right = if is_drained { input.next == end } else { input.next <= end };
    facts.findings.check(is_right && input.from <= input.next, place_key(slot, input.next), || {
        let partition = &input.partition;
        let what = format!("{task} stands at {} of {partition}, which ends at {end}", input.next);
        Finding::new(Kind::TaskPosition, what).at(partition, &[input.next, end]).process(task)
    });
    Ok(())
}

fn replay(facts: &mut Facts, model: &mut dyn Model, input: &TaskInput) -> Result<(), EventError> {
    let slot = facts.slot(&input.partition)?;
    let log = &facts.logs[usize::from(slot)];
    // Where replicas were read, they say what there is; else, whatever anybody knows.
    let is_there = |entry: &Entry| !log.is_settled() || entry.is(Entry::STORED);
    for (offset, entry) in log.iter(input.from, input.next).filter(|(_, entry)| is_there(entry)) {
        if facts.is_committed(entry.id()) {
            model.input(&Input { partition: &input.partition, offset, id: entry.id() });
        }
    }
    Ok(())
}
