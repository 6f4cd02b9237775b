//! The order of one producer's records in a partition: the one in which they were sent.

use std::collections::HashMap;

use crate::facts::{Facts, Place, Record, Topics};
use crate::finding::{Finding, Findings, Kind};
use crate::ids::RecordId;

/// The last record of a partition, by what its producer was told, and by what was read.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    told: Option<(u64, RecordId)>,
    found: Option<(u64, RecordId)>,
}

pub(crate) fn at_end(facts: &mut Facts) {
    let (topics, logs, findings) = (&facts.topics, &facts.logs, &mut facts.findings);
    for (number, producer) in facts.producers.iter().filter(|(_, producer)| producer.is_idempotent) {
        let mut last: HashMap<u16, Last> = HashMap::new();
        for (sequence, record) in producer.records() {
            let Some(place) = record.place() else { continue };
            let id = RecordId::new(*number, sequence);
            let last = last.entry(place.slot).or_default();
            let said = |finding: Finding| finding.process(&producer.process);
            let mut was_in_order = true;
            if record.is(Record::ACKNOWLEDGED_THERE) {
                let before = last.told.replace((place.offset, id));
                was_in_order = check(findings, topics, Kind::NonmonotonicSend, before, (place, id), said);
            }
            // What was acknowledged here and lies elsewhere is told as that.
            if !record.is(Record::READ) || logs[usize::from(place.slot)].is_read_at(place.offset, id) {
                let before = last.found.replace((place.offset, id)).filter(|_| was_in_order);
                check(findings, topics, Kind::Reordered, before, (place, id), said);
            }
        }
    }
}

/// Whether a record lies behind the one before it.
fn check(
    findings: &mut Findings,
    topics: &Topics,
    kind: Kind,
    before: Option<(u64, RecordId)>,
    (place, id): (Place, RecordId),
    said: impl FnOnce(Finding) -> Finding,
) -> bool {
    let Some((offset, other)) = before else { return true };
    // Two records at one offset are told as that.
    let is_behind = offset <= place.offset;
    findings.check(is_behind, id.packed(), || {
        let name = topics.name(place.slot);
        let lies = if kind == Kind::NonmonotonicSend { "was acknowledged" } else { "lies" };
        let what =
            format!("{other} {lies} in {name} at {offset}, and {id}, sent after it, at {}", place.offset);
        said(Finding::new(kind, what).at(name, &[offset, place.offset]).records(&[other, id]))
    });
    is_behind
}
