use tidemill_checker::{Event, Kind, Span};

use crate::kit::{Story, id, story};

impl Story {
    /// Transaction 9 with records 0 and 1, acknowledged.
    fn in_transaction(self) -> Self {
        let records = Span { first: id(0), count: 2 };
        self.and(Event::Begin { transaction: 9, producer: 0 })
            .and(Event::Send { records, partition: Some(0), transaction: Some(9) })
            .and(Event::Sent { records, partition: Some(0), offset: Some(0), duplicate: false })
    }

    fn end(self, commit: bool) -> Self {
        self.and(Event::End { transaction: 9, commit })
    }

    fn ended(self, committed: bool) -> Self {
        self.and(Event::Ended { transaction: 9, committed })
    }
}

fn committed_reader() -> Story {
    story().consumer("c", false, true)
}

#[test]
fn a_precommitted_read() {
    let report =
        committed_reader().in_transaction().polls("c", 0, 1).end(true).ended(true).is(Kind::PrecommittedRead);
    assert_eq!(report.findings[0].transaction, Some(9));
}

#[test]
fn a_read_of_an_aborted_transaction() {
    committed_reader().in_transaction().end(false).polls("c", 0, 1).is(Kind::AbortedRead);
    committed_reader().in_transaction().end(false).ended(false).polls("c", 0, 1).is(Kind::AbortedRead);
    committed_reader()
        .in_transaction()
        .end(true)
        .end(false)
        .ended(false)
        .polls("c", 0, 1)
        .is(Kind::AbortedRead);
    // Read while its commit was under way, and then refused.
    committed_reader().in_transaction().end(true).polls("c", 0, 1).ended(false).is(Kind::AbortedRead);
}

#[test]
fn a_committed_transaction_is_there_as_a_whole() {
    let read = committed_reader().seek("c", Some(0)).in_transaction().end(true).ended(true);
    read.clone().poll("c", &[(0, 0)]).drained("c").is(Kind::Unseen);
    read.clone().poll("c", &[(1, 1)]).is(Kind::LostWrite);
    read.replica(1, (0, 3), &[(0, 0)]).is(Kind::LostWrite);
    // Its producer never heard of the outcome; but what was read of it says that it is committed.
    let unknown = committed_reader().in_transaction().end(true).polls("c", 0, 1);
    unknown.replica(1, (0, 3), &[(0, 0)]).is(Kind::LostWrite);
}

#[test]
fn transactions_are_seen_or_not_as_they_end() {
    let put = |story: Story| story.send(id(2)).sent(id(2), 3).seek("c", Some(0));
    put(committed_reader().in_transaction().end(true).ended(true))
        .poll("c", &[(0, 0), (1, 1), (3, 2)])
        .is_good();
    put(committed_reader().in_transaction().end(true)).poll("c", &[(0, 0), (1, 1), (3, 2)]).is_good();
    // Who heard nothing of a commit asks to abort, and is told nothing again: it may be committed.
    committed_reader().in_transaction().end(true).end(false).polls("c", 0, 2).is_good();
    committed_reader().in_transaction().end(true).ended(true).end(true).polls("c", 0, 2).is_good();
    // Aborted, or of unknown outcome: the offsets of its records and of its marker are passed over.
    put(committed_reader().in_transaction().end(false).ended(false))
        .poll("c", &[(3, 2)])
        .drained("c")
        .is_good();
    put(committed_reader().in_transaction().end(true)).poll("c", &[(3, 2)]).is_good();
    // Who reads everything may be given what is aborted later.
    story().in_transaction().polls("c", 0, 2).end(false).ended(false).is_good();
}
