//! Replicas as they are after things settled, and where logs start.

use std::collections::HashMap;

use super::reads::{Reader, damaged, read};
use crate::error::EventError;
use crate::event::{Damaged, SealedSegment};
use crate::facts::{Facts, Place, Replica};
use crate::finding::{Finding, Kind, place_key};
use crate::ids::{Run, TopicPartition};

/// Where each process was told that logs start.
#[derive(Debug, Default)]
pub(crate) struct LogStarts {
    told: HashMap<String, HashMap<u16, u64>>,
}

impl LogStarts {
    pub(crate) fn told(
        &mut self,
        facts: &mut Facts,
        process: &str,
        partition: &TopicPartition,
        offset: u64,
    ) -> Result<(), EventError> {
        let slot = facts.slot(partition)?;
        if !self.told.contains_key(process) {
            self.told.insert(process.to_owned(), HashMap::new());
        }
        let of_process = self.told.entry(process.to_owned()).or_default();
        let before = of_process.insert(slot, offset).unwrap_or(0);
        facts.findings.check(before <= offset, place_key(slot, offset), || {
            let what =
                format!("{process} was told that {partition} starts at {before}, and then at {offset}");
            Finding::new(Kind::LogStartBack, what).at(partition, &[before, offset]).process(process)
        });
        let log = facts.log(slot);
        log.log_start = log.log_start.max(offset);
        Ok(())
    }
}

pub(crate) fn replica(
    facts: &mut Facts,
    broker: u32,
    partition: &TopicPartition,
    (log_start, end): (u64, u64),
    segments: &[SealedSegment],
) -> Result<(), EventError> {
    let slot = facts.slot(partition)?;
    let log = facts.log(slot);
    let told = log.log_start;
    log.log_start = log.log_start.max(log_start);
    let replica = Replica { log_start, end, segments: segments.to_vec(), ..Replica::default() };
    log.replicas.insert(broker, replica);
    facts.findings.check(log_start >= told, place_key(slot, log_start), || {
        let what = format!("{partition} starts at {log_start} on broker {broker}, and had started at {told}");
        Finding::new(Kind::LogStartBack, what).at(partition, &[told, log_start])
    });
    Ok(())
}

pub(crate) fn stored(
    facts: &mut Facts,
    broker: u32,
    partition: &TopicPartition,
    runs: &[Run],
    bad: &[Damaged],
) -> Result<(), EventError> {
    let slot = facts.slot(partition)?;
    let process = format!("broker {broker}");
    let reader = Reader { process: &process, is_committed: false, is_final: true };
    let unknown = EventError::UnknownReplica { broker };
    for record in bad {
        damaged(facts, reader, slot, record);
        facts.log(slot).replicas.get_mut(&broker).ok_or(unknown)?.has.insert(record.offset);
    }
    for (offset, id) in runs.iter().flat_map(|run| run.records()) {
        facts.log(slot).replicas.get_mut(&broker).ok_or(unknown)?.has.insert(offset);
        read(facts, reader, id, Place { slot, offset })?;
    }
    Ok(())
}

/// Sealed segments are the same bytes on every replica, and end in the same places.
pub(crate) fn segments_at_end(facts: &mut Facts) {
    for (slot, log) in facts.logs.iter().enumerate() {
        let slot = slot as u16;
        let mut all: Vec<(&SealedSegment, u32)> = log
            .replicas
            .iter()
            .flat_map(|(broker, replica)| replica.segments.iter().map(|segment| (segment, *broker)))
            .collect();
        // What covers the same offsets stands together, on whichever broker it is.
        all.sort_by_key(|(segment, broker)| (segment.base, *broker));
        let mut widest: Option<(&SealedSegment, u32)> = None;
        for (segment, broker) in all {
            let Some((other, other_broker)) = widest else {
                widest = Some((segment, broker));
                continue;
            };
            let is_same =
                (segment.base, segment.end, &segment.digest) == (other.base, other.end, &other.digest);
            facts.findings.check(is_same || segment.base >= other.end, place_key(slot, segment.base), || {
                let name = facts.topics.name(slot);
                let what = format!(
                    "{name}: broker {other_broker} has the sealed segment {}..{} with digest {}, broker {broker} {}..{} with {}",
                    other.base, other.end, other.digest, segment.base, segment.end, segment.digest
                );
                Finding::new(Kind::SegmentsDiffer, what).at(name, &[other.base, segment.base])
            });
            if segment.base >= other.end {
                widest = Some((segment, broker));
            }
        }
    }
}
