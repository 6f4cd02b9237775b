//! Topics, partitions and their files from beginning to end.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidemill_controller::TopicConfig;
use tidemill_coordinator::{GroupCommand, GroupReply, PositionCommit};
use tidemill_protocol::{LogIndex, Term};

use super::world::*;
use crate::testing::batch;
use crate::*;

const SMALL: TopicConfig = TopicConfig {
    retention_ms: 60_000,
    retention_bytes: -1,
    segment_bytes: 1000,
    segment_ms: 3_600_000,
    batch_bytes_max: 10_000,
    log_append_time: false,
};

fn world() -> World {
    let mut world = World::new();
    assert_eq!(world.one(adopt_topic(1, 1, 3, SMALL)), UnitResult::Adopted);
    world
}

fn fill(world: &mut World, number: u32, batches: usize) {
    for _ in 0..batches {
        world.one(append(partition(1, number), batch(10).payload(vec![1; 400]).build()));
    }
}

#[test]
fn nothing_happens_in_a_topic_that_is_not_adopted_or_gone() {
    let mut world = World::new();
    let unit = || append(partition(1, 0), batch(1).build());
    assert_eq!(world.one(unit()), UnitResult::Refused(UnitError::NotAdopted(topic(1))));
    world.one(adopt_topic(1, 5, 1, SMALL));
    assert!(matches!(world.one(unit()), UnitResult::Appended { .. }));
    assert_eq!(
        world.one(append(partition(1, 9), batch(1).build())),
        UnitResult::Refused(UnitError::UnknownPartition(partition(1, 9)))
    );
    assert_eq!(world.one(adopt_topic(1, 5, 1, SMALL)), UnitResult::Stale { version: 5 });
    assert_eq!(world.one(delete_topic(1, 6)), UnitResult::Adopted);
    assert_eq!(world.one(unit()), UnitResult::Refused(UnitError::TopicDeleted(topic(1))));
    assert_eq!(world.one(adopt_topic(1, 7, 1, SMALL)), UnitResult::Stale { version: 6 }, "deletion is final");
    assert!(matches!(world.shard.fetch(partition(1, 0), offset(0), 1), Fetch::Unknown));
}

#[test]
fn a_bad_unit_fails_alone() {
    let mut world = world();
    let good = || append(partition(1, 0), batch(2).build());
    let results =
        world.apply(vec![good(), append(partition(1, 0), bytes::Bytes::from_static(b"junk")), good()]);
    assert!(matches!(results[0], UnitResult::Appended { .. }));
    assert_eq!(results[1], UnitResult::Refused(UnitError::InvalidBatch(BatchFault::Length(4))));
    let UnitResult::Appended { base_offset, .. } = results[2] else { panic!("{results:?}") };
    assert_eq!(base_offset, offset(2));
    let large = append(partition(1, 0), batch(1).payload(vec![0; 20_000]).build());
    assert!(matches!(
        world.one(large),
        UnitResult::Refused(UnitError::InvalidBatch(BatchFault::TooLarge { limit: 10_000, .. }))
    ));
    let epoch = tidemill_protocol::LeaderEpoch::new;
    let stale =
        Unit::Append { partition: partition(1, 0), batch: batch(1).build(), leader_epoch: Some(epoch(2)) };
    let wrong = UnitError::WrongLeaderEpoch { named: epoch(2), current: epoch(3) };
    assert_eq!(world.one(stale), UnitResult::Refused(wrong));
}

#[test]
fn a_refused_batch_takes_its_sequence_and_keeps_its_answer() {
    let mut world = world();
    let id = partition(1, 0);
    let refuse = |sequence: i32| Unit::Refuse {
        partition: id,
        producer: tidemill_protocol::ProducerId::new(7),
        epoch: tidemill_protocol::ProducerEpoch::new(0),
        base_sequence: tidemill_protocol::Sequence::new(sequence),
        record_count: 5,
    };
    let send = |sequence| append(id, batch(5).producer(7, 0, sequence).build());
    assert_eq!(world.one(refuse(0)), UnitResult::BatchRefused { duplicate: false });
    assert!(matches!(world.one(send(5)), UnitResult::Appended { duplicate: false, .. }));
    assert_eq!(world.one(send(0)), UnitResult::BatchRefused { duplicate: true });
    assert!(
        matches!(world.one(refuse(5)), UnitResult::Appended { duplicate: true, .. }),
        "it was accepted before"
    );
}

#[test]
fn what_a_routed_batch_passed_is_remembered_with_its_answer() {
    let mut world = world();
    let producer = (tidemill_protocol::ProducerId::new(7), tidemill_protocol::ProducerEpoch::new(0));
    let pass = FilterPass { filter: deployment(3), now: at(5) };
    let routed = |topic_sequence, filtered| {
        Unit::RoutedAppend(RoutedAppend {
            topic: topic(1),
            producer: producer.0,
            epoch: producer.1,
            topic_sequence,
            filtered,
            batches: Vec::new(),
        })
    };
    let attempt = |world: &World, sequence| world.shard.routed_attempt(topic(1), producer, sequence);
    assert_eq!(attempt(&world, 0), None);
    world.one(routed(0, Some(pass)));
    world.one(routed(1, None));
    world.checkpoint();
    world.one(routed(2, Some(FilterPass { now: at(6), ..pass })));
    world.kill();
    // A second attempt changes nothing of what is remembered of the first, and must have passed the same.
    assert!(matches!(world.one(routed(0, Some(pass))), UnitResult::RoutedAppended { duplicate: true, .. }));
    for other in [None, Some(FilterPass { now: at(9), ..pass })] {
        assert_eq!(world.one(routed(0, other)), UnitResult::Refused(UnitError::OtherFilterPass));
    }
    assert_eq!(attempt(&world, 0), Some(RoutedAttempt { filtered: Some(pass) }));
    assert_eq!(attempt(&world, 1), Some(RoutedAttempt { filtered: None }));
    assert_eq!(attempt(&world, 2).and_then(|known| known.filtered).map(|pass| pass.now), Some(at(6)));
    assert_eq!(attempt(&world, 3), None);
    let newer = (producer.0, tidemill_protocol::ProducerEpoch::new(1));
    assert_eq!(world.shard.routed_attempt(topic(1), newer, 0), None, "another life of the producer");
}

fn routed(producer: i64, batches: Vec<(tidemill_protocol::PartitionId, bytes::Bytes)>) -> Unit {
    Unit::RoutedAppend(RoutedAppend {
        topic: topic(1),
        producer: tidemill_protocol::ProducerId::new(producer),
        epoch: tidemill_protocol::ProducerEpoch::new(0),
        topic_sequence: 0,
        filtered: None,
        batches,
    })
}

#[test]
fn strangers_without_number_make_no_routed_producer_forgotten_who_may_still_try_again() {
    let mut world = world();
    let part = || vec![(tidemill_protocol::PartitionId::new(0), batch(3).build())];
    let UnitResult::RoutedAppended { placements, duplicate: false } = world.one(routed(0, part())) else {
        panic!("the first is new")
    };
    let too_many =
        |result: &UnitResult| matches!(result, UnitResult::Refused(UnitError::TooManyProducers { .. }));
    let mut refused = 0;
    for block in 0..25 {
        let strangers = (1..=10_000).map(|n| routed(block * 10_000 + n, Vec::new())).collect();
        refused += world.apply(strangers).iter().filter(|result| too_many(result)).count();
    }
    assert!((1..100_000).contains(&refused), "{refused} were refused");
    // The acknowledgement was lost: the retry must get the first answer, not be written again; after a restart too.
    let again = UnitResult::RoutedAppended { placements, duplicate: true };
    assert_eq!(world.one(routed(0, part())), again);
    world.checkpoint();
    world.kill();
    assert_eq!(world.one(routed(0, part())), again);
    assert!(too_many(&world.one(routed(900_000, Vec::new()))));
    world.now += tidemill_partition::PRODUCER_IDLE_MIN_MS + 1;
    let taken = world.one(routed(900_000, Vec::new()));
    assert!(matches!(taken, UnitResult::RoutedAppended { duplicate: false, .. }), "{taken:?}");
}

#[test]
fn a_limit_that_was_lowered_meanwhile_refuses_no_part_of_a_routed_batch() {
    let mut world = world();
    let large = batch(1).payload(vec![1; 20_000]).build();
    let alone = world.one(append(partition(1, 0), large.clone()));
    assert!(matches!(alone, UnitResult::Refused(UnitError::InvalidBatch(_))), "{alone:?}");
    let part = world.one(routed(7, vec![(tidemill_protocol::PartitionId::new(0), large)]));
    assert!(matches!(part, UnitResult::RoutedAppended { .. }), "{part:?}");
}

#[test]
fn the_logs_time_never_goes_back_and_forward_by_bounded_steps() {
    let mut world = world();
    let before = world.shard.log_time();
    world.now -= 500;
    world.one(Unit::Tick);
    assert_eq!(world.shard.log_time(), before);
    world.now = i64::MAX;
    world.one(Unit::Tick);
    assert_eq!(world.shard.log_time(), before.plus_ms(LOG_TIME_STEP_MAX_MS));
}

#[test]
fn a_topic_with_log_append_time_is_stamped() {
    let mut world = World::new();
    world.one(adopt_topic(1, 1, 1, TopicConfig { log_append_time: true, ..SMALL }));
    let sent = batch(3).producer(1, 0, 0).timestamp(5).build();
    let first = world.one(append(partition(1, 0), sent.clone()));
    let stamp = Some(at(world.now));
    assert!(matches!(first, UnitResult::Appended { log_append_time, .. } if log_append_time == stamp));
    world.now += 100;
    let again = world.one(append(partition(1, 0), sent));
    assert!(
        matches!(again, UnitResult::Appended { log_append_time, duplicate: true, .. } if log_append_time == stamp),
        "a retry hears of the first time: {again:?}"
    );
    let stored = bytes::Bytes::from(world.read_all(partition(1, 0)));
    let limits = tidemill_protocol::record_batch::BatchLimits::default();
    let batch = tidemill_protocol::record_batch::RecordBatch::decode(stored, &limits).unwrap();
    assert_eq!(Some(batch.header().max_timestamp), stamp);
}

#[test]
fn retention_frees_files_with_the_next_checkpoint() {
    let mut world = world();
    let id = partition(1, 0);
    fill(&mut world, 0, 10);
    world.checkpoint();
    let dir = Path::new("shard-01").join(id.to_string());
    assert_eq!(world.list(&dir).iter().filter(|name| name.ends_with(".log")).count(), 5);
    assert_eq!(world.shard.retention_due(), [], "nothing is old enough");
    world.now += 30_000;
    fill(&mut world, 0, 1);
    world.now += 50_000;
    world.one(Unit::Tick);
    let due = world.shard.retention_due();
    assert_eq!(due, [Unit::AdvanceLogStart { partition: id, offset: offset(100) }]);
    assert_eq!(world.apply(due), [UnitResult::LogStart { offset: offset(100) }]);
    assert!(matches!(world.shard.fetch(id, offset(99), 1), Fetch::OutOfRange { .. }), "at once");
    assert_eq!(
        world.list(&dir).iter().filter(|name| name.ends_with(".log")).count(),
        5,
        "a crash may need them"
    );
    world.checkpoint();
    assert_eq!(world.list(&dir), ["00000000000000000100.log"]);
    assert_eq!(world.shard.partition(id).unwrap().segments, 1);
    world.kill();
    assert_eq!(world.read_all(id).len(), world.shard.partition(id).unwrap().bytes as usize);
}

#[test]
fn all_records_may_go_and_new_ones_come() {
    let mut world = world();
    let id = partition(1, 0);
    fill(&mut world, 0, 3);
    let all = Unit::AdvanceLogStart { partition: id, offset: offset(30) };
    assert_eq!(world.one(all), UnitResult::LogStart { offset: offset(30) });
    let beyond = Unit::AdvanceLogStart { partition: id, offset: offset(31) };
    assert!(matches!(world.one(beyond), UnitResult::Refused(UnitError::OffsetOutOfRange { .. })));
    world.checkpoint();
    world.kill();
    fill(&mut world, 0, 1);
    world.checkpoint();
    world.kill();
    let view = world.shard.partition(id).unwrap();
    assert_eq!((view.log_start, view.high_watermark, view.segments), (offset(30), offset(40), 1));
    assert!(!world.read_all(id).is_empty());
}

#[test]
fn a_deleted_partitions_files_go_with_the_next_checkpoint() {
    let mut world = world();
    fill(&mut world, 0, 3);
    fill(&mut world, 1, 3);
    world.checkpoint();
    let dirs = |world: &World| world.list(Path::new("shard-01")).len() - 1;
    assert_eq!(dirs(&world), 2, "a partition without records has no files");
    let Fetch::Memory(_) = world.shard.fetch(partition(1, 0), offset(0), 1) else {
        panic!("it is in memory")
    };
    world.one(delete_topic(1, 2));
    assert_eq!(dirs(&world), 2);
    world.checkpoint();
    assert_eq!(dirs(&world), 0);
    assert_eq!(world.shard.tail_bytes(), 0);
    assert_eq!(world.shard.write_behind_lag_bytes(), 0);
    world.kill();
    assert_eq!(world.shard.partitions(), []);
}

#[test]
fn a_deletion_that_was_not_checkpointed_is_done_again() {
    let mut world = world();
    fill(&mut world, 0, 3);
    world.checkpoint();
    world.one(delete_topic(1, 2));
    world.crash(1);
    assert_eq!(world.shard.partitions(), []);
    world.checkpoint();
    assert_eq!(world.list(Path::new("shard-01")), ["state"]);
}

#[test]
fn a_partition_that_the_checkpoint_does_not_know_leaves_no_files() {
    let mut config = ShardConfig::new(SHARD);
    config.write_behind_bytes = 1;
    let mut world = World::with(config);
    world.checkpoint();
    world.one(adopt_topic(1, 1, 1, SMALL));
    fill(&mut world, 0, 5);
    while world.shard.write_behind_lag_bytes() > 0 {
        std::thread::yield_now();
    }
    let before = world.read_all(partition(1, 0));
    world.kill();
    assert_eq!(world.read_all(partition(1, 0)), before, "the log brought it again");
}

#[test]
fn write_behind_keeps_memory_within_its_budget() {
    let mut config = ShardConfig::new(SHARD);
    (config.write_behind_bytes, config.write_coalesce_bytes, config.tail_cache_bytes) =
        (8_000, 2_000, 10_000);
    let mut world = World::with(config);
    world.one(adopt_topic(1, 1, 3, SMALL));
    let mut watch = world.shard.watch(partition(1, 2)).unwrap();
    for round in 0..100 {
        fill(&mut world, round % 3, 1);
    }
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), world.shard.partition(partition(1, 2)).unwrap().high_watermark);
    while world.shard.write_behind_lag_bytes() >= 8_000 || world.shard.tail_bytes() > 18_000 {
        std::thread::yield_now();
    }
    for number in 0..3 {
        let id = partition(1, number);
        assert_eq!(world.read_all(id).len(), world.shard.partition(id).unwrap().bytes as usize);
    }
    let first = world.shard.fetch(partition(1, 0), offset(0), 1);
    assert!(matches!(first, Fetch::Disk(_)), "the oldest left memory: {first:?}");
}

#[test]
fn groups_and_metadata_survive() {
    let mut world = world();
    let position = PositionCommit {
        partition: partition(1, 0),
        offset: Some(offset(5)),
        leader_epoch: None,
        note: "nightly".to_owned(),
    };
    let commit = GroupCommand::Commit { group: "royalties".into(), positions: vec![position] };
    assert_eq!(world.one(Unit::Group(commit)), UnitResult::Group(GroupReply::Done));
    let command = tidemill_controller::ControllerCommand::AllocateProducerIds { count: 1 };
    assert_eq!(world.one(Unit::Control(command)), UnitResult::Refused(UnitError::NotController));
    world.checkpoint();
    world.kill();
    assert_eq!(world.shard.group_names(), ["royalties"]);
    assert_eq!(world.shard.group("royalties").unwrap()[0].1.offset, offset(5));
    assert!(world.shard.controller().is_none());
    world.one(delete_topic(1, 2));
    assert!(world.shard.group("royalties").unwrap().is_empty(), "the topic is gone");
}

#[test]
fn an_idle_shard_writes_nothing() {
    let mut world = world();
    fill(&mut world, 0, 1);
    let first = world.checkpoint();
    let calls = world.faulty.calls();
    let second = world.checkpoint();
    assert_eq!(world.faulty.calls(), calls);
    assert_eq!((second.applied, second.frozen_for), (first.applied, Duration::ZERO));
    assert_eq!(world.shard.bytes_since_checkpoint(), 0);
}

#[test]
fn a_checkpoint_waits_for_the_write_ahead_log() {
    let mut world = world();
    fill(&mut world, 0, 1);
    let flushed = std::cell::Cell::new(None);
    let done = world
        .shard
        .checkpoint(&|id| {
            flushed.set(Some(id));
            Ok(())
        })
        .unwrap();
    assert_eq!(flushed.get(), done.applied);
    fill(&mut world, 0, 1);
    let failed = world.shard.checkpoint(&|_| Err(std::io::Error::other("no")));
    assert!(failed.unwrap_err().to_string().contains("write-ahead log"));
    assert!(world.shard.poisoned().is_some());
    world.kill();
    assert_eq!(world.shard.partition(partition(1, 0)).unwrap().high_watermark, offset(20));
}

#[test]
fn entries_come_in_order_or_the_shard_stops() {
    let world = world();
    let (mut id, _) = world.log[0].clone();
    id.index = LogIndex::new(3);
    let membership = bytes::Bytes::from_static(b"members");
    let next = tidemill_log::wal::EntryId { index: LogIndex::new(2), ..id };
    world.shard.apply_membership(next, &membership).unwrap();
    world.shard.apply_blank(id).unwrap();
    assert_eq!(world.shard.applied(), AppliedState { last: Some(id), membership: Some(membership) });
    let back = tidemill_log::wal::EntryId { index: LogIndex::new(4), term: Term::new(2), ..id };
    assert!(world.shard.apply_blank(back).is_err());
    assert!(world.shard.poisoned().unwrap().contains("bug"));
    assert!(world.shard.apply_blank(tidemill_log::wal::EntryId { index: LogIndex::new(4), ..id }).is_err());
}

#[test]
fn records_are_found_by_time_in_memory_and_on_disk() {
    use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
    let mut world = world();
    let id = partition(1, 0);
    for start in [100, 200, 150, 300] {
        let mut builder = BatchBuilder::new(BuilderOptions::default());
        for step in 0..5_i64 {
            builder.append(at(start + step * 10), None, Some(b"v"), []).unwrap();
        }
        world.one(append(id, builder.build().unwrap()));
    }
    let found = |world: &World, time| {
        world.shard.offset_for_time(id, at(time)).unwrap().map(|(offset, time)| (offset.get(), time.get()))
    };
    let check = |world: &World| {
        assert_eq!(found(world, 0), Some((0, 100)));
        assert_eq!(found(world, 111), Some((2, 120)));
        assert_eq!(found(world, 141), Some((5, 200)));
        assert_eq!(found(world, 241), Some((15, 300)));
        assert_eq!(found(world, 341), None);
    };
    check(&world);
    world.checkpoint();
    world.kill();
    check(&world);
    world.one(Unit::AdvanceLogStart { partition: id, offset: offset(4) });
    assert_eq!(found(&world, 0), Some((4, 140)), "never before the log start");
}

#[test]
fn apply_goes_on_while_checkpoints_are_written() {
    let mut config = ShardConfig::new(SHARD);
    (config.write_behind_bytes, config.write_coalesce_bytes, config.tail_cache_bytes) =
        (20_000, 4_000, 30_000);
    let mut world = World::with(config);
    world.one(adopt_topic(1, 1, 3, SMALL));
    let (done, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let shard = world.shard.clone();
    std::thread::scope(|scope| {
        let checkpoints = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                shard.checkpoint(&|_| Ok(())).unwrap();
                made.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut round = 0;
        while (round < 600 || made.load(Ordering::Relaxed) < 5) && !checkpoints.is_finished() {
            fill(&mut world, round % 3, 1);
            if round % 50 == 49 {
                let start = offset(i64::from(round) * 3);
                world.one(Unit::AdvanceLogStart { partition: partition(1, round % 3), offset: start });
            }
            round += 1;
            // As a proposer would.
            while world.shard.write_behind_lag_bytes() > 100_000 && !checkpoints.is_finished() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let (hash, bytes) = (world.hash(), world.read_all(partition(1, 2)));
    world.crash(7);
    assert_eq!((world.hash(), world.read_all(partition(1, 2))), (hash, bytes));
}

/// What a checkpoint froze before a deletion it also writes: the partition's state and its files must agree, or the next
/// start refuses both.
#[test]
fn a_topic_deleted_during_a_checkpoint_does_not_spoil_it() {
    for round in 0..20 {
        let mut world = World::new();
        world.one(adopt_topic(1, 1, 40, SMALL));
        for number in 0..40 {
            fill(&mut world, number, 2);
        }
        world.checkpoint();
        for number in 0..40 {
            fill(&mut world, number, 2);
        }
        let shard = world.shard.clone();
        let checkpoint = std::thread::spawn(move || shard.checkpoint(&|_| Ok(())).unwrap());
        while world.shard.bytes_since_checkpoint() > 0 {
            std::hint::spin_loop();
        }
        world.one(delete_topic(1, 2));
        assert!(world.shard.has_deleted_partitions());
        let done = checkpoint.join().unwrap();
        if round % 2 == 0 {
            world.kill();
            assert_eq!(world.shard.partitions(), [], "round {round}, from {:?}", done.applied);
        }
        world.checkpoint();
        assert!(!world.shard.has_deleted_partitions());
        assert_eq!(world.shard.tail_bytes(), 0);
        let left = world.list(Path::new("shard-01"));
        assert_eq!(left, ["state"], "round {round}: the files are gone");
    }
}
