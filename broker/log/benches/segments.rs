//! Segments on the real disk: `cargo bench -p tidemill-log --bench segments`. Set `TIDEMILL_BENCH_DIR` to choose the
//! file system. Printed, not asserted.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidemill_log::fs::DiskStorage;
use tidemill_log::segment::{
    PartitionEnds, SegmentConfig, SegmentFiles, SegmentFilesConfig, SegmentStore, StoredBatch, StreamKey,
};
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp};

const DATA_BYTES: usize = 256 << 20;
const READ_BYTES_MAX: usize = 1 << 20;

struct Place {
    // Removed when dropped.
    _root: tempfile::TempDir,
    files: Arc<SegmentFiles>,
}

fn place() -> Place {
    let parent = std::env::var_os("TIDEMILL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let root = tempfile::tempdir_in(parent).expect("a directory for the benchmark");
    let storage = Arc::new(DiskStorage::new(root.path()).expect("a storage"));
    Place { files: SegmentFiles::new(storage, SegmentFilesConfig::default()), _root: root }
}

fn store(place: &Place, number: usize) -> SegmentStore {
    store_with(place, number, SegmentConfig::default())
}

fn store_with(place: &Place, number: usize, config: SegmentConfig) -> SegmentStore {
    let key = StreamKey::new([7; StreamKey::BYTES]);
    let dir = format!("shard-00/topic-{number}");
    let ends = PartitionEnds::default();
    SegmentStore::open(&place.files, dir, key, config, ends).expect("a new partition").0
}

fn batch(number: usize, body: &Bytes) -> StoredBatch {
    let base = Offset::new(number as i64 * 10);
    let (epoch, time) = (LeaderEpoch::new(1), Timestamp::new(1_700_000_000_000 + number as i64));
    StoredBatch::new(base, base.plus(9), epoch, time, body.clone()).expect("a batch")
}

/// Pseudo-random bytes, so that nothing on the way can compress them.
fn body(bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(next).collect()
}

fn fill(store: &SegmentStore, body: &Bytes) {
    let count = DATA_BYTES / body.len();
    let batches: Vec<_> = (0..count).map(|number| batch(number, body)).collect();
    for group in batches.chunks((4 << 20) / body.len()) {
        store.append(group).expect("an append");
    }
}

fn read_all(store: &SegmentStore) -> usize {
    let (mut next, mut bytes) = (Offset::ZERO, 0);
    loop {
        let read = store.read(next, Offset::new(i64::MAX), READ_BYTES_MAX).expect("a read");
        if read.parts.is_empty() {
            return bytes;
        }
        bytes += black_box(&read).bytes;
        next = read.next;
    }
}

fn catch_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read from the page cache");
    group.throughput(Throughput::Bytes(DATA_BYTES as u64)).sample_size(10);
    for bytes in [1 << 20, 64 << 10, 10_000, 1000, 200] {
        let place = place();
        let store = store(&place, 0);
        fill(&store, &body(bytes));
        group.bench_function(format!("batches of {bytes} B"), |bencher| bencher.iter(|| read_all(&store)));
    }
    let file = {
        let place = place();
        let store = store(&place, 0);
        fill(&store, &body(1 << 20));
        let path = store.dir().join("00000000000000000000.log");
        let file = place.files.storage().open(&path, tidemill_log::fs::OpenMode::READ).expect("the file");
        (file, place)
    };
    group.bench_function("bare reads into one buffer, for comparison", |bencher| {
        let mut buffer = vec![0; READ_BYTES_MAX];
        bencher.iter(|| {
            for at in (0..DATA_BYTES as u64).step_by(READ_BYTES_MAX) {
                file.0.read_exact_at(at, black_box(&mut buffer)).expect("a read");
            }
        });
    });
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append without sync");
    group.throughput(Throughput::Bytes(DATA_BYTES as u64)).sample_size(10);
    let default = SegmentConfig::default().writeback_bytes;
    let cases = [
        (1 << 20, default),
        (10_000, default),
        (1000, default),
        (1 << 20, 8 << 20),
        (1 << 20, 32 << 20),
        (1 << 20, u64::MAX),
    ];
    for (bytes, writeback_bytes) in cases {
        let body = body(bytes);
        let config = SegmentConfig { writeback_bytes, ..SegmentConfig::default() };
        let name = format!("batches of {bytes} B, write-back after {} MiB", writeback_bytes >> 20);
        group.bench_function(name, |bencher| {
            let fresh = || {
                let place = place();
                (store_with(&place, 0, config), place)
            };
            let run = |(store, place)| {
                fill(&store, &body);
                (store, place)
            };
            bencher.iter_batched(fresh, run, BatchSize::PerIteration);
        });
    }
}

fn lookups(criterion: &mut Criterion) {
    let place = place();
    let store = store(&place, 0);
    fill(&store, &body(1000));
    store.sync().expect("a sync");
    let mut at = 1;
    criterion.bench_function("read one batch at a random offset of 2.6 million", |bencher| {
        bencher.iter(|| {
            at = (at * 48_271) % 2_600_000;
            store.read(Offset::new(at), Offset::new(i64::MAX), 1).expect("a read")
        });
    });
    criterion.bench_function("find a random time", |bencher| {
        bencher.iter(|| {
            at = (at * 48_271) % 260_000;
            store.find_by_time(Timestamp::new(1_700_000_000_000 + at)).expect("a lookup")
        });
    });
}

/// What a checkpoint does: how the files of many partitions are made durable.
fn checkpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoint of 1,000 partitions with 64 KiB each");
    group.sample_size(10);
    let body = body(64 << 10);
    let place = place();
    let stores: Vec<_> = (0..1000).map(|number| store(&place, number)).collect();
    let mut number = 0;
    let mut append = || {
        number += 1;
        stores.iter().for_each(|store| store.append(&[batch(number, &body)]).expect("an append"));
    };
    group.bench_function("fdatasync of each file", |bencher| {
        let sync = |()| stores.iter().for_each(|store| drop(store.sync().expect("a sync")));
        bencher.iter_batched(&mut append, sync, BatchSize::PerIteration);
    });
    group.bench_function("one syncfs", |bencher| {
        let sync = |()| {
            let flushes: Vec<_> = stores.iter().map(|store| store.flush().expect("a flush")).collect();
            place.files.storage().sync_all().expect("a sync");
            flushes.into_iter().for_each(|flush| drop(flush.synced()));
        };
        bencher.iter_batched(&mut append, sync, BatchSize::PerIteration);
    });
}

criterion_group!(segments, catch_up, append, lookups, checkpoint);
criterion_main!(segments);
