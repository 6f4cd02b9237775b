//! What a call did is committed as one step, or not at all; an instance whose step did not commit is thrown away.

use std::time::Duration;

use tidemill_hostile as hostile;
use tidemill_hosting::*;
use tidemill_protocol::Offset;

use crate::faulty::Fault;
use crate::kit::*;

/// What a component that counts has under `n`.
fn counted(task: &MemoryTask) -> Option<u64> {
    let (_, value) = task.entries.iter().find(|(key, _)| &key[..] == b"n")?;
    Some(u64::from_le_bytes(value[..].try_into().expect("8 bytes")))
}

#[tokio::test]
async fn output_state_timers_and_position_are_one_step() {
    let stage = StageOptions::default().set(hostile::does_everything()).await;
    stage.port.fail([Fault::Refused(StepRefusal::Outdated("test".to_owned())), Fault::Lost]);
    stage.append(&keys_but(3, &[]), 1000);
    stage.run();
    stage.reaches(3).await;
    let attempts = stage.attempts();
    assert_eq!(attempts.len(), 3, "refused, lost, committed");
    for attempt in &attempts[..2] {
        assert_ne!(attempt.outcome, Ok(StepOutcome::Committed));
        assert_eq!(attempt.before, attempt.after, "nothing of it is done");
    }
    let (before, after) = (&attempts[2].before, &attempts[2].after);
    assert_eq!((before.positions[0].1.get(), after.positions[0].1.get()), (0, 3));
    assert_eq!((counted(before), counted(after)), (None, Some(3)));
    assert_eq!((before.timers.len(), after.timers.len()), (0, 1));
    assert_eq!(attempts[2].step.outputs.len(), 1);
    assert_eq!(stage.contents(target()), ["0", "1", "2"], "and once");
}

#[tokio::test]
async fn an_instance_whose_step_did_not_commit_is_thrown_away() {
    let stage = StageOptions::default().set(hostile::counts_in_memory()).await;
    stage.append(&keys_but(3, &[]), 1000);
    stage.run();
    stage.reaches(3).await;
    assert_eq!(counted(&stage.task()), Some(3));
    stage.append(&keys_but(2, &[]), 1000);
    stage.reaches(5).await;
    assert_eq!(counted(&stage.task()), Some(5), "while all goes well, the instance lives on");
    for fault in [Fault::Refused(StepRefusal::Outdated("test".to_owned())), Fault::Lost] {
        stage.port.fail([fault]);
        let position = stage.position();
        stage.append(&keys_but(2, &[]), 1000);
        stage.reaches(position + 2).await;
        assert_eq!(counted(&stage.task()), Some(2), "another one began anew");
    }
}

#[tokio::test]
async fn a_step_that_was_done_unheard_is_not_done_again() {
    let stage = StageOptions::default().set(hostile::does_everything()).await;
    stage.port.fail([Fault::DoneUnheard]);
    stage.append(&keys_but(3, &[]), 1000);
    stage.run();
    stage.reaches(3).await;
    stage.append(&keys_but(1, &[]), 1000);
    stage.reaches(4).await;
    assert_eq!(counted(&stage.task()), Some(4));
    assert_eq!(stage.contents(target()), ["0", "1", "2", "0"]);
    assert!(stage.log().contains("the shard did not answer"), "{}", stage.log());
}

#[tokio::test]
async fn a_task_of_another_epoch_does_nothing() {
    let stage = StageOptions::default().set(hostile::relay()).await;
    stage.port.shard.set_epoch(DEPLOYMENT, PARTITION, EPOCH + 1);
    stage.append(&keys_but(3, &[]), 1000);
    stage.run();
    // The new plan's task does; that the old one did nothing shows in what there is then.
    let next = TaskPlan { epoch: EPOCH + 1, ..stage.plan.clone() };
    stage.room.hosting.reconcile(vec![next]);
    stage.reaches(3).await;
    assert!(stage.attempts().iter().all(|attempt| attempt.step.epoch == EPOCH + 1));
    assert_eq!(stage.contents(target()), ["0", "1", "2"]);
    stage.room.hosting.reconcile(Vec::new());
    assert_eq!(stage.room.hosting.task_count(), 0);
}

#[tokio::test]
async fn what_a_call_leaves_comes_again() {
    let keys = keys_but(5, &[]);
    let stage = StageOptions::default().play(hostile::one_at_a_time(), &keys).await;
    stage.reaches(5).await;
    eventually("each is a step of its own", || stage.step_sizes() == [1, 1, 1, 1, 1]).await;
    assert_eq!(stage.counter("records_in"), 5);
}

#[tokio::test]
async fn two_sources_are_read_in_turn() {
    let options = StageOptions { second_source: Some(partition_of(9)), ..StageOptions::default() };
    let stage = options.set(hostile::one_at_a_time()).await;
    stage.append(&keys_but(3, &[]), 1000);
    stage.port.shard.append(partition_of(9), &batch(&keys_but(3, &[]), 1000), stage.port.shard.now());
    stage.run();
    eventually("all are read", || stage.attempts().len() == 6).await;
    let sources: Vec<_> = stage.attempts().iter().map(|attempt| attempt.step.positions[0].source).collect();
    let (a, b) = (source(), partition_of(9));
    assert_eq!(sources, [a, b, a, b, a, b]);
}

/// Each source has its own tries: one that goes well does not hide that another one does not.
#[tokio::test]
async fn a_source_that_goes_well_does_not_hide_one_that_fails() {
    let busy = partition_of(9);
    let options = StageOptions { second_source: Some(busy), attempts: 3, ..StageOptions::default() };
    let stage = options.set(hostile::misbehaves_at_a_null_key(hostile::Misdeed::Retry)).await;
    // As soon as a record of it is done, it has the next one.
    let more = batch(&keys_but(1, &[]), 1000);
    stage.port.shard.append(busy, &more, stage.port.shard.now());
    stage.port.watch(move |shard, attempt| {
        if attempt.step.positions.iter().any(|step| step.source == busy) {
            shard.append(busy, &more, shard.now());
        }
    });
    stage.append(&keys_but(2, &[0]), 1000);
    stage.run();
    stage.reaches(2).await;
    assert_eq!(stage.counter("skipped"), 1, "{}", stage.log());
}

/// The same of timers: here one that is due all the time.
#[tokio::test]
async fn timers_that_go_well_do_not_hide_a_record_that_fails() {
    let options = StageOptions { attempts: 3, ..StageOptions::default() };
    let stage = options.set(hostile::misbehaves_at_a_null_key(hostile::Misdeed::Retry)).await;
    stage.append(&keys_but(1, &[]), 1000);
    stage.run();
    stage.reaches(1).await;
    // Each failed try is followed by a round in which a timer fires.
    let (shard, fails) = (std::sync::Arc::clone(&stage.port.shard), keys_but(1, &[0]));
    stage.append(&fails, 1000);
    let key = TaskKey { deployment: DEPLOYMENT, partition: PARTITION, home: source() };
    let timer = TimerChange { key: "again".into(), at: Some(shard.now()) };
    let firing = async {
        loop {
            let step = TaskStep { epoch: EPOCH, timers: vec![timer.clone()], ..TaskStep::default() };
            shard.commit(key, step).await.expect("it is taken");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = firing => {}
        () = stage.reaches(2) => {}
    }
    assert_eq!(stage.counter("skipped"), 1, "{}", stage.log());
}

/// Whatever the policy, no record is given up because the plugin does not start.
#[tokio::test]
async fn an_instance_that_does_not_start_is_no_records_fault() {
    let component = hostile::refuses_its_config(hostile::World::Consumer);
    let stage = StageOptions::default().play(component, &keys_but(3, &[])).await;
    eventually("it is told", || !stage.log().is_empty()).await;
    let log = stage.log();
    assert!(log.contains("does not start") && log.contains("not this one"), "{log}");
    // It tries again, and says so once.
    let fetches = stage.port.fetches().len();
    eventually("it tries again", || stage.port.fetches().len() > fetches + 2).await;
    assert_eq!(stage.log(), log);
    assert_eq!((stage.position(), stage.counter("skipped")), (0, 0));
}

/// What retention let go before the task came to it: a step goes past it, whether records follow or not.
#[tokio::test]
async fn what_the_log_let_go_is_gone_past_once_and_told() {
    for (left, stands) in [(0, 8), (3, 8)] {
        let stage = StageOptions::default().set(hostile::relay()).await;
        stage.append(&keys_but(5, &[]), 1000);
        stage.append(&keys_but(3, &[]), 1000);
        stage.port.shard.advance_start(source(), Offset::new(8 - left));
        stage.run();
        stage.reaches(stands).await;
        let lost = u64::try_from(8 - left).expect("not negative");
        let steps: &[u64] = if left == 0 { &[8] } else { &[5, 3] };
        // A step is noted just after it stands.
        eventually("what is lost is a step of its own", || stage.step_sizes() == steps).await;
        stage.counts("records_lost", lost).await;
        assert_eq!(stage.counter("records_in"), 8 - lost);
        assert_eq!(stage.contents(target()).len(), usize::try_from(left).expect("not negative"));
        let log = stage.log();
        assert_eq!(log.matches("retention let go").count(), 1, "{log}");
        assert!(log.contains(&format!("source-0 begins at offset {lost}")), "{log}");
        // It has nothing to do then: it waits, and does not look again and again.
        let fetches = stage.port.fetches().len();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(stage.port.fetches().len() <= fetches + 2, "it spins");
        stage.append(&keys_but(1, &[]), 1000);
        stage.reaches(9).await;
    }
}

/// Whatever keeps a task from coming on is in the deployment's log, once, and so is that it goes on.
#[tokio::test]
async fn a_task_that_does_not_come_on_says_why_once() {
    let outdated = Fault::Refused(StepRefusal::Outdated("the task stands elsewhere".to_owned()));
    let stage = StageOptions::default().set(hostile::relay()).await;
    stage.port.fail(vec![outdated; 30]);
    stage.append(&keys_but(1, &[]), 1000);
    stage.run();
    let waits = || stage.room.hosting.waits(DEPLOYMENT, PARTITION);
    eventually("it is told", || waits().is_some_and(|reason| reason.contains("stands elsewhere"))).await;
    assert_eq!(stage.position(), 0);
    stage.reaches(1).await;
    eventually("it goes on", || waits().is_none()).await;
    let log = stage.log();
    assert_eq!((log.matches("stands elsewhere").count(), log.matches("goes on").count()), (1, 1), "{log}");
}

/// A failure between two tries does not make the same trouble news.
#[tokio::test]
async fn a_step_that_can_never_be_is_told_once_however_often_its_call_is_tried() {
    let options = StageOptions { policy: to_dead_letter(), attempts: 2, ..StageOptions::default() };
    let component = hostile::misbehaves_at_a_null_key(hostile::Misdeed::Trap);
    let stage = options.set(component).await;
    stage.port.fail(vec![Fault::Refused(StepRefusal::Failed("the step is too large".to_owned())); 4]);
    stage.append(&keys_but(1, &[0]), 1000);
    stage.run();
    stage.reaches(1).await;
    stage.counts("dead_lettered", 1).await;
    assert_eq!(stage.counter("calls"), 10, "two tries, five times");
    let log = stage.log();
    assert_eq!(log.matches("too large").count(), 1, "{log}");
    eventually("its record is told, too, with the kind", || stage.log().matches("(trapped)").count() == 1)
        .await;
}
