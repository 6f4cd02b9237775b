//! The tail and what readers see of it.

use bytes::Bytes;
use tidemill_log::fs::MemoryStorage;
use tidemill_log::segment::SegmentFilesConfig;
use tidemill_protocol::{PartitionId, Timestamp, TopicId};

use super::*;
use crate::testing::batch;

fn log() -> Arc<PartitionLog> {
    let storage = Arc::new(MemoryStorage::new());
    let files = LogFiles {
        files: SegmentFiles::new(storage, SegmentFilesConfig::default()),
        dir: PathBuf::from("shard-01"),
        config: SegmentConfig::default(),
        suspects: Arc::default(),
    };
    let id = TopicPartition::new(TopicId::new(uuid::Uuid::from_u128(7)), PartitionId::new(3));
    let zero = Offset::ZERO;
    let view = PartitionView {
        log_start: zero,
        last_stable: zero,
        high_watermark: zero,
        leader_epoch: LeaderEpoch::new(-1),
        bytes: 0,
        segments: 0,
        config: TopicConfig::default(),
    };
    PartitionLog::new(id, files, view, PartitionEnds::default())
}

fn push(log: &PartitionLog, base: i64, count: u32, starts_segment: bool) -> bool {
    let body = batch(count).timestamp(base).build().slice(16..);
    let last = Offset::new(base + i64::from(count) - 1);
    let time = Timestamp::new(base);
    let stored = StoredBatch::new(Offset::new(base), last, LeaderEpoch::new(1), time, body).unwrap();
    log.push(stored, starts_segment)
}

fn write_all(log: &PartitionLog) {
    while let Some(chunk) = log.next_chunk(Offset::new(i64::MAX), 1 << 20) {
        let store = log.store().unwrap();
        if chunk.starts_segment {
            store.roll(chunk.batches[0].base_offset()).unwrap();
        }
        store.append(&chunk.batches).unwrap();
        log.written(&chunk);
    }
}

fn joined(batches: &Batches) -> Vec<u8> {
    batches.parts.concat()
}

#[test]
fn memory_and_disk_give_the_same_bytes() {
    let log = log();
    for n in 0..10 {
        assert_eq!(push(&log, n * 5, 5, n % 4 == 0), n == 0, "only the first waits for nobody");
    }
    let Fetch::Memory(in_memory) = log.fetch(Offset::new(7), usize::MAX) else { panic!("it is in memory") };
    assert_eq!((in_memory.first, in_memory.next), (Offset::new(5), Offset::new(50)));
    write_all(&log);
    assert_eq!(log.unwritten_bytes(), 0);
    assert!(log.trim(Offset::new(23)) > 0);
    let Fetch::Memory(kept) = log.fetch(Offset::new(20), 1) else { panic!("20 is still in memory") };
    assert_eq!((kept.first, kept.next), (Offset::new(20), Offset::new(25)), "at least one batch");
    let mut from = Offset::new(7);
    let mut read = Vec::new();
    while from < Offset::new(50) {
        let batches = match log.fetch(from, 400) {
            Fetch::Memory(batches) => batches,
            Fetch::Disk(disk) => disk.run().unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(batches.contiguous().all(|batch| first_is_whole(&batch)));
        read.extend(joined(&batches));
        from = batches.next;
    }
    assert_eq!(read, joined(&in_memory));
}

fn first_is_whole(batch: &Bytes) -> bool {
    crate::batch::first_batch_bytes(batch) == Some(batch.len())
}

#[test]
fn ranges_are_kept_and_the_end_is_empty() {
    let log = log();
    push(&log, 0, 5, true);
    let (log_start, high_watermark) = (Offset::ZERO, Offset::new(5));
    for outside in [-1, 6] {
        let Fetch::OutOfRange { log_start: start, high_watermark: end } = log.fetch(Offset::new(outside), 1)
        else {
            panic!("{outside} is outside")
        };
        assert_eq!((start, end), (log_start, high_watermark));
    }
    let Fetch::Memory(nothing) = log.fetch(high_watermark, 1) else { panic!("the end is a place to wait") };
    assert!(nothing.is_empty());
    assert_eq!((nothing.first, nothing.next), (high_watermark, high_watermark));
    log.advance_log_start(Offset::new(3), 1, 10);
    assert!(matches!(log.fetch(Offset::new(2), 1), Fetch::OutOfRange { .. }));
}

#[test]
fn a_chunk_goes_to_one_segment_and_within_its_bounds() {
    let log = log();
    for n in 0..6 {
        push(&log, n, 1, n == 0 || n == 4);
    }
    let bases = |chunk: &Chunk| chunk.batches.iter().map(|b| b.base_offset().get()).collect::<Vec<_>>();
    let first = log.next_chunk(Offset::new(100), 1 << 20).unwrap();
    assert_eq!((bases(&first), first.starts_segment), (vec![0, 1, 2, 3], true));
    let bounded = log.next_chunk(Offset::new(2), 1 << 20).unwrap();
    assert_eq!(bases(&bounded), [0, 1]);
    let small = log.next_chunk(Offset::new(100), 1).unwrap();
    assert_eq!(bases(&small), [0]);
    log.written(&first);
    let second = log.next_chunk(Offset::new(100), 1 << 20).unwrap();
    assert_eq!((bases(&second), second.starts_segment), (vec![4, 5], true));
    assert_eq!(log.trim(Offset::new(100)), first.tail_bytes(), "what is not written stays");
}

#[test]
fn a_deleted_partition_is_unknown_and_wakes_its_waiters() {
    let log = log();
    let mut watch = log.watch();
    push(&log, 0, 5, true);
    log.publish();
    assert_eq!(*watch.borrow_and_update(), Offset::new(5));
    log.publish();
    assert!(!watch.has_changed().unwrap(), "nothing new");
    let chunk = log.next_chunk(Offset::new(100), 1 << 20).unwrap();
    log.mark_deleted();
    assert!(*watch.borrow_and_update() > Offset::new(1 << 40), "whatever a reader waits for, it wakes");
    log.publish();
    assert!(!watch.has_changed().unwrap(), "nothing takes that back");
    assert!(log.unwritten_bytes() > 0, "a checkpoint under way may need it");
    let (all, unwritten) = log.clear();
    assert_eq!(all, unwritten);
    assert_eq!(log.written(&chunk), 0, "it was given back already");
    assert!(matches!(log.fetch(Offset::ZERO, 1), Fetch::Unknown));
}
