//! Outputs on their way to other shards, and what a full outbox does.

use tidemill_hostile as hostile;
use tidemill_hosting::*;

use crate::kit::*;

#[tokio::test]
async fn a_full_outbox_makes_the_task_wait_and_loses_nothing() {
    let limits = MemoryLimits { outbox_bytes_max: 100, state_bytes_max: 1 << 20 };
    let options = StageOptions { limits, remote: true, ..StageOptions::default() };
    let stage = options.play(hostile::does_everything(), &keys_but(1, &[])).await;
    // The first step passes whatever it weighs, or it never would.
    stage.reaches(1).await;
    stage.append(&keys_but(2, &[]), 1000);
    eventually("it waits", || stage.counter("outbox_waits") > 0).await;
    assert_eq!(stage.position(), 1);
    let waits = || stage.room.hosting.waits(DEPLOYMENT, PARTITION);
    eventually("it is told", || waits().is_some_and(|reason| reason.contains("another shard"))).await;
    let refused =
        stage.attempts().into_iter().filter(|attempt| attempt.outcome == full()).collect::<Vec<_>>();
    assert!(refused.iter().all(|attempt| attempt.before == attempt.after), "nothing of the step is done");
    // What is carried away makes room.
    assert!(stage.port.shard.deliver(target()).is_some());
    stage.reaches(3).await;
    assert_eq!(stage.counter("calls"), 2, "the step waited, not the call");
    assert_eq!(waits(), None);
    assert_eq!(stage.log().matches("another shard").count(), 1, "{}", stage.log());
    let more = stage.port.shard.deliver(target()).expect("the second step's");
    assert_eq!(stage.port.shard.deliver(target()), None);
    assert!(!more.is_empty());
}

/// One pauses a task for just that reason: it does not go on by it.
#[tokio::test]
async fn a_task_that_is_paused_while_it_waits_does_not_say_that_it_goes_on() {
    let limits = MemoryLimits { outbox_bytes_max: 100, state_bytes_max: 1 << 20 };
    let options = StageOptions { limits, remote: true, ..StageOptions::default() };
    let stage = options.play(hostile::relay(), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    stage.append(&keys_but(2, &[]), 1000);
    let waits = || stage.room.hosting.waits(DEPLOYMENT, PARTITION);
    eventually("it is told", || waits().is_some_and(|reason| reason.contains("another shard"))).await;
    let key = TaskKey { deployment: DEPLOYMENT, partition: PARTITION, home: source() };
    let paused = TaskRunState::Paused("by hand".to_owned());
    stage.port.set_state(key, EPOCH, paused).await.expect("it is noted");
    eventually("a paused task waits for nothing", || waits().is_none()).await;
    assert!(stage.port.shard.deliver(target()).is_some());
    stage.port.set_state(key, EPOCH, TaskRunState::Running).await.expect("it is noted");
    stage.reaches(3).await;
    let log = stage.log();
    assert!(!log.lines().any(|line| line.ends_with("info goes on")), "{log}");
}

fn full() -> Result<StepOutcome, PortError> {
    Ok(StepOutcome::Refused(StepRefusal::OutboxFull))
}

#[tokio::test]
async fn a_target_that_is_gone_is_the_policys_business() {
    let stage = StageOptions::default().set(hostile::relay()).await;
    stage.port.shard.delete_topic(target().topic);
    stage.append(&keys_but(2, &[]), 1000);
    stage.run();
    stage.reaches(2).await;
    assert_eq!(stage.counter("skipped"), 2);
    assert!(stage.log().contains("was deleted"), "{}", stage.log());
}

#[tokio::test]
async fn a_target_that_the_plan_does_not_name_is_told_to_the_plugin() {
    // It traps unless it is taken.
    let stage = StageOptions::default().play(hostile::relay_to(7), &keys_but(1, &[])).await;
    stage.reaches(1).await;
    assert_eq!((stage.counter("traps"), stage.counter("skipped")), (1, 1));
    assert!(stage.contents(target()).is_empty());
}

/// Outputs go where the target's own partitioner says; one that it refuses fails the call.
#[tokio::test]
async fn outputs_pass_the_targets_partitioner() {
    let mut stage = StageOptions::default().set(hostile::relay()).await;
    let partitioner = stage.room.plugin(hostile::by_key_length()).await;
    let partitions: Vec<_> = (0..3)
        .map(|number| {
            tidemill_protocol::TopicPartition::new(
                target().topic,
                tidemill_protocol::PartitionId::new(number),
            )
        })
        .collect();
    partitions.iter().for_each(|partition| stage.port.shard.create_partition(*partition));
    stage.plan.targets[0] =
        TargetPlan { partitions: 3, partitioner: Some(partitioner), ..target_plan("target", target()) };
    stage.append(&[Some(""), Some("a"), Some("bb"), Some("ccc"), None], 1000);
    stage.run();
    stage.reaches(5).await;
    let placed: Vec<_> = partitions.iter().map(|partition| stage.contents(*partition)).collect();
    // A null key may go anywhere: with the task's own number, 0.
    assert_eq!(placed, [vec!["", "ccc", "v"], vec!["a"], vec!["bb"]]);
    // And one that answers nonsense is the call's failure.
    stage.plan.targets[0].partitioner = Some(stage.room.plugin(hostile::places_in(9)).await);
    // First, so that the task as it was does not take the record.
    stage.run();
    stage.append(&keys_but(1, &[]), 1000);
    stage.reaches(6).await;
    assert_eq!(stage.counter("skipped"), 1);
    assert!(stage.log().contains("partition 9, of 3"), "{}", stage.log());
}
