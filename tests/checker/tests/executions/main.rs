//! Executions of a log that is right, with whatever may go wrong around it: nothing is found. Then one thing is put wrong: it is found,
//! as what it is.

mod mutations;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tidemill_checker::{Checker, Exact, Kind, Report, check_events};

use mutations::mutate;
use world::{Evens, execute, passes};

fn check(events: &[tidemill_checker::Event]) -> Report {
    let checker = Checker::new().with_model("evens", Exact::new(Evens::default()));
    check_events(events, checker.with_filter("filtered", passes)).unwrap()
}

fn steps() -> impl Strategy<Value = Vec<[u8; 4]>> {
    proptest::collection::vec(any::<[u8; 4]>(), 60..400)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_found_in_what_is_right(steps in steps()) {
        let events = execute(&steps);
        let report = check(&events);
        prop_assert!(report.is_good(), "{report}");
        prop_assert!(report.checks > 100);
    }
}

/// What is found alone where it is put wrong. Others bring some along: a task reads what was lost, a record that is elsewhere than it was
/// acknowledged is not in its order.
const ALONE: [Kind; 16] = [
    Kind::Duplicate,
    Kind::InconsistentOffsets,
    Kind::AbortedRead,
    Kind::PrecommittedRead,
    Kind::NonmonotonicPoll,
    Kind::PollSkip,
    Kind::InternalPollSkip,
    Kind::Unseen,
    Kind::MissingOnReplica,
    Kind::SegmentsDiffer,
    Kind::Altered,
    Kind::LogStartBack,
    Kind::GroupPosition,
    Kind::TaskOutput,
    Kind::TaskState,
    Kind::TaskPosition,
];

/// Each kind, in many executions; and how often there was something to put wrong.
#[test]
fn one_thing_put_wrong_is_found_as_what_it_is() {
    let mut runner = TestRunner::deterministic();
    let mut put_wrong: BTreeMap<Kind, u32> = BTreeMap::new();
    for _ in 0..60 {
        let (steps, pick) = (steps(), any::<u64>()).new_tree(&mut runner).unwrap().current();
        let events = execute(&steps);
        for kind in Kind::ALL {
            let Some(wrong) = mutate(*kind, &events, pick) else { continue };
            let report = check(&wrong);
            assert!(report.counts.contains_key(kind), "{kind} is not found in\n{}\n{report}", shown(&wrong));
            let finding = report.findings.iter().find(|finding| finding.kind == *kind).unwrap();
            let is_shown = !finding.evidence.is_empty() || *kind == Kind::TaskState;
            assert!(is_shown, "nothing shows {finding}");
            let is_alone = report.kinds() == [*kind] || !ALONE.contains(kind);
            assert!(is_alone, "{kind} brings others along in\n{}\n{report}", shown(&wrong));
            *put_wrong.entry(*kind).or_default() += 1;
        }
    }
    for kind in Kind::ALL {
        let times = put_wrong.get(kind).copied().unwrap_or(0);
        assert!(times >= 10, "{kind} was put wrong {times} times only");
    }
}

/// The last of a history, for whoever looks at a failure.
fn shown(events: &[tidemill_checker::Event]) -> String {
    let lines: Vec<String> = events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    lines.join("\n")
}
