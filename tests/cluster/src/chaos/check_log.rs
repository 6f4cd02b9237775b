use std::collections::HashMap;

use super::findings::{Findings, ViolationKind};
use super::history::{Fate, Logged, RecordId};

/// Checks a topic: `log` by partition, in the order of offsets; `sent` by producer, in the order of its sequence.
///
/// Every acknowledged record is there once, where it was acknowledged; within a producer and partition in the order in which it was
/// sent; nothing is there that was not sent; offsets begin where the partition starts and have no gap. A record of unknown fate may be there,
/// once. Partitions start at `starts`, and at 0 where nothing is said: what was acknowledged before that may be gone.
pub fn check_log(
    topic: &str,
    log: &[Vec<Logged>],
    starts: &[i64],
    sent: &[Vec<Fate>],
    findings: &mut Findings,
) {
    let start_of = |partition: u32| starts.get(partition as usize).copied().unwrap_or(0);
    let mut places: Vec<Vec<Option<(u32, i64)>>> = sent.iter().map(|fates| vec![None; fates.len()]).collect();
    for (partition, records) in (0u32..).zip(log) {
        let mut last: HashMap<u32, u32> = HashMap::new();
        for (expected, record) in (start_of(partition)..).zip(records) {
            let (id, offset) = (record.id, record.offset);
            findings.check(offset == expected, ViolationKind::Gap, || {
                format!("{topic}-{partition}: offset {offset} follows {}", expected - 1)
            });
            let Some(place) = place_of(&mut places, id) else {
                findings.check(false, ViolationKind::Foreign, || {
                    format!("{topic}-{partition} offset {offset}: {id}, which was never sent")
                });
                continue;
            };
            if let Some((other, at)) = *place {
                findings.check(false, ViolationKind::Doubled, || {
                    format!("{id} is in {topic}-{other} at {at} and in {topic}-{partition} at {offset}")
                });
                continue;
            }
            *place = Some((partition, offset));
            let before = last.insert(id.producer, id.sequence);
            findings.check(
                before.is_none_or(|before| before < id.sequence),
                ViolationKind::Reordered,
                || {
                    format!(
                        "{topic}-{partition} offset {offset}: {id} behind its record {}",
                        before.unwrap_or_default()
                    )
                },
            );
        }
    }
    for (producer, (fates, places)) in (0u32..).zip(sent.iter().zip(&places)) {
        for (sequence, (fate, place)) in (0u32..).zip(fates.iter().zip(places)) {
            let id = RecordId { producer, sequence };
            let Fate::Acknowledged { at } = *fate else { continue };
            let is_let_go = at.is_some_and(|(partition, offset)| offset < start_of(partition));
            findings.check(place.is_some() || is_let_go, ViolationKind::Lost, || {
                format!("{id} was acknowledged{} and is not in {topic}", described(at))
            });
            if let (Some(at), Some(place)) = (at, *place) {
                findings.check(at == place, ViolationKind::Misplaced, || {
                    format!(
                        "{id} was acknowledged{}, and is in {topic}-{} at {}",
                        described(Some(at)),
                        place.0,
                        place.1
                    )
                });
            }
        }
    }
}

fn place_of(places: &mut [Vec<Option<(u32, i64)>>], id: RecordId) -> Option<&mut Option<(u32, i64)>> {
    let producer = usize::try_from(id.producer).ok()?;
    places.get_mut(producer)?.get_mut(usize::try_from(id.sequence).ok()?)
}

fn described(at: Option<(u32, i64)>) -> String {
    at.map_or_else(String::new, |(partition, offset)| format!(" in partition {partition} at {offset}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One partition's log, as (producer, sequence).
    fn partition(ids: &[(u32, u32)]) -> Vec<Logged> {
        let logged = |(offset, (producer, sequence)): (i64, &(u32, u32))| Logged {
            offset,
            id: RecordId { producer: *producer, sequence: *sequence },
            song: 0,
            device: 0,
            user: 0,
        };
        (0..).zip(ids).map(logged).collect()
    }

    fn acknowledged(count: usize) -> Vec<Fate> {
        vec![Fate::Acknowledged { at: None }; count]
    }

    fn found(log: &[Vec<Logged>], sent: &[Vec<Fate>]) -> Vec<ViolationKind> {
        found_from(&[], log, sent)
    }

    fn found_from(starts: &[i64], log: &[Vec<Logged>], sent: &[Vec<Fate>]) -> Vec<ViolationKind> {
        let mut findings = Findings::default();
        check_log("t", log, starts, sent, &mut findings);
        assert!(findings.checks() > 0);
        findings.kinds()
    }

    #[test]
    fn a_good_history_passes() {
        let log = [partition(&[(0, 0), (1, 0), (0, 2)]), partition(&[(0, 1), (1, 1)])];
        assert_eq!(found(&log, &[acknowledged(3), acknowledged(2)]), []);
    }

    #[test]
    fn a_lost_record_is_found() {
        let log = [partition(&[(0, 0), (0, 2)])];
        assert_eq!(found(&log, &[acknowledged(3)]), [ViolationKind::Lost]);
        let mut sent = acknowledged(3);
        sent[1] = Fate::Unknown;
        assert_eq!(found(&log, &[sent]), [], "of unknown fate: it may be there or not");
    }

    #[test]
    fn a_doubled_record_is_found() {
        let sent = [acknowledged(2)];
        assert_eq!(found(&[partition(&[(0, 0), (0, 1), (0, 1)])], &sent), [ViolationKind::Doubled]);
        let across = [partition(&[(0, 0), (0, 1)]), partition(&[(0, 0)])];
        assert_eq!(found(&across, &sent), [ViolationKind::Doubled], "in two partitions");
        let unknown = [vec![Fate::Unknown]];
        assert_eq!(found(&[partition(&[(0, 0), (0, 0)])], &unknown), [ViolationKind::Doubled]);
    }

    #[test]
    fn a_reordered_record_is_found() {
        let log = [partition(&[(0, 1), (0, 0)])];
        assert_eq!(found(&log, &[acknowledged(2)]), [ViolationKind::Reordered]);
    }

    #[test]
    fn a_record_elsewhere_than_acknowledged_is_found() {
        let sent = |at| [vec![Fate::Acknowledged { at: Some(at) }]];
        let log = [partition(&[(0, 0)])];
        assert_eq!(found(&log, &sent((0, 0))), []);
        assert_eq!(found(&log, &sent((0, 1))), [ViolationKind::Misplaced]);
        assert_eq!(found(&log, &sent((1, 0))), [ViolationKind::Misplaced]);
    }

    #[test]
    fn what_was_let_go_is_not_lost_and_all_else_is() {
        let sent: Vec<Fate> = (0..4).map(|offset| Fate::Acknowledged { at: Some((0, offset)) }).collect();
        let sent = [sent];
        let mut log = [partition(&[(0, 2), (0, 3)]), Vec::new()];
        for record in &mut log[0] {
            record.offset += 2;
        }
        assert_eq!(found_from(&[2], &log, &sent), []);
        assert_eq!(found_from(&[1], &log, &sent), [ViolationKind::Gap, ViolationKind::Lost]);
        // What was let go is not to come back elsewhere.
        log[1] = partition(&[(0, 0)]);
        assert_eq!(found_from(&[2], &log, &sent), [ViolationKind::Misplaced]);
        log[1].clear();
        log[0].pop();
        assert_eq!(found_from(&[2], &log, &sent), [ViolationKind::Lost]);
    }

    #[test]
    fn gaps_and_strangers_are_found() {
        let mut log = partition(&[(0, 0), (0, 1)]);
        log[1].offset = 2;
        assert_eq!(found(&[log], &[acknowledged(2)]), [ViolationKind::Gap]);
        assert_eq!(found(&[partition(&[(0, 0), (0, 1)])], &[acknowledged(1)]), [ViolationKind::Foreign]);
        assert_eq!(found(&[partition(&[(0, 0), (7, 0)])], &[acknowledged(1)]), [ViolationKind::Foreign]);
    }
}
