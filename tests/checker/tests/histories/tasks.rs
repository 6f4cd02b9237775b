use std::collections::BTreeMap;

use tidemill_checker::{Checker, Event, Exact, Input, Kind, Replay, TaskInput, TopicPartition, check_events};

use crate::kit::{Story, of, story, t};

/// Sends even records on, and counts all.
#[derive(Default)]
struct Evens {
    all: u64,
}

impl Replay for Evens {
    fn apply(&mut self, input: &Input<'_>) -> Vec<(TopicPartition, String)> {
        self.all += 1;
        let is_even = input.id.sequence.is_multiple_of(2);
        is_even.then(|| (out(), input.id.sequence.to_string())).into_iter().collect()
    }

    fn state(&self) -> BTreeMap<String, String> {
        [(of("all"), self.all.to_string())].into()
    }
}

fn out() -> TopicPartition {
    TopicPartition::new("out", 0)
}

impl Story {
    fn output(self, outputs: &[&str]) -> Self {
        (7..).zip(outputs).fold(self, |story, (offset, value)| {
            story.and(Event::Output { task: of("evens"), partition: out(), offset, value: of(value) })
        })
    }

    fn task(self, next: u64, all: &str) -> Self {
        let inputs = vec![TaskInput { partition: t(0), from: 0, next }];
        self.and(Event::State { task: of("evens"), key: of("all"), value: of(all) }).and(Event::Task {
            task: of("evens"),
            inputs,
            drained: true,
        })
    }

    fn kinds(&self) -> Vec<Kind> {
        let report =
            check_events(&self.events, Checker::new().with_model("evens", Exact::new(Evens::default())));
        let report = report.unwrap();
        assert_eq!(report.tasks_without_model, 0);
        assert!(report.findings.iter().all(|finding| finding.what.contains("evens")), "{report}");
        report.kinds()
    }
}

/// Five records, all of them stored.
fn five() -> Story {
    let all: Vec<_> = (0..5).map(|offset| (offset, offset)).collect();
    story().put(0, 5).replica(1, (0, 5), &all)
}

#[test]
fn a_task_that_does_what_its_model_does() {
    assert_eq!(five().output(&["0", "2", "4"]).task(5, "5").kinds(), []);
    let report = five().output(&["1"]).task(5, "9").report();
    assert_eq!(
        (report.kinds(), report.tasks_without_model),
        (vec![], 1),
        "without a model there is nothing to compare"
    );
}

#[test]
fn outputs_that_differ() {
    for wrong in
        [&["0", "2"][..], &["0", "0", "2", "4"], &["0", "4", "2"], &["2", "4"], &["0", "2", "4", "4"], &[]]
    {
        assert_eq!(five().output(wrong).task(5, "5").kinds(), [Kind::TaskOutput], "{wrong:?}");
    }
}

#[test]
fn a_state_that_differs() {
    assert_eq!(five().output(&["0", "2", "4"]).task(5, "6").kinds(), [Kind::TaskState]);
    let more = Event::State { task: of("evens"), key: of("more"), value: of("1") };
    assert_eq!(five().output(&["0", "2", "4"]).and(more).task(5, "5").kinds(), [Kind::TaskState]);
}

#[test]
fn a_position_that_is_not_the_end() {
    assert_eq!(five().output(&["0", "2"]).task(4, "4").kinds(), [Kind::TaskPosition]);
    assert_eq!(five().output(&["0", "2", "4"]).task(6, "5").kinds(), [Kind::TaskPosition]);
}
