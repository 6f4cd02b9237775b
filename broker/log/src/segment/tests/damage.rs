//! Bits that flip: nobody is ever handed them.

use super::super::header::FIRST_FRAME;
use super::*;

/// Reads every batch, and checks that what is handed out is right. Last things first, so that each read needs the
/// index.
fn reads_are_right_or_refused(store: &SegmentStore, batches: &[StoredBatch]) -> bool {
    let mut whole = true;
    for expected in batches.iter().rev() {
        match store.read(expected.base_offset(), offset(i64::MAX), 1) {
            Ok(read) => assert_eq!(read.parts.concat(), kafka(expected)),
            Err(ReadError::Damaged(_)) => whole = false,
            Err(other) => panic!("{other}"),
        }
    }
    whole
}

#[test]
fn every_flipped_bit_of_a_log_file_is_found() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..12).map(|n| batch(n * 3, 3, n, 40 + n as usize)).collect();
    store.append(&batches).unwrap();
    let ends = store.sync().unwrap();
    let bytes = storage.contents(&log_path(0)).unwrap().len();
    for at in 0..bytes {
        let storage = storage.kill();
        storage.edit(&log_path(0), |bytes| bytes[at] ^= 1 << (at % 8));
        let store = reopen(&storage, &ends);
        assert!(!reads_are_right_or_refused(&store, &batches), "byte {at}");
        let Err(ReadError::Damaged(damage)) = store.verify(offset(0)) else {
            panic!("byte {at} is not found")
        };
        assert!(damage.position.contains(&(at as u64)), "byte {at}: {damage}");
        // A sync may repair indexes; it must not take the damage for one, nor hide it.
        store.sync().unwrap();
        assert!(!reads_are_right_or_refused(&store, &batches), "byte {at}");
    }
}

#[test]
fn a_damaged_batch_costs_no_other() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..40).map(|n| batch(n, 1, n, 100)).collect();
    store.append(&batches).unwrap();
    let ends = store.sync().unwrap();
    let frame = 24 + 16 + 100;
    storage.edit(&log_path(0), |bytes| bytes[48 + frame * 11 + 60] ^= 4);
    let store = reopen(&storage, &ends);
    let before = store.read(offset(3), offset(i64::MAX), 1 << 20).unwrap();
    assert_eq!(before.parts.concat(), joined(&batches[3..11]), "what is sound before it is handed out");
    let Err(ReadError::Damaged(damage)) = store.read(offset(11), offset(40), 1 << 20) else { panic!() };
    let start = FIRST_FRAME + frame as u64 * 11;
    assert_eq!(damage.position, start..start + frame as u64);
    assert_eq!(damage.fault, FrameFault::FrameCrc);
    assert_eq!(read_all(&store, 12, 1 << 20).unwrap(), joined(&batches[12..]));
}

#[test]
fn frames_that_change_places_are_found() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..40).map(|n| batch(n, 1, n, 100)).collect();
    store.append(&batches).unwrap();
    let ends = store.sync().unwrap();
    storage.edit(&log_path(0), |bytes| {
        let (a, b) = bytes[48..].split_at_mut(140 * 5);
        a[140 * 4..].swap_with_slice(&mut b[..140]);
    });
    let store = reopen(&storage, &ends);
    let Err(ReadError::Damaged(damage)) = store.verify(offset(0)) else { panic!("not found") };
    assert_eq!(damage.fault, FrameFault::OutOfOrder);
    reads_are_right_or_refused(&store, &batches[..4]);
    assert!(read_all(&store, 0, 1 << 20).is_err());
}

#[test]
fn a_whole_file_of_the_past_is_found() {
    let (storage, store) = fresh();
    store.append(&[batch(0, 1, 1, 100), batch(1, 1, 1, 100)]).unwrap();
    let ends = store.sync().unwrap();
    let (other, past) = fresh();
    past.append(&[batch(0, 1, 2, 100), batch(1, 1, 1, 100)]).unwrap();
    let bytes = other.contents(&log_path(0)).unwrap();
    storage.edit(&log_path(0), |now| *now = bytes);
    let Err(ReadError::Damaged(damage)) = reopen(&storage, &ends).verify(offset(0)) else {
        panic!("not found")
    };
    assert_eq!(damage.fault, FrameFault::OtherContents);
}

#[test]
fn every_flipped_bit_of_an_index_is_survived_and_repaired() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..60).map(|n| batch(n * 2, 2, n * 5, 150)).collect();
    store.append(&batches).unwrap();
    let ends = store.sync().unwrap();
    let index = storage.contents(&index_path(0)).unwrap();
    assert!(ends.segments[0].index_entries > 20);
    for at in 48..index.len() {
        let storage = storage.kill();
        storage.edit(&index_path(0), |bytes| bytes[at] ^= 1 << (at % 8));
        let store = open_at(&files_on(storage.clone()), ends.clone()).unwrap();
        assert!(reads_are_right_or_refused(&store, &batches), "byte {at}");
        let found = store.find_by_time(Timestamp::new(150)).unwrap().unwrap();
        assert_eq!(found.offset, offset(60));
        store.sync().unwrap();
        assert_eq!(storage.contents(&index_path(0)).unwrap(), index, "byte {at} is repaired");
    }
}

#[test]
fn an_index_of_another_partition_misleads_nobody() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..60).map(|n| batch(n * 2, 2, n * 5, 150)).collect();
    store.append(&batches).unwrap();
    let ends = store.sync().unwrap();
    let index = storage.contents(&index_path(0)).unwrap();
    let (other, longer) = fresh();
    longer.append(&(0..60).map(|n| batch(n * 2, 2, n * 5, 170)).collect::<Vec<_>>()).unwrap();
    longer.sync().unwrap();
    let foreign = other.contents(&index_path(0)).unwrap();
    storage.edit(&index_path(0), |bytes| *bytes = foreign[..index.len()].to_vec());
    let store = open_at(&files_on(storage.clone()), ends).unwrap();
    assert!(reads_are_right_or_refused(&store, &batches));
    store.sync().unwrap();
    assert_eq!(storage.contents(&index_path(0)).unwrap(), index);
}

#[test]
fn inspection_shows_what_is_there() {
    let (storage, store) = fresh();
    let batches: Vec<_> = (0..10).map(|n| batch(n * 3, 3, n, 100)).collect();
    store.append(&batches).unwrap();
    store.sync().unwrap();
    let inspect = || SegmentInspection::open(&storage, &log_path(0)).unwrap();
    assert_eq!((inspect().key(), inspect().base_offset()), (KEY, offset(0)));
    let seen: Vec<_> = inspect().map(Result::unwrap).collect();
    let bases = |seen: &[InspectedBatch]| seen.iter().map(|batch| batch.base_offset).collect::<Vec<_>>();
    assert_eq!(bases(&seen), batches.iter().map(StoredBatch::base_offset).collect::<Vec<_>>());

    // A damaged body is shown and passed; a torn tail ends it.
    storage.edit(&log_path(0), |bytes| {
        bytes[48 + 140 * 2 + 100] ^= 1;
        bytes.truncate(bytes.len() - 3);
    });
    let seen: Vec<_> = inspect().collect();
    assert_eq!(seen.len(), 10);
    assert!(matches!(seen[2], Err(InspectError::Fault { fault: FrameFault::FrameCrc, .. })));
    assert!(matches!(seen[9], Err(InspectError::Fault { fault: FrameFault::BeyondEnd, .. })));
    let index = SegmentInspection::open(&storage, &index_path(0));
    assert!(matches!(index, Err(InspectError::IsIndex { .. }) | Err(InspectError::Io { .. })));
}
