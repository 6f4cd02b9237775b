//! Each way in which a plugin can misbehave: the caller gets the right error, and the next call of a good plugin works.

use std::sync::Arc;
use std::time::Duration;

use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tidemill_wasm::*;

use crate::kit::*;

/// What a good plugin does, beside a bad one.
async fn assert_others_are_well() {
    let verdict = filter(&hostile::keep_all(), tight()).apply(batch_of(3)).await.unwrap();
    assert_eq!(verdict.selection, Selection::KeepAll);
    let placed = partitioner(&hostile::by_key_length(), tight()).partition(batch_of(3), 2).await.unwrap();
    assert_eq!(placed.partitions, [1, 1, 1]);
}

/// Calls a plugin of this world that is made to fail twice, and gives the error.
async fn call(world: World, component: &[u8]) -> CallError {
    let mut errors = Vec::new();
    for _ in 0..2 {
        let error = match world {
            World::Filter => {
                let pool = filter(component, tight());
                let error = pool.apply(batch_of(3)).await.unwrap_err();
                assert_eq!(pool.idle(), 0, "its instance is not trusted again");
                error
            }
            World::Partitioner => {
                partitioner(component, tight()).partition(batch_of(3), 2).await.unwrap_err()
            }
            World::Consumer => match task(component, tight(), &MemoryHost::default()).await {
                Err(error) => error,
                Ok(mut task) => {
                    let error = task.handle(&batch_of(3)).await.unwrap_err();
                    assert!(!task.is_usable());
                    assert_eq!(task.handle(&batch_of(3)).await.unwrap_err(), CallError::Discarded);
                    error
                }
            },
        };
        errors.push(error);
    }
    assert_others_are_well().await;
    assert_eq!(errors[0], errors[1], "the second time is as the first");
    assert!(errors[0].is_incident(), "{:?}", errors[0]);
    errors.remove(0)
}

async fn in_every_world(make: fn(World) -> Vec<u8>, is_right: fn(&CallError) -> bool) {
    for world in World::ALL {
        let error = call(world, &make(world)).await;
        assert!(is_right(&error), "{world:?}: {error:?}");
    }
}

fn trapped(error: &CallError) -> bool {
    matches!(error, CallError::Trapped { .. })
}

fn timed_out(error: &CallError) -> bool {
    matches!(error, CallError::TimedOut { .. })
}

fn out_of_memory(error: &CallError) -> bool {
    matches!(error, CallError::OutOfMemory { .. })
}

fn bad_answer(error: &CallError) -> bool {
    matches!(error, CallError::BadAnswer(_))
}

#[tokio::test]
async fn traps() {
    in_every_world(hostile::traps, trapped).await;
    in_every_world(hostile::traps_in_start, trapped).await;
}

#[tokio::test]
async fn a_trap_names_the_function() {
    let CallError::Trapped { reason, backtrace } = call(World::Filter, &hostile::traps(World::Filter)).await
    else {
        panic!("it traps");
    };
    assert!(reason.contains("unreachable"), "{reason}");
    assert!(backtrace.contains("main"), "{backtrace}");
}

#[tokio::test]
async fn endless_loops() {
    in_every_world(hostile::loops, timed_out).await;
    in_every_world(hostile::loops_in_start, timed_out).await;
    in_every_world(hostile::loops_in_init, timed_out).await;
    in_every_world(hostile::loops_in_host_calls, timed_out).await;
    in_every_world(hostile::realloc_loops, timed_out).await;
    in_every_world(hostile::loops_after_the_answer, timed_out).await;
}

#[tokio::test]
async fn fills_that_can_not_be_interrupted_are_charged_for() {
    // One fill takes many ticks, and looks at the epoch once.
    let limits = PluginLimits { memory_bytes_max: 64 << 20, call_time: Duration::from_millis(50), ..tight() };
    let pool = filter(&hostile::fills_memory_for_ever(World::Filter), limits);
    let begun = thread_cpu();
    assert_eq!(pool.apply(batch_of(3)).await.unwrap_err(), CallError::TimedOut { limit_ms: 50 });
    let ran = thread_cpu() - begun;
    assert!(ran < Duration::from_millis(400), "{ran:?} for a budget of 50 ms");
    in_every_world(hostile::fills_memory_for_ever, |error| timed_out(error) || out_of_memory(error)).await;
}

#[tokio::test]
async fn memory_without_end() {
    in_every_world(hostile::grows, out_of_memory).await;
    // 12 MiB, of which a deployment could have been given more.
    in_every_world(
        |world| hostile::large_from_the_start(world, 192),
        |error| *error == CallError::OutOfMemory { limit_bytes: tight().memory_bytes_max },
    )
    .await;
}

#[tokio::test]
async fn recursion_without_end() {
    in_every_world(
        hostile::recurses,
        |error| matches!(error, CallError::Trapped { reason, .. } if reason.contains("stack")),
    )
    .await;
}

#[tokio::test]
async fn bad_allocators() {
    in_every_world(hostile::realloc_outside_memory, bad_answer).await;
    in_every_world(hostile::realloc_misaligned, bad_answer).await;
}

#[tokio::test]
async fn answers_that_do_not_follow_the_abi() {
    in_every_world(hostile::answers_outside_memory, bad_answer).await;
    in_every_world(hostile::answers_no_known_case, bad_answer).await;
    assert!(bad_answer(&call(World::Filter, &hostile::rejects_with_broken_text()).await));
}

async fn reason_of(world: World, component: Vec<u8>) -> String {
    match call(world, &component).await {
        CallError::BadAnswer(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn placements_out_of_range() {
    let reason = reason_of(World::Partitioner, hostile::places_in(2)).await;
    assert_eq!(reason, "record 0 is placed in partition 2, of 2");
    for count in [0, 2, 4] {
        let reason = reason_of(World::Partitioner, hostile::places(count)).await;
        assert_eq!(reason, format!("the placement names {count} partitions for 3 records"));
    }
    reason_of(World::Partitioner, hostile::places(1 << 30)).await;
    let any = partitioner(&hostile::places_in(u32::MAX), tight()).partition(batch_of(2), 1).await.unwrap();
    assert_eq!(any.partitions, [ANY_PARTITION; 2]);
}

#[tokio::test]
async fn bitmaps_of_the_wrong_size() {
    for bytes in [0, 2] {
        let reason = reason_of(World::Filter, hostile::bitmap_of(bytes)).await;
        assert_eq!(reason, format!("the bitmap has {bytes} bytes where 3 records need 1"));
    }
    reason_of(World::Filter, hostile::bitmap_of(u32::MAX)).await;
}

#[tokio::test]
async fn an_answer_larger_than_allowed_is_not_copied() {
    let reason = reason_of(World::Filter, hostile::large_bitmap(100)).await;
    assert!(!reason.contains("the bitmap has"), "6.5 MB of bitmap were copied: {reason}");
}

#[tokio::test]
async fn rejections_out_of_range() {
    let reason = reason_of(World::Filter, hostile::reject_one(3)).await;
    assert_eq!(reason, "record 3 is rejected, of 3 records in the batch");
}

#[tokio::test]
async fn made_records_that_do_not_hold() {
    let reason = reason_of(World::Filter, hostile::replaces_outside_data()).await;
    assert_eq!(reason, "made record 0 has its value at 2, 3 bytes long, in 4 bytes of data");
    assert!(reason_of(World::Filter, hostile::replaces_out_of_order()).await.contains("do not rise"));
    assert!(reason_of(World::Filter, hostile::replaces_what_is_not_there()).await.contains("1000000"));
    assert!(reason_of(World::Filter, hostile::replaces_with_bad_headers()).await.contains("bad headers"));
}

#[tokio::test]
async fn small_data_does_not_become_many_records() {
    let pool = filter(&hostile::replaces_with_much_of_little(1000), tight());
    let error = pool.apply(batch_of(1000)).await.unwrap_err();
    assert!(matches!(&error, CallError::BadAnswer(reason) if reason.contains("add up")), "{error:?}");
}

#[tokio::test]
async fn log_spam_is_cut() {
    let notes = Arc::new(Notes::default());
    let limits = PluginLimits { call_time: Duration::from_secs(20), ..tight() };
    let component = compiled(&hostile::spams_the_log(World::Filter));
    let pool = FilterPool::new(component, context(), limits.clone(), notes.clone(), 1).unwrap();
    pool.apply(batch_of(3)).await.unwrap();
    let lines = notes.lines.lock();
    assert_eq!(lines.len(), limits.log_lines_per_call_max as usize);
    assert!(lines.iter().all(|(_, line)| line.len() <= limits.log_line_bytes_max));
    assert_eq!(lines[0], (LogLevel::Error, "for tests".to_owned()));
    assert_eq!(*notes.dropped.lock(), 100_000 - limits.log_lines_per_call_max);
}

#[tokio::test]
async fn a_leak_is_its_instances_own() {
    let pool = filter(&hostile::leaks(World::Filter), tight());
    let mut refused = 0;
    for _ in 0..50 {
        match pool.apply(batch_of(3)).await {
            Ok(_) => assert!(pool.idle_memory_bytes() <= tight().memory_bytes_max),
            Err(CallError::OutOfMemory { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((4..=10).contains(&refused), "about each eighth call starts afresh: {refused} of 50 failed");
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test]
async fn the_brokers_memory_does_not_grow() {
    let grows = filter(&hostile::grows(World::Filter), tight());
    let traps = partitioner(&hostile::traps(World::Partitioner), tight());
    let large = filter(&hostile::large_bitmap(100), tight());
    let mut after_some = 0;
    for round in 0..300 {
        grows.apply(batch_of(100)).await.unwrap_err();
        traps.partition(batch_of(100), 2).await.unwrap_err();
        large.apply(batch_of(100)).await.unwrap_err();
        if round == 100 {
            after_some = resident_bytes();
        }
    }
    // Other tests of this process run at the same time, so this can only notice what grows with the calls: 200 times 8 MiB.
    let grown = resident_bytes().saturating_sub(after_some);
    assert!(grown < 400 << 20, "{grown} bytes more after 600 further failing calls");
}

fn small_engine(instances_max: u32) -> Engine {
    Engine::new(EngineConfig { instances_max, ..EngineConfig::default() }).unwrap()
}

async fn running(compiled: &Compiled) -> Result<ConsumerInstance, CallError> {
    let host = Box::new(MemoryHost::default());
    ConsumerInstance::start(compiled.clone(), context(), tight(), null_sink(), host).await
}

#[tokio::test]
async fn instances_are_bounded() {
    let compiled = small_engine(3).compile_here(&hostile::relay()).unwrap();
    let mut running_now = Vec::new();
    for _ in 0..3 {
        running_now.push(running(&compiled).await.unwrap());
    }
    let error = running(&compiled).await.err().unwrap();
    assert!(matches!(&error, CallError::NoCapacity(reason) if reason.starts_with("3 of 3")), "{error:?}");
    running_now.pop();
    running(&compiled).await.unwrap();
}

#[tokio::test]
async fn instances_that_wait_make_room() {
    let compiled = small_engine(3).compile_here(&hostile::keep_all()).unwrap();
    let start = || FilterPool::new(compiled.clone(), context(), tight(), null_sink(), 4).unwrap();
    let pools: Vec<_> = (0..6).map(|_| start()).collect();
    for pool in &pools {
        pool.apply(batch_of(1)).await.unwrap();
    }
    assert!(pools.iter().map(FilterPool::idle).sum::<usize>() <= 3);
}

#[tokio::test]
async fn subscriptions_and_tasks_leave_room_for_producers() {
    let engine = small_engine(16);
    let task = engine.compile_here(&hostile::relay()).unwrap();
    let mut tasks = Vec::new();
    let full = loop {
        match running(&task).await {
            Ok(running) => tasks.push(running),
            Err(full) => break full,
        }
    };
    assert!(matches!(full, CallError::NoCapacity(_)), "{full:?}");
    assert_eq!(tasks.len(), 14);
    let keep_all = engine.compile_here(&hostile::keep_all()).unwrap();
    let by_length = engine.compile_here(&hostile::by_key_length()).unwrap();
    let filter = FilterPool::new(keep_all, context(), tight(), null_sink(), 4).unwrap();
    let partitioner = PartitionerPool::new(by_length, context(), tight(), null_sink()).unwrap();
    filter.apply_for(Claim::Produce, batch_of(1)).await.unwrap();
    partitioner.partition(batch_of(1), 2).await.unwrap();
    let error = filter.apply(batch_of(1)).await.unwrap_err();
    assert!(matches!(error, CallError::NoCapacity(_)), "the producers' instance is not lent: {error:?}");
}
