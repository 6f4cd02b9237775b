//! Encode, verify, walk, filter and split: time per batch of 1,000 records of 100 bytes. Divide by 1,000 for a record
//! (criterion's throughput line does it: 1 Melem/s is 1,000 ns a record).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidemill_protocol::Timestamp;
use tidemill_protocol::record_batch::{
    BatchBuilder, BatchLimits, BuilderOptions, Compression, HeadersView, ProducerFields, RecordBatch,
};

const RECORDS: u32 = 1_000;
/// 8 + 92: a record of 100 bytes.
const KEY: &[u8; 8] = b"user-417";
const VALUE: &[u8; 92] =
    br#"{"user_id":"user-417","song_id":"song-00931","ts":1700000000000,"device":"phone","plays":12}"#;

fn fill(builder: &mut BatchBuilder) {
    for ordinal in 0..i64::from(RECORDS) {
        let timestamp = Timestamp::new(1_700_000_000_000 + ordinal);
        let appended = builder.append(timestamp, Some(black_box(KEY)), Some(black_box(VALUE)), []);
        appended.expect("no limit is near");
    }
}

fn batch(compression: Compression) -> RecordBatch {
    let mut builder = BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() });
    fill(&mut builder);
    builder.build_batch().expect("records are there")
}

fn record_batches(c: &mut Criterion) {
    let limits = BatchLimits::default();
    let mut group = c.benchmark_group("record_batch");
    group.throughput(Throughput::Elements(RECORDS.into()));

    let mut builder = BatchBuilder::new(BuilderOptions::default());
    group.bench_function("append, no build", |b| {
        b.iter(|| {
            fill(&mut builder);
            builder.clear();
        });
    });
    group.bench_function("append encoded headers, no build", |b| {
        b.iter(|| {
            for ordinal in 0..i64::from(RECORDS) {
                let timestamp = Timestamp::new(1_700_000_000_000 + ordinal);
                let headers = black_box(HeadersView::EMPTY);
                let appended =
                    builder.append_encoded(timestamp, Some(black_box(KEY)), Some(black_box(VALUE)), headers);
                appended.expect("no limit is near");
            }
            builder.clear();
        });
    });
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() });
        group.bench_function(format!("append and build, {compression}"), |b| {
            b.iter(|| {
                fill(&mut builder);
                builder.build().expect("records are there")
            });
        });
        let batch = batch(compression);
        group.bench_function(format!("validate records, {compression}"), |b| {
            b.iter(|| black_box(&batch).validate_records(&limits));
        });
    }

    let batch = batch(Compression::None);
    group.bench_function("decode (checksum)", |b| {
        b.iter(|| RecordBatch::decode(black_box(batch.bytes().clone()), &limits));
    });
    let records = batch.records(&limits).expect("just built");
    group.bench_function("iterate and touch", |b| {
        b.iter(|| {
            records.iter().flatten().fold(0, |sum, record| {
                sum + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)
            })
        });
    });
    let (every, hundredth) = (vec![0b0101_0101; 125], {
        let mut kept = vec![0; 125];
        kept.iter_mut().step_by(12).for_each(|byte| *byte = 1);
        kept
    });
    group.bench_function("filter, 1 of 2", |b| {
        b.iter(|| records.filter(black_box(&every), Compression::None))
    });
    group.bench_function("filter, 1 of 100", |b| {
        b.iter(|| records.filter(black_box(&hundredth), Compression::None))
    });
    let placement: Vec<u32> = (0..RECORDS).map(|ordinal| ordinal * 7 % 8).collect();
    group.bench_function("split over 8", |b| {
        b.iter(|| records.split(black_box(&placement), 8, Compression::None, |_, _| ProducerFields::NONE));
    });
    group.finish();
}

criterion_group!(benches, record_batches);
criterion_main!(benches);
