//! Each call to the file system fails in turn: nothing acknowledged is lost, and nothing is acknowledged afterwards.

use super::*;
use crate::fs::{Call, Effect, FaultyStorage};

/// What was acknowledged before the log failed.
#[derive(Default, Debug)]
struct Acknowledged {
    a: u64,
    b: u64,
    vote: Option<&'static str>,
    purged: u64,
    failed: bool,
}

/// Appends, votes, purges and rolls segments until the end or the first failure.
fn work(storage: Arc<dyn Storage>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let Ok((wal, _)) = Wal::open(storage, &config()) else {
        acknowledged.failed = true;
        return acknowledged;
    };
    let votes = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    for (round, text) in (0_u64..).zip(votes) {
        let results = [
            append(&wal, A, vec![entry(round * 2 + 1, 10_000), entry(round * 2 + 2, 10_000)]).map(|()| {
                acknowledged.a = round * 2 + 2;
            }),
            append(&wal, B, vec![entry(round + 1, 100)]).map(|()| acknowledged.b = round + 1),
            vote(&wal, B, text).map(|()| acknowledged.vote = Some(text)),
            purge(&wal, A, round + 1).map(|()| acknowledged.purged = round + 1),
        ];
        let first_failure = results.iter().position(Result::is_err);
        if let Some(first) = first_failure {
            assert!(results[first..].iter().all(Result::is_err), "nothing is acknowledged after a failure");
            assert!(wal.poisoned().is_some());
            acknowledged.failed = true;
            return acknowledged;
        }
    }
    acknowledged.failed = wal.close().is_err();
    acknowledged
}

fn check(acknowledged: &Acknowledged, storage: &MemoryStorage, what: &str) {
    let (wal, recovery) = open(storage);
    assert!(recovery.damage.is_none(), "{what}: {:?}", recovery.report);
    let last = |shard| wal.range(shard).last.map_or(0, |last| last.index.get());
    assert!(last(A) >= acknowledged.a && last(B) >= acknowledged.b, "{what}: {acknowledged:?}");
    assert!(wal.range(A).purged.map_or(0, |purged| purged.index.get()) >= acknowledged.purged, "{what}");
    if let Some(text) = acknowledged.vote {
        let found = wal.vote(B).unwrap_or_default();
        let later = found.len() >= 3 && found != text.as_bytes();
        assert!(found == text.as_bytes() || (later && acknowledged.failed), "{what}: {found:?} for {text}");
    }
    for shard in [A, B] {
        for read in read_all(&wal, shard) {
            assert_eq!(read, entry(read.id.index.get(), read.payload.len()), "{what}");
        }
    }
    append(&wal, A, vec![entry(last(A) + 1, 10)]).unwrap();
}

fn fail_each_call(call: Option<Call>, effect: Effect) {
    for nth in 1.. {
        let memory = MemoryStorage::new();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.on_nth(call, nth, effect);
        let acknowledged = work(Arc::new(faulty.clone()));
        let what = format!("call {nth} of {call:?}: {effect:?}");
        check(&acknowledged, &memory.crash(nth), &what);
        check(&acknowledged, &memory.kill(), &what);
        if !faulty.has_struck() {
            assert!(!acknowledged.failed && nth > 3, "{what}");
            break;
        }
    }
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

/// What a recovery found counts: a vote or an entry is acknowledged by it.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_lost_to_no_power_cut_after_a_restart() {
    let mut taken = 0;
    for nth in 1.. {
        let memory = MemoryStorage::new().without_direct();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.on_nth(Some(Call::Sync), nth, Effect::Fail);
        let acknowledged = work(Arc::new(faulty.clone()));
        memory.forget_unsynced(nth);
        let what = format!("sync {nth}");
        let next = memory.kill().without_direct();
        let (wal, recovery) = open(&next);
        assert!(!recovery.direct && recovery.damage.is_none(), "{what}: {:?}", recovery.report);
        let found = [A, B].map(|shard| (wal.range(shard), wal.vote(shard)));
        let last = |shard| wal.range(shard).last.map_or(0, |last| last.index.get());
        taken += u32::from(last(A) > acknowledged.a);
        // It does not end in good order.
        let after = next.crash(nth);
        drop(wal);
        let (wal, recovery) = open(&after);
        assert!(recovery.damage.is_none(), "{what}: {:?}", recovery.report);
        assert_eq!([A, B].map(|shard| (wal.range(shard), wal.vote(shard))), found, "{what}");
        for shard in [A, B] {
            read_all(&wal, shard);
        }
        if !faulty.has_struck() {
            assert!(nth > 3, "{what}");
            break;
        }
    }
    assert!(taken > 0, "what was not acknowledged is found where the kernel shows it");
}

#[test]
fn what_was_evicted_since_it_was_read_is_not_taken_for_written() {
    let memory = MemoryStorage::new().without_direct();
    let (wal, _) = open(&memory);
    append(&wal, A, vec![entry(1, 10_000)]).unwrap();
    drop(wal);
    let reads = {
        let faulty = FaultyStorage::new(Arc::new(memory.kill().without_direct()));
        Wal::open(Arc::new(faulty.clone()), &config()).unwrap();
        faulty.count(Call::Read)
    };
    let faulty = FaultyStorage::new(Arc::new(memory.kill().without_direct()));
    // The last read is of what is written again.
    faulty.on_nth(Some(Call::Read), reads, Effect::FlipBit(77));
    let Err(error) = Wal::open(Arc::new(faulty), &config()) else { panic!("it is taken") };
    assert!(error.to_string().contains("not there any more"), "{error}");
}

#[test]
fn the_disk_is_full_at_every_call_in_turn() {
    fail_each_call(None, Effect::DiskFull);
}

#[test]
fn the_plug_is_pulled_at_every_call_in_turn() {
    fail_each_call(None, Effect::Halt);
}

#[test]
fn recovery_that_cannot_read_refuses_rather_than_cuts() {
    let memory = MemoryStorage::new();
    assert!(!work(Arc::new(memory.clone())).failed);
    for nth in 1.. {
        let memory = memory.kill();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.on_nth(Some(Call::Read), nth, Effect::Fail);
        let opened = Wal::open(Arc::new(faulty.clone()), &config());
        if !faulty.has_struck() {
            assert!(nth > 3);
            break;
        }
        assert!(matches!(opened, Err(WalOpenError::Io { .. })), "read {nth}");
        assert_eq!(open(&memory).1.shards[&A].last, Some(id(20)));
    }
}

#[test]
fn a_bit_flipped_on_the_way_is_never_taken_for_data() {
    let memory = MemoryStorage::new();
    assert!(!work(Arc::new(memory.clone())).failed);
    for nth in 1..12 {
        for bit in [77, 35_000, 70_123] {
            let faulty = FaultyStorage::new(Arc::new(memory.kill()));
            faulty.on_nth(Some(Call::Read), nth, Effect::FlipBit(bit));
            let Ok((wal, _)) = Wal::open(Arc::new(faulty), &config()) else {
                continue;
            };
            // The flip may come as late as this.
            for index in wal.range(A).first.map_or(0, LogIndex::get)..=20 {
                match wal.read(A, LogIndex::new(index), LogIndex::new(index + 1), 1) {
                    Ok(read) => assert_eq!(read, [entry(index, 10_000)]),
                    Err(WalReadError::Damaged { .. } | WalReadError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

#[test]
fn every_waiting_completion_hears_of_the_failure() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let (wal, _) = Wal::open(Arc::new(faulty.clone()), &config()).unwrap();
    append(&wal, A, vec![entry(1, 10)]).unwrap();
    let (hold, held) = mpsc::channel::<()>();
    let (done, results) = mpsc::channel();
    wal.append(A, vec![entry(2, 10)], Box::new(move |_| assert!(held.recv().is_err())));
    for index in 3..60 {
        let done = done.clone();
        wal.append(A, vec![entry(index, 2000)], Box::new(move |result| drop(done.send(result))));
    }
    faulty.on_nth(Some(Call::Write), 2, Effect::Halt);
    drop((hold, done));
    let results: Vec<_> = results.iter().collect();
    assert_eq!(results.len(), 57);
    let first = results.iter().position(Result::is_err).unwrap();
    assert!(results[first..].iter().all(|result| matches!(result, Err(WalError::Poisoned { .. }))));
    assert!(matches!(vote(&wal, A, "late"), Err(WalError::Poisoned { .. })));
    assert!(wait(|done| wal.flush(done)).is_err() && wal.close().is_err());
}

#[test]
fn a_completion_that_panics_harms_nobody_else() {
    let (wal, _) = open(&MemoryStorage::new());
    wal.append(A, vec![entry(1, 10)], Box::new(|_| panic!("on purpose")));
    append(&wal, B, vec![entry(1, 10)]).unwrap();
    wal.close().unwrap();
}
