//! What producers did and were told.

use std::collections::BTreeMap;

use super::places::twice;
use crate::error::EventError;
use crate::facts::{Conflict, Entry, Facts, Moved, Place, Record};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::{RecordId, Span};

/// What has been sent and has neither been acknowledged nor surely failed, by its first record.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    under_way: BTreeMap<RecordId, UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    count: u32,
    /// How many of them are neither acknowledged nor failed.
    open: u32,
    slot: u16,
    /// What others had been acknowledged in that partition before it was first sent.
    before: (u64, RecordId),
}

impl Sends {
    pub(crate) fn send(
        &mut self,
        facts: &mut Facts,
        records: Span,
        partition: Option<u32>,
        transaction: Option<u64>,
    ) -> Result<(), EventError> {
        let RecordId { producer: number, sequence } = records.first;
        let slot = partition.map(|partition| facts.slot_for(number, partition)).transpose()?;
        let before = slot.and_then(|slot| facts.log(slot).latest.but_of(number));
        let producer = facts.producer(number)?;
        let mut is_first = true;
        for id in records.ids() {
            let known = producer.record(id.sequence);
            is_first &= !known.is(Record::INVOKED);
            // What surely failed may be tried again.
            let mut record = known.with(Record::INVOKED).without(Record::FAILED);
            if let (Some(slot), None) = (slot, record.place()) {
                record = record.in_slot(slot);
            }
            producer.set(id.sequence, record);
        }
        if let Some(transaction) = transaction {
            producer.join(transaction, sequence, records.count);
        }
        // A retry may be answered with the place that the first attempt took.
        if let (Some(slot), Some(before), true) = (slot, before, is_first) {
            let under_way = UnderWay { count: records.count, open: records.count, slot, before };
            self.under_way.insert(records.first, under_way);
        }
        Ok(())
    }

    pub(crate) fn sent(
        &mut self,
        facts: &mut Facts,
        records: Span,
        partition: Option<u32>,
        offset: Option<u64>,
    ) -> Result<(), EventError> {
        let number = records.first.producer;
        facts.producer(number)?;
        let slot = partition.map(|partition| facts.slot_for(number, partition)).transpose()?;
        for (place, id) in (0..).zip(records.ids()) {
            let record = facts.record(id);
            facts.findings.check(record.is(Record::INVOKED), id.packed(), || {
                Finding::new(Kind::NeverSent, format!("{id} was acknowledged and never sent")).records(&[id])
            });
            let before = self.over(id);
            if let (Some(slot), Some(sent_to)) = (slot, record.slot()) {
                let is_there = slot == sent_to || record.is(Record::PLACED);
                facts.findings.check(is_there, id.packed(), || {
                    let name = facts.topics.name(slot);
                    let what =
                        format!("{id} was sent to {} and acknowledged in {name}", facts.topics.name(sent_to));
                    Finding::new(Kind::Misplaced, what).at(name, offset.as_slice()).records(&[id])
                });
            }
            facts.producer(number)?.set(id.sequence, record.with(Record::ACKNOWLEDGED));
            if let (Some(slot), Some(offset)) = (slot, offset) {
                let at = Place { slot, offset: offset + place };
                acknowledged_at(facts, id, at)?;
                check_real_time(facts, id, at, before);
            }
        }
        Ok(())
    }

    pub(crate) fn failed(&mut self, facts: &mut Facts, records: Span) -> Result<(), EventError> {
        for id in records.ids() {
            self.over(id);
            let record = facts.record(id);
            facts.producer(id.producer)?.set(id.sequence, record.with(Record::FAILED));
            facts.findings.check(!record.is(Record::READ), id.packed(), || {
                let what = format!("{id} was read before its producer was told that it surely failed");
                let finding = Finding::new(Kind::AbortedRead, what).records(&[id]);
                match record.place() {
                    Some(place) => finding.at(facts.topics.name(place.slot), &[place.offset]),
                    None => finding,
                }
            });
        }
        Ok(())
    }

    /// Gives the partition, and what had been acknowledged there before the record was first sent.
    fn over(&mut self, id: RecordId) -> Option<(u16, (u64, RecordId))> {
        let (first, under_way) = self.under_way.range_mut(..=id).next_back()?;
        let is_in =
            first.producer == id.producer && id.sequence < first.sequence + u64::from(under_way.count);
        if !is_in {
            return None;
        }
        let (first, before) = (*first, (under_way.slot, under_way.before));
        under_way.open -= 1;
        if under_way.open == 0 {
            self.under_way.remove(&first);
        }
        Some(before)
    }
}

fn acknowledged_at(facts: &mut Facts, id: RecordId, at: Place) -> Result<(), EventError> {
    let is_idempotent = facts.is_idempotent(id);
    let log = facts.log(at.slot);
    log.latest.acknowledged(at.offset, id);
    match log.get(at.offset) {
        None => log.set(at.offset, Entry::new(id, Entry::ACKNOWLEDGED)),
        Some(entry) if entry.id() == id => log.set(at.offset, entry.with(Entry::ACKNOWLEDGED)),
        Some(entry) if entry.is(Entry::ACKNOWLEDGED) => {
            let (name, other) = (facts.topics.name(at.slot), entry.id());
            let what = format!("{name} offset {} was acknowledged for {other} and for {id}", at.offset);
            let finding =
                Finding::new(Kind::InconsistentOffsets, what).at(name, &[at.offset]).records(&[other, id]);
            facts.findings.add(place_key(at.slot, at.offset), finding);
        }
        Some(entry) => facts.conflicts.push(Conflict { place: at, acknowledged: id, read: entry.id() }),
    }
    facts.findings.checks += 1;
    let record = facts.record(id);
    let there = Record::ACKNOWLEDGED_THERE;
    let record = match record.place() {
        None => record.at(at).with(there),
        Some(place) if place == at => record.with(there),
        Some(first) if record.is(there) => {
            // Where nothing keeps a retry from being stored again, it has a place of its own.
            facts.findings.check(!is_idempotent, id.packed(), || twice(&facts.topics, id, first, at));
            record
        }
        Some(read) => {
            facts.moved.push(Moved { id, first: at, then: read });
            record.at(at).with(there)
        }
    };
    facts.producer(id.producer)?.set(id.sequence, record);
    Ok(())
}

/// An append takes place between its beginning and its acknowledgement. So it lies behind all that was acknowledged before it began.
fn check_real_time(facts: &mut Facts, id: RecordId, at: Place, before: Option<(u16, (u64, RecordId))>) {
    let Some((slot, (offset, other))) = before else { return };
    // Two records at one offset are told as that, and one producer's order is looked at at the end.
    if slot != at.slot || offset == at.offset {
        return;
    }
    facts.findings.check(offset < at.offset, id.packed(), || {
        let name = facts.topics.name(slot);
        let what = format!(
            "{id} was acknowledged in {name} at {}, below {other} at {offset}, which had been acknowledged before it was sent",
            at.offset
        );
        Finding::new(Kind::RealTimeReversed, what).at(name, &[at.offset, offset]).records(&[id, other])
    });
}
