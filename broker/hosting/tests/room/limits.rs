//! What a task's call may take, and what it may keep.

use tidemill_hostile as hostile;
use tidemill_hosting::*;

use crate::kit::*;

#[tokio::test]
async fn state_has_a_quota() {
    // One row of it: 1 byte of key, 8 of value, 32 besides.
    for (state_bytes_max, fits) in [(41, true), (40, false)] {
        let limits = MemoryLimits { state_bytes_max, outbox_bytes_max: 1 << 20 };
        let options = StageOptions { limits, ..StageOptions::default() };
        let stage = options.play(hostile::count_in_state(), &keys_but(2, &[])).await;
        stage.reaches(2).await;
        let task = stage.task();
        assert_eq!((task.entries.len(), task.state_bytes), if fits { (1, 41) } else { (0, 0) });
        assert_eq!(stage.counter("skipped"), if fits { 0 } else { 2 }, "{}", stage.log());
        assert_eq!(stage.log().contains("40 are allowed"), !fits, "{}", stage.log());
    }
}

#[tokio::test]
async fn what_a_call_can_never_have_costs_the_record() {
    for (component, reason) in [
        (hostile::reads_one_key_often(10_001), "asks for 10001 keys"),
        (hostile::sets_timers_with_keys_of(4097, 1), "a timer's key"),
        (hostile::reads_a_key_of(5000), "state.get-many"),
    ] {
        let stage = StageOptions::default().play(component, &keys_but(1, &[])).await;
        stage.reaches(1).await;
        assert_eq!(stage.counter("skipped"), 1);
        assert!(stage.log().contains(reason), "{reason}: {}", stage.log());
        assert!(stage.task().timers.is_empty());
    }
}

#[tokio::test]
async fn timers_of_one_call_are_bounded() {
    let stage = StageOptions::default().play(hostile::sets_timers_for_ever(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    assert!(stage.log().contains("more than 10000 timers in one call"), "{}", stage.log());
}

#[tokio::test]
async fn what_one_call_emits_is_bounded_and_the_plugin_told() {
    let stage = StageOptions::default().play(hostile::emits_until_refused(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    // It emits 1 KiB at a time until it is told that this was enough, and then says that it handled none.
    assert!(stage.log().contains("it handled none of the records"), "{}", stage.log());
    assert!(stage.contents(target()).is_empty(), "a call that handles nothing emits nothing");
}
