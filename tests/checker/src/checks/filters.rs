//! Consumers with a filter that is known: they are given what passes it, all of it, and nothing else.

use std::collections::HashMap;

use super::losses::must_be_there;
use crate::facts::{Facts, Passed, Record};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::RecordId;
use crate::pages::Bits;

/// Filters by consumer.
#[derive(Default)]
pub(crate) struct Filters {
    filters: HashMap<String, Filter>,
}

struct Filter {
    passes: Box<dyn Fn(RecordId) -> bool>,
    /// By slot.
    given: HashMap<u16, Given>,
}

/// What a consumer was given of a partition.
#[derive(Debug, Default)]
struct Given {
    offsets: Bits,
    /// What it went through: from, to, and how.
    ranges: Vec<(u64, u64, Passed)>,
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.filters.keys()).finish()
    }
}

impl Filters {
    pub(crate) fn add(&mut self, process: &str, passes: Box<dyn Fn(RecordId) -> bool>) {
        self.filters.insert(process.to_owned(), Filter { passes, given: HashMap::new() });
    }

    pub(crate) fn given(&mut self, process: &str, slot: u16, offset: u64) {
        if let Some(filter) = self.filters.get_mut(process) {
            filter.given.entry(slot).or_default().offsets.insert(offset);
        }
    }

    pub(crate) fn passed(&mut self, process: &str, slot: u16, (from, to): (u64, u64), how: Passed) {
        let Some(filter) = self.filters.get_mut(process).filter(|_| from < to) else { return };
        let ranges = &mut filter.given.entry(slot).or_default().ranges;
        match ranges.last_mut() {
            Some(last) if last.1 == from && last.2 == how => last.1 = to,
            _ => ranges.push((from, to, how)),
        }
    }

    pub(crate) fn at_end(&self, facts: &mut Facts) {
        for (process, filter) in &self.filters {
            for (slot, given) in &filter.given {
                for range in &given.ranges {
                    filter.check(facts, process, *slot, (given, *range));
                }
            }
        }
    }
}

impl Filter {
    fn check(
        &self,
        facts: &mut Facts,
        process: &str,
        slot: u16,
        (given, (from, to, how)): (&Given, (u64, u64, Passed)),
    ) {
        if facts.topics.topic_of(slot).is_compacted {
            return;
        }
        let log = std::mem::take(facts.log(slot));
        for (offset, entry) in log.iter(from, to) {
            let (id, is_given) = (entry.id(), given.offsets.contains(offset));
            let passes = (self.passes)(id);
            let of = |finding: Finding, facts: &Facts| {
                finding.at(facts.topics.name(slot), &[offset]).records(&[id]).process(process)
            };
            if is_given && !passes {
                let what = format!("{process} was given {id} at {offset}, which its filter leaves out");
                let finding = of(Finding::new(Kind::UnwantedRead, what), facts);
                facts.findings.add(place_key(slot, offset), finding);
            }
            // What is lost is told as that; what is trimmed may have been gone when it came by.
            let is_there = offset >= log.log_start && facts.record(id).is(Record::READ);
            let is_missed = passes && !is_given && is_there && must_be_there(facts, &log, offset, entry);
            facts.findings.checks += 1;
            if is_missed {
                let (kind, what) = match how {
                    Passed::AtEnd => (Kind::Unseen, "had read to the end, and was not given"),
                    Passed::BetweenPolls | Passed::WithinPoll => (Kind::PollSkip, "was not given"),
                };
                let what = format!("{process} {what} {id} at {offset}, which passes its filter");
                let finding = of(Finding::new(kind, what), facts);
                facts.findings.add(place_key(slot, offset), finding);
            }
        }
        *facts.log(slot) = log;
    }
}
