//! The hash of a state as of one entry, whatever comes after it and whatever checkpoints were made before.

use tidemill_controller::TopicConfig;
use tidemill_coordinator::{GroupCommand, PositionCommit};

use super::world::*;
use crate::testing::batch;
use crate::*;

fn position(note: &str) -> Unit {
    let position = PositionCommit {
        partition: partition(1, 0),
        offset: Some(offset(1)),
        leader_epoch: None,
        note: note.to_owned(),
    };
    Unit::Group(GroupCommand::Commit { group: "g".to_owned(), positions: vec![position] })
}

fn topic_config() -> TopicConfig {
    TopicConfig { segment_bytes: 1000, ..TopicConfig::default() }
}

/// The same history on every call.
fn history(world: &mut World, checkpoint_after: &[usize]) {
    for number in 0..20 {
        match number {
            0 => _ = world.one(adopt_topic(1, 1, 3, topic_config())),
            5 => _ = world.one(adopt_topic(2, 1, 1, topic_config())),
            11 => _ = world.one(delete_topic(2, 2)),
            _ if number % 4 == 1 => _ = world.one(position(&format!("note {number}"))),
            _ => {
                let producer = i64::try_from(number % 3).unwrap();
                let sequence = i32::try_from(number * 2).unwrap();
                let batch = batch(2).producer(producer, 0, sequence).payload(vec![3; 400]);
                world.one(append(partition(1, u32::try_from(number % 3).unwrap()), batch.build()));
            }
        }
        if checkpoint_after.contains(&number) {
            world.checkpoint();
        }
    }
}

fn hash(world: &World) -> [u8; 32] {
    assert!(world.shard.mark_state());
    world.checkpoint();
    let marked = world.shard.take_marked_state().expect("a checkpoint wrote it");
    assert_eq!(Some(marked.applied()), world.shard.checkpointed());
    marked.hash().unwrap()
}

#[test]
fn it_does_not_depend_on_checkpoints_and_restarts() {
    let mut expected = None;
    for checkpoints in [&[][..], &[19], &[2, 3, 9], &[0, 5, 11, 12, 18]] {
        for restarts in [false, true] {
            let mut world = World::new();
            history(&mut world, checkpoints);
            if restarts {
                world.kill();
            }
            let (whole, found) = (world.hash(), hash(&world));
            assert_eq!(*expected.get_or_insert((whole, found)), (whole, found), "{checkpoints:?} {restarts}");
        }
    }
    let mut other = World::new();
    history(&mut other, &[]);
    other.one(position("something else"));
    assert_ne!(hash(&other), expected.unwrap().1);
}

#[test]
fn what_is_applied_after_the_mark_is_in_neither_hash_nor_checkpoint() {
    let mut world = World::new();
    history(&mut world, &[7]);
    let mut other = World::new();
    history(&mut other, &[]);
    let expected = hash(&other);

    assert!(world.shard.mark_state());
    assert!(world.shard.has_marked_state());
    let marked = world.shard.applied().last;
    for _ in 0..30 {
        world.one(append(partition(1, 0), batch(2).payload(vec![9; 400]).build()));
    }
    world.one(delete_topic(1, 2));
    assert!(!world.shard.mark_state(), "one at a time");
    assert!(world.shard.take_marked_state().is_none(), "it is not written yet");
    assert_eq!(world.checkpoint().applied, marked);
    assert!(!world.shard.has_marked_state());
    let state = world.shard.take_marked_state().unwrap();
    assert!(world.shard.take_marked_state().is_none(), "it is handed out once");
    // A later checkpoint does not change what is held.
    let now = world.hash();
    world.checkpoint();
    assert_eq!(state.hash().unwrap(), expected);
    assert_eq!(world.hash(), now);
    world.kill();
    assert_eq!(world.hash(), now);
}

#[test]
fn write_behind_waits_for_the_checkpoint_of_a_marked_state() {
    // So little is kept back that each batch is worth a write.
    let config = ShardConfig { write_behind_bytes: 1, write_coalesce_bytes: 1, ..ShardConfig::new(SHARD) };
    let mut world = World::with(config);
    world.one(adopt_topic(1, 1, 1, topic_config()));
    for round in 0..20 {
        world.one(append(partition(1, 0), batch(2).payload(vec![1; 400]).build()));
        assert!(world.shard.mark_state());
        for _ in 0..5 {
            world.one(append(partition(1, 0), batch(2).payload(vec![2; 400]).build()));
        }
        world.checkpoint();
        // The recorded ends of the segments agree with the state that was recorded beside them, or it would not open.
        let expected = (world.hash(), world.read_all(partition(1, 0)));
        world.crash(round);
        assert_eq!((world.hash(), world.read_all(partition(1, 0))), expected, "round {round}");
    }
}

#[test]
fn a_shard_that_gave_up_does_nothing_more() {
    let mut world = World::new();
    history(&mut world, &[]);
    world.shard.give_up("it went astray");
    assert_eq!(world.shard.poisoned().as_deref(), Some("it went astray"));
    assert!(!world.shard.mark_state());
    assert!(world.shard.checkpoint(&|_| Ok(())).is_err());
    let id = world.log.last().unwrap().0;
    assert!(world.shard.apply_blank(id).is_err());
}
