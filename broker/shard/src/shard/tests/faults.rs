//! Each call that a checkpoint makes fails in turn: the shard stops cleanly, and what was there before is there after.

use std::path::Path;
use std::sync::Arc;

use tidemill_controller::TopicConfig;
use tidemill_log::fs::{Call, DiskReserve, Effect, FaultyStorage, MemoryStorage, ReservedStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_protocol::ShardId;

use super::world::*;
use crate::testing::batch;
use crate::*;

fn loaded() -> World {
    let mut world = World::new();
    world.one(adopt_topic(1, 1, 2, TopicConfig { segment_bytes: 1000, ..TopicConfig::default() }));
    fill(&mut world, 4);
    world.checkpoint();
    fill(&mut world, 4);
    world.one(Unit::AdvanceLogStart { partition: partition(1, 0), offset: offset(4) });
    world
}

fn fill(world: &mut World, batches: i32) {
    for number in 0..2 {
        for _ in 0..batches {
            world.one(append(partition(1, number), batch(2).payload(vec![3; 400]).build()));
        }
    }
}

fn a_checkpoint_whose_nth_call(effect: Effect) {
    for nth in 1.. {
        let world = loaded();
        let (before, hash) = (world.shard.checkpointed(), world.hash());
        world.faulty.on_nth(None, nth, effect);
        let outcome = world.shard.checkpoint(&|_| Ok(()));
        if !world.faulty.has_struck() {
            assert!(nth > 10, "a checkpoint makes more calls than {nth}");
            return;
        }
        if outcome.is_err() {
            assert!(world.shard.poisoned().is_some());
            let id = world.log.last().unwrap().0;
            assert!(world.shard.apply_blank(id).is_err(), "nothing is applied any more");
            assert!(world.shard.checkpoint(&|_| Ok(())).is_err());
        }
        for seed in 0..3 {
            let mut after = World { memory: world.memory.crash(seed), ..loaded_shell(&world) };
            after.kill();
            let start = after.shard.checkpointed();
            if outcome.is_ok() {
                assert_eq!(start, after.shard.checkpointed());
            } else {
                assert!(start >= before, "call {nth}: the last checkpoint is there");
            }
            assert_eq!(after.hash(), hash, "call {nth}, seed {seed}");
            assert_eq!(after.read_all(partition(1, 1)).len(), 8 * 461, "call {nth}");
        }
    }
}

/// A world with the same log, to be started on other storage.
fn loaded_shell(world: &World) -> World {
    World { log: world.log.clone(), ..World::new() }
}

#[test]
fn fails() {
    a_checkpoint_whose_nth_call(Effect::Fail);
}

#[test]
fn finds_the_disk_full() {
    a_checkpoint_whose_nth_call(Effect::DiskFull);
}

#[test]
fn stops_in_the_middle() {
    a_checkpoint_whose_nth_call(Effect::ShortWrite(100));
}

#[test]
fn is_the_last_before_the_plug_is_pulled() {
    a_checkpoint_whose_nth_call(Effect::Halt);
}

/// A file system says once that it could not write, and not whose bytes those were.
#[test]
fn after_a_failed_sync_of_everything_no_shard_records_what_it_has_written() {
    let mut world = World::new();
    world.one(adopt_topic(1, 1, 20, TopicConfig::default()));
    for number in 0..20 {
        world.one(append(partition(1, number), batch(2).build()));
    }
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let files = SegmentFiles::new(Arc::new(faulty.clone()), SegmentFilesConfig::default());
    let [first, second] = [1, 2].map(|id| Shard::open(ShardConfig::new(ShardId::new(id)), &files).unwrap());
    for shard in [&first, &second] {
        world.replay_on(shard);
    }
    let before = second.checkpointed();
    faulty.on_nth(Some(Call::SyncAll), 1, Effect::Fail);
    first.checkpoint(&|_| Ok(())).unwrap_err();
    assert!(faulty.has_struck());
    second.checkpoint(&|_| Ok(())).unwrap_err();
    assert_eq!(second.checkpointed(), before);
}

#[test]
fn a_full_disk_stops_the_shard_and_keeps_what_was_there() {
    let mut world = World::on(MemoryStorage::with_capacity(400_000), ShardConfig::new(SHARD));
    world.one(adopt_topic(1, 1, 2, TopicConfig::default()));
    let full = loop {
        fill(&mut world, 20);
        if let Err(error) = world.shard.checkpoint(&|_| Ok(())) {
            break error;
        }
        assert!(world.log.len() < 10_000);
    };
    assert!(full.to_string().contains("free the disk"), "{full}");
    let covered = world.shard.checkpointed();
    assert!(covered.is_some());
    let storage = FaultyStorage::new(Arc::new(world.memory.kill()));
    let again = open(&storage, &ShardConfig::new(SHARD)).unwrap();
    assert!(again.checkpointed() >= covered);
}

/// The disk is full at each call of a checkpoint that takes room, in turn, and the reserve stands behind it.
#[test]
fn a_full_disk_with_a_reserve_stops_nothing() {
    let mut struck = 0;
    for call in [Call::Open, Call::CreateDir, Call::Rename, Call::Write, Call::Resize] {
        for nth in 1.. {
            let before = loaded();
            let memory = before.memory.kill();
            let reserve = Arc::new(DiskReserve::new(Arc::new(memory.clone()), "reserve", 10_000));
            reserve.ensure().unwrap();
            let faulty = FaultyStorage::new(Arc::new(memory.clone()));
            let storage = ReservedStorage::new(Arc::new(faulty.clone()), Arc::clone(&reserve));
            let files = SegmentFiles::new(Arc::new(storage), SegmentFilesConfig::default());
            let shard = Shard::open(ShardConfig::new(SHARD), &files).unwrap();
            before.replay_on(&shard);
            faulty.on_nth(Some(call), nth, Effect::DiskFull);
            assert!(shard.has_files_to_let_go());
            shard.checkpoint(&|_| Ok(())).unwrap();
            assert_eq!(shard.state_hash().unwrap(), before.hash(), "{call:?} {nth}");
            assert!(!shard.has_files_to_let_go());
            if !faulty.has_struck() {
                break;
            }
            assert!(!reserve.is_held().unwrap(), "{call:?} {nth}");
            struck += 1;
        }
    }
    assert!(struck > 5, "a checkpoint takes room more often than {struck} times");
}

#[test]
fn files_that_a_reader_held_go_when_it_lets_go() {
    let mut world = World::new();
    world.one(adopt_topic(1, 1, 1, TopicConfig { segment_bytes: 1000, ..TopicConfig::default() }));
    for _ in 0..8 {
        world.one(append(partition(1, 0), batch(2).payload(vec![3; 400]).build()));
    }
    world.checkpoint();
    assert!(!world.shard.has_files_to_let_go());
    let logs = |world: &World| {
        let names = world.list(&world.config.dir.join(partition(1, 0).to_string()));
        names.iter().filter(|name| name.ends_with(".log")).count()
    };
    let before = logs(&world);
    let pin = world.shard.snapshot().unwrap();
    world.one(Unit::AdvanceLogStart { partition: partition(1, 0), offset: offset(8) });
    assert!(world.shard.has_files_to_let_go());
    world.checkpoint();
    assert!(world.shard.has_files_to_let_go(), "the reader holds them");
    assert_eq!(logs(&world), before);
    drop(pin);
    world.checkpoint();
    assert!(!world.shard.has_files_to_let_go());
    assert!(logs(&world) < before);
}

#[test]
fn whoever_reads_a_snapshot_keeps_the_state_file_open() {
    let world = loaded();
    let pin = world.shard.snapshot().unwrap();
    let still_open = world.shard.still_open();
    drop(world);
    assert!(still_open.is_open(), "redb closes the file when nobody reads it any more");
    drop(pin);
    assert!(!still_open.is_open());
}

#[test]
fn a_failing_write_behind_stops_the_shard() {
    let mut config = ShardConfig::new(SHARD);
    config.write_behind_bytes = 1;
    let mut world = World::with(config);
    world.one(adopt_topic(1, 1, 2, TopicConfig::default()));
    world.faulty.on_nth(Some(Call::Write), 1, Effect::Fail);
    let changes = world.shard.changes();
    world.one(append(partition(1, 1), batch(2).build()));
    // Who follows the shard hears of it.
    while !changes.has_changed().unwrap() {
        std::thread::yield_now();
    }
    assert!(world.shard.poisoned().unwrap().contains("restart the broker"));
    world.kill();
    assert_eq!(world.shard.partition(partition(1, 1)).unwrap().high_watermark, offset(2));
}

#[test]
fn damage_to_the_state_file_is_told_not_followed() {
    let world = loaded();
    let storage = world.memory.kill();
    storage.edit(Path::new("shard-01/state"), |bytes| {
        let middle = bytes.len() / 2;
        bytes[..middle].fill(0xa5);
    });
    let faulty = FaultyStorage::new(Arc::new(storage));
    let error = open(&faulty, &ShardConfig::new(SHARD)).unwrap_err();
    assert!(error.to_string().contains("shard-01/state"), "{error}");
    assert!(error.is_damage() && error.to_string().contains("restore the data directory"), "{error}");
}

#[test]
fn a_zeroed_state_file_is_damage_and_no_new_one() {
    let storage = loaded().memory.kill();
    storage.edit(Path::new("shard-01/state"), |bytes| bytes.fill(0));
    let faulty = FaultyStorage::new(Arc::new(storage));
    let error = open(&faulty, &ShardConfig::new(SHARD)).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("shard-01/state"), "{error}");
}

#[test]
fn a_state_file_or_a_segment_that_is_cut_short_is_damage() {
    for length in [0, 100] {
        let storage = loaded().memory.kill();
        storage.edit(Path::new("shard-01/state"), |bytes| bytes.truncate(length));
        let error = open(&FaultyStorage::new(Arc::new(storage)), &ShardConfig::new(SHARD)).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("shard-01/state"), "{length}: {error}");
    }
    let world = loaded();
    let dir = world.config.dir.join(partition(1, 0).to_string());
    let logs: Vec<_> = world.list(&dir).into_iter().filter(|name| name.ends_with(".log")).collect();
    assert!(logs.len() > 1, "{logs:?}");
    for missing in [false, true] {
        let storage = world.memory.kill();
        match missing {
            true => storage.remove(&dir.join(&logs[0])).unwrap(),
            false => storage.edit(&dir.join(&logs[0]), |bytes| bytes.truncate(300)),
        }
        let error = open(&FaultyStorage::new(Arc::new(storage)), &ShardConfig::new(SHARD)).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(&logs[0]), "{error}");
    }
}

/// What can't be read just now may be whole: nobody is to throw it away.
#[test]
fn a_call_that_fails_while_a_shard_is_opened_is_no_damage() {
    let memory = loaded().memory;
    for nth in 1.. {
        let faulty = FaultyStorage::new(Arc::new(memory.kill()));
        faulty.on_nth(None, nth, Effect::Fail);
        let opened = open(&faulty, &ShardConfig::new(SHARD));
        if !faulty.has_struck() {
            assert!(opened.is_ok() && nth > 10, "it takes more calls than {nth}");
            return;
        }
        if let Err(error) = opened {
            assert!(!error.is_damage(), "call {nth}: {error}");
        }
    }
}

#[test]
fn another_shards_directory_is_refused_and_no_damage() {
    let other = ShardConfig { dir: ShardConfig::new(SHARD).dir, ..ShardConfig::new(ShardId::new(2)) };
    let storage = FaultyStorage::new(Arc::new(loaded().memory.kill()));
    let error = open(&storage, &other).unwrap_err();
    assert!(!error.is_damage() && error.to_string().contains("belongs to shard 1"), "{error}");
}

#[test]
fn a_shard_that_was_being_made_when_the_power_went_is_made_then() {
    for nth in 1.. {
        let memory = MemoryStorage::new();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.on_nth(None, nth, Effect::Halt);
        let made = open(&faulty, &ShardConfig::new(SHARD));
        let struck = faulty.has_struck();
        for seed in 0..20 {
            let mut world = World::on(memory.crash(seed), ShardConfig::new(SHARD));
            assert_eq!(world.shard.checkpointed(), None, "call {nth}, seed {seed}");
            world.one(adopt_topic(1, 1, 2, TopicConfig::default()));
            fill(&mut world, 1);
            world.checkpoint();
            world.crash(seed);
            assert_eq!(world.read_all(partition(1, 1)).len(), 461, "call {nth}, seed {seed}");
        }
        if !struck {
            assert!(made.is_ok() && nth > 10, "it takes more calls than {nth}");
            return;
        }
    }
}
