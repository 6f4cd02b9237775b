//! The events that show what was found, gathered in a second look at the history: so the first need not remember lines.

use std::collections::HashMap;

use crate::event::{Damaged, Event};
use crate::finding::{Evidence, Finding, Kind};
use crate::ids::{RecordId, Run, TopicPartition};

/// Events that a finding shows.
pub const EVIDENCE_MAX: usize = 12;

/// Finds the events of findings.
#[derive(Debug, Default)]
pub(crate) struct Seeker {
    by_record: HashMap<RecordId, Vec<usize>>,
    by_place: HashMap<TopicPartition, Vec<(u64, usize)>>,
    by_transaction: HashMap<u64, Vec<usize>>,
    by_group: HashMap<String, Vec<usize>>,
    /// Kinds that speak of replicas' and logs' ends, by partition.
    by_partition: HashMap<TopicPartition, Vec<usize>>,
    by_process: HashMap<String, Vec<usize>>,
    found: Vec<Vec<Evidence>>,
}

impl Seeker {
    pub(crate) fn new(findings: &[Finding]) -> Self {
        let mut seeker = Self { found: vec![Vec::new(); findings.len()], ..Self::default() };
        for (number, finding) in findings.iter().enumerate() {
            for id in &finding.records {
                seeker.by_record.entry(*id).or_default().push(number);
            }
            if let Some(partition) = &finding.partition {
                let places = seeker.by_place.entry(partition.clone()).or_default();
                places.extend(finding.offsets.iter().map(|offset| (*offset, number)));
                if finding.kind == Kind::OffsetGap {
                    // Nothing lies there: its neighbours show it.
                    let beside = |offset: &u64| [offset.saturating_sub(1), offset + 1];
                    places.extend(finding.offsets.iter().flat_map(beside).map(|offset| (offset, number)));
                }
            }
            if let Some(transaction) = finding.transaction {
                seeker.by_transaction.entry(transaction).or_default().push(number);
            }
            if let Some(group) = &finding.group {
                seeker.by_group.entry(group.clone()).or_default().push(number);
            }
            let of_replicas = [
                Kind::MissingOnReplica,
                Kind::SegmentsDiffer,
                Kind::LogStartBack,
                Kind::OffsetGap,
                Kind::TaskPosition,
            ];
            if let (Some(partition), true) = (&finding.partition, of_replicas.contains(&finding.kind)) {
                seeker.by_partition.entry(partition.clone()).or_default().push(number);
            }
            for process in &finding.processes {
                seeker.by_process.entry(process.clone()).or_default().push(number);
            }
        }
        seeker
    }

    /// An event of the history.
    pub(crate) fn see(&mut self, line: u64, event: &Event) {
        let wanted = match event {
            Event::Send { records, .. }
            | Event::Sent { records, .. }
            | Event::Failed { records }
            | Event::Unknown { records } => {
                let of_record = records.ids().filter_map(|id| self.by_record.get(&id));
                of_record.flatten().map(|number| (*number, shown(event))).collect()
            }
            Event::Poll { process, partition, runs, damaged, .. } => {
                self.of_read(&format!("{process} polled"), partition, runs, damaged)
            }
            Event::Stored { broker, partition, runs, damaged } => {
                self.of_read(&format!("broker {broker} has"), partition, runs, damaged)
            }
            Event::Seek { process, partition, .. } => {
                let of_partition = self.by_place.get(partition);
                let is_of =
                    |number: &&usize| of_partition.is_some_and(|all| all.iter().any(|(_, n)| n == *number));
                let numbers = self.by_process.get(process).into_iter().flatten().filter(is_of);
                numbers.map(|number| (*number, shown(event))).collect()
            }
            Event::Drained { process, .. } | Event::Consumer { process, .. } => {
                every(self.by_process.get(process), event)
            }
            Event::Begin { transaction, .. }
            | Event::End { transaction, .. }
            | Event::Ended { transaction, .. } => every(self.by_transaction.get(transaction), event),
            Event::Commit { group, .. } | Event::Committed { group, .. } | Event::Position { group, .. } => {
                every(self.by_group.get(group), event)
            }
            Event::Replica { partition, .. } | Event::LogStart { partition, .. } => {
                every(self.by_partition.get(partition), event)
            }
            Event::Output { partition, offset, .. } => {
                let places = self.by_place.get(partition).into_iter().flatten();
                places
                    .filter(|(place, _)| place == offset)
                    .map(|(_, number)| (*number, shown(event)))
                    .collect()
            }
            Event::Task { task, .. } => every(self.by_process.get(task), event),
            _ => Vec::new(),
        };
        for (number, text) in wanted {
            self.add(number, line, text);
        }
    }

    /// Gives each finding what was found for it.
    pub(crate) fn give(self, findings: &mut [Finding]) {
        for (finding, found) in findings.iter_mut().zip(self.found) {
            finding.evidence = found;
        }
    }

    /// Of what was read, what concerns a finding.
    fn of_read(
        &self,
        who: &str,
        partition: &TopicPartition,
        runs: &[Run],
        damaged: &[Damaged],
    ) -> Vec<(usize, String)> {
        let places = self.by_place.get(partition).map_or(&[][..], Vec::as_slice);
        let mut wanted: Vec<(usize, String)> = Vec::new();
        let mut add = |number: usize, offset: u64, what: &str| {
            let text = format!("{offset}: {what}");
            match wanted.iter_mut().find(|(known, _)| *known == number) {
                Some((_, known)) => *known = format!("{known}, {text}"),
                None => wanted.push((number, format!("{who} {partition} at {text}"))),
            }
        };
        for (offset, id) in runs.iter().flat_map(|run| run.records()) {
            let of_record = self.by_record.get(&id).into_iter().flatten().copied();
            let of_place = places.iter().filter(|(place, _)| *place == offset).map(|(_, number)| *number);
            let mut numbers: Vec<usize> = of_record.chain(of_place).collect();
            numbers.sort_unstable();
            numbers.dedup();
            for number in numbers {
                add(number, offset, &id.to_string());
            }
        }
        for record in damaged {
            for (_, number) in places.iter().filter(|(place, _)| *place == record.offset) {
                add(*number, record.offset, &record.what);
            }
        }
        wanted
    }

    fn add(&mut self, number: usize, line: u64, text: String) {
        let found = &mut self.found[number];
        if found.len() < EVIDENCE_MAX && found.last().is_none_or(|last| last.line != line) {
            found.push(Evidence { line, text });
        }
    }
}

fn every(numbers: Option<&Vec<usize>>, event: &Event) -> Vec<(usize, String)> {
    numbers.into_iter().flatten().map(|number| (*number, shown(event))).collect()
}

/// As the history has it.
fn shown(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}
