//! A damaged segment is replaced by a replica's copy, while readers go on.

use std::ops::Range;

use super::*;
use crate::fs::{Call, Effect, FaultyStorage};

const REPAIR: &str = "shard-01/repair/plays-0";

/// A partition with two sealed segments, on memory that may fail, and the same on another broker's.
fn replicas() -> (MemoryStorage, FaultyStorage, SegmentStore, SegmentStore, Vec<StoredBatch>) {
    let memory = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    let store = open_at(&files_on(faulty.clone()), PartitionEnds::default()).unwrap();
    let (_, other) = fresh();
    let batches = fill(&store, 0, 100);
    assert_eq!(fill(&other, 0, 100), batches);
    assert_eq!(store.sync().unwrap(), other.sync().unwrap());
    (memory, faulty, store, other, batches)
}

/// What a broker sends of a segment, received beside the damaged one.
fn receive(store: &SegmentStore, from: &SegmentStore, base: i64) -> SegmentImport {
    let mut import = store.begin_repair(REPAIR, offset(base)).unwrap().expect("it is sealed");
    let pin = from.pin(&from.ends()).unwrap();
    let (mut at, mut chunk) = (0, vec![0; 500]);
    loop {
        let count = pin.read_raw(offset(base), at, &mut chunk).unwrap();
        if count == 0 {
            return import;
        }
        import.write(at, &chunk[..count]).unwrap();
        at += count as u64;
    }
}

fn mend(store: &SegmentStore, from: &SegmentStore) -> bool {
    store.finish_repair(receive(store, from, 0).checked().unwrap()).unwrap()
}

fn swap(bytes: &mut [u8], one: Range<usize>, other: Range<usize>) {
    let kept = bytes[one.clone()].to_vec();
    bytes.copy_within(other.clone(), one.start);
    bytes[other].copy_from_slice(&kept);
}

#[test]
fn a_damaged_segment_is_whole_again_and_read_without_opening_anew() {
    let (memory, _, store, other, batches) = replicas();
    let sound = memory.contents(&log_path(0)).unwrap();
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[900] ^= 8, |bytes| bytes[3] ^= 1, |bytes| swap(bytes, 512..1024, 2048..2560)];
    for damage in damages {
        memory.edit(&log_path(0), damage);
        // Who reads has the file open, and finds the damage.
        assert!(matches!(store.verify(offset(0)), Err(ReadError::Damaged(_))));
        assert!(read_all(&store, 0, 700).is_err());
        assert!(mend(&store, &other));
        assert_eq!(memory.contents(&log_path(0)).unwrap(), sound);
        store.verify(offset(0)).unwrap();
        assert_eq!(read_all(&store, 0, 700).unwrap(), joined(&batches));
        assert!(memory.list(Path::new(REPAIR)).unwrap().is_empty(), "nothing is left beside it");
    }
    let ends = store.sync().unwrap();
    assert_eq!(read_all(&reopen(&memory, &ends), 0, 700).unwrap(), joined(&batches));
}

#[test]
fn a_power_loss_after_a_repair_leaves_the_whole_file() {
    let (memory, _, store, other, batches) = replicas();
    let ends = store.ends();
    memory.edit(&log_path(0), |bytes| bytes[700] ^= 1);
    assert!(mend(&store, &other));
    for seed in 0..8 {
        let crashed = memory.crash(seed);
        assert_eq!(read_all(&reopen(&crashed, &ends), 0, 900).unwrap(), joined(&batches), "seed {seed}");
    }
}

#[test]
fn a_damaged_copy_is_refused_and_changes_nothing() {
    let (memory, _, store, other, _) = replicas();
    memory.edit(&log_path(0), |bytes| bytes[700] ^= 1);
    let before = memory.contents(&log_path(0)).unwrap();
    for at in [3, 60, 500, 900] {
        let mut import = receive(&store, &other, 0);
        import.write(at, b"?!").unwrap();
        let Err(refused) = import.checked() else { panic!("byte {at} is not found") };
        assert!(matches!(refused, ReadError::Damaged(_)), "byte {at}: {refused}");
        assert_eq!(memory.contents(&log_path(0)).unwrap(), before);
    }
    assert!(mend(&store, &other));
    store.verify(offset(0)).unwrap();
}

#[test]
fn only_what_is_sealed_and_still_there_is_replaced() {
    let (_, _, store, other, _) = replicas();
    let sealed = store.sealed();
    assert_eq!(sealed.len(), 2);
    let active = store.ends().segments.last().unwrap().base_offset;
    assert!(store.begin_repair(REPAIR, active).unwrap().is_none(), "it grows");
    assert!(store.begin_repair(REPAIR, offset(7)).unwrap().is_none(), "there is none");
    let import = receive(&store, &other, 0);
    store.drop_before(sealed[0].next_offset);
    assert!(!store.finish_repair(import.checked().unwrap()).unwrap(), "retention let it go meanwhile");
}

#[test]
fn every_call_of_a_repair_may_fail_and_the_next_one_mends() {
    for nth in 1.. {
        let (memory, faulty, store, other, batches) = replicas();
        memory.edit(&log_path(0), |bytes| bytes[900] ^= 8);
        let import = receive(&store, &other, 0);
        faulty.on_nth(None, nth, Effect::Fail);
        let outcome = import.checked().map(|checked| store.finish_repair(checked));
        if !faulty.has_struck() {
            assert!(nth > 5, "a repair makes more calls than {nth}");
            return;
        }
        // A directory that can't be synced ends the writing, as everywhere; what is read is checked in any case.
        let ends = store.ends();
        let again = reopen(&memory, &ends);
        if again.verify(offset(0)).is_err() {
            assert!(!matches!(outcome, Ok(Ok(_))), "call {nth} failed");
            assert!(mend(&again, &other), "call {nth}");
        }
        assert_eq!(read_all(&again, 0, 700).unwrap(), joined(&batches), "call {nth}");
    }
}

#[test]
fn a_directory_that_cannot_be_synced_ends_the_writing() {
    let (memory, faulty, store, other, _) = replicas();
    memory.edit(&log_path(0), |bytes| bytes[900] ^= 8);
    let import = receive(&store, &other, 0);
    let checked = import.checked().unwrap();
    faulty.on_nth(Some(Call::SyncDir), 1, Effect::Fail);
    let failed = store.finish_repair(checked).unwrap_err();
    assert!(matches!(failed, AppendError::Io { .. }), "{failed}");
    assert!(matches!(store.sync(), Err(SyncError::Failed { .. })));
}
