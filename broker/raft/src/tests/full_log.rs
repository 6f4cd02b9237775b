//! A log whose device does not come along: replicas wait for room in its queue, and nobody's thread with them.

use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::{Call, FaultyStorage, MemoryStorage};
use tidemill_log::wal::WalConfig;
use tidemill_protocol::ShardId;

use super::fixture::{Broker, PATIENCE, bulk, wal_config};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_queue_of_the_log_keeps_no_thread_of_the_runtime() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let config = WalConfig { queue_bytes_max: 64 << 10, ..wal_config() };
    let broker = Broker::open_with(Arc::new(faulty.clone()), Arc::new(MemoryStorage::new()), &config);
    let mut replicas = Vec::new();
    for shard in 1..4 {
        replicas.push(broker.start(ShardId::new(shard)).await);
    }
    faulty.hold(Call::Write);
    let mut answers = Vec::new();
    // More than the queue takes, from each of them.
    for _ in 0..6 {
        for replica in &replicas {
            let unit = bulk(100 << 10);
            answers.push(replica.reserve(unit.bytes()).await.unwrap().submit(unit));
        }
    }
    let full = async {
        while !broker.wal.is_full() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Long enough for everybody to come to it.
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    tokio::time::timeout(PATIENCE, full).await.unwrap();
    assert!(broker.wal.queued_bytes() < (64 << 10) + 4 * (256 << 10), "{}", broker.wal.queued_bytes());
    // The only worker has time for others.
    let other = tokio::spawn(async { tokio::time::sleep(Duration::from_millis(1)).await });
    tokio::time::timeout(PATIENCE, other).await.expect("the worker is free").unwrap();
    faulty.go_on();
    for answer in answers {
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    }
}
