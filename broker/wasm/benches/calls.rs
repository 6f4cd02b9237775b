//! What a call costs: an empty batch, 1,000 records of 100 B through a keep-all filter, a fresh instance for a partitioner, against a
//! plain copy of the same bytes.
//!
//! `cargo bench -p tidemill-wasm`

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidemill_wasm::{
    Batch, Context, Engine, EngineConfig, FilterPool, LENGTH_ABSENT, LENGTH_NULL, NullSink, PartitionerPool,
    PluginLimits,
};

const RECORDS: u32 = 1000;
const VALUE_BYTES: u32 = 100;

fn batch(records: u32) -> Batch {
    let data = vec![7u8; (records * VALUE_BYTES) as usize];
    let mut index = Vec::new();
    for ordinal in 0..records {
        for word in [0, LENGTH_NULL, ordinal * VALUE_BYTES, VALUE_BYTES, 0, LENGTH_ABSENT, ordinal, 0] {
            index.extend_from_slice(&word.to_le_bytes());
        }
    }
    Batch {
        topic: 0,
        partition: 0,
        base_offset: 0,
        base_timestamp: 0,
        now: 0,
        data: Bytes::from(data),
        index: Bytes::from(index),
    }
}

fn calls(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let engine = Engine::new(EngineConfig::default()).expect("an engine");
    let compile = |component: &[u8]| engine.compile_here(component).expect("it compiles");
    let limits = PluginLimits::inline;
    let keep_all = compile(&tidemill_hostile::keep_all());
    let filter =
        FilterPool::new(keep_all, Context::default(), limits(), Arc::new(NullSink), 4).expect("a filter");
    let by_length = compile(&tidemill_hostile::by_key_length());
    let partitioner = PartitionerPool::new(by_length, Context::default(), limits(), Arc::new(NullSink))
        .expect("a partitioner");

    let empty = batch(0);
    criterion.bench_function("filter/empty", |bencher| {
        bencher.iter(|| runtime.block_on(filter.apply(empty.clone())).expect("a verdict"));
    });

    let full = batch(RECORDS);
    let mut group = criterion.benchmark_group("1000 x 100 B");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    group.bench_function("filter, keep all", |bencher| {
        bencher.iter(|| runtime.block_on(filter.apply(full.clone())).expect("a verdict"));
    });
    group.bench_function("a copy of the bytes", |bencher| {
        bencher.iter_batched(
            || (),
            |()| black_box((full.data.to_vec(), full.index.to_vec())),
            BatchSize::SmallInput,
        );
    });
    let keys = Batch { data: Bytes::new(), ..full.clone() };
    group.bench_function("partitioner, keys only, fresh instance", |bencher| {
        bencher.iter(|| runtime.block_on(partitioner.partition(keys.clone(), 8)).expect("a placement"));
    });
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
