//! What a misbehaving task can do to its host: nothing.

use tidemill_hostile as hostile;
use tidemill_wasm::*;

use crate::kit::*;

async fn error_of(component: &[u8], host: &MemoryHost) -> CallError {
    let mut task = task(component, tight(), host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap_err()
}

#[tokio::test]
async fn more_processed_than_given() {
    let error = error_of(&hostile::processes_too_many(), &MemoryHost::default()).await;
    assert_eq!(error, CallError::BadAnswer("1000000 records were processed, of 3".to_owned()));
}

#[tokio::test]
async fn emission_has_a_budget() {
    let host = MemoryHost::default();
    let mut task = task(&hostile::emits_until_refused(), tight(), &host).await.unwrap();
    for _ in 0..2 {
        task.handle(&batch_of(3)).await.unwrap();
        let emitted: usize =
            host.0.lock().emitted.drain(..).map(|(_, records)| records.referenced_bytes()).sum();
        let most = tight().emitted_bytes_per_call_max;
        assert!(emitted <= most && emitted > most / 2, "{emitted} of {most}");
    }
}

#[tokio::test]
async fn malformed_records_do_not_reach_the_host() {
    let host = MemoryHost::default();
    let mut task = task(&hostile::emits_outside_data(), tight(), &host).await.unwrap();
    task.handle(&batch_of(3)).await.expect("it was told so, and goes on");
    assert!(host.0.lock().emitted.is_empty());
}

#[tokio::test]
async fn a_target_that_is_not_there() {
    let host = MemoryHost::default();
    let error = error_of(&hostile::relay_to(7), &host).await;
    assert!(matches!(error, CallError::Trapped { .. }), "{error:?}");
}

#[tokio::test]
async fn malformed_keys() {
    let error = error_of(&hostile::reads_malformed_keys(), &MemoryHost::default()).await;
    assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("state.get-many")), "{error:?}");
}

#[tokio::test]
async fn timers_without_end() {
    let host = MemoryHost::default();
    let error = error_of(&hostile::sets_timers_for_ever(), &host).await;
    assert_eq!(error, CallError::BadAnswer("more than 100 timers in one call".to_owned()));
    assert_eq!(host.0.lock().timers.len(), 100);
}

#[tokio::test]
async fn keys_of_timers_are_bounded_when_they_are_set() {
    let host = MemoryHost::default();
    let error = error_of(&hostile::sets_a_timer_with_a_long_key(), &host).await;
    let expected = "a timer's key has 5000 bytes; at most 4096 are allowed".to_owned();
    assert_eq!(error, CallError::BadAnswer(expected));
    assert!(host.0.lock().timers.is_empty());
}

#[tokio::test]
async fn a_host_that_fails_is_not_the_plugins_fault() {
    let host = MemoryHost::default();
    host.0.lock().broken = Some("the state store is gone".to_owned());
    let error = error_of(&hostile::count_in_state(), &host).await;
    assert!(!error.is_incident());
    assert_eq!(error, CallError::HostFailed("the state store is gone".to_owned()));
}

#[tokio::test]
async fn waiting_for_state_is_not_charged_and_can_be_given_up() {
    let host = MemoryHost::default();
    host.0.lock().stuck = true;
    let mut task = task(&hostile::count_in_state(), tight(), &host).await.unwrap();
    let batch = batch_of(3);
    let waited = tokio::time::timeout(3 * tight().call_time, task.handle(&batch)).await;
    assert!(waited.is_err(), "it waits");
    assert!(!task.is_usable());
    assert_eq!(task.handle(&batch).await.unwrap_err(), CallError::Discarded);
}
