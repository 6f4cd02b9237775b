//! Segments on memory and faulty storage, and on a real disk where handles or threads matter.

mod concurrent;
mod damage;
mod faults;
mod files;
mod format;
mod model;
mod reading;
mod recovery;
mod repair;
mod transfer;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp};

use super::*;
use crate::fs::{MemoryStorage, Storage};

const DIR: &str = "shard-01/plays-0";
const KEY: StreamKey = StreamKey::new(*b"0123456789abcdef\0\0\0\x07");
/// An interval so short that small tests have an index worth searching.
const CONFIG: SegmentConfig = SegmentConfig { index_interval_bytes: 300, writeback_bytes: 4096 };

fn offset(value: i64) -> Offset {
    Offset::new(value)
}

/// Bytes that differ from batch to batch and from place to place.
fn body(seed: i64, bytes: usize) -> Bytes {
    (0..bytes as i64).map(|at| (seed.wrapping_mul(31) ^ (at * 7) ^ (at >> 8)) as u8).collect()
}

fn batch(base: i64, records: i64, timestamp: i64, bytes: usize) -> StoredBatch {
    let (base, last) = (offset(base), offset(base + records - 1));
    let epoch = LeaderEpoch::new(3);
    StoredBatch::new(base, last, epoch, Timestamp::new(timestamp), body(base.get(), bytes)).unwrap()
}

/// The batch as a consumer gets it.
fn kafka(batch: &StoredBatch) -> Vec<u8> {
    [&batch.prefix()[..], batch.body()].concat()
}

fn files_on(storage: impl Storage) -> Arc<SegmentFiles> {
    SegmentFiles::new(Arc::new(storage), SegmentFilesConfig::default())
}

fn open_at(files: &Arc<SegmentFiles>, ends: PartitionEnds) -> Result<SegmentStore, OpenError> {
    SegmentStore::open(files, DIR, KEY, CONFIG, ends).map(|(store, _)| store)
}

/// A new store on memory, and the memory.
fn fresh() -> (MemoryStorage, SegmentStore) {
    let storage = MemoryStorage::new();
    let store = open_at(&files_on(storage.clone()), PartitionEnds::default()).unwrap();
    (storage, store)
}

/// What a process finds that starts on the files as they are, with these ends recorded.
fn reopen(storage: &MemoryStorage, ends: &PartitionEnds) -> SegmentStore {
    open_at(&files_on(storage.kill()), ends.clone()).unwrap()
}

/// `count` batches of three records each, from `base` on, of varied lengths, rolled after every 40th.
fn fill(store: &SegmentStore, base: i64, count: i64) -> Vec<StoredBatch> {
    let batches: Vec<_> =
        (0..count).map(|n| batch(base + n * 3, 3, 1000 + n * 10, 40 + (n as usize * 37) % 200)).collect();
    for (n, group) in batches.chunks(8).enumerate() {
        if n > 0 && n % 5 == 0 {
            store.roll(group[0].base_offset()).unwrap();
        }
        store.append(group).unwrap();
    }
    batches
}

/// Everything from `from` on, read in steps of `bytes_max`.
fn read_all(store: &SegmentStore, from: i64, bytes_max: usize) -> Result<Vec<u8>, ReadError> {
    let (mut all, mut next) = (Vec::new(), offset(from));
    loop {
        let read = store.read(next, offset(i64::MAX), bytes_max)?;
        assert_eq!(read.bytes, read.parts.iter().map(Bytes::len).sum::<usize>());
        if read.parts.is_empty() {
            assert_eq!(read.next, next);
            return Ok(all);
        }
        assert!(read.next > next);
        read.parts.iter().for_each(|part| all.extend_from_slice(part));
        next = read.next;
    }
}

fn joined<'a>(batches: impl IntoIterator<Item = &'a StoredBatch>) -> Vec<u8> {
    batches.into_iter().flat_map(kafka).collect()
}

fn log_path(base: i64) -> std::path::PathBuf {
    Path::new(DIR).join(format!("{base:020}.log"))
}

fn index_path(base: i64) -> std::path::PathBuf {
    Path::new(DIR).join(format!("{base:020}.index"))
}
