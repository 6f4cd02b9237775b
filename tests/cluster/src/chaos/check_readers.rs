use super::findings::{Findings, ViolationKind};
use super::history::{Logged, RecordId};

/// Checks what a reader saw of a partition, by offset, against what it should have: the records of the log that its filter passes.
pub fn check_reader(
    reader: &str,
    partition: u32,
    log: &[Logged],
    passes: impl Fn(&Logged) -> bool,
    seen: &[(i64, RecordId)],
    findings: &mut Findings,
) {
    let mut expected = log.iter().filter(|record| passes(record)).map(|record| (record.offset, record.id));
    for (number, seen) in seen.iter().enumerate() {
        let expected = expected.next();
        findings.check(expected == Some(*seen), ViolationKind::Read, || {
            format!(
                "{reader}, partition {partition}, read number {number}: {} at {}, where the log has {expected:?}",
                seen.1, seen.0
            )
        });
        if expected != Some(*seen) {
            // All that follows would be off by as much.
            return;
        }
    }
    let missed = expected.next();
    findings.check(missed.is_none(), ViolationKind::Read, || {
        format!("{reader}, partition {partition}: never saw {missed:?}, nor what follows it")
    });
}

/// Checks committed positions: not before the last commit that was acknowledged, not beyond the last that was tried.
pub fn check_positions(
    group: &str,
    acknowledged: &[i64],
    tried: &[i64],
    found: &[Option<i64>],
    findings: &mut Findings,
) {
    for (partition, ((acknowledged, tried), found)) in acknowledged.iter().zip(tried).zip(found).enumerate() {
        let position = found.unwrap_or(0);
        findings.check((*acknowledged..=*tried).contains(&position), ViolationKind::Position, || {
            format!(
                "group {group}, partition {partition}: position {found:?}; the last commit that was acknowledged is {acknowledged}, \
                 the last tried {tried}"
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(offset: i64, sequence: u32) -> Logged {
        Logged { offset, id: RecordId { producer: 0, sequence }, song: 0, device: sequence % 2, user: 0 }
    }

    fn found(offsets: &[(i64, u32)]) -> Vec<ViolationKind> {
        let log = [logged(0, 0), logged(1, 1), logged(2, 2), logged(3, 4)];
        let seen: Vec<_> = offsets
            .iter()
            .map(|(offset, sequence)| (*offset, RecordId { producer: 0, sequence: *sequence }))
            .collect();
        let mut findings = Findings::default();
        check_reader("r", 0, &log, |record| record.device == 0, &seen, &mut findings);
        findings.kinds()
    }

    #[test]
    fn a_reader_sees_what_passes_once_and_in_order() {
        assert_eq!(found(&[(0, 0), (2, 2), (3, 4)]), []);
        for wrong in [
            &[(0, 0), (3, 4)][..],
            &[(0, 0), (2, 2)],
            &[(0, 0), (2, 2), (2, 2), (3, 4)],
            &[(2, 2), (0, 0), (3, 4)],
            &[(0, 0), (1, 1), (2, 2), (3, 4)],
            &[(0, 0), (2, 2), (3, 4), (4, 6)],
            &[(0, 0), (1, 2), (3, 4)],
            &[],
        ] {
            assert_eq!(found(wrong), [ViolationKind::Read], "{wrong:?}");
        }
    }

    #[test]
    fn positions_never_move_back() {
        let found = |found: &[Option<i64>]| {
            let mut findings = Findings::default();
            check_positions("g", &[5, 0], &[7, 3], found, &mut findings);
            findings.kinds()
        };
        assert_eq!(found(&[Some(5), None]), []);
        assert_eq!(found(&[Some(7), Some(3)]), []);
        assert_eq!(found(&[Some(4), None]), [ViolationKind::Position]);
        assert_eq!(found(&[None, None]), [ViolationKind::Position]);
        assert_eq!(found(&[Some(5), Some(4)]), [ViolationKind::Position]);
    }
}
