//! What somebody read: by whomever and wherever, it must be what was sent, where it was put.

use super::places::twice;
use super::transactions;
use crate::error::EventError;
use crate::event::Damaged;
use crate::facts::{Conflict, Entry, Facts, Moved, Place, Producer, Record};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::RecordId;

/// Who reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) process: &'a str,
    /// Committed records only.
    pub(crate) is_committed: bool,
    /// It is the final reader of a replica.
    pub(crate) is_final: bool,
}

pub(crate) fn read(facts: &mut Facts, reader: Reader<'_>, id: RecordId, at: Place) -> Result<(), EventError> {
    let record = facts.record(id);
    let is_topics = |producer: &Producer| producer.topic == facts.topics.name(at.slot).topic;
    let is_of_topic = facts.producers.get(&id.producer).is_some_and(is_topics);
    let is_known = record.is(Record::INVOKED) && is_of_topic;
    facts.findings.check(is_known, id.packed(), || {
        let name = facts.topics.name(at.slot);
        let what = format!("{} read {id} in {name} at {}, where nobody sent it", reader.process, at.offset);
        Finding::new(Kind::NeverSent, what).at(name, &[at.offset]).records(&[id]).process(reader.process)
    });
    // What nobody is known to have sent lies there all the same; another topic's records are nobody's here.
    if !is_of_topic {
        return Ok(());
    }
    let is_stored = if reader.is_final { Record::STORED } else { 0 };
    facts.producer(id.producer)?.set(id.sequence, record.with(Record::READ | is_stored));
    facts.findings.check(!record.is(Record::FAILED), id.packed(), || {
        let name = facts.topics.name(at.slot);
        let what = format!(
            "{} read {id} in {name} at {}, which surely failed, as its producer was told",
            reader.process, at.offset
        );
        Finding::new(Kind::AbortedRead, what).at(name, &[at.offset]).records(&[id]).process(reader.process)
    });
    if reader.is_committed {
        transactions::check_read(facts, reader.process, id, at);
    }
    if let Some(sent_to) = record.slot().filter(|slot| *slot != at.slot && !record.is(Record::PLACED)) {
        let name = facts.topics.name(at.slot);
        let what = format!(
            "{} read {id} in {name} at {}, and it was sent to {}",
            reader.process,
            at.offset,
            facts.topics.name(sent_to)
        );
        let finding = Finding::new(Kind::Misplaced, what).at(name, &[at.offset]).records(&[id]);
        facts.findings.add(id.packed(), finding.process(reader.process));
        return Ok(());
    }
    check_offset(facts, reader, id, at);
    check_place(facts, id, at)
}

/// An offset has one record.
fn check_offset(facts: &mut Facts, reader: Reader<'_>, id: RecordId, at: Place) {
    facts.findings.checks += 1;
    let flags = if reader.is_final { Entry::READ | Entry::STORED } else { Entry::READ };
    let log = facts.log(at.slot);
    match log.get(at.offset) {
        None => log.set(at.offset, Entry::new(id, flags)),
        Some(entry) if entry.id() == id => log.set(at.offset, entry.with(flags)),
        Some(entry) if entry.is(Entry::READ) => {
            let (name, other) = (facts.topics.name(at.slot), entry.id());
            let what = format!("{name} offset {}: {} read {id}, others {other}", at.offset, reader.process);
            let finding = Finding::new(Kind::InconsistentOffsets, what).at(name, &[at.offset]);
            let finding = finding.records(&[other, id]).process(reader.process);
            facts.findings.add(place_key(at.slot, at.offset), finding);
        }
        Some(entry) => {
            // Which of the two is wrong is seen at the end, when it is known whether the other lies elsewhere.
            log.set(at.offset, Entry::new(id, flags));
            facts.conflicts.push(Conflict { place: at, acknowledged: entry.id(), read: id });
        }
    }
}

/// A record has one offset.
fn check_place(facts: &mut Facts, id: RecordId, at: Place) -> Result<(), EventError> {
    facts.findings.checks += 1;
    let record = facts.record(id);
    match record.place() {
        Some(place) if place == at => {}
        None => facts.producer(id.producer)?.set(id.sequence, record.at(at)),
        Some(first) if record.is(Record::ACKNOWLEDGED_THERE) => {
            facts.moved.push(Moved { id, first, then: at });
        }
        Some(first) => {
            let is_idempotent = facts.is_idempotent(id);
            facts.findings.check(!is_idempotent, id.packed(), || twice(&facts.topics, id, first, at));
        }
    }
    Ok(())
}

/// A record that is none.
pub(crate) fn damaged(facts: &mut Facts, reader: Reader<'_>, slot: u16, damaged: &Damaged) {
    facts.log(slot).damaged.insert(damaged.offset);
    let name = facts.topics.name(slot);
    let what = format!(
        "{} read in {name} at {} what was never sent: {}",
        reader.process, damaged.offset, damaged.what
    );
    let finding = Finding::new(Kind::Altered, what).at(name, &[damaged.offset]).process(reader.process);
    facts.findings.checks += 1;
    facts.findings.add(place_key(slot, damaged.offset), finding.records(damaged.claims.as_slice()));
}
