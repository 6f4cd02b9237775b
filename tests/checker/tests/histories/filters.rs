//! A consumer whose filter passes even sequences.

use tidemill_checker::{Checker, Event, Kind, check_events};

use crate::kit::{Story, of, story, t};

impl Story {
    /// Where the filter has brought it.
    fn at(self, next: u64) -> Self {
        self.and(Event::Poll {
            process: of("c"),
            partition: t(0),
            runs: Vec::new(),
            damaged: Vec::new(),
            next: Some(next),
        })
    }

    #[track_caller]
    fn filtered(&self, kinds: &[Kind]) {
        let checker = Checker::new().with_filter("c", |id| id.sequence.is_multiple_of(2));
        let report = check_events(&self.events, checker).unwrap();
        assert_eq!(report.kinds(), kinds, "{report}");
    }
}

fn even() -> Story {
    story().put(0, 9).polls("d", 0, 9).consumer("c", true, false).seek("c", Some(0))
}

#[test]
fn what_passes_is_given_and_nothing_else() {
    let read = even().poll("c", &[(0, 0), (2, 2)]).at(4).poll("c", &[(4, 4), (6, 6), (8, 8)]).drained("c");
    read.filtered(&[]);
    even().poll("c", &[(0, 0), (2, 2)]).filtered(&[]);
    even().poll("c", &[(0, 0), (4, 4)]).filtered(&[Kind::PollSkip]);
    even().poll("c", &[(0, 0)]).at(4).filtered(&[Kind::PollSkip]);
    even().poll("c", &[(0, 0), (1, 1), (2, 2)]).filtered(&[Kind::UnwantedRead]);
    even().poll("c", &[(0, 0), (2, 2), (4, 4), (6, 6)]).drained("c").filtered(&[Kind::Unseen]);
}

#[test]
fn it_is_sent_elsewhere_and_begins_anew() {
    even().poll("c", &[(0, 0)]).seek("c", Some(5)).poll("c", &[(6, 6), (8, 8)]).drained("c").filtered(&[]);
    let anew = even().poll("c", &[(0, 0), (2, 2)]).consumer("c", true, false);
    anew.clone().poll("c", &[(4, 4), (6, 6)]).filtered(&[]);
    anew.poll("c", &[(2, 2), (6, 6)]).filtered(&[Kind::PollSkip]);
    // What it passed while it was there is trimmed later, or was before.
    even().at(4).log_start("c", 4).poll("c", &[(4, 4)]).filtered(&[]);
}
