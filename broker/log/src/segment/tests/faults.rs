//! Each call to the storage fails in turn.

use super::*;
use crate::fs::{Call, Effect, FaultyStorage};

/// A life: appends, rolls, syncs, drops and deletes; what fails is tried again by the next step. Returns the last
/// recorded ends.
fn live(store: &SegmentStore) -> PartitionEnds {
    let mut recorded = PartitionEnds::default();
    let mut next = 0;
    for step in 0..12 {
        let group: Vec<_> = (0..6).map(|n| batch(next + n * 2, 2, step, 120)).collect();
        if store.append(&group).is_ok() {
            next += 12;
        }
        if step % 4 == 3 {
            let _ = store.roll(offset(next));
        }
        if step % 3 == 2
            && let Ok(ends) = store.sync()
        {
            recorded = ends;
            let _ = store.delete_unnamed(&recorded);
        }
        if step == 9 {
            store.drop_before(offset(50));
        }
        let _ = store.read(offset(next - 12), offset(i64::MAX), 500);
    }
    recorded
}

/// All batches of `live` that `ends` cover, as bytes: each offset is even and its content follows from it.
fn covered(ends: &PartitionEnds) -> Vec<u8> {
    let mut all = Vec::new();
    let Some((first, last)) = ends.segments.first().zip(ends.segments.last()) else { return all };
    for base in (first.base_offset.get()..last.next_offset.get()).step_by(2) {
        // The timestamp is not in the bytes a consumer gets.
        all.extend(kafka(&batch(base, 2, 0, 120)));
    }
    all
}

#[test]
fn whichever_call_fails_what_was_recorded_stays() {
    for effect in [Effect::Fail, Effect::DiskFull, Effect::ShortWrite(100), Effect::Halt] {
        for nth in 1.. {
            let memory = MemoryStorage::new();
            let faulty = FaultyStorage::new(Arc::new(memory.clone()));
            let files = files_on(faulty.clone());
            faulty.on_nth(None, nth, effect);
            let Ok(store) = open_at(&files, PartitionEnds::default()) else { continue };
            let recorded = live(&store);
            if !faulty.has_struck() {
                assert!(nth > 30, "the life of a store is longer than this");
                break;
            }
            for storage in [memory.kill(), memory.crash(nth)] {
                let store = open_at(&files_on(storage), recorded.clone())
                    .unwrap_or_else(|error| panic!("{effect:?} at call {nth}: {error}"));
                let from = recorded.segments.first().map_or(0, |first| first.base_offset.get());
                assert_eq!(read_all(&store, from, 1000).unwrap(), covered(&recorded), "{effect:?} at {nth}");
                for end in &recorded.segments {
                    store.verify(end.base_offset).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_failed_write_is_made_again() {
    let memory = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    let store = open_at(&files_on(faulty.clone()), PartitionEnds::default()).unwrap();
    let batches = [batch(0, 1, 1, 500), batch(1, 1, 1, 500)];
    for effect in [Effect::DiskFull, Effect::ShortWrite(700), Effect::Fail] {
        faulty.on_nth(Some(Call::Write), 1, effect);
        assert!(matches!(store.append(&batches), Err(AppendError::Io { .. })));
        assert_eq!(store.next_offset(), Some(offset(0)), "nobody sees a torn append");
    }
    store.append(&batches).unwrap();
    assert_eq!(read_all(&store, 0, 5000).unwrap(), joined(&batches));
}

#[test]
fn nothing_is_trusted_after_a_failed_sync() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let store = open_at(&files_on(faulty.clone()), PartitionEnds::default()).unwrap();
    store.append(&[batch(0, 1, 1, 500)]).unwrap();
    faulty.on_nth(Some(Call::Sync), 1, Effect::Fail);
    assert!(matches!(store.sync(), Err(SyncError::Sync { .. })));
    faulty.heal();
    assert!(matches!(store.sync(), Err(SyncError::Failed { .. })), "a later sync proves nothing");
    assert!(matches!(store.append(&[batch(1, 1, 1, 500)]), Err(AppendError::Failed { .. })));
    assert_eq!(store.ends(), PartitionEnds::default());
    assert_eq!(store.read(offset(0), offset(9), 9).unwrap().next, offset(1), "readers go on");
}

#[test]
fn a_flush_that_nobody_finishes_is_covered_by_the_next() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 10);
    drop(store.flush().unwrap());
    assert!(store.is_dirty());
    assert_eq!(store.ends(), PartitionEnds::default());
    let ends = store.sync().unwrap();
    let store = open_at(&files_on(storage.crash(1)), ends).unwrap();
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
}

#[test]
fn a_sync_of_the_whole_file_system_serves_many() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 10);
    let flush = store.flush().unwrap();
    // Appended meanwhile: not in the ends.
    store.append(&[batch(30, 1, 1, 10)]).unwrap();
    storage.sync_all().unwrap();
    let ends = flush.synced();
    assert_eq!(ends.next_offset(), Some(offset(30)));
    assert!(store.is_dirty());
    let store = open_at(&files_on(storage.crash(2)), ends).unwrap();
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
}

#[test]
fn an_index_that_becomes_due_during_a_sync_is_left_to_the_next() {
    let (storage, store) = fresh();
    let first = batch(0, 1, 1, 10);
    store.append(std::slice::from_ref(&first)).unwrap();
    let flush = store.flush().unwrap();
    // The segment's first index entries: they wait in memory, and there is no index file.
    let later: Vec<_> = (1..9).map(|n| batch(n, 1, 1, 500)).collect();
    store.append(&later).unwrap();
    let ends = flush.sync().unwrap();
    assert_eq!(ends.next_offset(), Some(offset(1)));
    let ends = store.sync().unwrap();
    let store = open_at(&files_on(storage.crash(3)), ends).unwrap();
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(std::iter::once(&first).chain(&later)));
}

#[test]
fn a_sync_that_fails_while_a_handle_is_closed_is_not_forgotten() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let config = SegmentFilesConfig { open_files_max: 1, ..SegmentFilesConfig::default() };
    let files = SegmentFiles::new(Arc::new(faulty.clone()), config);
    let open = |dir| SegmentStore::open(&files, dir, KEY, CONFIG, PartitionEnds::default()).unwrap().0;
    let (victim, other) = (open("a"), open("b"));
    victim.append(&[batch(0, 1, 1, 500)]).unwrap();
    faulty.on_nth(Some(Call::Sync), 1, Effect::Fail);
    other.append(&[batch(0, 1, 1, 500)]).unwrap();
    assert!(faulty.has_struck(), "the victim's handle was synced and closed to make room");
    assert!(matches!(victim.append(&[batch(1, 1, 1, 500)]), Err(AppendError::Failed { .. })));
    // It matters not how the checkpoint means to sync.
    assert!(matches!(victim.flush(), Err(SyncError::Failed { .. })));
    other.sync().unwrap();
}
