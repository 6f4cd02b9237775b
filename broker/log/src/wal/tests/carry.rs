//! A shard that purges nothing any more does not keep the log: its entries are carried forward, and found once, in order.

use super::super::block::BLOCK_BYTES;
use super::*;
use crate::fs::{Call, DiskStorage, Effect, FaultyStorage};

const SEGMENT: u64 = 128 << 10;

/// Shard A stopped after so many entries, over more than two segments.
fn stopped_entries() -> Vec<WalEntry> {
    (1..41).map(|index| entry_of(id_of_term(index, 1 + index / 15), 7000)).collect()
}

/// Copies what A has in the oldest segment, if that is not the one being written, and lets the segment go.
fn carry(wal: &Wal, bytes_max: usize) -> Result<usize, WalError> {
    let mut count = 0;
    loop {
        let (done, durable) = mpsc::channel();
        let copied = wal
            .carry_forward(A, bytes_max, Box::new(move |result| drop(done.send(result))))
            // Where the plug was pulled meanwhile, nothing can be read either.
            .map_err(|error| WalError::Poisoned {
                action: "reading what is carried",
                source: Arc::new(std::io::Error::other(error.to_string())),
            })?;
        durable.recv().expect("a completion is always called")?;
        count += copied;
        if copied == 0 {
            // Two: the release is queued by the first, and flushed by the second.
            wait(|done| wal.flush(done))?;
            wait(|done| wal.flush(done))?;
            return Ok(count);
        }
    }
}

/// What was acknowledged of shard B, which goes on and purges, and whether something failed.
#[derive(Debug, Default)]
struct Acknowledged {
    a: bool,
    b: u64,
    failed: bool,
}

fn go_on(wal: &Wal, acknowledged: &mut Acknowledged, rounds: u64) -> Result<(), WalError> {
    for _ in 0..rounds {
        let next = wal.range(B).last.map_or(1, |last| last.index.get() + 1);
        append(wal, B, vec![entry(next, 20_000)])?;
        acknowledged.b = next;
        purge(wal, B, next)?;
        if wal.bytes() > 5 * SEGMENT {
            carry(wal, 30_000)?;
        }
    }
    Ok(())
}

fn work(storage: Arc<dyn Storage>, rounds: u64) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let Ok((wal, _)) = Wal::open(storage, &config()) else {
        acknowledged.failed = true;
        return acknowledged;
    };
    let all = append(&wal, A, stopped_entries()).and_then(|()| {
        acknowledged.a = true;
        // What was applied leaves the memory, and is copied from the files.
        wal.applied(A, LogIndex::new(25));
        go_on(&wal, &mut acknowledged, rounds)
    });
    acknowledged.failed = all.and_then(|()| wal.close()).is_err();
    acknowledged
}

/// All of A's entries are there, once and in order, before and after it goes on.
fn check(acknowledged: &Acknowledged, storage: &MemoryStorage, what: &str) {
    let (wal, recovery) = open(storage);
    assert!(recovery.damage.is_none() && recovery.report.len() <= 1, "{what}: {:?}", recovery.report);
    assert!(recovery.shards.values().all(|shard| shard.doubtful.is_none()), "{what}: {:?}", recovery.shards);
    wal.assert_counts();
    let found = read_all(&wal, A);
    let expected = stopped_entries();
    if acknowledged.a {
        assert_eq!(found, expected, "{what}");
        assert_eq!(recovery.shards[&A].first, Some(LogIndex::new(1)), "{what}");
        assert_eq!(recovery.shards[&A].last, expected.last().map(|entry| entry.id), "{what}");
        assert_eq!(wal.flushed(A), expected.last().map(|entry| entry.id), "{what}");
    } else {
        assert_eq!(found, expected[..found.len()], "{what}");
    }
    let last = wal.range(B).last.map_or(0, |last| last.index.get());
    assert!(last >= acknowledged.b, "{what}: {last} of {acknowledged:?}");
}

#[test]
fn a_log_stays_small_though_a_shard_purges_nothing() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, stopped_entries()).unwrap();
    let mut acknowledged = Acknowledged { a: true, ..Acknowledged::default() };
    for round in 0..40 {
        go_on(&wal, &mut acknowledged, 10).unwrap();
        assert!(wal.bytes() <= 6 * SEGMENT, "round {round}: {} bytes", wal.bytes());
        assert_eq!(read_all(&wal, A), stopped_entries(), "round {round}");
        wal.assert_counts();
        check(&acknowledged, &storage.kill(), "killed");
    }
    assert!(frames(&storage).iter().any(|frame| frame.kind == FrameKind::Carried));
    assert_eq!(wal.bytes_held(A), 40 * (7000 + 40));
    assert_eq!(wal.bytes_held(ShardId::new(77)), 0);
}

#[test]
fn a_shard_that_starts_again_goes_on_where_it_was() {
    let mut storage = MemoryStorage::new();
    assert!(!work(Arc::new(storage.clone()), 60).failed);
    let mut expected = stopped_entries();
    for life in 0..6 {
        let (wal, recovery) = open_with(&storage, &WalConfig { salt_seed: Some(100 + life), ..config() });
        assert!(recovery.shards.values().all(|shard| shard.doubtful.is_none()), "{:?}", recovery.report);
        assert_eq!(read_all(&wal, A), expected, "life {life}");
        let mut acknowledged = Acknowledged::default();
        match life {
            // What follows lies before some copies, what is truncated and purged among them.
            0 | 3 => {
                let next = expected.last().unwrap().id.index.get() + 1;
                let more: Vec<_> =
                    (next..next + 9).map(|index| entry_of(id_of_term(index, 5 + life), 9000)).collect();
                append(&wal, A, more.clone()).unwrap();
                expected.extend(more);
            }
            1 => {
                wait(|done| wal.truncate_after(A, Some(expected[34].id), done)).unwrap();
                expected.truncate(35);
            }
            4 => {
                wait(|done| wal.purge(A, expected[12].id, done)).unwrap();
                expected.drain(..13);
            }
            _ => {}
        }
        go_on(&wal, &mut acknowledged, 45).unwrap();
        wal.assert_counts();
        assert_eq!(read_all(&wal, A), expected, "life {life}");
        drop(wal);
        storage = if life % 2 == 0 { storage.kill() } else { storage.crash(life) };
    }
}

#[test]
fn a_purge_or_a_truncation_overtakes_a_copy() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, stopped_entries()).unwrap();
    // Held up in a completion, the writer finds the copies and what is behind them together.
    let (hold, held) = mpsc::channel::<()>();
    wal.append(B, vec![entry(1, 10)], Box::new(move |_| assert!(held.recv().is_err())));
    assert!(wal.carry_forward(A, 1 << 20, Box::new(|_| ())).unwrap() > 10);
    let purged = stopped_entries()[4].id;
    wal.purge(A, purged, Box::new(|_| ()));
    wal.truncate_after(A, Some(stopped_entries()[9].id), Box::new(|_| ()));
    let again = entry_of(id_of_term(11, 9), 50);
    wal.append(A, vec![again.clone()], Box::new(|_| ()));
    drop(hold);
    wal.assert_counts();
    let mut expected = stopped_entries()[5..10].to_vec();
    expected.push(again);
    assert_eq!(read_all(&wal, A), expected);
    let (wal, recovery) = open(&storage.crash(5));
    assert!(recovery.shards[&A].doubtful.is_none(), "{:?}", recovery.report);
    assert_eq!((read_all(&wal, A), wal.range(A).purged), (expected, Some(purged)));
    wal.assert_counts();
}

#[test]
fn what_is_being_written_is_not_carried() {
    let (wal, _) = open(&MemoryStorage::new());
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    assert_eq!(carry(&wal, 1 << 20).unwrap(), 0);
    assert_eq!(wal.carry_forward(B, 1, Box::new(|_| ())).unwrap(), 0);
    wal.close().unwrap();
}

#[test]
fn an_entry_that_cannot_be_read_stays_where_it_is() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, stopped_entries()).unwrap();
    wal.applied(A, LogIndex::new(40));
    append(&wal, B, (1..30).map(|index| entry(index, 9000)).collect()).unwrap();
    storage.edit(&segment_paths(&storage)[&1], |bytes| bytes[60_000] ^= 1);
    let failed = wal.carry_forward(A, 1 << 20, Box::new(|_| panic!("nothing was copied"))).unwrap_err();
    assert!(matches!(failed, WalCarryError::Read(WalReadError::Damaged { .. })), "{failed}");
    assert!(wal.pinning_shards().contains(&A));
}

#[test]
fn an_entry_larger_than_segments_are_now_stays_where_it_is() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    let large = [entry(1, 60), entry(2, 50_000), entry(3, 60)];
    append(&wal, A, large.to_vec()).unwrap();
    append(&wal, B, (1..10).map(|index| entry(index, 14_000)).collect()).unwrap();
    wal.close().unwrap();
    let smaller = WalConfig { segment_bytes: SEGMENT / 2, ..config() };
    let (wal, _) = open_with(&storage, &smaller);
    assert!(wal.entry_bytes_max() < 50_000);
    append(&wal, B, (10..20).map(|index| entry(index, 14_000)).collect()).unwrap();
    let failed = wal.carry_forward(A, 1 << 20, Box::new(|_| panic!("nothing was copied"))).unwrap_err();
    let WalCarryError::TooLarge { index, bytes, limit, .. } = failed else { panic!("{failed}") };
    assert_eq!((index, bytes, limit), (LogIndex::new(2), 50_000, wal.entry_bytes_max()));
    // Nobody is stopped by it.
    append(&wal, B, vec![entry(20, 14_000)]).unwrap();
    assert!(wal.poisoned().is_none() && wal.pinning_shards().contains(&A));
    assert_eq!(read_all(&wal, A), large);
    wal.assert_counts();
    wal.close().unwrap();
}

/// Of A, which was purged to 2, the entries 9 to 12 lie before the copies of 3 to 8; where those were is released.
fn carried_behind_others() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    let append_to_b = |bytes| {
        let next = wal.range(B).last.map_or(1, |last| last.index.get() + 1);
        append(&wal, B, vec![entry(next, bytes)]).unwrap();
    };
    append(&wal, A, (1..9).map(|index| entry(index, 20_000)).collect()).unwrap();
    purge(&wal, A, 2).unwrap();
    while wal.bytes() < 3 * SEGMENT {
        append_to_b(20_000);
    }
    append(&wal, A, (9..13).map(|index| entry(index, 100)).collect()).unwrap();
    while wal.bytes() < 4 * SEGMENT {
        append_to_b(20_000);
    }
    purge(&wal, B, wal.range(B).last.unwrap().index.get()).unwrap();
    assert_eq!(carry(&wal, 30_000).unwrap() + carry(&wal, 30_000).unwrap(), 6);
    // What comes later proves that the copies were flushed, and the next segment's header what is released.
    while wal.bytes() < 4 * SEGMENT {
        append_to_b(20_000);
    }
    assert_eq!((wal.pinning_shards(), wal.bytes()), (vec![A], 4 * SEGMENT), "segments 3 to 6");
    storage.kill()
}

#[test]
fn lost_copies_leave_what_is_before_them_and_nothing_behind() {
    let intact = carried_behind_others();
    assert_eq!(open(&intact.kill()).1.shards[&A].first, Some(LogIndex::new(3)));
    for lost in [3, 5, 8] {
        let storage = intact.kill();
        let is_lost =
            |frame: &InspectedFrame| frame.kind == FrameKind::Carried && frame.id.index.get() == lost;
        let frame = frames(&storage).into_iter().find(is_lost).unwrap();
        let block = usize::try_from(frame.block).unwrap() * BLOCK_BYTES;
        storage.edit(&segment_paths(&storage)[&frame.segment], |bytes| bytes[block + 100] ^= 1);
        let mut expected: Vec<_> = (3..lost).map(|index| entry(index, 20_000)).collect();
        for _ in 0..2 {
            // Whoever refuses to go on finds the same again.
            let (wal, recovery) = open(&storage);
            let found = &recovery.shards[&A];
            assert_eq!(found.purged, Some(id(2)));
            assert_eq!(found.doubtful.as_ref().unwrap().sure_to, Some(id(lost - 1)), "{lost}");
            if lost > 3 {
                assert_eq!((found.last, read_all(&wal, A)), (Some(id(lost - 1)), expected.clone()), "{lost}");
            }
            wal.assert_counts();
            wal.close().unwrap();
        }
        let (wal, recovery) = open(&storage);
        if recovery.shards[&A].first == Some(LogIndex::new(9)) {
            // No copy is left: a purge could be lost as well, and only the caller knows whether one was to come.
            assert_eq!(lost, 3);
            wait(|done| wal.truncate_after(A, None, done)).unwrap();
        }
        wait(|done| wal.accept_doubt(A, done)).unwrap();
        wait(|done| wal.accept_doubt(B, done)).unwrap();
        for next in lost..lost + 3 {
            expected.push(entry_of(id_of_term(next, 2), 300));
        }
        append(&wal, A, expected[expected.len() - 3..].to_vec()).unwrap();
        wal.close().unwrap();
        drop(wal);
        for next in lost + 3..lost + 5 {
            let (wal, recovery) = open(&storage);
            assert!(recovery.damage.is_none(), "{lost}: {:?}", recovery.report);
            let doubts: Vec<_> =
                recovery.shards.values().filter_map(|shard| shard.doubtful.as_ref()).collect();
            assert!(doubts.is_empty(), "{lost}: {doubts:?}");
            assert_eq!(read_all(&wal, A), expected, "{lost}");
            wal.assert_counts();
            expected.push(entry_of(id_of_term(next, 3), 300));
            append(&wal, A, expected[expected.len() - 1..].to_vec()).unwrap();
            wal.close().unwrap();
        }
    }
}

/// Each call in turn: between any two writes of the copying something may end.
fn fail_each_call(call: Option<Call>, effect: Effect) {
    let mut nth = 1;
    let mut struck = 0;
    loop {
        let memory = MemoryStorage::new();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.on_nth(call, nth, effect);
        let acknowledged = work(Arc::new(faulty.clone()), 32);
        let what = format!("call {nth} of {call:?}: {effect:?}");
        check(&acknowledged, &memory.crash(nth), &what);
        check(&acknowledged, &memory.kill(), &what);
        if !faulty.has_struck() {
            assert!(!acknowledged.failed, "{what}");
            break;
        }
        nth += 1;
        struck += 1;
    }
    assert!(struck > 40, "{struck} calls of {call:?}");
}

#[test]
fn every_write_fails_in_turn() {
    fail_each_call(Some(Call::Write), Effect::Fail);
}

#[test]
fn every_write_falls_short_in_turn() {
    fail_each_call(Some(Call::Write), Effect::ShortWrite(4096));
}

#[test]
fn every_sync_fails_in_turn() {
    fail_each_call(Some(Call::Sync), Effect::Fail);
}

#[test]
fn the_plug_is_pulled_at_every_write_in_turn() {
    fail_each_call(Some(Call::Write), Effect::Halt);
}

#[test]
fn works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(DiskStorage::new(dir.path()).unwrap());
    assert!(!work(storage.clone(), 60).failed);
    let (wal, recovery) = Wal::open(storage, &config()).unwrap();
    assert!(recovery.damage.is_none() && wal.bytes() <= 6 * SEGMENT);
    assert_eq!(read_all(&wal, A), stopped_entries());
    wal.close().unwrap();
}
