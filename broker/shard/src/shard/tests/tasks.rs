//! Hosted consumers' tasks: progress, state, timers, outputs, and what ends them.

use bytes::Bytes;
use tidemill_controller::TopicConfig;
use tidemill_protocol::{PartitionId, TopicPartition};

use super::world::*;
use crate::testing::batch;
use crate::*;

const SOURCE: u128 = 1;
const NEAR: u128 = 2;
const FAR: u128 = 3;

fn adopt(version: u64, epoch: u32, status: AdoptedStatus) -> Unit {
    Unit::AdoptDeployment(AdoptDeployment {
        deployment: deployment(9),
        version,
        epoch,
        status,
        tasks: vec![TaskAssignment {
            partition: PartitionId::new(0),
            sources: vec![(partition(SOURCE, 0), StartAt::Earliest)],
        }],
        state_bytes_max: 500,
        outbox_bytes_max: 200,
    })
}

fn world() -> World {
    let mut world = World::new();
    world.one(adopt_topic(SOURCE, 1, 1, TopicConfig::default()));
    world.one(adopt_topic(NEAR, 1, 1, TopicConfig::default()));
    for _ in 0..10 {
        world.one(append(partition(SOURCE, 0), batch(10).build()));
    }
    assert_eq!(world.one(adopt(2, 1, AdoptedStatus::Running)), UnitResult::Adopted);
    world
}

fn step(from: i64, to: i64) -> Progress {
    Progress {
        deployment: deployment(9),
        epoch: 1,
        partition: PartitionId::new(0),
        positions: vec![PositionStep {
            source: partition(SOURCE, 0),
            expected: offset(from),
            next: offset(to),
        }],
        state: Vec::new(),
        timers: Vec::new(),
        fired: Vec::new(),
        outputs: Vec::new(),
    }
}

fn idle() -> Progress {
    Progress { positions: Vec::new(), ..step(0, 0) }
}

fn write(key: &str, value: Option<&str>, expires_at: Option<i64>) -> StateWrite {
    StateWrite {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        expires_at: expires_at.map(at),
    }
}

fn timer(key: &str, time: Option<i64>) -> TimerWrite {
    TimerWrite { key: Bytes::copy_from_slice(key.as_bytes()), at: time.map(at) }
}

fn output(target: TopicPartition, count: u32) -> TaskOutput {
    TaskOutput { target, batch: batch(count).build() }
}

fn get(world: &World, key: &str) -> Option<String> {
    let keys = [Bytes::copy_from_slice(key.as_bytes())];
    let mut values = world.shard.state_get(deployment(9), PartitionId::new(0), &keys).unwrap();
    values.remove(0).map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn view(world: &World) -> TaskView {
    world.shard.task(deployment(9), PartitionId::new(0)).unwrap().unwrap()
}

fn refused(world: &mut World, progress: Progress) -> ProgressRefusal {
    let result = world.one(Unit::Progress(progress));
    let UnitResult::ProgressRefused(refusal) = result else { panic!("{result:?}") };
    // It left as little behind as an entry that says nothing.
    let mut without = World { log: world.log.clone(), ..World::new() };
    without.log.last_mut().unwrap().1.units.clear();
    without.kill();
    assert_eq!(without.hash(), world.hash());
    refusal
}

#[test]
fn a_step_is_all_or_nothing_and_fenced() {
    let mut world = world();
    let progress = Progress {
        state: vec![write("a", Some("1"), None), write("b", Some("2"), None)],
        outputs: vec![output(partition(NEAR, 0), 3)],
        ..step(0, 30)
    };
    assert_eq!(world.one(Unit::Progress(progress)), UnitResult::Progressed);
    assert_eq!(view(&world).positions, [(partition(SOURCE, 0), offset(30))]);
    assert_eq!(get(&world, "b").as_deref(), Some("2"));
    assert_eq!(world.shard.partition(partition(NEAR, 0)).unwrap().high_watermark, offset(3));

    let wrong =
        ProgressRefusal::WrongPosition { source_partition: partition(SOURCE, 0), expected: offset(30) };
    assert_eq!(refused(&mut world, Progress { state: vec![write("a", None, None)], ..step(0, 10) }), wrong);
    assert_eq!(
        refused(&mut world, Progress { epoch: 0, ..step(30, 40) }),
        ProgressRefusal::WrongEpoch { current: 1 }
    );
    let stranger = Progress { deployment: deployment(8), ..step(30, 40) };
    assert_eq!(refused(&mut world, stranger), ProgressRefusal::UnknownTask);
    for (from, to) in [(30, 29), (30, 101)] {
        assert!(matches!(refused(&mut world, step(from, to)), ProgressRefusal::Invalid(_)));
    }
    assert_eq!(get(&world, "a").as_deref(), Some("1"));
}

#[test]
fn a_stopped_task_makes_no_progress_until_it_is_resumed() {
    let mut world = world();
    let stop = Unit::TaskStatus {
        deployment: deployment(9),
        epoch: 1,
        partition: PartitionId::new(0),
        status: TaskStatus::Paused { reason: "record 5 fails".into() },
    };
    assert_eq!(world.one(stop.clone()), UnitResult::Done);
    assert_eq!(refused(&mut world, step(0, 10)), ProgressRefusal::NotRunning);
    world.one(adopt(3, 2, AdoptedStatus::Running));
    assert_eq!(
        world.one(stop),
        UnitResult::Refused(UnitError::WrongDeploymentEpoch { current: 2 }),
        "too late"
    );
    assert_eq!(view(&world).status, TaskStatus::Running);
    assert_eq!(world.one(Unit::Progress(Progress { epoch: 2, ..step(0, 10) })), UnitResult::Progressed);
    world.one(adopt(4, 3, AdoptedStatus::Paused));
    assert_eq!(refused(&mut world, Progress { epoch: 3, ..step(10, 20) }), ProgressRefusal::NotRunning);
}

#[test]
fn state_has_a_quota_that_counts_what_is_there() {
    let mut world = world();
    let large = "x".repeat(400);
    let fill = Progress { state: vec![write("a", Some(&large), None)], ..idle() };
    assert_eq!(world.one(Unit::Progress(fill)), UnitResult::Progressed);
    assert_eq!(view(&world).state_bytes, 433);
    let more = Progress {
        state: vec![write("b", Some("1234567890123456789012345678901234567890"), None)],
        ..idle()
    };
    assert_eq!(refused(&mut world, more), ProgressRefusal::StateFull { bytes: 506, limit: 500 });
    let timers =
        Progress { timers: vec![timer("t", Some(5)), timer("u", Some(6)), timer("v", Some(7))], ..idle() };
    assert!(matches!(refused(&mut world, timers), ProgressRefusal::StateFull { .. }));
    let swap = Progress { state: vec![write("a", None, None), write("b", Some(&large), None)], ..idle() };
    assert_eq!(world.one(Unit::Progress(swap)), UnitResult::Progressed, "what goes makes room");
    assert_eq!(view(&world).state_bytes, 433);
    world.checkpoint();
    world.kill();
    let none = Progress { state: vec![write("b", None, None), write("never", None, None)], ..idle() };
    assert_eq!(world.one(Unit::Progress(none)), UnitResult::Progressed);
    assert_eq!(view(&world).state_bytes, 0);
    let long = Progress { state: vec![write(&"k".repeat(5000), None, None)], ..idle() };
    assert!(matches!(refused(&mut world, long), ProgressRefusal::Invalid(_)));
}

#[test]
fn state_expires_by_the_logs_time() {
    let mut world = world();
    let soon = world.now + 100;
    let progress = Progress {
        state: vec![write("soon", Some("1"), Some(soon)), write("later", Some("2"), Some(soon + 1000))],
        ..idle()
    };
    world.one(Unit::Progress(progress));
    world.checkpoint();
    assert_eq!(get(&world, "soon").as_deref(), Some("1"));
    world.now = soon;
    world.one(Unit::Progress(idle()));
    assert_eq!(get(&world, "soon"), None, "at once");
    assert!(view(&world).state_bytes > 60, "its bytes go with the next tick");
    let page = world.shard.state_scan(deployment(9), PartitionId::new(0), b"", None, 10).unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.key.to_vec()).collect::<Vec<_>>(), [b"later"]);
    world.one(Unit::Tick);
    assert_eq!(view(&world).state_bytes, 5 + 1 + 32);
    world.kill();
    assert_eq!(view(&world).state_bytes, 5 + 1 + 32);
}

/// One tick lets go of a bounded number of keys; it is known that there are more, also of those that a checkpoint has stored.
#[test]
fn ticks_follow_until_all_that_expired_is_gone() {
    let mut world = world();
    let Unit::AdoptDeployment(roomy) = adopt(3, 1, AdoptedStatus::Running) else { unreachable!() };
    world.one(Unit::AdoptDeployment(AdoptDeployment { state_bytes_max: 1 << 20, ..roomy }));
    let soon = world.now + 100;
    let keys = |numbers: std::ops::Range<usize>, expires_at| Progress {
        state: numbers.map(|n| write(&format!("key-{n:04}"), Some("1"), Some(expires_at))).collect(),
        ..idle()
    };
    world.one(Unit::Progress(keys(0..400, soon)));
    world.checkpoint();
    world.one(Unit::Progress(keys(400..600, soon)));
    world.one(Unit::Progress(keys(600..700, soon + 1000)));
    assert!(!world.shard.tick_due(at(soon - 1)).unwrap());
    assert!(world.shard.tick_due(at(soon)).unwrap());
    world.now = soon;
    let mut left = Vec::new();
    while world.shard.tick_due(at(soon)).unwrap() {
        world.one(Unit::Tick);
        left.push(view(&world).state_bytes / (8 + 1 + 32));
        if left.len() == 2 {
            world.checkpoint();
        }
    }
    assert_eq!(left, [444, 188, 100]);
    // What is written to expire before what has expired already is not forgotten.
    world.one(Unit::Progress(keys(0..3, soon - 50)));
    assert!(world.shard.tick_due(at(soon)).unwrap());
    world.one(Unit::Tick);
    assert_eq!(view(&world).state_bytes, 100 * 41);
    assert!(!world.shard.tick_due(at(soon)).unwrap());
    let before = world.hash();
    world.kill();
    assert_eq!(
        world.hash(),
        before,
        "and it is the same where nothing is remembered of where expiry had come to"
    );
    world.now = soon + 1000;
    world.one(Unit::Tick);
    assert_eq!(view(&world).state_bytes, 0);
    world.one(adopt(9, 5, AdoptedStatus::Deleted));
    assert!(world.shard.tick_due(at(soon)).unwrap(), "a deleted task's rows");
    world.one(Unit::Tick);
    assert!(!world.shard.tick_due(at(i64::MAX - 1)).unwrap());
}

#[test]
fn a_scan_pages_through_all_layers() {
    let mut world = world();
    let key = |n: usize| format!("key-{n:02}");
    let put = |world: &mut World, numbers: &[usize], value: Option<&str>| {
        let state = numbers.iter().map(|n| write(&key(*n), value, None)).collect();
        world.one(Unit::Progress(Progress { state, ..idle() }))
    };
    for chunk in (0..9).collect::<Vec<_>>().chunks(3) {
        put(&mut world, chunk, Some("old"));
    }
    world.checkpoint();
    put(&mut world, &[1, 5], Some("new"));
    put(&mut world, &[0, 4], None);
    let mut seen = Vec::new();
    let mut from = Bytes::new();
    loop {
        let page =
            world.shard.state_scan(deployment(9), PartitionId::new(0), &from, Some(b"key-08"), 2).unwrap();
        seen.extend(page.entries.iter().map(|e| (e.key.to_vec(), e.value.to_vec())));
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    let expected: Vec<_> = [(1, "new"), (2, "old"), (3, "old"), (5, "new"), (6, "old"), (7, "old")]
        .map(|(n, value)| (key(n).into_bytes(), value.as_bytes().to_vec()))
        .into();
    assert_eq!(seen, expected);
}

#[test]
fn a_timer_fires_once_and_not_before_its_time() {
    let mut world = world();
    let due = world.now + 50;
    let set = Progress { timers: vec![timer("b", Some(due)), timer("a", Some(due + 10))], ..idle() };
    world.one(Unit::Progress(set));
    world.checkpoint();
    assert_eq!(view(&world).next_timer, Some((at(due), Bytes::from_static(b"b"))));
    let fire = |time| Progress { fired: vec![(Bytes::from_static(b"b"), at(time))], ..idle() };
    let wrong = ProgressRefusal::WrongTimer { key: Bytes::from_static(b"b") };
    assert_eq!(refused(&mut world, fire(due)), wrong, "too early");
    world.now = due;
    world.one(Unit::Tick);
    let timers =
        world.shard.due_timers(deployment(9), PartitionId::new(0), world.shard.log_time(), 10).unwrap();
    assert_eq!(timers, [(Bytes::from_static(b"b"), at(due))]);
    assert_eq!(refused(&mut world, fire(due + 1)), wrong, "set for another time");
    let again = Progress { timers: vec![timer("b", Some(due + 100)), timer("a", None)], ..fire(due) };
    assert_eq!(world.one(Unit::Progress(again)), UnitResult::Progressed);
    assert_eq!(refused(&mut world, fire(due)), wrong, "it fired");
    assert_eq!(view(&world).next_timer, Some((at(due + 100), Bytes::from_static(b"b"))));
    let cancel = Progress { timers: vec![timer("b", None)], ..idle() };
    world.one(Unit::Progress(cancel));
    world.checkpoint();
    world.kill();
    assert_eq!(view(&world).next_timer, None);
    assert_eq!(view(&world).state_bytes, 0);
}

#[test]
fn outputs_for_other_shards_are_numbered_and_bounded() {
    let mut world = world();
    let far = partition(FAR, 0);
    let send = |count: u32| Progress { outputs: (0..count).map(|_| output(far, 1)).collect(), ..idle() };
    assert_eq!(world.one(Unit::Progress(send(2))), UnitResult::Progressed);
    assert_eq!(refused(&mut world, send(1)), ProgressRefusal::OutboxFull { target: far });
    let items = world.shard.outbox_next(10).unwrap();
    assert_eq!(items.iter().map(|item| item.number).collect::<Vec<_>>(), [1, 2]);
    let stream = items[0].stream;
    assert_eq!((stream.target, stream.source, stream.incarnation), (far, PartitionId::new(0), 2));
    assert_eq!(view(&world).outbox, [(far, 162)]);
    world.checkpoint();
    world.kill();
    assert_eq!(world.shard.outbox_next(10).unwrap(), items, "from the file");
    let delivered = |up_to| Unit::Delivered { stream, up_to };
    assert_eq!(world.one(delivered(3)), UnitResult::Refused(UnitError::UnknownOutboxItem { up_to: 3 }));
    assert_eq!(world.one(delivered(1)), UnitResult::Done);
    assert_eq!(world.one(delivered(1)), UnitResult::Done);
    assert_eq!(world.one(Unit::Progress(send(1))), UnitResult::Progressed);
    let numbers: Vec<_> = world.shard.outbox_next(10).unwrap().iter().map(|item| item.number).collect();
    assert_eq!(numbers, [2, 3], "without gaps");
    world.one(delivered(3));
    assert_eq!(world.shard.outbox_queues(), []);
}

#[test]
fn the_outboxes_take_turns() {
    let mut world = world();
    let outputs =
        (0..4).flat_map(|number| [output(partition(FAR, number), 1), output(partition(FAR, number), 1)]);
    world.one(Unit::Progress(Progress { outputs: outputs.collect(), ..idle() }));
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let items = world.shard.outbox_next(1).unwrap();
        assert_eq!(items.len(), 1);
        first.insert(items[0].stream);
    }
    assert_eq!(first.len(), 4);
    let all = world.shard.outbox_next(6).unwrap();
    assert_eq!(all.len(), 6);
    assert_eq!(world.shard.outbox_next(100).unwrap().len(), 8);
}

#[test]
fn what_waits_is_not_overtaken_by_a_target_that_came_here() {
    let mut world = world();
    let far = partition(FAR, 0);
    world.one(Unit::Progress(Progress { outputs: vec![output(far, 1)], ..idle() }));
    world.one(adopt_topic(FAR, 5, 1, TopicConfig::default()));
    world.one(Unit::Progress(Progress { outputs: vec![output(far, 2)], ..idle() }));
    let items = world.shard.outbox_next(10).unwrap();
    assert_eq!(items.len(), 2);
    for item in items {
        let deliver = Unit::Deliver { stream: item.stream, number: item.number, batch: item.batch };
        assert_eq!(world.one(deliver.clone()), UnitResult::Delivered { last: item.number });
        assert_eq!(world.one(deliver), UnitResult::Delivered { last: item.number }, "once");
        world.one(Unit::Delivered { stream: item.stream, up_to: item.number });
    }
    assert_eq!(world.shard.partition(far).unwrap().high_watermark, offset(3));
    world.one(Unit::Progress(Progress { outputs: vec![output(far, 4)], ..idle() }));
    assert_eq!(world.shard.outbox_queues(), []);
    assert_eq!(world.shard.partition(far).unwrap().high_watermark, offset(7));
    world.one(delete_topic(FAR, 6));
    let gone = Progress { outputs: vec![output(far, 1)], ..idle() };
    assert_eq!(refused(&mut world, gone), ProgressRefusal::TargetDeleted { target: far });
}

#[test]
fn a_delivery_is_taken_in_order_only() {
    let mut world = world();
    let stream = OutboxStream {
        deployment: deployment(77),
        incarnation: 1,
        source: PartitionId::new(4),
        target: partition(NEAR, 0),
    };
    let deliver = |number| Unit::Deliver { stream, number, batch: batch(2).build() };
    assert_eq!(world.one(deliver(2)), UnitResult::OutOfOrder { last: 0 });
    assert_eq!(world.one(deliver(1)), UnitResult::Delivered { last: 1 });
    world.checkpoint();
    world.kill();
    assert_eq!(world.one(deliver(1)), UnitResult::Delivered { last: 1 });
    assert_eq!(world.one(deliver(3)), UnitResult::OutOfOrder { last: 1 });
    assert_eq!(world.one(deliver(2)), UnitResult::Delivered { last: 2 });
    assert_eq!(world.shard.partition(partition(NEAR, 0)).unwrap().high_watermark, offset(4));
}

#[test]
fn a_deleted_deployments_state_goes_and_what_it_emitted_stays() {
    let mut world = world();
    let far = partition(FAR, 0);
    let progress = Progress {
        state: vec![write("a", Some("1"), None), write("b", Some("2"), Some(i64::MAX - 1))],
        timers: vec![timer("t", Some(5))],
        outputs: vec![output(far, 1)],
        ..step(0, 10)
    };
    world.one(Unit::Progress(progress));
    world.checkpoint();
    assert_eq!(world.one(adopt(9, 5, AdoptedStatus::Deleted)), UnitResult::Adopted);
    assert_eq!(world.one(adopt(10, 6, AdoptedStatus::Running)), UnitResult::Stale { version: 9 }, "for good");
    assert_eq!(get(&world, "a"), None);
    assert!(world.shard.tasks().is_empty());
    world.one(Unit::Tick);
    let items = world.shard.outbox_next(10).unwrap();
    assert_eq!(items.len(), 1, "still on its way");
    world.one(Unit::Delivered { stream: items[0].stream, up_to: 1 });
    world.checkpoint();
    world.kill();
    assert!(world.shard.outbox_queues().is_empty());
    // Time passes, and it is forgotten.
    for _ in 0..9 {
        world.now += LOG_TIME_STEP_MAX_MS;
        world.one(Unit::Tick);
    }
    assert_eq!(world.shard.deployments(), []);
}

/// A shard that only got a deployment's outputs is told that it is gone, and then forgets how far they came.
#[test]
fn what_came_from_another_shards_deployment_is_forgotten_with_it() {
    let mut world = world();
    let sender = |number, source| OutboxStream {
        deployment: deployment(number),
        incarnation: 1,
        source: PartitionId::new(source),
        target: partition(NEAR, 0),
    };
    let deliver =
        |number, source| Unit::Deliver { stream: sender(number, source), number: 1, batch: batch(1).build() };
    for unit in [deliver(77, 0), deliver(77, 1), deliver(78, 0), deliver(9, 0)] {
        assert_eq!(world.one(unit), UnitResult::Delivered { last: 1 });
    }
    assert_eq!(world.shard.strange_senders(), [deployment(77), deployment(78)], "9 is known here");
    let Unit::AdoptDeployment(adopt) = adopt(5, 2, AdoptedStatus::Deleted) else { unreachable!() };
    let gone =
        Unit::AdoptDeployment(AdoptDeployment { deployment: deployment(77), tasks: Vec::new(), ..adopt });
    assert_eq!(world.one(gone), UnitResult::Adopted);
    assert_eq!(world.shard.strange_senders(), [deployment(78)]);
    let last = |world: &mut World, number| match world.one(Unit::Deliver {
        stream: sender(number, 0),
        number: 5,
        batch: batch(1).build(),
    }) {
        UnitResult::OutOfOrder { last } => last,
        other => panic!("{other:?}"),
    };
    assert_eq!(last(&mut world, 77), 1, "what is still on its way is taken once");
    for _ in 0..9 {
        world.now += LOG_TIME_STEP_MAX_MS;
        world.one(Unit::Tick);
    }
    assert_eq!((last(&mut world, 77), last(&mut world, 78)), (0, 1));
    assert!(world.shard.deployments().iter().all(|known| known.deployment != deployment(77)));
    world.checkpoint();
    world.kill();
    assert_eq!((last(&mut world, 77), last(&mut world, 78)), (0, 1));
}

#[test]
fn a_task_begins_where_it_is_told() {
    let mut world = world();
    world.one(Unit::AdvanceLogStart { partition: partition(SOURCE, 0), offset: offset(20) });
    for (number, start, expected) in [
        (20, StartAt::Earliest, 20),
        (21, StartAt::Latest, 100),
        (22, StartAt::Offset(offset(3)), 20),
        (23, StartAt::Offset(offset(33)), 33),
        (24, StartAt::Offset(offset(333)), 100),
    ] {
        let Unit::AdoptDeployment(mut adopt) = adopt(2, 1, AdoptedStatus::Running) else { unreachable!() };
        adopt.deployment = deployment(number);
        adopt.tasks[0].sources[0].1 = start;
        world.one(Unit::AdoptDeployment(adopt));
        let task = world.shard.task(deployment(number), PartitionId::new(0)).unwrap().unwrap();
        assert_eq!(task.positions[0].1, offset(expected));
    }
    let Unit::AdoptDeployment(mut unknown) = adopt(2, 1, AdoptedStatus::Running) else { unreachable!() };
    unknown.deployment = deployment(30);
    unknown.tasks[0].sources[0].0 = partition(FAR, 0);
    let refused = UnitResult::Refused(UnitError::NotAdopted(topic(FAR)));
    assert_eq!(world.one(Unit::AdoptDeployment(unknown)), refused, "first its topics");
}

#[test]
fn reads_end_at_a_bound_of_bytes() {
    let mut world = world();
    let state = vec![write("a", Some("12345"), None), write("b", Some("12345"), None)];
    assert_eq!(world.one(Unit::Progress(Progress { state, ..step(0, 30) })), UnitResult::Progressed);
    let keys = ["a", "b", "a", "none"].map(|key| Bytes::copy_from_slice(key.as_bytes()));
    let get = |bytes_max| {
        world.shard.state_get_within(deployment(9), PartitionId::new(0), &keys, bytes_max).unwrap()
    };
    assert_eq!(get(15).unwrap().len(), 4);
    assert_eq!(get(14), None, "a key that comes twice counts twice");
    let scan = |bytes_max| {
        let scan =
            world.shard.state_scan_within(deployment(9), PartitionId::new(0), b"", None, 10, bytes_max);
        let page = scan.unwrap();
        (page.entries.len(), page.next.is_some())
    };
    assert_eq!(scan(1), (1, true), "one larger entry");
    assert_eq!(scan(1 << 20), (2, false));
}
