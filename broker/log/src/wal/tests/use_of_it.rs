//! What a user sees when nothing goes wrong.

use std::time::Duration;

use super::*;
use crate::fs::{Call, DiskStorage, Effect, FaultyStorage};

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let storage = MemoryStorage::new();
    let (wal, recovery) = open(&storage);
    assert!(recovery.shards.is_empty() && recovery.direct && recovery.closed_cleanly);
    let a: Vec<_> = (5..20).map(|index| entry(index, 3000)).collect();
    let b: Vec<_> = (1..4).map(|index| entry(index, 30)).collect();
    append(&wal, A, a.clone()).unwrap();
    append(&wal, B, b.clone()).unwrap();
    vote(&wal, A, "first").unwrap();
    vote(&wal, A, "second").unwrap();
    wal.save_committed(B, Bytes::from("committed"));
    wait(|done| wal.snapshot_installed(B, Bytes::from("snapshot"), done)).unwrap();
    assert_eq!((read_all(&wal, A), read_all(&wal, B)), (a.clone(), b.clone()));
    wal.close().unwrap();
    assert!(matches!(append(&wal, B, vec![entry(4, 1)]), Err(WalError::Closed)));

    let (wal, recovery) = open(&storage.crash(1));
    assert!(recovery.closed_cleanly && recovery.damage.is_none(), "{:?}", recovery.report);
    let shard = &recovery.shards[&A];
    assert_eq!(
        (shard.vote.as_deref(), shard.first, shard.last),
        (Some(&b"second"[..]), Some(LogIndex::new(5)), Some(id(19)))
    );
    let shard = &recovery.shards[&B];
    assert_eq!(shard.committed.as_deref(), Some(&b"committed"[..]));
    assert_eq!(shard.snapshot_installed.as_deref(), Some(&b"snapshot"[..]));
    assert_eq!((read_all(&wal, A), read_all(&wal, B)), (a, b));
    assert_eq!(wal.flushed(A), Some(id(19)));
    append(&wal, B, vec![entry(4, 10)]).unwrap();
}

#[test]
fn truncation_and_purge_hold_over_restarts() {
    let mut storage = MemoryStorage::new();
    for round in 0..3 {
        let (wal, _) = open(&storage);
        if round == 0 {
            append(&wal, A, (1..11).map(|index| entry(index, 100)).collect()).unwrap();
            wait(|done| wal.truncate_after(A, Some(id(6)), done)).unwrap();
            append(&wal, A, (7..9).map(|index| entry_of(id_of_term(index, 2), 50)).collect()).unwrap();
            purge(&wal, A, 3).unwrap();
            append(&wal, B, vec![entry(1, 10)]).unwrap();
            wait(|done| wal.truncate_after(B, None, done)).unwrap();
        }
        let ids: Vec<_> = read_all(&wal, A).iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [id(4), id(5), id(6), id_of_term(7, 2), id_of_term(8, 2)]);
        assert_eq!(wal.range(A).purged, Some(id(3)));
        assert_eq!(wal.entry_id(A, LogIndex::new(3)), Some(id(3)));
        let behind = |index| wal.bytes_behind(A, Some(LogIndex::new(index)));
        assert_eq!([behind(2), behind(3), behind(6), behind(8), behind(99)], [400, 400, 100, 0, 0]);
        assert_eq!((wal.bytes_behind(A, None), wal.bytes_behind(B, None)), (400, 0));
        assert_eq!(wal.range(B).last, None);
        assert!(matches!(
            wal.read(A, LogIndex::new(3), LogIndex::new(5), 1),
            Err(WalReadError::NotFound { .. })
        ));
        drop(wal);
        storage = storage.kill();
    }
}

#[test]
fn entries_must_follow_each_other() {
    let (wal, _) = open(&MemoryStorage::new());
    append(&wal, A, vec![entry(5, 1)]).unwrap();
    let gap = append(&wal, A, vec![entry(7, 1)]).unwrap_err();
    assert!(matches!(gap, WalError::OutOfOrder { .. }), "{gap}");
    assert!(append(&wal, A, vec![entry(6, 1), entry(8, 1)]).is_err());
    assert_eq!(wal.range(A).last, Some(id(5)), "nothing of a refused append stays");
    purge(&wal, A, 9).unwrap();
    assert!(append(&wal, A, vec![entry(9, 1)]).is_err());
    append(&wal, A, vec![entry(10, 1)]).unwrap();
    let large = append(&wal, A, vec![entry(11, wal.entry_bytes_max() + 1)]).unwrap_err();
    assert!(matches!(large, WalError::TooLarge { .. }), "{large}");
    append(&wal, A, vec![entry(11, wal.entry_bytes_max())]).unwrap();
    append(&wal, A, Vec::new()).unwrap();
}

#[test]
fn entries_leave_the_cache_when_applied_and_come_back_from_files() {
    let (wal, _) = open(&MemoryStorage::new());
    let entries: Vec<_> = (1..101).map(|index| entry(index, 1500)).collect();
    for chunk in entries.chunks(7) {
        append(&wal, A, chunk.to_vec()).unwrap();
    }
    let all = (LogIndex::new(1), LogIndex::new(101));
    assert!(wal.is_cached(A, all.0, all.1), "what is not applied stays, whatever it takes");
    wal.applied(A, LogIndex::new(90));
    assert!(!wal.is_cached(A, all.0, all.1) && wal.is_cached(A, LogIndex::new(91), all.1));
    assert!(wal.inner_cached_bytes() <= 64 << 10);
    assert_eq!(read_all(&wal, A), entries);
    let one = wal.read(A, LogIndex::new(3), LogIndex::new(9), 0).unwrap();
    assert_eq!(one, entries[2..3], "at least one");
    let some = wal.read(A, LogIndex::new(3), LogIndex::new(9), 4600).unwrap();
    assert_eq!(some, entries[2..5]);
}

#[test]
fn purged_segments_are_recycled() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    let mut most = 0;
    for index in 1..400 {
        append(&wal, A, vec![entry(index, 4000)]).unwrap();
        if index == 1 {
            append(&wal, B, vec![entry(1, 1)]).unwrap();
            assert!(wal.pinning_shards().is_empty(), "the only segment pins nothing");
        }
        if index == 100 {
            assert!(wal.pinning_shards().contains(&B));
            purge(&wal, B, 1).unwrap();
        }
        if index > 100 && index % 10 == 0 {
            purge(&wal, A, index - 5).unwrap();
        }
        if index > 150 {
            most = most.max(wal.bytes());
        }
    }
    assert!(most <= 5 * (128 << 10), "{most} bytes in use for 15 entries");
    assert_eq!(read_all(&wal, A).len(), 399 - 385);
    wal.close().unwrap();
    assert!(names(&storage).len() < 25, "files are reused: {:?}", names(&storage));
    let (wal, recovery) = open(&storage.crash(3));
    assert!(recovery.damage.is_none(), "{:?}", recovery.report);
    assert_eq!(wal.range(A).last, Some(id(399)));
    assert_eq!(wal.range(B).purged, Some(id(1)), "repeated though its segment is long gone");
}

#[test]
fn group_commit_syncs_once_for_what_came_meanwhile() {
    let memory = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(memory));
    let (wal, _) = Wal::open(Arc::new(faulty.clone()), &config()).unwrap();
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    let before = faulty.count(Call::Sync);
    let (done, results) = mpsc::channel();
    // Held up in a completion, the writer finds all of these together afterwards.
    let (hold, held) = mpsc::channel::<()>();
    wal.append(A, vec![entry(2, 10)], Box::new(move |_| assert!(held.recv().is_err())));
    for index in 3..103 {
        let done = done.clone();
        let shard = ShardId::new(u16::try_from(index % 5).unwrap() + 10);
        wal.append(
            shard,
            vec![entry(1 + (index - 3) / 5, 10)],
            Box::new(move |result| drop(done.send(result))),
        );
    }
    drop(hold);
    for _ in 3..103 {
        results.recv().unwrap().unwrap();
    }
    let syncs = faulty.count(Call::Sync) - before;
    assert!(syncs <= 3 + 2 * 2, "{syncs} syncs for 101 appends");
}

#[test]
fn buffered_where_the_file_system_has_no_direct_io() {
    let storage = MemoryStorage::new().without_direct();
    let (wal, recovery) = open(&storage);
    assert!(!recovery.direct);
    append(&wal, A, vec![entry(1, 9000)]).unwrap();
    wal.close().unwrap();
    assert_eq!(read_all(&open(&storage).0, A), [entry(1, 9000)]);
}

#[test]
fn replicated_acknowledges_before_the_device_and_flushes_soon() {
    let storage = MemoryStorage::new();
    let interval = Duration::from_secs(3600);
    let config = WalConfig { durability: Durability::Replicated { flush_interval: interval }, ..config() };
    let (wal, _) = open_with(&storage, &config);
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    assert_eq!(wal.flushed(A), None);
    assert_eq!(open(&storage.kill()).0.range(A).last, Some(id(1)), "the kernel has it");
    wait(|done| wal.flush(done)).unwrap();
    assert_eq!(wal.flushed(A), Some(id(1)));
    append(&wal, A, vec![entry(2, 10)]).unwrap();
    vote(&wal, A, "vote").unwrap();
    assert_eq!(wal.flushed(A), Some(id(2)), "votes are synced, and what is before them with them");
    let soon = Durability::Replicated { flush_interval: Duration::from_millis(1) };
    let (wal, _) = open_with(&MemoryStorage::new(), &WalConfig { durability: soon, ..config });
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    while wal.flushed(A) != Some(id(1)) {
        std::thread::yield_now();
    }
}

#[test]
fn losing_power_under_replicated_raises_doubt_and_a_kill_does_not() {
    let storage = MemoryStorage::new();
    let durability = Durability::Replicated { flush_interval: Duration::from_secs(3600) };
    let booted = |boot| WalConfig { durability, boot_id: Some([boot; 16]), ..config() };
    let (wal, _) = open_with(&storage, &booted(1));
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    assert!(open_with(&storage.kill(), &booted(1)).1.damage.is_none());
    let (_, recovery) = open_with(&storage.kill(), &booted(2));
    assert_eq!(recovery.shards[&A].doubtful.as_ref().unwrap().reason, DoubtReason::PowerLoss);
    wal.close().unwrap();
    assert!(open_with(&storage.kill(), &booted(2)).1.damage.is_none(), "closed in good order");
}

#[test]
fn works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(DiskStorage::new(dir.path()).unwrap());
    let entries: Vec<_> = (1..60).map(|index| entry(index, 5000)).collect();
    for round in 0..2 {
        let (wal, recovery) = Wal::open(storage.clone(), &config()).unwrap();
        assert!(recovery.damage.is_none());
        if round == 0 {
            for chunk in entries.chunks(9) {
                append(&wal, A, chunk.to_vec()).unwrap();
            }
        }
        wal.applied(A, LogIndex::new(59));
        assert_eq!(read_all(&wal, A), entries);
        wal.close().unwrap();
    }
}

#[test]
fn an_inspection_shows_what_is_there_and_changes_nothing() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, vec![entry(1, 10), entry(2, 9000)]).unwrap();
    vote(&wal, B, "v").unwrap();
    wal.close().unwrap();
    let seen = frames(&storage);
    let kinds: Vec<_> = seen.iter().map(|frame| (frame.kind, frame.shard, frame.payload_bytes)).collect();
    let expected = [
        (FrameKind::Entry, Some(A), 10),
        (FrameKind::Entry, Some(A), 9000),
        (FrameKind::Vote, Some(B), 1),
        (FrameKind::Close, None, 0),
    ];
    // The shards' state is repeated at the beginning of a segment, where there was none yet but what was queued.
    let data: Vec<_> =
        kinds.into_iter().zip(&seen).filter(|(_, frame)| !frame.repeated).map(|(kind, _)| kind).collect();
    assert_eq!(data, expected);
    let inspection = inspect(&storage, Path::new("wal"), &mut |_| {}).unwrap();
    assert_eq!(inspection.segments.len(), 1);
    assert!(matches!(inspection.segments[0].end, InspectedEnd::BadBlock { .. }), "zeros behind the end");
    assert!(inspect(&storage, Path::new("elsewhere"), &mut |_| {}).unwrap().segments.is_empty());
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for wrong in [
        WalConfig { segment_bytes: 4096, ..config() },
        WalConfig { segment_bytes: (1 << 20) + 1, ..config() },
        WalConfig { write_bytes_max: 1 << 20, ..config() },
    ] {
        let refused = Wal::open(Arc::new(MemoryStorage::new()), &wrong);
        assert!(matches!(refused, Err(WalOpenError::Config(_))));
    }
}

#[test]
fn the_last_handle_may_go_with_a_completion() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    let (done, finished) = mpsc::channel::<()>();
    let last = wal.clone();
    let held = done.clone();
    wal.append(
        A,
        vec![entry(1, 10)],
        Box::new(move |_| {
            drop(last);
            drop(held);
        }),
    );
    drop((wal, done));
    assert!(finished.recv().is_err());
    // The threads end by themselves, the log closed in good order.
    while !open(&storage.kill()).1.closed_cleanly {
        std::thread::yield_now();
    }
}

#[test]
fn what_a_forgotten_shard_flushed_is_not_its_successors() {
    let durability = Durability::Replicated { flush_interval: Duration::from_secs(3600) };
    let (wal, _) = open_with(&MemoryStorage::new(), &WalConfig { durability, ..config() });
    append(&wal, A, (0..9).map(|index| entry(index, 10)).collect()).unwrap();
    let (hold, held) = mpsc::channel::<()>();
    wal.append(A, vec![entry(9, 10)], Box::new(move |_| assert!(held.recv().is_err())));
    let (done, forgotten) = mpsc::channel();
    wal.forget(A, Box::new(move |result| drop(done.send(result))));
    drop(hold);
    forgotten.recv().unwrap().unwrap();
    append(&wal, A, (0..20).map(|index| entry(index, 10)).collect()).unwrap();
    assert_eq!(wal.flushed(A), None);
    wait(|done| wal.flush(done)).unwrap();
    assert_eq!(wal.flushed(A), Some(id(19)));
}

#[test]
fn a_full_queue_is_said_and_keeps_nobody() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let (wal, _) = Wal::open(Arc::new(faulty.clone()), &config()).unwrap();
    let (told, heard) = mpsc::channel();
    let tell = |what: &'static str| {
        let told = told.clone();
        wal.when_room(Box::new(move || told.send(what).expect("somebody listens")));
    };
    tell("empty");
    assert_eq!(heard.try_recv(), Ok("empty"));
    faulty.hold(Call::Write);
    let (done, results) = mpsc::channel();
    let mut index = 0;
    while !wal.is_full() {
        index += 1;
        let done = done.clone();
        wal.append(A, vec![entry(index, 10_000)], Box::new(move |result| drop(done.send(result))));
        assert!(index < 100, "the queue has a bound");
    }
    assert!(wal.queued_bytes() > config().queue_bytes_max);
    tell("first");
    tell("second");
    assert!(heard.try_recv().is_err() && results.try_recv().is_err());
    faulty.go_on();
    assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], ["first", "second"]);
    assert!(!wal.is_full());
    (0..index).for_each(|_| results.recv().unwrap().unwrap());

    // And where there will never be room.
    faulty.hold(Call::Write);
    while !wal.is_full() {
        index += 1;
        wal.append(A, vec![entry(index, 10_000)], Box::new(|_| ()));
    }
    tell("failed");
    // Whichever thread comes first: from then on the writer's calls fail too.
    faulty.on_nth(Some(Call::Write), 1, Effect::Halt);
    faulty.go_on();
    assert_eq!(heard.recv().unwrap(), "failed");
    assert!(matches!(append(&wal, A, vec![entry(index + 1, 1)]), Err(WalError::Poisoned { .. })));
    tell("poisoned");
    assert_eq!(heard.recv().unwrap(), "poisoned");
}

#[test]
fn nothing_outlives_the_last_handle() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let watch = Arc::downgrade(&storage);
    let (wal, _) = Wal::open(storage, &config()).unwrap();
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    drop(wal);
    assert!(watch.upgrade().is_none());
}

#[test]
fn purged_segments_are_recycled_under_a_pipeline_too() {
    let storage = MemoryStorage::new();
    for life in 0..3 {
        let (wal, _) = open(&storage);
        let (done, results) = mpsc::channel();
        let mut index = wal.range(A).last.map_or(0, |last| last.index.get());
        let (mut waiting, mut most) = (0, 0);
        for round in 0..600 {
            while waiting < 8 {
                index += 1;
                let done = done.clone();
                wal.append(A, vec![entry(index, 4096)], Box::new(move |result| drop(done.send(result))));
                waiting += 1;
            }
            results.recv().unwrap().unwrap();
            waiting -= 1;
            if round % 50 == 49 {
                wal.applied(A, LogIndex::new(index - waiting));
                wal.purge(A, id(index - waiting), Box::new(|result| result.unwrap()));
                wal.assert_counts();
                most = most.max(wal.bytes());
            }
        }
        // Between purges 57 entries of two blocks each.
        assert!(most <= 8 * (128 << 10), "life {life}: {most} bytes, pinned by {:?}", wal.pinning_shards());
        wal.close().unwrap();
    }
}
