//! What becomes of records that fail, and of those that a plugin rejects.

use std::time::Duration;

use tidemill_hostile as hostile;
use tidemill_hostile::Misdeed;
use tidemill_hosting::*;

use crate::kit::*;

#[tokio::test]
async fn a_failing_batch_is_tried_again_with_growing_waits() {
    let options = StageOptions { attempts: 3, backoff_ms: 40, ..StageOptions::default() };
    let component = hostile::asks_to_retry(hostile::World::Consumer);
    let stage = options.play(component, &keys_but(1, &[])).await;
    stage.reaches(1).await;
    assert_eq!((stage.counter("calls"), stage.counter("failures"), stage.counter("retries")), (3, 3, 2));
    let fetches = stage.port.fetches();
    let waits: Vec<Duration> = fetches.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] >= Duration::from_millis(40) && waits[1] >= Duration::from_millis(80), "{waits:?}");
    assert_eq!(stage.counter("skipped"), 1);
}

#[tokio::test]
async fn what_never_will_is_not_tried_again() {
    let options = StageOptions { attempts: 5, backoff_ms: 60_000, ..StageOptions::default() };
    let component = hostile::refuses_the_batch(hostile::World::Consumer);
    let stage = options.play(component, &keys_but(2, &[])).await;
    stage.reaches(2).await;
    assert_eq!((stage.counter("calls"), stage.counter("retries")), (3, 0), "both, and each alone");
}

#[tokio::test]
async fn a_failing_batch_is_halved_until_the_record_stands_alone() {
    let component = hostile::misbehaves_at_a_null_key(Misdeed::Trap);
    let stage = StageOptions::default().play(component, &keys_but(8, &[5])).await;
    stage.reaches(8).await;
    assert_eq!(stage.contents(target()), ["0", "1", "2", "3", "4", "6", "7"]);
    // 8 fail; 4 go well; 4 fail; 2 fail; 1 goes well; 2 fail; 1 fails and is left out; 1 goes well; 1 is left.
    assert_eq!(stage.step_sizes().iter().sum::<u64>(), 8);
    assert_eq!(stage.step_sizes()[..3], [4, 1, 1]);
    assert_eq!(stage.counter("skipped"), 1);
    let log = stage.log();
    assert!(log.contains("record at offset 5 of source-0") && log.contains("trapped"), "{log}");
}

#[tokio::test]
async fn a_record_that_fails_goes_to_the_dead_letter_topic() {
    let options = StageOptions { policy: to_dead_letter(), ..StageOptions::default() };
    let component = hostile::misbehaves_at_a_null_key(Misdeed::Trap);
    let stage = options.play(component, &keys_but(4, &[2])).await;
    stage.reaches(4).await;
    assert_eq!(stage.contents(target()), ["0", "1", "3"]);
    assert_eq!(stage.contents(dead_letter()), ["v"]);
    assert_eq!((stage.counter("dead_lettered"), stage.counter("skipped")), (1, 0));
    let headers = headers_of(&stage.port.shard.batches(dead_letter(), 0)[0]);
    let named = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(named("of"), Some("test"), "its own header is kept");
    assert_eq!(named("tidemill-deployment"), Some("tested"));
    assert_eq!(named("tidemill-source"), Some("source-0"));
    assert_eq!(named("tidemill-offset"), Some("2"));
    assert!(named("tidemill-reason").is_some_and(|reason| reason.contains("trapped")), "{headers:?}");
    let with_letter: Vec<_> = stage.attempts().into_iter().filter(|a| !a.step.outputs.is_empty()).collect();
    let letter = with_letter.iter().find(|a| a.step.outputs[0].target == dead_letter()).expect("one");
    assert_eq!(letter.step.positions[0].next.get(), 3, "sent and passed in one step");
}

#[tokio::test]
async fn a_task_stops_before_a_record_that_fails_and_goes_on_when_told() {
    let options = StageOptions { policy: TaskPolicy::Pause, ..StageOptions::default() };
    let component = hostile::misbehaves_at_a_null_key(Misdeed::Trap);
    let stage = options.play(component, &keys_but(4, &[2])).await;
    let reason = stage.stops().await;
    assert!(reason.contains("before offset 2 of source-0") && reason.contains("trapped"), "{reason}");
    assert_eq!((stage.position(), stage.counter("pauses")), (2, 1), "what is before it is done");
    assert_eq!(stage.contents(target()), ["0", "1"]);
    // It is told to go on, and stops at the same record again.
    let key = TaskKey { deployment: DEPLOYMENT, partition: PARTITION, home: source() };
    stage.port.set_state(key, EPOCH, TaskRunState::Running).await.expect("it is noted");
    stage.counts("pauses", 2).await;
    assert_eq!(stage.position(), 2);
}

#[tokio::test]
async fn rejected_records_are_left_out_or_sent_away_and_the_others_done() {
    for (policy, counter, letters) in [
        (TaskPolicy::Skip, "skipped", vec![]),
        (to_dead_letter(), "dead_lettered", vec!["v".to_owned(), "v".to_owned()]),
    ] {
        let options = StageOptions { policy, ..StageOptions::default() };
        let stage = options.play(hostile::rejects_null_keys(), &keys_but(5, &[1, 3])).await;
        stage.reaches(5).await;
        assert_eq!(stage.step_sizes(), [5], "in one step");
        assert_eq!((stage.counter("rejections"), stage.counter(counter)), (2, 2));
        assert_eq!(stage.contents(dead_letter()), letters);
        let log = stage.log();
        assert!(log.contains("record at offset 1 of source-0: not this one"), "{log}");
        assert!(log.contains("record at offset 3 of source-0: not this one"), "{log}");
    }
}

#[tokio::test]
async fn a_rejected_record_pauses_the_task_before_it() {
    let options = StageOptions { policy: TaskPolicy::Pause, ..StageOptions::default() };
    let stage = options.play(hostile::rejects_null_keys(), &keys_but(5, &[3])).await;
    let reason = stage.stops().await;
    assert_eq!((stage.position(), stage.step_sizes()), (3, vec![3]), "those before it alone");
    assert!(reason.contains("before offset 3 of source-0: not this one"), "{reason}");
}

/// Rejections count when the step that goes past them is taken, not when it is tried.
#[tokio::test]
async fn a_rejection_is_told_once_however_often_its_step_is_tried() {
    let stage = StageOptions::default().set(hostile::rejects_null_keys()).await;
    let refused = || crate::faulty::Fault::Refused(StepRefusal::Outdated("test".to_owned()));
    stage.port.fail([refused(), refused()]);
    stage.append(&keys_but(2, &[1]), 1000);
    stage.run();
    stage.reaches(2).await;
    assert_eq!((stage.counter("rejections"), stage.counter("skipped")), (1, 1));
    assert_eq!(stage.log().matches("not this one").count(), 1, "{}", stage.log());
}

/// Each way to fail fails the record alone, under the right counter.
#[tokio::test]
async fn each_misdeed_in_a_call_costs_the_record_that_it_is_about() {
    for misdeed in Misdeed::ALL {
        let component = hostile::misbehaves_at_a_null_key(misdeed);
        let stage = StageOptions::default().play(component, &keys_but(4, &[1])).await;
        stage.reaches(4).await;
        let (counter, skipped) = match misdeed {
            Misdeed::Trap | Misdeed::Grow => (Some("traps"), 1),
            Misdeed::Loop => (Some("timeouts"), 1),
            Misdeed::Retry | Misdeed::Reject => (Some("failures"), 1),
            // It is told so, sends nothing of it, and goes on.
            Misdeed::BadIndex => (None, 0),
        };
        assert_eq!(stage.counter("skipped"), skipped, "{misdeed:?}: {}", stage.log());
        for name in ["traps", "timeouts", "failures"] {
            assert_eq!(stage.counter(name) > 0, counter == Some(name), "{misdeed:?}: {name}");
        }
        let relayed = stage.contents(target());
        let expected: &[&str] = if skipped == 1 { &["0", "2", "3"] } else { &["0", "v", "2", "3"] };
        assert_eq!(relayed, expected, "{misdeed:?}");
    }
}

#[tokio::test]
async fn an_answer_that_says_too_much_is_a_failure() {
    let stage = StageOptions::default().play(hostile::processes_too_many(), &keys_but(2, &[])).await;
    stage.reaches(2).await;
    assert_eq!((stage.counter("traps"), stage.counter("skipped")), (3, 2));
    assert!(stage.log().contains("1000000 records were processed, of 2"), "{}", stage.log());
}
