//! What plugins that do as they should are good for.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tidemill_wasm::*;

use crate::kit::*;

#[tokio::test]
async fn filters_keep_drop_and_replace() {
    let limits = PluginLimits::inline;
    let all = filter(&hostile::keep_all(), limits()).apply(batch_of(10)).await.unwrap();
    assert_eq!(all, Verdict { selection: Selection::KeepAll, rejections: vec![] });

    let even = filter(&hostile::keep_even(), limits()).apply(batch_of(11)).await.unwrap();
    let Selection::Keep(bitmap) = even.selection else { panic!("{even:?}") };
    assert_eq!(bitmap.ordinals().collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10]);

    let redacted = filter(&hostile::redact_first(), limits()).apply(batch_of(3)).await.unwrap();
    let Selection::Replace(records) = redacted.selection else { panic!("{redacted:?}") };
    let records: Vec<_> = records.iter().collect();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].key, records[0].value), (Part::AsInput, Part::Null));
    assert_eq!(records[0].ordinal, Some(0));

    let rejected = filter(&hostile::reject_one(2), limits()).apply(batch_of(3)).await.unwrap();
    assert_eq!(rejected.rejections, [Rejection { ordinal: 2, reason: "not this one".to_owned() }]);
}

#[tokio::test]
async fn an_empty_batch_is_a_batch() {
    filter(&hostile::keep_even(), PluginLimits::inline()).apply(batch_of(0)).await.unwrap();
    let placed =
        partitioner(&hostile::by_key_length(), PluginLimits::inline()).partition(batch_of(0), 3).await;
    assert!(placed.unwrap().partitions.is_empty());
}

#[tokio::test]
async fn partitioners_place() {
    let pool = partitioner(&hostile::by_key_length(), PluginLimits::inline());
    let placed = pool.partition(batch(&[Some("a"), None, Some("four"), Some("")]), 3).await.unwrap();
    assert_eq!(placed.partitions, [1, ANY_PARTITION, 1, 0]);
}

#[tokio::test]
async fn a_partitioner_remembers_nothing() {
    let pool = partitioner(&hostile::places_by_memory(), PluginLimits::inline());
    for _ in 0..5 {
        assert_eq!(pool.partition(batch_of(1), 10).await.unwrap().partitions, [2]);
    }
}

#[tokio::test]
async fn a_filters_instance_is_used_again() {
    let pool = filter(&hostile::keep_all(), PluginLimits::inline());
    for _ in 0..100 {
        pool.apply(batch_of(5)).await.unwrap();
    }
    assert_eq!(pool.idle(), 1);
    assert!(pool.idle_memory_bytes() >= 65536);
    pool.trim();
    assert_eq!(pool.idle(), 0);
    pool.apply(batch_of(5)).await.unwrap();
}

#[tokio::test]
async fn a_failure_is_an_answer_and_keeps_the_instance() {
    let cases = [
        (hostile::asks_to_retry(World::Filter), Failure::Retry("not this one".to_owned())),
        (hostile::refuses_the_batch(World::Filter), Failure::Reject("not this one".to_owned())),
    ];
    for (component, failure) in cases {
        let pool = filter(&component, PluginLimits::inline());
        let error = pool.apply(batch_of(1)).await.unwrap_err();
        assert!(!error.is_incident());
        assert_eq!(error, CallError::Failed(failure));
        assert_eq!(pool.idle(), 1);
    }
}

#[test]
fn a_short_call_is_done_when_it_is_polled_once() {
    let pool = filter(&hostile::keep_all(), PluginLimits::inline());
    let mut done = 0;
    for _ in 0..20 {
        let mut call = Box::pin(pool.apply(batch_of(10)));
        // The tick may fall into a short call too, which is then done at the next poll.
        match call.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(answer) => {
                answer.unwrap();
                done += 1;
            }
            Poll::Pending => drop(call),
        }
    }
    assert!(done > 10, "{done} of 20 were done at once");
}

#[test]
fn a_long_call_gives_way_and_moves_to_another_thread() {
    let limits = PluginLimits { call_time: std::time::Duration::from_millis(20), ..PluginLimits::inline() };
    let pool = filter(&hostile::loops(World::Filter), limits);
    let mut call = Box::pin(pool.apply(batch_of(1)));
    assert!(call.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(call)
    });
    assert_eq!(elsewhere.join().unwrap().unwrap_err(), CallError::TimedOut { limit_ms: 20 });
}

#[tokio::test]
async fn a_dropped_call_takes_its_instance_along() {
    let pool = filter(&hostile::loops(World::Filter), PluginLimits::inline());
    for _ in 0..200 {
        let mut call = Box::pin(pool.apply(batch_of(1)));
        assert!(call.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!(pool.idle(), 0);
    filter(&hostile::keep_all(), PluginLimits::inline()).apply(batch_of(1)).await.unwrap();
}

#[tokio::test]
async fn tasks_count_in_state() {
    let host = MemoryHost::default();
    let mut task = task(&hostile::count_in_state(), PluginLimits::task(), &host).await.unwrap();
    for records in [3, 0, 4] {
        let outcome = task.handle(&batch_of(records)).await.unwrap();
        assert_eq!(outcome.processed as usize, records);
    }
    assert_eq!(host.0.lock().state[&b"n"[..]], 7u64.to_le_bytes());
}

#[tokio::test]
async fn tasks_emit_and_set_timers() {
    let host = MemoryHost::default();
    let mut task = task(&hostile::relay(), PluginLimits::task(), &host).await.unwrap();
    assert_eq!(task.fields(), Fields::ALL);
    let given = batch(&[Some("a"), None]);
    task.handle(&given).await.unwrap();
    task.on_timers(&[Timer { key: b"t".to_vec(), at: given.now + 1000 }], given.now + 1001).await.unwrap();
    let effects = host.0.lock();
    assert_eq!(effects.timers, [(b"i".to_vec(), given.now + 1000)]);
    let made: Vec<Vec<_>> = effects.emitted.iter().map(|(_, records)| records.iter().collect()).collect();
    assert_eq!(made[0][0].key, Part::Bytes(b"a"));
    assert_eq!(made[0][1].key, Part::Null);
    assert_eq!((made[0][1].value, made[0][1].ordinal), (Part::Bytes(b"value"), Some(1)));
    assert_eq!((made[1][0].value, made[1][0].ordinal), (Part::Bytes(b"tick"), None));
}

#[tokio::test]
async fn a_plugins_counters_reach_the_sink() {
    let notes = Arc::new(Notes::default());
    let host = Box::new(MemoryHost::default());
    let consumer = compiled(&hostile::baseline(World::Consumer));
    let mut task = ConsumerInstance::start(consumer, context(), tight(), notes.clone(), host).await.unwrap();
    task.handle(&batch_of(42)).await.unwrap();
    assert_eq!(*notes.counts.lock(), [("records".to_owned(), 42)]);
}
