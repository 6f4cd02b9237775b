//! Opening what a crash left.

use super::*;

#[test]
fn a_restart_finds_what_was_recorded_and_goes_on() {
    let (storage, store) = fresh();
    let mut batches = fill(&store, 0, 60);
    let ends = store.sync().unwrap();
    assert_eq!(ends, store.ends());
    let lost = fill(&store, 180, 70);
    assert_ne!(store.written_ends(), ends);

    let store = reopen(&storage, &ends);
    assert_eq!(store.written_ends(), ends);
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
    // The write-ahead log brings the rest again, and the files become what they would have been.
    batches.extend(fill(&store, 180, 70));
    assert_eq!(lost, batches[60..]);
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
    let again = store.sync().unwrap();
    assert_eq!(read_all(&reopen(&storage, &again), 0, 500).unwrap(), joined(&batches));
}

#[test]
fn nothing_recorded_survives_no_power_loss() {
    for seed in 0..60 {
        let (storage, store) = fresh();
        let mut batches = fill(&store, 0, 30);
        let ends = store.sync().unwrap();
        fill(&store, 90, 50);
        if seed % 3 == 0 {
            drop(store.flush().unwrap());
        }
        let storage = storage.crash(seed);
        let store = open_at(&files_on(storage.clone()), ends.clone()).unwrap();
        assert_eq!(read_all(&store, 0, 700).unwrap(), joined(&batches), "seed {seed}");
        // A second life that is cut short too.
        batches.extend(fill(&store, 90, 50));
        let ends = store.sync().unwrap();
        let store = open_at(&files_on(storage.crash(seed + 1000)), ends).unwrap();
        assert_eq!(read_all(&store, 0, 700).unwrap(), joined(&batches), "seed {seed}");
        assert!((0..).take(3).all(|n| store.verify(store.ends().segments[n % 2].base_offset).is_ok()));
    }
}

#[test]
fn a_tail_of_any_length_is_cut() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 6);
    let ends = store.sync().unwrap();
    let durable = storage.contents(&log_path(0)).unwrap().len();
    store.append(&[batch(18, 1, 1, 100)]).unwrap();
    let longest = storage.contents(&log_path(0)).unwrap().len();
    for length in durable..=longest {
        let storage = storage.kill();
        storage.edit(&log_path(0), |bytes| bytes.truncate(length));
        let files = files_on(storage.clone());
        let (store, report) = SegmentStore::open(&files, DIR, KEY, CONFIG, ends.clone()).unwrap();
        assert_eq!(report.cut_bytes, (length - durable) as u64);
        assert_eq!(storage.contents(&log_path(0)).unwrap().len(), durable);
        assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
    }
}

#[test]
fn files_shorter_than_recorded_are_damage() {
    let (storage, store) = fresh();
    fill(&store, 0, 60);
    let ends = store.sync().unwrap();
    let recorded = ends.segments[0].bytes;
    storage.edit(&log_path(0), |bytes| bytes.truncate(bytes.len() - 1));
    let error = open_at(&files_on(storage.kill()), ends.clone()).err().unwrap();
    assert!(matches!(error, OpenError::Short { found, .. } if found == recorded - 1), "{error}");
    assert!(error.is_damage());
    storage.remove(&log_path(0)).unwrap();
    let error = open_at(&files_on(storage.kill()), ends).err().unwrap();
    assert!(matches!(error, OpenError::Missing { .. }) && error.is_damage(), "{error}");
    assert!(error.to_string().contains("00000000000000000000.log is missing"), "{error}");
}

#[test]
fn files_that_nothing_names_go() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 60);
    let ends = store.sync().unwrap();
    store.roll(offset(500)).unwrap();
    fill(&store, 500, 20);
    drop(store.flush().unwrap());
    storage.open(&Path::new(DIR).join("notes.txt"), crate::fs::OpenMode::CREATE_NEW).unwrap();

    let files = files_on(storage.clone());
    let (store, report) = SegmentStore::open(&files, DIR, KEY, CONFIG, ends).unwrap();
    assert_eq!(report.removed_files, 2);
    assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
    let names: Vec<_> = storage.list(Path::new(DIR)).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), 5, "two segments, and what is not ours: {names:?}");
}

#[test]
fn an_index_that_is_missing_or_short_is_made_again() {
    let (storage, store) = fresh();
    let batches = fill(&store, 0, 60);
    let ends = store.sync().unwrap();
    let index = storage.contents(&index_path(0)).unwrap();
    for length in [None, Some(0), Some(47), Some(60), Some(index.len() - 1)] {
        let storage = storage.kill();
        match length {
            None => storage.remove(&index_path(0)).unwrap(),
            Some(length) => storage.edit(&index_path(0), |bytes| bytes.truncate(length)),
        }
        let files = files_on(storage.clone());
        let (store, report) = SegmentStore::open(&files, DIR, KEY, CONFIG, ends.clone()).unwrap();
        assert_eq!(report.rebuilt_indexes, 1);
        assert_eq!(storage.contents(&index_path(0)).unwrap(), index);
        assert_eq!(read_all(&store, 0, 500).unwrap(), joined(&batches));
        assert_eq!(store.sync().unwrap(), ends);
    }
}

#[test]
fn ends_that_contradict_themselves_are_refused() {
    let (storage, store) = fresh();
    fill(&store, 0, 60);
    let good = store.sync().unwrap();
    let spoil: [fn(&mut PartitionEnds); 6] = [
        |ends| ends.segments.reverse(),
        |ends| ends.segments[0].sealed = false,
        |ends| ends.segments[1].base_offset = offset(3),
        |ends| ends.segments[1].bytes = 10,
        |ends| ends.segments[0].next_offset = offset(-4),
        |ends| ends.segments[0].index_entries = 1 << 60,
    ];
    for change in spoil {
        let mut ends = good.clone();
        change(&mut ends);
        let error = open_at(&files_on(storage.kill()), ends).err().unwrap();
        assert!(matches!(error, OpenError::Ends { .. }), "{error}");
    }
}

#[test]
fn an_idle_partition_has_no_files() {
    let (storage, store) = fresh();
    store.roll(offset(0)).unwrap();
    let ends = store.sync().unwrap();
    assert!(storage.list(Path::new(DIR)).is_err());
    let store = reopen(&storage, &ends);
    assert!(store.read(offset(0), offset(9), 9).unwrap().parts.is_empty());
    store.append(&[batch(0, 1, 1, 9)]).unwrap();
}
