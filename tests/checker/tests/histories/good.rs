//! What may be, although it looks odd.

use tidemill_checker::{Event, RecordId, Run, Span};

use crate::kit::{Story, id, of, story, t};

#[test]
fn what_is_read_where_it_was_acknowledged() {
    let story = story().topic(1, true, false).put(0, 50).polls("c", 0, 20).polls("c", 20, 50).drained("c");
    let all: Vec<_> = (0..50).map(|offset| (offset, offset)).collect();
    story.replica(1, (0, 50), &all).replica(2, (0, 50), &all).is_good();
}

#[test]
fn an_unknown_outcome_turns_out_either_way() {
    let unknown = story().topic(1, true, false).put(0, 2).send(id(2)).unknown(id(2));
    unknown.clone().polls("c", 0, 3).drained("c").is_good();
    unknown.clone().polls("c", 0, 2).drained("c").is_good();
    // It comes late, behind what was sent after it failed to be answered; by another producer, since one keeps its order.
    let other = RecordId::new(1, 0);
    unknown
        .send(other)
        .sent(other, 2)
        .poll_ids("c", &[(0, id(0)), (1, id(1)), (2, other), (3, id(2))])
        .is_good();
    // Nobody was ever told anything.
    story().send(id(0)).is_good_or_unchecked();
}

impl Story {
    fn is_good_or_unchecked(&self) {
        assert!(self.report().is_good());
    }
}

#[test]
fn a_retry_that_is_acknowledged_as_a_duplicate() {
    let retried = story().send(id(0)).unknown(id(0)).put(1, 1).send(id(0));
    retried.clone().duplicate(id(0), Some(0)).polls("c", 0, 1).is_good();
    retried.clone().duplicate(id(0), None).polls("c", 0, 1).is_good();
    // Acknowledged twice, at the same place.
    story().put(0, 1).send(id(0)).duplicate(id(0), Some(0)).polls("c", 0, 1).is_good();
    // The first attempt had its place before others were sent.
    let other = RecordId::new(1, 0);
    let late =
        story().send(id(0)).unknown(id(0)).send(other).sent(other, 1).send(id(0)).duplicate(id(0), Some(0));
    late.poll_ids("c", &[(0, id(0)), (1, other)]).is_good();
}

#[test]
fn a_sure_failure_that_is_tried_again() {
    story().send(id(0)).fail(id(0)).send(id(0)).sent(id(0), 0).polls("c", 0, 1).drained("c").is_good();
}

#[test]
fn a_producer_without_idempotence_may_double_and_reorder() {
    let producer = Event::Producer { producer: 2, process: of("p2"), topic: of("t"), idempotent: false };
    let id = |sequence| RecordId::new(2, sequence);
    let story = story().and(producer).send(id(0)).send(id(1)).sent(id(0), 2).sent(id(1), 1);
    story.poll_ids("c", &[(0, id(0)), (1, id(1)), (2, id(0))]).is_good();
}

#[test]
fn a_consumer_that_is_sent_back_or_forward() {
    story().put(0, 9).polls("c", 0, 6).seek("c", Some(2)).polls("c", 2, 9).is_good();
    story().put(0, 9).polls("c", 0, 3).seek("c", Some(6)).polls("c", 6, 9).polls("d", 0, 9).is_good();
    story().put(0, 9).polls("c", 0, 3).seek("c", None).polls("c", 1, 9).is_good();
}

#[test]
fn a_consumer_that_begins_anew() {
    story().put(0, 9).polls("c", 0, 6).consumer("c", false, false).polls("c", 3, 9).is_good();
    let subscribe = |story: Story| story.and(Event::Subscribe { process: of("c") });
    subscribe(story().put(0, 9).polls("c", 0, 6)).polls("c", 3, 9).is_good();
    let assign = |story: Story, partitions: &[u32]| {
        let partitions = partitions.iter().map(|partition| t(*partition)).collect();
        story.and(Event::Assign { process: of("c"), partitions })
    };
    assign(assign(story().put(0, 9).polls("c", 0, 6), &[1]), &[0, 1]).polls("c", 3, 9).is_good();
    assign(story().put(0, 9).polls("c", 0, 6), &[0, 1])
        .polls("c", 5, 9)
        .is(tidemill_checker::Kind::NonmonotonicPoll);
}

#[test]
fn a_filter_leaves_records_out() {
    let story = story().put(0, 9).polls("d", 0, 9).consumer("c", true, false);
    let poll = Event::Poll {
        process: of("c"),
        partition: t(0),
        runs: Vec::new(),
        damaged: Vec::new(),
        next: Some(8),
    };
    story.poll("c", &[(1, 1), (4, 4)]).and(poll).poll("c", &[(8, 8)]).drained("c").is_good();
}

#[test]
fn a_compacted_topic_loses_records() {
    let story = story().topic(1, false, true).put(0, 9).poll("c", &[(3, 3), (7, 7), (8, 8)]).drained("c");
    story.replica(1, (0, 9), &[(7, 7), (8, 8)]).is_good();
}

#[test]
fn a_log_that_was_trimmed_under_a_reader() {
    let story = story().topic(1, true, false).put(0, 9).polls("c", 0, 3).log_start("c", 6);
    let story = story.polls("c", 6, 9).drained("c");
    story.is_good();
    story.clone().replica(1, (6, 9), &[(6, 6), (7, 7), (8, 8)]).is_good();
    // What a replica still has before its start is no business of anybody's.
    story.replica(1, (7, 9), &[(7, 7), (8, 8)]).replica(2, (7, 9), &[(6, 6), (7, 7), (8, 8)]).is_good();
}

#[test]
fn gaps_where_nothing_is_known_to_lie() {
    let sent = story().put(0, 2).send(id(5)).sent(id(5), 3);
    sent.poll("c", &[(0, 0), (1, 1), (3, 5)]).drained("c").is_good();
}

#[test]
fn a_producer_that_routes_and_is_told_nothing() {
    let records = Span { first: id(0), count: 4 };
    let sent =
        story().topic(2, false, false).and(Event::Send { records, partition: None, transaction: None });
    let sent = sent
        .and(Event::Sent { records, partition: None, offset: None, duplicate: false })
        .poll("c", &[(0, 0), (1, 2)]);
    sent.and(Event::Poll {
        process: of("c"),
        partition: t(1),
        runs: vec![Run::one(0, id(1)), Run::one(1, id(3))],
        damaged: Vec::new(),
        next: None,
    })
    .is_good();
}
