//! What a misbehaving task can do to its host: nothing.

use std::sync::Arc;
use std::time::Duration;

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
async fn data_without_records_is_not_kept() {
    let host = MemoryHost::default();
    let limits = PluginLimits { call_time: Duration::from_secs(5), ..tight() };
    let mut task = task(&hostile::emits_data_alone(1000), limits, &host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap();
    let kept: usize = host.0.lock().emitted.iter().map(|(_, records)| records.data().len()).sum();
    assert_eq!(kept, 0);
}

#[tokio::test]
async fn data_beside_records_is_charged() {
    let host = MemoryHost::default();
    let mut task = task(&hostile::emits_data_beside_records(), tight(), &host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap();
    let kept: usize = host.0.lock().emitted.iter().map(|(_, records)| records.data().len()).sum();
    let most = tight().emitted_bytes_per_call_max;
    assert!(kept <= most && kept > most / 2, "{kept} of {most}");
}

#[tokio::test]
async fn emissions_are_counted() {
    let host = MemoryHost::default();
    let limits = PluginLimits { sends_per_call_max: 7, ..tight() };
    let mut task = task(&hostile::emits_until_refused(), limits, &host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap();
    assert_eq!(host.0.lock().emitted.len(), 7);
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
async fn keys_longer_than_a_shard_takes() {
    let most = TASK_KEY_BYTES_MAX as u32;
    let host = MemoryHost::default();
    for component in
        [hostile::sets_timers_with_keys_of(most, 1), hostile::cancels_a_timer_with_a_key_of(most)]
    {
        task(&component, tight(), &host).await.unwrap().handle(&batch_of(3)).await.unwrap();
    }
    let too_long = [
        hostile::sets_timers_with_keys_of(most + 1, 1),
        hostile::cancels_a_timer_with_a_key_of(most + 1),
        hostile::reads_a_key_of(most + 1),
        hostile::scans_from_a_key_of(most + 2),
    ];
    for component in too_long {
        let error = error_of(&component, &host).await;
        assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("bytes")), "{error:?}");
    }
    let mut writes = task(&hostile::writes_a_key_of(most + 1), tight(), &host).await.unwrap();
    writes.handle(&batch_of(3)).await.expect("it was told so, and goes on");
    assert!(host.0.lock().state.is_empty());
}

#[tokio::test]
async fn timers_keys_are_charged_as_written() {
    let host = MemoryHost::default();
    let limits = PluginLimits { written_bytes_per_call_max: 64 << 10, timers_per_call_max: 1000, ..tight() };
    let component = hostile::sets_timers_with_keys_of(4000, 500);
    let error = task(&component, limits, &host).await.unwrap().handle(&batch_of(3)).await.unwrap_err();
    assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("65536 bytes")), "{error:?}");
    let kept: usize = host.0.lock().timers.iter().map(|(key, _)| key.len()).sum();
    assert!(kept <= 64 << 10, "{kept}");
}

#[tokio::test]
async fn one_key_read_often_counts_as_often() {
    let host = MemoryHost::default();
    host.0.lock().state.insert(Vec::new(), vec![7; 100 << 10]);
    let limits = PluginLimits { read_bytes_max: 2 << 20, ..tight() };
    let read = async |count: u32| {
        let mut task = task(&hostile::reads_one_key_often(count), limits.clone(), &host).await.unwrap();
        task.handle(&batch_of(3)).await
    };
    read(20).await.unwrap();
    let error = read(21).await.unwrap_err();
    assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("ask for fewer")), "{error:?}");
    let error = read(limits.read_keys_max + 1).await.unwrap_err();
    assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("10001 keys")), "{error:?}");
}

#[tokio::test]
async fn reading_without_end() {
    let host = MemoryHost::default();
    // As it waits for each read, hardly any of it is its own running time.
    let limits =
        PluginLimits { call_time: Duration::from_secs(600), read_bytes_per_call_max: 4 << 20, ..tight() };
    let mut task = task(&hostile::reads_for_ever(), limits, &host).await.unwrap();
    let error = task.handle(&batch_of(3)).await.unwrap_err();
    assert_eq!(error, CallError::BadAnswer("more than 4194304 bytes of state read in one call".to_owned()));
}

#[tokio::test]
async fn a_page_ends_at_its_bytes() {
    let host = MemoryHost::default();
    for key in 0..10_u8 {
        host.0.lock().state.insert(vec![key], vec![7; 10 << 10]);
    }
    let notes = Arc::new(Notes::default());
    let limits = PluginLimits { scan_bytes_max: 25 << 10, ..tight() };
    let component = compiled(&hostile::scans_from_a_key_of(0));
    let host = Box::new(host.clone());
    let mut task = ConsumerInstance::start(component, context(), limits, notes.clone(), host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap();
    assert_eq!(*notes.counts.lock(), [("records".to_owned(), 3)]);
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
