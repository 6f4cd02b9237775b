//! A disk that is full to its last byte, with a reserve: what frees room still works, also after a restart.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::{DiskReserve, MemoryStorage, OpenMode, ReservedStorage, Storage};
use tidemill_log::wal::WalConfig;
use tidemill_protocol::Offset;
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;

use super::fixture::{Broker, PATIENCE, SHARD, adopt, commit_all, record, wal_config};
use crate::driver::{CheckpointConfig, CheckpointDriver};

const DISK_BYTES: u64 = 32 << 20;
/// Room for a segment of the log, and for a checkpoint.
const RESERVE_BYTES: u64 = 8 << 20;

fn reserve_on(memory: &MemoryStorage) -> Arc<DiskReserve> {
    Arc::new(DiskReserve::new(Arc::new(memory.clone()), "reserve", RESERVE_BYTES))
}

fn open(memory: &MemoryStorage, reserve: &Arc<DiskReserve>) -> Broker {
    let storage = Arc::new(ReservedStorage::new(Arc::new(memory.clone()), Arc::clone(reserve)));
    // No segments ahead of time: the next one needs room when it is needed.
    let config = WalConfig { prepare_free_min_bytes: u64::MAX, ..wal_config() };
    Broker::open_with(storage.clone(), storage, &config)
}

/// Somebody else takes what is left.
fn fill(memory: &MemoryStorage) {
    let free = memory.free_space().unwrap().free;
    let file = memory.open(Path::new("somebody-elses"), OpenMode::CREATE).unwrap();
    file.allocate(file.size().unwrap() + free).unwrap();
    assert_eq!(memory.free_space().unwrap().free, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_frees_a_disk_that_is_full() {
    let memory = MemoryStorage::with_capacity(DISK_BYTES);
    let reserve = reserve_on(&memory);
    reserve.ensure().unwrap();
    let broker = open(&memory, &reserve);
    let replica = broker.start(SHARD).await;
    let partition = adopt(&replica, 256 << 10).await;
    for _ in 0..64 {
        let appended = replica.propose(record(partition, 64 << 10)).await.unwrap();
        assert!(matches!(appended, UnitResult::Appended { .. }), "{appended:?}");
    }
    // Into segments, and not told to the log: so that it has no segment to use again.
    let shard = replica.shard();
    tokio::task::spawn_blocking(move || shard.checkpoint(&|_| Ok(())).map(drop)).await.unwrap().unwrap();
    fill(&memory);
    drop((replica, broker));

    // It was killed, and has to start where nothing can be written.
    let memory = memory.kill();
    let reserve = reserve_on(&memory);
    assert!(reserve.is_held().unwrap());
    let broker = open(&memory, &reserve);
    let replica = broker.start(SHARD).await;
    assert!(!reserve.is_held().unwrap(), "the log goes on in a new segment");
    let end = replica.shard().partition(partition).unwrap().high_watermark;
    let before = memory.free_space().unwrap().free;
    let let_go = replica.propose(Unit::AdvanceLogStart { partition, offset: end }).await.unwrap();
    assert!(!matches!(let_go, UnitResult::Refused(_)), "{let_go:?}");
    let (_, short_of_room) = watch::channel(true);
    let config = CheckpointConfig { interval: Duration::from_millis(5), ..CheckpointConfig::default() };
    let _driver = CheckpointDriver::start(
        config,
        broker.wal.clone(),
        {
            let replica = replica.clone();
            move || vec![replica.clone()]
        },
        short_of_room,
    );
    let room = async {
        while memory.free_space().unwrap().free < before + (3 << 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, room).await.expect("the files leave the disk without being asked for");

    // More of the log than its segments had room for: those that are let go are used again.
    commit_all(&replica, "group", 0..600).await;
    let small = async {
        while broker.wal.bytes() > 3 << 20 {
            replica.propose(Unit::Tick).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, small).await.expect("the log does not grow");
    assert_eq!(replica.shard().partition(partition).unwrap().log_start, end);
    assert!(end > Offset::ZERO);
}
