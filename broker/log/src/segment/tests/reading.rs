//! Reads by offset and by time.

use super::*;

#[test]
fn every_offset_finds_its_batch() {
    let (_, store) = fresh();
    let batches = fill(&store, 100, 130);
    for (n, expected) in batches.iter().enumerate() {
        for at in expected.base_offset().get()..=expected.last_offset().get() {
            let read = store.read(offset(at), offset(i64::MAX), 1).unwrap();
            assert_eq!((read.first, read.next), (expected.base_offset(), expected.last_offset().plus(1)));
            assert_eq!(read.parts.concat(), kafka(expected), "offset {at}");
        }
        if n % 13 == 0 {
            let rest = read_all(&store, expected.base_offset().get(), 900).unwrap();
            assert_eq!(rest, joined(&batches[n..]));
        }
    }
}

#[test]
fn whatever_the_step_a_reader_gets_all_of_it() {
    let (_, store) = fresh();
    let mut batches = fill(&store, 0, 90);
    // Large frames among small ones: planned by their heads, kept in place, and a region each.
    for (base, bytes) in [(270, 40_000), (273, 100), (276, 33_000), (279, 70), (282, 60), (285, 200_000)] {
        batches.push(batch(base, 3, 5000, bytes));
        store.append(&batches[batches.len() - 1..]).unwrap();
    }
    for bytes_max in [0, 1, 64, 300, 5_000, 33_000, 50_000, 1 << 20] {
        assert_eq!(read_all(&store, 0, bytes_max).unwrap(), joined(&batches), "steps of {bytes_max}");
    }
    let read = store.read(offset(270), offset(i64::MAX), 1 << 20).unwrap();
    let lengths: Vec<_> = read.parts.iter().map(Bytes::len).collect();
    let stored = |body: usize| body + 16;
    let expected = [stored(40_000) + stored(100), stored(33_000) + stored(70) + stored(60), stored(200_000)];
    assert_eq!(lengths, expected, "few parts, and no batch in two of them");
}

#[test]
fn a_read_respects_both_bounds() {
    let (_, store) = fresh();
    let batches = fill(&store, 0, 20);
    let most = kafka(&batches[0]).len() + kafka(&batches[1]).len() + 2 * 24;
    let read = store.read(offset(0), offset(i64::MAX), most).unwrap();
    assert_eq!(read.parts.concat(), joined(&batches[..2]));
    let read = store.read(offset(0), offset(i64::MAX), most - 1).unwrap();
    assert_eq!(read.parts.concat(), joined(&batches[..1]));
    let read = store.read(offset(4), offset(7), 1 << 20).unwrap();
    assert_eq!(read.parts.concat(), joined(&batches[1..3]), "the batch that begins before `until` is whole");
    let read = store.read(offset(4), offset(3), 1 << 20).unwrap();
    assert!(read.parts.is_empty() && read.next == offset(4));
}

#[test]
fn offsets_outside_are_told_from_the_end() {
    let (_, store) = fresh();
    assert!(store.read(offset(5), offset(9), 100).unwrap().parts.is_empty(), "nothing was ever stored");
    fill(&store, 50, 10);
    assert!(store.read(offset(80), offset(i64::MAX), 100).unwrap().parts.is_empty());
    for wanted in [0, 49, 81] {
        let error = store.read(offset(wanted), offset(i64::MAX), 100).unwrap_err();
        let ReadError::OutOfRange { first, next, .. } = error else { panic!("{error}") };
        assert_eq!((first, next), (offset(50), offset(80)));
    }
}

#[test]
fn gaps_between_batches_and_segments_are_stepped_over() {
    let (_, store) = fresh();
    let batches = [batch(10, 2, 1, 50), batch(20, 2, 2, 50), batch(40, 2, 3, 50)];
    store.append(&batches[..1]).unwrap();
    store.append(&batches[1..2]).unwrap();
    store.roll(offset(30)).unwrap();
    assert!(store.read(offset(25), offset(i64::MAX), 100).unwrap().parts.is_empty());
    store.append(&batches[2..]).unwrap();
    for (from, expected) in [(12, 1), (19, 1), (22, 2), (30, 2), (39, 2)] {
        let read = store.read(offset(from), offset(i64::MAX), 100).unwrap();
        assert_eq!(read.parts.concat(), kafka(&batches[expected]), "from {from}");
    }
}

#[test]
fn time_finds_the_first_batch_that_is_late_enough() {
    let (storage, store) = fresh();
    // Timestamps that jump to and fro.
    let batches: Vec<_> =
        (0..200).map(|n| batch(n * 2, 2, (n * 7919) % 300 + n * 2, 30 + n as usize % 90)).collect();
    for (n, one) in batches.iter().enumerate() {
        if n % 67 == 66 {
            store.roll(one.base_offset()).unwrap();
        }
        store.append(std::slice::from_ref(one)).unwrap();
    }
    let ends = store.sync().unwrap();
    for store in [store, reopen(&storage, &ends)] {
        for time in -1..720 {
            let time = Timestamp::new(time);
            let expected = batches.iter().find(|batch| batch.max_timestamp() >= time);
            let found = store.find_by_time(time).unwrap();
            assert_eq!(found.map(|found| found.offset), expected.map(StoredBatch::base_offset), "{time}");
        }
    }
}

#[test]
fn batches_out_of_order_are_refused() {
    let (_, store) = fresh();
    let batches = fill(&store, 0, 10);
    let refused = |result| matches!(result, Err(AppendError::OutOfOrder { next, .. }) if next == offset(30));
    assert!(refused(store.append(&batches[9..])));
    assert!(refused(store.roll(offset(29))));
    assert!(store.append(&[batch(30, 3, 1, 9), batch(32, 1, 1, 9)]).is_err());
    assert_eq!(store.next_offset(), Some(offset(30)), "nothing of a refused call is stored");
    assert_eq!(read_all(&store, 0, 1000).unwrap(), joined(&batches));
}
