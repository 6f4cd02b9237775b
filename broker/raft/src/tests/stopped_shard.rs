//! A shard that stopped by its own failure stops no other: the log they share stays small, and its entries stay in it.

use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::{Call, DiskStorage, Effect, FaultyStorage, MemoryStorage, Storage};
use tidemill_log::wal::inspect;
use tidemill_protocol::{Offset, ShardId};
use tidemill_shard::UnitResult;
use tokio::sync::watch;

use super::fixture::{Broker, PATIENCE, SHARD, adopt, bulk, commit_all, groups, record, wal_config};
use crate::driver::{CheckpointConfig, CheckpointDriver};

const OTHER: ShardId = ShardId::new(2);
const WAL_BYTES_MAX: u64 = 6 << 20;
const RECORDS: i64 = 20;

/// What shard and log have after the shard stopped and the other went on, and again after a restart.
async fn one_stops(log: Arc<dyn Storage>, segments: Arc<dyn Storage>) {
    let faulty = FaultyStorage::new(Arc::clone(&segments));
    let broker = Broker::open_with(Arc::clone(&log), Arc::new(faulty.clone()), &wal_config());
    let (stopping, other) = (broker.start(SHARD).await, broker.start(OTHER).await);
    let partition = adopt(&stopping, 1 << 20).await;
    for number in 0..RECORDS {
        let appended = stopping.propose(record(partition, 100 << 10)).await.unwrap();
        assert!(matches!(appended, UnitResult::Appended { base_offset, .. } if base_offset.get() == number));
    }
    commit_all(&stopping, "group", 0..3).await;
    let (held, committed) = (broker.wal.range(SHARD), groups(&stopping));
    faulty.on_nth(Some(Call::Sync), 1, Effect::Fail);
    stopping.checkpoint().await.unwrap_err();
    let mut role = stopping.watch();
    tokio::time::timeout(PATIENCE, role.wait_for(|role| role.stopped().is_some())).await.unwrap().unwrap();

    let config = CheckpointConfig {
        wal_bytes_max: WAL_BYTES_MAX,
        interval: Duration::from_millis(5),
        ..CheckpointConfig::default()
    };
    let (_room, short_of_room) = watch::channel(false);
    let replicas = vec![stopping.clone(), other.clone()];
    let driver = CheckpointDriver::start(config, broker.wal.clone(), move || replicas.clone(), short_of_room);
    for _ in 0..300 {
        // As admission does, which waits for room.
        let room = async {
            while broker.wal.bytes() > WAL_BYTES_MAX + (2 << 20) {
                driver.pressure().notify_one();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, room).await.expect("the log becomes smaller");
        other.propose(bulk(100 << 10)).await.unwrap();
    }
    assert_eq!(broker.wal.range(SHARD), held, "nothing of the stopped shard is purged");
    assert!(stopping.propose(bulk(1)).await.is_err());
    other.stop().await;
    broker.wal.close().unwrap();
    drop((driver, stopping, other, broker));
    let mut carried = 0;
    inspect(&*log, "wal".as_ref(), &mut |frame| carried += u32::from(frame.shard == Some(SHARD))).unwrap();
    assert!(carried > 0);

    let again = Broker::open_with(log, segments, &wal_config());
    let replica = again.start(SHARD).await;
    let end = replica.shard().partition(partition).unwrap().high_watermark;
    assert_eq!((end, groups(&replica)), (Offset::new(RECORDS), committed));
    let appended = replica.propose(record(partition, 10)).await.unwrap();
    assert!(matches!(appended, UnitResult::Appended { base_offset, .. } if base_offset.get() == RECORDS));
    replica.checkpoint().await.unwrap();
    again.start(OTHER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_shard_does_not_keep_the_log() {
    one_stops(Arc::new(MemoryStorage::new()), Arc::new(MemoryStorage::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(DiskStorage::new(dir.path()).unwrap());
    one_stops(disk.clone(), disk).await;
}
