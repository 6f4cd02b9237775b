//! Damaged segments, mended with what another replica has.

use std::path::PathBuf;

use tidemill_controller::TopicConfig;
use tidemill_log::segment::ScrubStep;
use tidemill_protocol::Offset;

use super::world::*;
use crate::testing::batch;
use crate::*;

/// A shard with a partition of several segments, all but the last sealed, and nothing of it in memory.
fn replica() -> World {
    let mut world = World::new();
    world.one(adopt_topic(1, 1, 1, TopicConfig { segment_bytes: 1000, ..TopicConfig::default() }));
    for number in 0..9 {
        world.one(append(partition(1, 0), batch(2).payload(vec![number; 400]).build()));
    }
    world.checkpoint();
    world.kill();
    world
}

fn log_file(world: &World, base: Offset) -> PathBuf {
    world.config.dir.join(partition(1, 0).to_string()).join(format!("{:020}.log", base.get()))
}

fn damage(world: &World, base: Offset) {
    world.memory.edit(&log_file(world, base), |bytes| bytes[300] ^= 1);
}

/// Brings a segment over from another replica, as brokers do.
fn mend(world: &World, from: &World, base: Offset) -> Result<(), SegmentRepairError> {
    let mut repair = world.shard.begin_repair(partition(1, 0), base)?.expect("it is sealed");
    let pin = from.shard.sound_copy(partition(1, 0), repair.end()).expect("the other one has it whole");
    let (mut at, mut piece) = (0, vec![0; 100]);
    loop {
        let length = pin.read_raw(base, at, &mut piece).unwrap();
        if length == 0 {
            return repair.finish();
        }
        repair.write(at, &piece[..length]).unwrap();
        at += length as u64;
    }
}

fn scrub(shard: &Shard, base: Offset) -> Result<ScrubStep, FetchError> {
    let mut scrub = shard.scrub(partition(1, 0), base)?.expect("it is here");
    loop {
        match scrub.step(200)? {
            ScrubStep::More => {}
            ScrubStep::Sound => return Ok(ScrubStep::Sound),
        }
    }
}

#[test]
fn a_segment_that_a_reader_finds_damaged_is_byte_identical_again() {
    let (one, two) = (replica(), replica());
    let sealed: Vec<_> = one.shard.sealed_segments().into_iter().map(|(_, base)| base).collect();
    assert!(sealed.len() > 2, "{sealed:?}");
    let base = sealed[1];
    let sound = two.memory.contents(&log_file(&two, base)).unwrap();
    assert_eq!(one.memory.contents(&log_file(&one, base)), Some(sound.clone()));
    damage(&one, base);
    let Fetch::Disk(read) = one.shard.fetch(partition(1, 0), base, 1000) else { panic!("it left memory") };
    assert!(matches!(read.run(), Err(FetchError::Read(_))));
    assert_eq!(one.shard.suspects(), [(partition(1, 0), base)]);

    mend(&one, &two, base).unwrap();
    assert_eq!(one.memory.contents(&log_file(&one, base)), Some(sound));
    assert_eq!(one.shard.suspects(), []);
    assert_eq!(one.read_all(partition(1, 0)), two.read_all(partition(1, 0)));
    assert_eq!(one.list(&one.config.dir.join("repair")), [""; 0]);
    let mut one = one;
    one.kill();
    assert_eq!(one.read_all(partition(1, 0)), two.read_all(partition(1, 0)));
}

#[test]
fn a_scrub_finds_what_nobody_reads() {
    let one = replica();
    let sealed = one.shard.sealed_segments();
    for (_, base) in &sealed {
        scrub(&one.shard, *base).unwrap();
    }
    damage(&one, sealed[2].1);
    for (number, (_, base)) in sealed.iter().enumerate() {
        assert_eq!(scrub(&one.shard, *base).is_err(), number == 2);
    }
}

#[test]
fn who_has_it_damaged_or_not_at_all_gives_no_copy() {
    let (one, two) = (replica(), replica());
    let base = one.shard.sealed_segments()[0].1;
    damage(&one, base);
    damage(&two, base);
    let repair = one.shard.begin_repair(partition(1, 0), base).unwrap().unwrap();
    let end = *repair.end();
    let refused = two.shard.sound_copy(partition(1, 0), &end).err();
    assert!(matches!(refused, Some(NoCopy::Damaged(_))), "{refused:?}");
    assert_eq!(two.shard.suspects(), [(partition(1, 0), base)], "it looks after its own now");

    let three = replica();
    let other = tidemill_log::segment::SegmentEnd { digest: end.digest ^ 1, ..end };
    let refused = three.shard.sound_copy(partition(1, 0), &other).err();
    assert!(matches!(refused, Some(NoCopy::Other { .. })), "{refused:?}");
    let refused = three.shard.sound_copy(partition(1, 7), &end).err();
    assert!(matches!(refused, Some(NoCopy::Missing { .. })), "{refused:?}");
    let empty = tidemill_log::segment::SegmentEnd::empty(offset(5));
    let refused = three.shard.sound_copy(partition(1, 0), &empty).err();
    assert!(matches!(refused, Some(NoCopy::Missing { .. })), "{refused:?}");
}

#[test]
fn what_is_not_the_segment_does_not_take_its_place() {
    let (one, two) = (replica(), replica());
    let sealed = one.shard.sealed_segments();
    let (base, next) = (sealed[0].1, sealed[1].1);
    damage(&one, base);
    let before = one.memory.contents(&log_file(&one, base));
    let mut repair = one.shard.begin_repair(partition(1, 0), base).unwrap().unwrap();
    let bytes = two.memory.contents(&log_file(&two, next)).unwrap();
    let length = bytes.len().min(usize::try_from(repair.end().bytes).unwrap());
    repair.write(0, &bytes[..length]).unwrap();
    let refused = repair.finish().unwrap_err();
    assert!(matches!(refused, SegmentRepairError::Received(_)), "{refused}");
    assert_eq!(one.memory.contents(&log_file(&one, base)), before);
    assert_eq!(one.list(&one.config.dir.join("repair").join(partition(1, 0).to_string())), [""; 0]);
    mend(&one, &two, base).unwrap();
    scrub(&one.shard, base).unwrap();
}

#[test]
fn a_start_forgets_a_repair_that_was_cut_short() {
    let mut one = replica();
    let base = one.shard.sealed_segments()[0].1;
    let mut repair = one.shard.begin_repair(partition(1, 0), base).unwrap().unwrap();
    repair.write(0, b"half of it").unwrap();
    let memory = one.memory.kill();
    let dir = one.config.dir.join("repair");
    assert!(!one.list(&dir).is_empty());
    one.memory = memory;
    one.kill();
    assert_eq!(one.list(&dir), [""; 0]);
    drop(repair);
}

#[test]
fn the_segment_that_is_written_is_left_alone() {
    let one = replica();
    let sealed = one.shard.sealed_segments();
    let view = one.shard.partition(partition(1, 0)).unwrap();
    assert_eq!(sealed.len() + 1, view.segments);
    assert!(one.shard.begin_repair(partition(1, 0), view.high_watermark).unwrap().is_none());
    assert!(one.shard.begin_repair(partition(2, 0), offset(0)).unwrap().is_none());
}
