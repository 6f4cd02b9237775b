//! Dropping, pinning, deleting; and how many handles are open.

use super::*;
use crate::fs::DiskStorage;

fn names(storage: &MemoryStorage) -> usize {
    storage.list(Path::new(DIR)).unwrap().len()
}

#[test]
fn dropped_files_go_after_the_checkpoint_and_the_last_pin() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 130);
    let before = store.sync().unwrap();
    assert_eq!((before.segments.len(), names(&storage)), (4, 8));
    let pin = store.pin(&before).unwrap();

    let dropped = store.drop_before(offset(250));
    assert_eq!(dropped.segments, 2, "the segment with offset 250 stays whole");
    assert!(matches!(store.read(offset(5), offset(9), 9), Err(ReadError::OutOfRange { .. })));
    assert_eq!(read_all(&store, 240, 5000).unwrap(), joined(&batches[80..]));

    let still_named = store.delete_unnamed(&before).unwrap();
    assert_eq!((still_named.segments, still_named.kept), (0, 2));
    let after = store.sync().unwrap();
    assert_eq!(after.segments.len(), 2);
    assert_eq!(store.delete_unnamed(&after).unwrap().kept, 2, "a pin holds them");
    let mut bytes = vec![0; before.segments[0].bytes as usize];
    assert_eq!(pin.read_raw(offset(0), 0, &mut bytes).unwrap(), bytes.len());
    drop(pin);
    let deleted = store.delete_unnamed(&after).unwrap();
    assert_eq!((deleted.segments, deleted.bytes, deleted.kept), (2, dropped.bytes, 0));
    assert_eq!(names(&storage), 4);
    assert!(store.pin(&before).is_none());
    assert_eq!(read_all(&reopen(&storage, &after), 240, 5000).unwrap(), joined(&batches[80..]));
}

#[test]
fn the_active_segment_is_never_dropped_by_offset() {
    let (_, store) = fresh();
    fill(&store, 0, 10);
    assert_eq!(store.drop_before(offset(1000)), Dropped::default());
    store.roll(offset(30)).unwrap();
    assert_eq!(store.drop_before(offset(1000)).segments, 1);
    assert_eq!(store.next_offset(), Some(offset(30)));
    assert!(store.read(offset(30), offset(99), 9).unwrap().parts.is_empty());
}

#[test]
fn a_deleted_partition_leaves_nothing() {
    let (storage, store) = fresh();
    fill(&store, 0, 60);
    let ends = store.sync().unwrap();
    assert!(!store.remove_dir().unwrap());
    assert_eq!(store.drop_all().segments, 2);
    assert_eq!(store.delete_unnamed(&ends).unwrap().kept, 2);
    assert_eq!(store.delete_unnamed(&store.sync().unwrap()).unwrap().kept, 0);
    assert!(store.remove_dir().unwrap());
    assert!(storage.list(Path::new(DIR)).is_err());
}

#[test]
fn many_partitions_share_few_handles() {
    let root = tempfile::tempdir().unwrap();
    let storage = Arc::new(DiskStorage::new(root.path()).unwrap());
    let config =
        SegmentFilesConfig { open_files_max: 10, page_cache_bytes: Some(20_000), idle_buffers_bytes: 0 };
    let files = SegmentFiles::new(storage, config);
    let stores: Vec<_> = (0..60)
        .map(|n| {
            let dir = format!("shard-00/p-{n}");
            SegmentStore::open(&files, dir, KEY, CONFIG, PartitionEnds::default()).unwrap().0
        })
        .collect();
    let mut batches = Vec::new();
    for round in 0..4 {
        let group: Vec<_> = (0..5).map(|n| batch(round * 10 + n * 2, 2, round, 1500)).collect();
        for store in &stores {
            store.append(&group).unwrap();
            assert!(files.open_files() <= 10);
        }
        batches.extend(group);
    }
    for store in &stores {
        let ends = store.sync().unwrap();
        assert_eq!(read_all(store, 0, 4000).unwrap(), joined(&batches));
        let reopened = SegmentStore::open(&files, store.dir(), KEY, CONFIG, ends).unwrap().0;
        assert_eq!(read_all(&reopened, 0, 4000).unwrap(), joined(&batches));
    }
    assert!(files.open_files() <= 10);
}
