//! Records that were found in more than one place, and places with more than one record.

use crate::facts::{Entry, Facts, Moved, Place, Record, Topics};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::RecordId;

/// A record that its producer's retries must leave in one place.
pub(crate) fn twice(topics: &Topics, id: RecordId, first: Place, then: Place) -> Finding {
    let (name, other) = (topics.name(then.slot), topics.name(first.slot));
    let what = format!("{id} lies in {other} at {} and in {name} at {}", first.offset, then.offset);
    let offsets = [first.offset, then.offset];
    Finding::new(Kind::Duplicate, what)
        .at(name, if other == name { &offsets } else { &offsets[1..] })
        .records(&[id])
}

/// Tells moved records from doubled ones, now that it is known what was read where.
pub(crate) fn at_end(facts: &mut Facts) {
    for Moved { id, first, then } in std::mem::take(&mut facts.moved) {
        let log = &facts.logs[usize::from(first.slot)];
        let is_there_too = log.is_read_at(first.offset, id) || log.damaged.contains(&first.offset);
        let is_idempotent = facts.is_idempotent(id);
        // A copy that nobody happened to read does not make the other a wrong one.
        let other_is_read = log.get(first.offset).is_some_and(|entry| entry.is(Entry::READ));
        let is_allowed = !is_idempotent && (is_there_too || !(other_is_read || log.is_settled()));
        facts.findings.check(is_allowed, id.packed(), || {
            if is_there_too {
                return twice(&facts.topics, id, first, then);
            }
            let name = facts.topics.name(then.slot);
            let what = format!(
                "{id} was acknowledged in {} at {} and read in {name} at {}",
                facts.topics.name(first.slot),
                first.offset,
                then.offset
            );
            Finding::new(Kind::Misplaced, what).at(name, &[first.offset, then.offset]).records(&[id])
        });
    }
    for conflict in std::mem::take(&mut facts.conflicts) {
        let (place, lost) = (conflict.place, conflict.acknowledged);
        // What was read elsewhere is told as that.
        let is_elsewhere = facts.record(lost).is(Record::READ);
        facts.findings.check(is_elsewhere, place_key(place.slot, place.offset), || {
            let name = facts.topics.name(place.slot);
            let what = format!(
                "{name} offset {} was acknowledged for {lost} and holds {}; {lost} is nowhere",
                place.offset, conflict.read
            );
            let records = [lost, conflict.read];
            Finding::new(Kind::InconsistentOffsets, what).at(name, &[place.offset]).records(&records)
        });
    }
}
