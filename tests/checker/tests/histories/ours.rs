//! Kinds of our own, but for those of replicas and tasks.

use tidemill_checker::{Event, Kind, RecordId, Run, TopicPartition};

use crate::kit::{Story, id, of, story, t};

#[test]
fn a_record_that_was_never_sent() {
    story().put(0, 1).polls("c", 0, 1).poll_ids("c", &[(1, RecordId::new(0, 9))]).is(Kind::NeverSent);
    story().poll_ids("c", &[(0, RecordId::new(7, 0))]).is(Kind::NeverSent);
    story().sent(id(3), 0).is(Kind::NeverSent);
    // Sent, to another topic.
    let poll = Event::Poll {
        process: of("c"),
        partition: TopicPartition::new("u", 0),
        runs: vec![Run::one(0, id(0))],
        damaged: Vec::new(),
        next: None,
    };
    story().put(0, 1).and(poll).is(Kind::NeverSent);
}

#[test]
fn a_record_with_other_bytes() {
    let report = story().put(0, 2).polls("c", 0, 1).damaged("c", 1, Some(id(1))).is(Kind::Altered);
    assert_eq!(report.findings[0].records, [id(1)]);
    story().put(0, 3).polls("c", 0, 1).damaged("c", 1, None).polls("c", 2, 3).is(Kind::Altered);
}

#[test]
fn records_in_another_order_than_they_were_sent() {
    let two = |story: Story| story.send(id(0)).unknown(id(0)).send(id(1)).unknown(id(1));
    let report = two(story()).poll("c", &[(0, 1), (1, 0)]).is(Kind::Reordered);
    assert_eq!(report.findings[0].records, [id(0), id(1)]);
    // Routed, and acknowledged without a place.
    let routed = story().send_to(id(0), None).send_to(id(1), None);
    let routed = routed.sent_at(id(0), None, None).sent_at(id(1), None, None);
    routed.poll("c", &[(0, 1), (1, 0)]).is(Kind::Reordered);
}

#[test]
fn a_record_elsewhere_than_it_was_acknowledged() {
    let report = story().send(id(0)).sent(id(0), 3).poll("c", &[(4, 0)]).is(Kind::Misplaced);
    assert_eq!(report.findings[0].offsets, [3, 4]);
    story().send(id(0)).poll("c", &[(4, 0)]).sent(id(0), 3).is(Kind::Misplaced);
    // A whole partition that is off by one.
    let shifted: Vec<_> = (0..5).map(|sequence| (sequence + 1, sequence)).collect();
    story().put(0, 5).poll("c", &shifted).is(Kind::Misplaced);
    story().put(0, 5).replica(1, (1, 6), &shifted).is(Kind::Misplaced);
}

#[test]
fn a_record_in_another_partition_than_it_was_sent_to() {
    story().send_to(id(0), Some(1)).unknown(id(0)).polls("c", 0, 1).is(Kind::Misplaced);
    story().send_to(id(0), Some(1)).sent_at(id(0), Some(0), Some(0)).is(Kind::Misplaced);
}

#[test]
fn an_append_below_what_had_been_acknowledged() {
    let other = RecordId::new(1, 0);
    let report = story().send(other).sent(other, 5).send(id(0)).sent(id(0), 4).is(Kind::RealTimeReversed);
    assert_eq!(report.findings[0].records, [id(0), other]);
    // A retry that is answered with the place of the first attempt, and with one that it can't have had.
    let retried = story().send(other).sent(other, 5).send(id(0)).unknown(id(0)).send(id(0));
    retried.clone().duplicate(id(0), Some(4)).is(Kind::RealTimeReversed);
    retried.duplicate(id(0), Some(6)).is_good();
    // Sent before the other was acknowledged: either may come first.
    story().send(id(0)).send(other).sent(other, 5).sent(id(0), 4).is_good();
}

#[test]
fn a_log_start_that_goes_back() {
    story().log_start("c", 5).log_start("c", 4).is(Kind::LogStartBack);
    story().log_start("c", 5).log_start("d", 4).log_start("d", 5).is_good();
    story().log_start("c", 5).replica(1, (4, 4), &[]).is(Kind::LogStartBack);
}

#[test]
fn an_offset_without_a_record() {
    let sent = story().topic(1, true, false).put(0, 2).send(id(5)).sent(id(5), 3);
    sent.clone().poll("c", &[(0, 0), (1, 1), (3, 5)]).is(Kind::OffsetGap);
    sent.replica(1, (0, 4), &[(0, 0), (1, 1), (3, 5)]).is(Kind::OffsetGap);
    story().topic(1, true, false).put(0, 2).replica(1, (0, 3), &[(0, 0), (1, 1)]).is(Kind::OffsetGap);
}

#[test]
fn a_group_whose_position_is_another() {
    let commit = |story: Story, offset| story.and(Event::Commit { group: of("g"), partition: t(0), offset });
    let committed = |story: Story, offset| {
        commit(story, offset).and(Event::Committed { group: of("g"), partition: t(0), offset })
    };
    let position =
        |story: Story, offset| story.and(Event::Position { group: of("g"), partition: t(0), offset });
    position(committed(committed(story(), 5), 7), Some(5)).is(Kind::GroupPosition);
    position(committed(story(), 5), None).is(Kind::GroupPosition);
    position(committed(story(), 5), Some(6)).is(Kind::GroupPosition);
    position(story(), Some(6)).is(Kind::GroupPosition);
    for tried in [Some(5), Some(9)] {
        position(commit(committed(story(), 5), 9), tried).is_good();
    }
    position(committed(committed(story(), 7), 5), Some(5)).is_good();
    position(story(), None).is_good();
}
