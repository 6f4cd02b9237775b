//! What is not there, or was not given to somebody, though it should.

use std::collections::BTreeMap;

use super::polls::Polls;
use crate::facts::{Entry, Facts, Log, Passed, Record, Skip};
use crate::finding::{Finding, Kind, NAMED_MAX, place_key};
use crate::ids::RecordId;

pub(crate) fn at_end(facts: &mut Facts, polls: &Polls) {
    for slot in 0..facts.logs.len() {
        let slot = slot as u16;
        if facts.topics.topic_of(slot).is_compacted {
            continue;
        }
        let log = std::mem::take(facts.log(slot));
        for (skip, process) in &log.skips {
            check_skip(facts, &log, slot, skip, polls.name(*process));
        }
        if log.is_settled() {
            check_replicas(facts, &log, slot);
            check_dense(facts, slot, &log, (log.log_start, last_end(&log)));
        }
        *facts.log(slot) = log;
    }
    check_unplaced(facts);
}

fn last_end(log: &Log) -> u64 {
    log.replicas.values().map(|replica| replica.end).max().unwrap_or(0)
}

/// Whether a record that was acknowledged or read at an offset is to be found there.
pub(super) fn must_be_there(facts: &Facts, log: &Log, offset: u64, entry: Entry) -> bool {
    let id = entry.id();
    // What was acknowledged here and read elsewhere is told as that.
    let is_elsewhere = !entry.is(Entry::READ) && facts.record(id).is(Record::READ);
    !is_elsewhere && facts.surely_was_stored(id) && facts.is_committed(id) && !log.damaged.contains(&offset)
}

/// Offsets that a consumer passed over.
fn check_skip(facts: &mut Facts, log: &Log, slot: u16, skip: &Skip, process: &str) {
    let from = skip.from.max(log.log_start);
    let (mut skipped, mut lost) = (Vec::new(), Vec::new());
    for (offset, entry) in log.iter(from, skip.to) {
        let is_aborted = !skip.is_committed && !facts.is_committed(entry.id()) && entry.is(Entry::READ);
        if !is_aborted && !must_be_there(facts, log, offset, entry) {
            continue;
        }
        if entry.is(Entry::READ) || (skip.how == Passed::AtEnd && !log.is_settled()) {
            skipped.push((offset, entry.id()));
        } else if !log.is_settled() {
            lost.push((offset, entry.id()));
        }
    }
    let name = facts.topics.name(slot);
    facts.findings.check(skipped.is_empty(), place_key(slot, skip.from), || {
        let (kind, what) = match skip.how {
            Passed::WithinPoll => (Kind::InternalPollSkip, "was not given, within one poll,"),
            Passed::BetweenPolls => (Kind::PollSkip, "was not given"),
            Passed::AtEnd => (Kind::Unseen, "had read to the end, and was not given"),
        };
        let what = format!(
            "{process} {what} {} of the records of {name} from {from} to {}: {}",
            skipped.len(),
            skip.to - 1,
            named(&skipped)
        );
        finding(kind, what, &skipped).at(name, &offsets(&skipped)).process(process)
    });
    facts.findings.check(lost.is_empty(), place_key(slot, skip.from), || {
        let what = format!(
            "{} acknowledged records of {name} are nowhere: {process} read past them, and nobody saw them: {}",
            lost.len(),
            named(&lost)
        );
        finding(Kind::LostWrite, what, &lost).at(name, &offsets(&lost)).process(process)
    });
    if !log.is_settled() && skip.how != Passed::AtEnd {
        check_dense(facts, slot, log, (from, skip.to));
    }
}

fn finding(kind: Kind, what: String, records: &[(u64, RecordId)]) -> Finding {
    let ids: Vec<RecordId> = records.iter().map(|(_, id)| *id).take(NAMED_MAX).collect();
    Finding::new(kind, what).records(&ids)
}

fn offsets(records: &[(u64, RecordId)]) -> Vec<u64> {
    records.iter().map(|(offset, _)| *offset).collect()
}

fn named(records: &[(u64, RecordId)]) -> String {
    let first: Vec<String> =
        records.iter().take(NAMED_MAX).map(|(offset, id)| format!("{id} at {offset}")).collect();
    let more = if records.len() > NAMED_MAX { ", and more" } else { "" };
    format!("{}{more}", first.join(", "))
}

/// What was acknowledged or read is on every replica.
fn check_replicas(facts: &mut Facts, log: &Log, slot: u16) {
    let mut missing: BTreeMap<u32, u64> = BTreeMap::new();
    for (offset, entry) in log.iter(log.log_start, log.end) {
        if !entry.is(Entry::STORED) {
            let id = entry.id();
            let must_be = must_be_there(facts, log, offset, entry) && !facts.record(id).is(Record::STORED);
            facts.findings.check(!must_be, id.packed(), || {
                let name = facts.topics.name(slot);
                let known = if entry.is(Entry::ACKNOWLEDGED) { "acknowledged" } else { "read" };
                let what = format!("{id} was {known} in {name} at {offset}, and no replica has it");
                Finding::new(Kind::LostWrite, what).at(name, &[offset]).records(&[id])
            });
            continue;
        }
        for (broker, replica) in &log.replicas {
            let has = replica.has.contains(offset) || offset < replica.log_start;
            let key = place_key(slot, offset) ^ (u64::from(*broker) << 56);
            facts.findings.check(has, key, || {
                *missing.entry(*broker).or_default() += 1;
                let (name, id) = (facts.topics.name(slot), entry.id());
                let what =
                    format!("broker {broker} does not have {id}, in {name} at {offset}, which others have");
                Finding::new(Kind::MissingOnReplica, what).at(name, &[offset]).records(&[id])
            });
        }
    }
    let end = last_end(log);
    for (broker, replica) in log.replicas.iter().filter(|(broker, _)| !missing.contains_key(broker)) {
        let key = place_key(slot, replica.end) ^ (u64::from(*broker) << 56);
        facts.findings.check(replica.end == end, key, || {
            let name = facts.topics.name(slot);
            let what = format!("{name} ends at {} on broker {broker} and at {end} on another", replica.end);
            Finding::new(Kind::MissingOnReplica, what).at(name, &[replica.end])
        });
    }
}

/// Where offsets have no gaps, each has a record.
fn check_dense(facts: &mut Facts, slot: u16, log: &Log, (from, to): (u64, u64)) {
    if !facts.topics.topic_of(slot).is_dense {
        return;
    }
    let mut next = from;
    let known = log.iter(from, to).map(|(offset, _)| offset).chain([to]);
    for offset in known {
        let hole = (next..offset).find(|hole| !log.damaged.contains(hole));
        facts.findings.check(hole.is_none(), place_key(slot, next), || {
            let (name, hole) = (facts.topics.name(slot), hole.unwrap_or(next));
            let what = format!("{name} has no record at {hole}, between {from} and {to}");
            Finding::new(Kind::OffsetGap, what).at(name, &[hole])
        });
        next = offset + 1;
    }
}

/// What was acknowledged without a place is in some partition of its topic, if all of it was read back and nothing of it was deleted.
fn check_unplaced(facts: &mut Facts) {
    for (number, producer) in &facts.producers {
        let topic = facts.topics.topic(&producer.topic);
        let is_whole = |partition| {
            let slot = facts.topics.find(&producer.topic, partition);
            let log = slot.and_then(|slot| facts.logs.get(usize::from(slot)));
            log.is_some_and(|log| log.is_settled() && log.log_start == 0 && log.damaged.is_empty())
        };
        if topic.partitions == 0 || topic.is_compacted || !(0..topic.partitions).all(is_whole) {
            continue;
        }
        for (sequence, record) in producer.records() {
            let is_unplaced = record.is(Record::ACKNOWLEDGED) && !record.is(Record::PLACED);
            let id = RecordId::new(*number, sequence);
            if is_unplaced && facts.is_committed(id) {
                facts.findings.check(false, id.packed(), || {
                    let what =
                        format!("{id} was acknowledged, and no partition of {} has it", producer.topic);
                    Finding::new(Kind::LostWrite, what).records(&[id])
                });
            }
        }
    }
}
