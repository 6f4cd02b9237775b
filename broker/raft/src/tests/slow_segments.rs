//! Segments on a disk that is slower than the log's: memory stays bounded, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::{Call, FaultyStorage, MemoryStorage};
use tidemill_protocol::Offset;
use tidemill_shard::{ShardConfig, UnitResult};

use super::fixture::{Broker, PATIENCE, SHARD, adopt, commit_all, record, wal_config};
use crate::error::ProposeError;

const LAG_BYTES_MAX: u64 = 256 << 10;
const RECORD_BYTES: usize = 16 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_with_records_wait_for_segments() {
    let segments = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let mut broker =
        Broker::open_with(Arc::new(MemoryStorage::new()), Arc::new(segments.clone()), &wal_config());
    broker.shard_config =
        |shard| ShardConfig { write_behind_bytes: 64 << 10, tail_cache_bytes: 0, ..ShardConfig::new(shard) };
    broker.limits.write_behind_bytes_max = LAG_BYTES_MAX;
    broker.limits.reserve_deadline = Duration::from_millis(200);
    let replica = broker.start(SHARD).await;
    let partition = adopt(&replica, 1 << 20).await;

    segments.hold(Call::Write);
    let mut stored = 0;
    let refused = loop {
        match replica.propose(record(partition, RECORD_BYTES)).await {
            Ok(UnitResult::Appended { .. }) => stored += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
        assert!(stored < 1_000, "memory is bounded");
    };
    assert_eq!(refused, ProposeError::Overloaded);
    let lag = replica.shard().write_behind_lag_bytes();
    assert!(lag > LAG_BYTES_MAX && lag < LAG_BYTES_MAX + 2 * RECORD_BYTES as u64, "{lag}");
    assert!(replica.reserve(RECORD_BYTES).await.is_err(), "nor is there room for what comes over a stream");
    // What brings no records does not wait: retention and readers go on.
    commit_all(&replica, "group", 0..3).await;

    // One that waits is let through when the disk catches up.
    broker.limits.reserve_deadline = PATIENCE;
    let waiting = tokio::spawn({
        let replica = replica.clone();
        async move {
            loop {
                match replica.propose(record(partition, RECORD_BYTES)).await {
                    Err(ProposeError::Overloaded) => {}
                    done => return done,
                }
            }
        }
    });
    segments.go_on();
    let appended = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let UnitResult::Appended { base_offset, .. } = appended else { panic!("{appended:?}") };
    assert_eq!(base_offset, Offset::new(stored));
    tokio::time::timeout(PATIENCE, replica.shard().written_up_to(LAG_BYTES_MAX)).await.unwrap();
}

/// What the log brings again after a restart is bounded by the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_the_replay_of_the_log() {
    let (log, segments) = (MemoryStorage::new(), FaultyStorage::new(Arc::new(MemoryStorage::new())));
    let open = |log: MemoryStorage| {
        let mut broker = Broker::open_with(Arc::new(log), Arc::new(segments.clone()), &wal_config());
        broker.shard_config = |shard| ShardConfig {
            write_behind_bytes: 64 << 10,
            tail_cache_bytes: 0,
            ..ShardConfig::new(shard)
        };
        broker.limits.write_behind_bytes_max = LAG_BYTES_MAX;
        broker.limits.read_bytes_max = RECORD_BYTES;
        broker
    };
    let broker = open(log.clone());
    let replica = broker.start(SHARD).await;
    let partition = adopt(&replica, 1 << 20).await;
    for _ in 0..100 {
        replica.propose(record(partition, RECORD_BYTES)).await.unwrap();
    }
    drop((replica, broker));
    let broker = open(log.kill());
    let shard = broker.shard(SHARD);
    segments.hold(Call::Write);
    let starting = tokio::spawn({
        let shard = shard.clone();
        async move { broker.try_start_on(SHARD, shard).await.map(|replica| (replica, broker)) }
    });
    let waits = async {
        while shard.write_behind_lag_bytes() <= LAG_BYTES_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Long enough for the rest, if it went on.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    let lag = shard.write_behind_lag_bytes();
    assert!(lag < LAG_BYTES_MAX + 3 * RECORD_BYTES as u64, "{lag}");
    segments.go_on();
    let started = tokio::time::timeout(PATIENCE, starting).await.unwrap().unwrap();
    let (replica, _broker) = started.unwrap();
    replica.wait_leading(PATIENCE).await.unwrap();
    assert_eq!(shard.partition(partition).unwrap().high_watermark, Offset::new(100));
}
