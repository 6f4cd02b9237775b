//! Timers go by the log's time, and before records.

use tidemill_hostile as hostile;
use tidemill_hostile::Misdeed;
use tidemill_hosting::*;
use tidemill_protocol::Timestamp;

use crate::kit::*;

#[tokio::test]
async fn timers_fire_when_the_logs_time_comes() {
    let stage = StageOptions::default().play(hostile::relay(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    // It is set for one second later. One millisecond before it is not due.
    stage.port.shard.tick(Timestamp::new(1999));
    let key = TaskKey { deployment: DEPLOYMENT, partition: PARTITION, home: source() };
    assert_eq!(stage.port.due_timers(key, 10).await, Ok(Vec::new()));
    stage.port.shard.tick(Timestamp::new(2000));
    stage.counts("timer_calls", 1).await;
    eventually("it emits", || stage.contents(target()) == ["0", "tick"]).await;
    let attempts = stage.attempts();
    let fired: Vec<_> = attempts.iter().filter(|attempt| !attempt.step.fired.is_empty()).collect();
    assert_eq!(fired.len(), 1);
    assert_eq!((fired[0].now.get(), fired[0].step.fired[0].at.get()), (2000, 2000));
    assert!(stage.task().timers.is_empty(), "what fired is not set any more");
}

#[tokio::test]
async fn due_timers_go_before_records() {
    let stage = StageOptions::default().play(hostile::relay(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    // The records that make it due are there at the same moment.
    stage.append(&keys_but(2, &[]), 5000);
    stage.reaches(3).await;
    assert_eq!(stage.contents(target()), ["0", "tick", "0", "1"]);
}

#[tokio::test]
async fn a_timer_that_is_set_again_moves() {
    let stage = StageOptions::default().play(hostile::relay(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    stage.append(&keys_but(1, &[]), 1500);
    stage.reaches(2).await;
    assert_eq!(stage.task().timers, [("i".into(), Timestamp::new(2500))]);
    assert_eq!(stage.counter("timer_calls"), 0);
}

/// What a timer's call does is a step of its own: refused, nothing of it is done, and the timer is still set.
#[tokio::test]
async fn a_timers_step_is_taken_as_one() {
    let stage = StageOptions::default().play(hostile::relay(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    stage.port.fail([crate::faulty::Fault::Refused(StepRefusal::Outdated("test".to_owned()))]);
    stage.port.shard.tick(Timestamp::new(2000));
    eventually("it fires", || stage.task().timers.is_empty()).await;
    assert_eq!(stage.contents(target()), ["0", "tick"]);
    let attempts = stage.attempts();
    let fired: Vec<_> = attempts.iter().filter(|attempt| !attempt.step.fired.is_empty()).collect();
    assert_eq!(fired.len(), 2);
    assert_eq!(fired[0].before, fired[0].after);
}

/// A timer that fails is left out; the task goes on with its records.
#[tokio::test]
async fn each_misdeed_in_timers_costs_the_timer() {
    for misdeed in Misdeed::ALL {
        let component = hostile::misbehaves_in_timers(misdeed);
        let stage = StageOptions::default().play(component, &keys_but(1, &[])).await;
        stage.reaches(1).await;
        stage.append(&keys_but(1, &[]), 5000);
        stage.reaches(2).await;
        let (counter, skipped) = match misdeed {
            Misdeed::Trap | Misdeed::Grow => (Some("traps"), 1),
            Misdeed::Loop => (Some("timeouts"), 1),
            Misdeed::Retry | Misdeed::Reject => (Some("failures"), 1),
            Misdeed::BadIndex => (None, 0),
        };
        assert_eq!(stage.counter("skipped"), skipped, "{misdeed:?}: {}", stage.log());
        for name in ["traps", "timeouts", "failures"] {
            assert_eq!(stage.counter(name) > 0, counter == Some(name), "{misdeed:?}: {name}");
        }
        assert_eq!(stage.contents(target()), ["0", "0"], "{misdeed:?}");
        assert_eq!(
            stage.task().timers,
            [("i".into(), Timestamp::new(6000))],
            "{misdeed:?}: the next one is set"
        );
    }
}

#[tokio::test]
async fn a_timer_that_fails_pauses_the_task() {
    let options = StageOptions { policy: TaskPolicy::Pause, ..StageOptions::default() };
    let stage = options.play(hostile::misbehaves_in_timers(Misdeed::Trap), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    stage.append(&keys_but(1, &[]), 5000);
    let reason = stage.stops().await;
    let task = stage.task();
    assert!(reason.contains("at a timer") && reason.contains("trapped"), "{reason}");
    assert_eq!(
        (stage.position(), task.timers.len()),
        (1, 1),
        "the timer is not lost, and nothing overtakes it"
    );
}

#[tokio::test]
async fn a_timer_is_tried_again() {
    let options = StageOptions { attempts: 3, ..StageOptions::default() };
    let stage = options.play(hostile::misbehaves_in_timers(Misdeed::Retry), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    stage.port.shard.tick(Timestamp::new(2000));
    stage.counts("skipped", 1).await;
    assert_eq!((stage.counter("timer_calls"), stage.counter("retries")), (3, 2));
}
