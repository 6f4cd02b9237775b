//! Components of each version of the contract that was ever published stay here as they were built, and have to run for good.

use std::time::Duration;

use tidemill_wasm::*;

use crate::kit::*;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/contract-0.1.0/", $name, ".wasm"))
    };
}

/// The fixtures are old, not misbehaving: they are not to fail because the machine is busy.
fn patient() -> PluginLimits {
    PluginLimits {
        call_time: Duration::from_secs(5),
        init_time: Duration::from_secs(5),
        ..PluginLimits::task()
    }
}

#[tokio::test]
async fn a_partitioner_of_0_1_0_places() {
    let pool = partitioner(fixture!("partitioner"), patient());
    let placed = pool.partition(batch(&[Some("a"), None, Some("four")]), 3).await.unwrap();
    assert_eq!(placed.partitions, [1, ANY_PARTITION, 1]);
}

#[tokio::test]
async fn a_filter_of_0_1_0_selects() {
    let verdict = filter(fixture!("filter"), patient()).apply(batch_of(3)).await.unwrap();
    let Selection::Keep(bitmap) = verdict.selection else { panic!("{verdict:?}") };
    assert_eq!(bitmap.ordinals().collect::<Vec<_>>(), [0, 2]);
}

#[tokio::test]
async fn a_consumer_of_0_1_0_emits_and_sets_timers() {
    let host = MemoryHost::default();
    let mut task = task(fixture!("consumer"), patient(), &host).await.unwrap();
    assert_eq!(task.handle(&batch_of(3)).await.unwrap().processed, 3);
    task.on_timers(&[], 0).await.unwrap();
    assert_eq!(host.0.lock().emitted.len(), 2);
    assert_eq!(host.0.lock().timers.len(), 1);
}

#[tokio::test]
async fn a_consumer_of_0_1_0_keeps_state() {
    let host = MemoryHost::default();
    let mut task = task(fixture!("consumer-with-state"), patient(), &host).await.unwrap();
    task.handle(&batch_of(3)).await.unwrap();
    assert_eq!(host.0.lock().state[&b"n"[..]], 3u64.to_le_bytes());
}
