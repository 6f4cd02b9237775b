use tidemill_checker::Kind;

use crate::kit::{Story, id, story};

fn whole(story: Story, broker: u32) -> Story {
    story.replica(broker, (0, 4), &[(0, 0), (1, 1), (2, 2), (3, 3)])
}

#[test]
fn a_record_is_missing_on_one_replica() {
    let two = whole(whole(story().put(0, 4), 1), 2);
    let report = two.clone().replica(3, (0, 4), &[(0, 0), (1, 1), (3, 3)]).is(Kind::MissingOnReplica);
    assert_eq!((&report.findings[0].offsets[..], &report.findings[0].records[..]), (&[2][..], &[id(2)][..]));
    assert!(report.findings[0].what.contains("broker 3"), "{report}");
    two.clone().replica(3, (0, 3), &[(0, 0), (1, 1), (2, 2)]).is(Kind::MissingOnReplica);
    whole(two, 3).is_good();
}

#[test]
fn what_nobody_acknowledged_is_on_all_replicas_or_none() {
    let sent = story().put(0, 4).send(id(4)).unknown(id(4));
    let with =
        |story: Story, broker| story.replica(broker, (0, 5), &[(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]);
    whole(with(sent.clone(), 1), 2).is(Kind::MissingOnReplica);
    with(whole(sent.clone(), 1), 2).is(Kind::MissingOnReplica);
    with(with(sent.clone(), 1), 2).is_good();
    whole(whole(sent, 1), 2).is_good();
}

#[test]
fn a_replica_that_ends_earlier() {
    let long = story().put(0, 1).segmented(1, (0, 3), &[]).stored(1, 0, &[(0, 0)]);
    long.clone().replica(2, (0, 2), &[(0, 0)]).is(Kind::MissingOnReplica);
    long.replica(2, (0, 3), &[(0, 0)]).is_good();
}

#[test]
fn replicas_with_other_records() {
    let sent = story().send(id(0)).unknown(id(0)).send(id(1)).unknown(id(1));
    sent.replica(1, (0, 1), &[(0, 0)]).replica(2, (0, 1), &[(0, 1)]).is(Kind::InconsistentOffsets);
}

#[test]
fn sealed_segments_differ() {
    let first = story().segmented(1, (0, 9), &[(0, 4, "aa"), (4, 8, "bb")]);
    let report = first.clone().segmented(2, (0, 9), &[(0, 4, "aa"), (4, 8, "bc")]).is(Kind::SegmentsDiffer);
    assert_eq!(report.findings[0].offsets, [4, 4]);
    // Rolled elsewhere.
    first.clone().segmented(2, (0, 9), &[(0, 5, "aa"), (5, 8, "bb")]).is(Kind::SegmentsDiffer);
    first.clone().segmented(2, (0, 9), &[(2, 4, "aa"), (4, 8, "bb")]).is(Kind::SegmentsDiffer);
    first.segmented(2, (0, 9), &[(0, 4, "aa"), (4, 8, "bb")]).is_good();
}

#[test]
fn replicas_may_have_deleted_and_sealed_more_or_fewer_segments() {
    let first = story().segmented(1, (0, 9), &[(0, 4, "aa"), (4, 8, "bb")]);
    first.clone().segmented(2, (0, 9), &[(4, 8, "bb")]).segmented(3, (0, 9), &[(0, 4, "aa")]).is_good();
    first.segmented(2, (0, 9), &[]).is_good();
}
