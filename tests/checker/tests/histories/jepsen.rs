//! The kinds that Jepsen's Kafka workload has, but for those of transactions.

use tidemill_checker::{Kind, RecordId};

use crate::kit::{id, story, t};

#[test]
fn a_lost_write_between_what_was_read() {
    let report =
        story().put(0, 5).poll("c", &[(0, 0), (1, 1), (2, 2)]).poll("c", &[(4, 4)]).is(Kind::LostWrite);
    let finding = &report.findings[0];
    assert_eq!((&finding.partition, &finding.offsets[..]), (&Some(t(0)), &[3][..]));
    assert_eq!((&finding.records[..], &finding.processes[..]), (&[id(3)][..], &["c".to_owned()][..]));
    let shown: Vec<u64> = finding.evidence.iter().map(|evidence| evidence.line).collect();
    assert_eq!(shown, [4, 5], "what was sent, and acknowledged: {report}");
}

#[test]
fn a_lost_write_that_no_replica_has() {
    story().put(0, 3).replica(1, (0, 3), &[(0, 0), (1, 1)]).is(Kind::LostWrite);
    // Routed: nobody was told where.
    let routed = story().topic(2, false, false).send_to(id(0), None).sent_at(id(0), None, None);
    let second = |story: crate::kit::Story| {
        story.and(tidemill_checker::Event::Replica {
            broker: 1,
            partition: t(1),
            log_start: 0,
            end: 1,
            segments: Vec::new(),
        })
    };
    second(routed.clone().replica(1, (0, 0), &[])).is(Kind::LostWrite);
    second(routed.replica(1, (0, 0), &[])).stored(1, 1, &[(0, 0)]).is_good();
}

#[test]
fn a_write_of_unknown_outcome_that_was_read_and_is_lost() {
    let unknown = story().send(id(0)).unknown(id(0));
    unknown.clone().polls("c", 0, 1).replica(1, (0, 0), &[]).is(Kind::LostWrite);
    unknown.replica(1, (0, 0), &[]).is_good();
}

#[test]
fn a_duplicate_by_what_was_read() {
    let report = story().put(0, 2).poll("c", &[(0, 0), (1, 1), (2, 1)]).is(Kind::Duplicate);
    assert_eq!(report.findings[0].offsets, [1, 2]);
    story().send(id(0)).unknown(id(0)).poll("c", &[(0, 0), (1, 0)]).is(Kind::Duplicate);
    story().put(0, 1).replica(1, (0, 2), &[(0, 0), (1, 0)]).is(Kind::Duplicate);
}

#[test]
fn a_duplicate_by_what_was_acknowledged() {
    story().put(0, 1).send(id(0)).duplicate(id(0), Some(1)).is(Kind::Duplicate);
}

#[test]
fn inconsistent_offsets_between_readers() {
    let two = story().send(id(0)).unknown(id(0)).send(id(1)).unknown(id(1));
    let report = two.poll("a", &[(0, 0)]).poll("b", &[(0, 1)]).is(Kind::InconsistentOffsets);
    assert_eq!(
        (&report.findings[0].records[..], &report.findings[0].offsets[..]),
        (&[id(0), id(1)][..], &[0][..])
    );
}

#[test]
fn inconsistent_offsets_between_acknowledgements() {
    let other = RecordId::new(1, 0);
    story().send(id(0)).send(other).sent(id(0), 4).sent(other, 4).is(Kind::InconsistentOffsets);
}

#[test]
fn inconsistent_offsets_between_an_acknowledgement_and_a_read() {
    let other = RecordId::new(1, 0);
    let sent = story().send(id(0)).send(other).unknown(other);
    sent.clone().sent(id(0), 4).poll_ids("c", &[(4, other)]).is(Kind::InconsistentOffsets);
    sent.poll_ids("c", &[(4, other)]).sent(id(0), 4).is(Kind::InconsistentOffsets);
}

#[test]
fn an_aborted_read() {
    let report = story().send(id(0)).fail(id(0)).polls("c", 0, 1).is(Kind::AbortedRead);
    assert_eq!(report.findings[0].processes, ["c"]);
    story().send(id(0)).polls("c", 0, 1).fail(id(0)).is(Kind::AbortedRead);
    story().send(id(0)).fail(id(0)).replica(1, (0, 1), &[(0, 0)]).is(Kind::AbortedRead);
}

#[test]
fn a_nonmonotonic_send() {
    let sent = story().send(id(0)).sent(id(0), 7).send(id(1)).sent(id(1), 3);
    let report = sent.is(Kind::NonmonotonicSend);
    assert_eq!(
        (&report.findings[0].offsets[..], &report.findings[0].processes[..]),
        (&[7, 3][..], &["p0".to_owned()][..])
    );
    sent.poll("c", &[(3, 1)]).seek("c", Some(7)).poll("c", &[(7, 0)]).is(Kind::NonmonotonicSend);
}

#[test]
fn a_nonmonotonic_poll() {
    let report = story().put(0, 6).polls("c", 0, 4).polls("c", 2, 6).is(Kind::NonmonotonicPoll);
    assert_eq!(report.findings[0].offsets, [3, 2]);
    story().put(0, 6).seek("c", Some(3)).polls("c", 2, 6).is(Kind::NonmonotonicPoll);
    story().put(0, 6).consumer("c", true, false).polls("c", 0, 4).polls("c", 3, 6).is(Kind::NonmonotonicPoll);
}

#[test]
fn a_nonmonotonic_poll_within() {
    let story = story().put(0, 4).poll("c", &[(0, 0), (1, 1), (1, 1), (2, 2), (3, 3)]);
    story.is(Kind::InternalNonmonotonicPoll);
}

#[test]
fn a_poll_skip() {
    let skips = story().put(0, 6).polls("a", 0, 6).polls("c", 0, 2).polls("c", 4, 6);
    let report = skips.is(Kind::PollSkip);
    assert_eq!(
        (&report.findings[0].offsets[..], &report.findings[0].processes[..]),
        (&[2, 3][..], &["c".to_owned()][..])
    );
    // Where a consumer was sent, it begins; and what nobody was told before is known from others.
    story().put(0, 6).polls("a", 0, 6).seek("c", Some(0)).polls("c", 1, 6).is(Kind::PollSkip);
    story()
        .send(id(0))
        .unknown(id(0))
        .put(1, 3)
        .seek("c", Some(0))
        .polls("c", 1, 3)
        .polls("a", 0, 3)
        .is(Kind::PollSkip);
}

#[test]
fn a_poll_skip_within() {
    story().put(0, 4).polls("a", 0, 4).poll("c", &[(0, 0), (1, 1), (3, 3)]).is(Kind::InternalPollSkip);
}

#[test]
fn an_unseen_record() {
    let report = story().put(0, 4).polls("c", 0, 3).drained("c").is(Kind::Unseen);
    assert_eq!(report.findings[0].offsets, [3]);
    story().put(0, 3).polls("c", 0, 3).drained("c").put(3, 4).is_good();
}
