//! Reading ahead answers what reading anew would, whatever became of the calls before.

use bytes::BytesMut;
use proptest::prelude::*;
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions, Compression, stored_prefix};
use tidemill_protocol::{LeaderEpoch, PartitionId, Timestamp, TopicId};

use super::*;

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
