//! Reading ahead answers what reading anew would, whatever became of the calls before.

use bytes::BytesMut;
use proptest::prelude::*;
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions, Compression, stored_prefix};
use tidemill_protocol::{LeaderEpoch, PartitionId, Timestamp, TopicId};

use super::*;
use crate::task::reading::CALL_BYTES_MAX;

fn source() -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&[1; 16]).expect("16 bytes make an id"), PartitionId::new(0))
}

fn limits() -> BatchLimits {
    BatchLimits { batch_bytes_max: 64 << 20, record_bytes_max: 64 << 20, ..BatchLimits::default() }
        .allowing_gaps()
}

/// A stored batch with records at these offsets behind `base`, of which it takes `offsets`.
fn stored(base: u64, deltas: &[u32], offsets: u32, compression: Compression, value_bytes: usize) -> Bytes {
    let options = BuilderOptions { compression, batch_bytes_max: 64 << 20, ..BuilderOptions::default() };
    let mut builder = BatchBuilder::new(options);
    let value = vec![7; value_bytes];
    for delta in deltas {
        let key = (base + u64::from(*delta)).to_string();
        builder
            .append_at(*delta, Timestamp::new(5), Some(key.as_bytes()), Some(&value), [])
            .expect("it fits");
    }
    let made = builder.build().expect("a batch");
    let mut bytes = BytesMut::new();
    let base = Offset::new(base.try_into().expect("small"));
    bytes.extend_from_slice(&stored_prefix(base, made.len() - 16, LeaderEpoch::new(0)));
    bytes.extend_from_slice(&made[16..]);
    // How many offsets a batch takes stands at byte 23, under the checksum, which is the log's business here.
    bytes[23..27].copy_from_slice(&(offsets - 1).to_be_bytes());
    bytes.freeze()
}

/// A log, and what a task sees of it.
struct Log {
    batches: Vec<(u64, Bytes)>,
    records: Vec<u64>,
    end: u64,
}

impl Log {
    fn new(batches: &[(Vec<bool>, u32)]) -> Self {
        let mut log = Self { batches: Vec::new(), records: Vec::new(), end: 0 };
        for (kept, trailing) in batches {
            let deltas: Vec<u32> =
                (0..).zip(kept).filter(|(_, kept)| **kept).map(|(delta, _)| delta).collect();
            let offsets = u32::try_from(kept.len()).expect("small") + trailing;
            if !deltas.is_empty() {
                let compression = if kept.len() % 2 == 0 { Compression::Lz4 } else { Compression::None };
                log.batches.push((log.end, stored(log.end, &deltas, offsets, compression, 3)));
                log.records.extend(deltas.iter().map(|delta| log.end + u64::from(*delta)));
            } else {
                continue;
            }
            log.end += u64::from(offsets);
        }
        log
    }

    /// From the batch that holds an offset on, so many batches.
    fn fetch(&self, from: Offset, count: usize) -> Fetched {
        let from = from.since(Offset::ZERO);
        let first = self.batches.partition_point(|(base, _)| *base <= from).saturating_sub(1);
        let first = if from >= self.end { self.batches.len() } else { first };
        let last = (first + count).min(self.batches.len());
        let next = self.batches.get(last).map_or(self.end, |(base, _)| *base).max(from);
        let offset = |at: u64| Offset::new(at.try_into().expect("small"));
        Fetched {
            start: offset(from),
            batches: self.batches[first..last].iter().map(|(_, batch)| batch.clone()).collect(),
            next: offset(next),
        }
    }
}

fn offsets(records: &SourceRecords) -> Vec<u64> {
    let offset = |record: &TaskRecord| {
        let key = record.key.as_deref().expect("a key");
        assert_eq!(key, record.offset.to_string().as_bytes(), "a record and its offset belong together");
        record.offset.since(Offset::ZERO)
    };
    records.records.iter().map(offset).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Calls of any size that are done in part, in whole or not at all, and a position that jumps back now and then: each call gets
    /// the records from its position on, none twice and none left out.
    #[test]
    fn what_comes_next_is_what_the_log_has_there(
        batches in prop::collection::vec((prop::collection::vec(prop::bool::weighted(0.8), 1..12), 0..3_u32), 1..12),
        calls in prop::collection::vec((1..9_usize, 0..9_usize, 1..4_usize, prop::bool::weighted(0.1)), 1..60),
    ) {
        let log = Log::new(&batches);
        let mut ahead = Ahead::default();
        let mut position = Offset::ZERO;
        for (count, done, fetched, lost) in calls {
            let at = ahead.at(source(), position);
            at.unpack(count, &limits()).expect("it reads");
            if at.wants_more(count) {
                at.push(log.fetch(at.next(), fetched));
                at.unpack(count, &limits()).expect("it reads");
            }
            let from = position.since(Offset::ZERO);
            let expected: Vec<u64> = log.records.iter().copied().filter(|offset| *offset >= from).collect();
            if at.is_empty() {
                prop_assert_eq!((from, expected.len()), (log.end, 0), "nothing is left");
                position = Offset::ZERO;
                continue;
            }
            let records = at.take(0, source());
            let given = offsets(&records);
            prop_assert_eq!(&given[..], &expected[..given.len()]);
            let next = records.position_after(done.min(given.len()));
            prop_assert!(records.end.since(Offset::ZERO) <= log.end);
            prop_assert!(!expected.iter().any(|offset| {
                *offset < next.since(Offset::ZERO) && !given[..done.min(given.len())].contains(offset)
            }), "no record is gone past that was not given");
            ahead.keep(records);
            position = if lost { Offset::new(i64::try_from(from / 2).expect("small")) } else { next };
        }
    }
}

#[test]
fn a_batch_is_read_once_however_many_calls_it_takes() {
    let deltas: Vec<u32> = (0..2500).collect();
    let batch = stored(0, &deltas, 2500, Compression::Lz4, 100);
    let mut ahead = Ahead::default();
    let mut fetches = 0;
    let mut position = Offset::ZERO;
    for expected in [1000, 1000, 500] {
        let at = ahead.at(source(), position);
        at.unpack(CALL_RECORDS_MAX, &limits()).expect("it reads");
        if at.wants_more(CALL_RECORDS_MAX) && at.next() == Offset::ZERO {
            fetches += 1;
            at.push(Fetched { start: Offset::ZERO, batches: vec![batch.clone()], next: Offset::new(2500) });
            at.unpack(CALL_RECORDS_MAX, &limits()).expect("it reads");
        }
        let records = at.take(0, source());
        assert_eq!(records.records.len(), expected);
        position = records.position_after(expected);
        ahead.keep(records);
    }
    assert_eq!((position, fetches), (Offset::new(2500), 1));
    let at = ahead.at(source(), position);
    assert!(at.is_empty());
    assert_eq!(at.kept_bytes(), 0, "what is done is not held");
}

#[test]
fn beside_a_batch_that_unpacks_to_very_much_nothing_is_kept() {
    let batch = stored(0, &[0, 1], 2, Compression::Lz4, KEPT_BYTES_MAX / 2 + 1);
    let behind = stored(2, &[0], 1, Compression::None, 10);
    let mut ahead = Ahead::default();
    let at = ahead.at(source(), Offset::ZERO);
    at.push(Fetched { start: Offset::ZERO, batches: vec![batch, behind], next: Offset::new(3) });
    at.unpack(1, &limits()).expect("it reads");
    let records = at.take(0, source());
    assert_eq!(offsets(&records), [0]);
    ahead.keep(records);
    let at = ahead.at(source(), Offset::new(1));
    assert_eq!(at.next(), Offset::new(2), "what is behind it is read again");
    at.unpack(2, &limits()).expect("it reads");
    assert_eq!(offsets(&at.take(0, source())), [1], "it is unpacked once");
}

/// Tasks whose batches do not fit together: each still gets all of its records, and never keeps more than there may be.
#[test]
fn what_all_tasks_keep_has_a_bound() {
    let deltas: Vec<u32> = (0..30).collect();
    let batch = stored(0, &deltas, 30, Compression::Lz4, 10_000);
    let one = RecordBatch::decode_trusted(batch.clone(), &limits())
        .and_then(|batch| batch.records(&limits()))
        .expect("it reads")
        .data()
        .len();
    let all = Arc::new(KeptBytes::new(one * 2 + one / 2));
    let mut tasks: Vec<(Ahead, Offset, Vec<u64>)> =
        (0..4).map(|_| (Ahead::new(Arc::clone(&all)), Offset::ZERO, Vec::new())).collect();
    let (mut kept, mut let_go) = (0, 0);
    for _ in 0..6 {
        for (ahead, position, seen) in &mut tasks {
            let at = ahead.at(source(), *position);
            at.unpack(5, &limits()).expect("it reads");
            if at.wants_more(5) && at.next() < Offset::new(30) {
                let next = Offset::new(30);
                at.push(Fetched { start: *position, batches: vec![batch.clone()], next });
                at.unpack(5, &limits()).expect("it reads");
            }
            let records = at.take(0, source());
            seen.extend(offsets(&records).into_iter().take(5));
            *position = records.position_after(5);
            *if ahead.keep(records) { &mut kept } else { &mut let_go } += 1;
            assert!(all.used.load(Ordering::Relaxed) <= all.most);
        }
    }
    assert!(kept >= 12 && let_go >= 5, "{kept} kept, {let_go} not");
    for (ahead, position, seen) in &mut tasks {
        assert_eq!(seen, &(0..30).collect::<Vec<u64>>());
        assert!(ahead.at(source(), *position).is_empty());
    }
    assert_eq!(all.used.load(Ordering::Relaxed), 0, "who has nothing to do holds nothing");
    let mut last = Ahead::new(Arc::clone(&all));
    let at = last.at(source(), Offset::ZERO);
    at.push(Fetched { start: Offset::ZERO, batches: vec![batch], next: Offset::new(30) });
    at.unpack(5, &limits()).expect("it reads");
    let records = at.take(0, source());
    assert!(last.keep(records) && all.used.load(Ordering::Relaxed) >= one);
    drop(last);
    assert_eq!(all.used.load(Ordering::Relaxed), 0);
}

/// A call from a position on, by who has kept nothing; the log brings all that it has at once.
fn fresh_call(batches: &[(u64, Bytes)], end: u64, position: Offset) -> (Vec<u64>, usize) {
    let log = Log { batches: batches.to_vec(), records: Vec::new(), end };
    let mut ahead = Ahead::default();
    let at = ahead.at(source(), position);
    at.push(log.fetch(position, batches.len()));
    at.unpack(CALL_RECORDS_MAX, &limits()).expect("it reads");
    let held = at.unpacked_bytes;
    (offsets(&at.take(0, source())), held)
}

/// As [`fresh_call`] from each position that the calls before it come to, but with what these have kept: each call must be the same.
/// Answers how many calls it takes, and how much they held unpacked at the most.
fn calls_to_the_end(batches: &[(u64, Bytes)], end: u64, from: u64) -> (usize, usize) {
    let log = Log { batches: batches.to_vec(), records: Vec::new(), end };
    let offset = |at: u64| Offset::new(at.try_into().expect("small"));
    let mut ahead = Ahead::default();
    let (mut position, mut seen, mut calls, mut most) = (offset(from), Vec::new(), 0_usize, 0_usize);
    while position < offset(end) {
        let at = ahead.at(source(), position);
        at.unpack(CALL_RECORDS_MAX, &limits()).expect("it reads");
        if at.wants_more(CALL_RECORDS_MAX) {
            at.push(log.fetch(at.next(), batches.len()));
            at.unpack(CALL_RECORDS_MAX, &limits()).expect("it reads");
        }
        most = most.max(at.unpacked_bytes);
        let records = at.take(0, source());
        let given = offsets(&records);
        assert_eq!(given, fresh_call(batches, end, position).0, "the same, whatever was kept");
        position = records.position_after(given.len());
        seen.extend(given);
        calls += 1;
        assert!(ahead.keep(records));
    }
    assert_eq!(seen, (from..end).collect::<Vec<u64>>(), "none twice, none left out");
    (calls, most)
}

/// Batches of a few hundred bytes each, which one fetch brings together, and which unpack to far more than there is room for.
#[test]
fn a_call_unpacks_no_more_of_many_batches_than_it_gets() {
    let value_bytes = ENOUGH_BYTES + 1;
    let batches: Vec<(u64, Bytes)> = (0..20_u64)
        .map(|batch| (batch * 4, stored(batch * 4, &[0, 1, 2, 3], 4, Compression::Zstd, value_bytes)))
        .collect();
    let stored: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
    assert!(stored < CALL_BYTES_MAX && 80 * value_bytes > 2 * KEPT_BYTES_MAX);
    let (calls, most) = calls_to_the_end(&batches, 80, 0);
    assert_eq!(calls, 80, "a record that is enough is alone");
    assert!(most < 5 * value_bytes, "{most}: one batch at a time");
}

/// Behind the last record of a large batch, small as that record is, no other batch is unpacked for the same call.
#[test]
fn the_batches_of_one_call_have_a_bound_together() {
    let value_bytes = ENOUGH_BYTES / 8;
    let count = u32::try_from(KEPT_BYTES_MAX / value_bytes + 1).expect("small");
    let deltas: Vec<u32> = (0..count).collect();
    let batches: Vec<(u64, Bytes)> = (0..2_u64)
        .map(|batch| batch * u64::from(count))
        .map(|base| (base, stored(base, &deltas, count, Compression::Zstd, value_bytes)))
        .collect();
    let end = 2 * u64::from(count);
    let last = u64::from(count) - 1;
    let (given, held) = fresh_call(&batches, end, Offset::new(last.try_into().expect("small")));
    assert_eq!(given, [last]);
    let batch_bytes = value_bytes * deltas.len();
    assert!((batch_bytes..batch_bytes * 2).contains(&held), "{held}");
    for from in [3, last] {
        let (calls, most) = calls_to_the_end(&batches, end, from);
        assert!(calls >= (2 * deltas.len() - usize::try_from(from).expect("small")) / 8, "{calls}");
        assert!(most < KEPT_BYTES_MAX + 2 * batch_bytes, "{most}");
    }
}
