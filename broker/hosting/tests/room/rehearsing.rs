//! Rehearsals: what they show, and what they find.

use tidemill_hostile as hostile;
use tidemill_hostile::{Misdeed, World};
use tidemill_hosting::*;
use tidemill_protocol::Timestamp;

use crate::kit::*;

/// Records with these keys, one each 100 ms from second 1 on.
fn records(keys: &[Option<&str>]) -> Vec<PlainRecord> {
    let record = |(number, key): (i64, &Option<&str>)| PlainRecord {
        key: key.map(|key| key.to_owned().into()),
        value: Some("v".into()),
        headers: Vec::new(),
        timestamp: Timestamp::new(1000 + 100 * number),
    };
    (0..).zip(keys).map(record).collect()
}

async fn rehearsal(room: &Room, component: Vec<u8>, keys: &[Option<&str>]) -> Rehearsal {
    let mut plugin = room.plugin(component).await;
    if plugin.kind == PluginKind::Consumer {
        plugin.targets = vec!["target".to_owned()];
    }
    Rehearsal {
        plugin,
        records: records(keys),
        records_per_call: 1000,
        partitions: 4,
        target_partitions: vec![1],
        state_bytes_max: 1 << 20,
        run_timers_for_ms: 0,
        compared_outputs: ComparedOutputs::All,
    }
}

async fn played(component: Vec<u8>, keys: &[Option<&str>]) -> Rehearsed {
    let room = Room::new();
    let rehearsal = rehearsal(&room, component, keys).await;
    room.hosting.rehearse(&rehearsal).await.expect("it is played")
}

fn answers(run: &Run) -> Vec<Answer> {
    run.verdicts.iter().map(|verdict| verdict.answer.clone()).collect()
}

#[tokio::test]
async fn a_filters_answers_are_told_record_by_record() {
    let same = played(hostile::redact_first(), &keys_but(1, &[])).await;
    assert!(same.difference.is_none() && same.first.failure.is_none());
    let replaced = PlainRecord { value: None, ..records(&keys_but(1, &[])).remove(0) };
    assert_eq!(answers(&same.first), [Answer::Replaced(replaced)]);
    assert!(same.first.bytes_out > 0 && same.first.bytes_out < same.first.bytes_in);
    let rejected = played(hostile::reject_one(0), &keys_but(1, &[])).await;
    assert_eq!(answers(&rejected.first), [Answer::Rejected("not this one".to_owned())]);
    let kept = played(hostile::keep_all(), &keys_but(9, &[])).await;
    assert_eq!(answers(&kept.first), vec![Answer::Kept; 9]);
    assert_eq!(kept.first.bytes_out, kept.first.bytes_in);
    let call = &kept.first.calls[0];
    assert_eq!((call.records.clone(), kept.first.calls.len()), (0..9, 1));
    assert!(call.cost.memory_bytes >= 65536 && !call.cost.wall.is_zero() && !call.cost.cpu.is_zero());
    assert!(kept.second.expect("a second run").calls.len() > 1);
}

#[tokio::test]
async fn a_partitioners_answers_are_told_record_by_record() {
    let keys = [Some(""), Some("a"), None, Some("aaaaa")];
    let placed = played(hostile::by_key_length(), &keys).await;
    let expected = [Answer::Placed(0), Answer::Placed(1), Answer::PlacedAnywhere, Answer::Placed(1)];
    assert_eq!(answers(&placed.first), expected);
    assert!(placed.difference.is_none());
}

#[tokio::test]
async fn an_answer_that_depends_on_the_cuts_is_found_at_its_first_record() {
    for (component, before, after) in [
        (hostile::keeps_the_first_of_each_call(), Answer::Dropped, Answer::Kept),
        (hostile::places_in_turn(), Answer::Placed(1), Answer::Placed(0)),
    ] {
        let found = played(component, &keys_but(9, &[])).await.difference.expect("they differ");
        assert_eq!(found.cause, Cause::Cuts);
        let DifferenceAt::Verdict { record, first, second } = found.at else { panic!("{found:?}") };
        // The second run's first call has one record.
        assert_eq!((record, first.answer, second.answer), (1, before, after));
    }
}

#[tokio::test]
async fn an_answer_that_depends_on_what_an_instance_remembers_is_found() {
    let room = Room::new();
    let mut filter = rehearsal(&room, hostile::keeps_its_first_call(), &keys_but(9, &[])).await;
    filter.records_per_call = 3;
    let found = room.hosting.rehearse(&filter).await.expect("it is played").difference.expect("they differ");
    assert_eq!(found.cause, Cause::Memory);
    let DifferenceAt::Verdict { record, .. } = found.at else { panic!("{found:?}") };
    assert_eq!(record, 3, "in the first run's second call");
    let mut counter = rehearsal(&room, hostile::counts_in_memory(), &keys_but(9, &[])).await;
    counter.records_per_call = 3;
    let found = room.hosting.rehearse(&counter).await.expect("it is played").difference.expect("they differ");
    assert_eq!(found.cause, Cause::Memory);
    let DifferenceAt::State { key, first, .. } = found.at else { panic!("{found:?}") };
    assert_eq!((&key[..], &first.expect("a value")[..]), (&b"n"[..], &9_u64.to_le_bytes()[..]));
}

#[tokio::test]
async fn outputs_are_compared_all_or_the_last_of_each_key() {
    let room = Room::new();
    let component = hostile::emits_the_last_of_each_call();
    let mut rehearsal = rehearsal(&room, component, &[Some("a"), Some("a"), Some("a")]).await;
    let found = room.hosting.rehearse(&rehearsal).await.expect("played").difference.expect("they differ");
    let DifferenceAt::Emitted { number, same_by_key, first, second } = found.at else { panic!("{found:?}") };
    assert!(same_by_key, "the last one of the key is the same");
    assert_eq!((number, first.is_some(), second.is_some()), (1, false, true));
    rehearsal.compared_outputs = ComparedOutputs::LastOfKey;
    assert!(room.hosting.rehearse(&rehearsal).await.expect("played").difference.is_none());
    // With other keys the last ones differ too.
    rehearsal.records = records(&keys_but(3, &[]));
    let found = room.hosting.rehearse(&rehearsal).await.expect("played").difference;
    assert!(matches!(found, Some(Difference { cause: Cause::Cuts, .. })), "{found:?}");
}

#[tokio::test]
async fn a_consumer_shows_outputs_state_and_timers() {
    let room = Room::new();
    let mut rehearsal = rehearsal(&room, hostile::does_everything(), &keys_but(4, &[])).await;
    let run = room.hosting.rehearse(&rehearsal).await.expect("played").first;
    assert_eq!(answers(&run), vec![Answer::Handled; 4]);
    let keys: Vec<_> = run.emitted.iter().filter_map(|emitted| emitted.record.key.clone()).collect();
    assert_eq!(keys, ["0", "1", "2", "3"]);
    assert_eq!(run.entries, [("n".into(), 4_u64.to_le_bytes().to_vec().into())]);
    // The last record is at 1300.
    assert_eq!(run.timers, [("i".into(), Timestamp::new(2300))]);
    assert!(run.fired.is_empty());
    rehearsal.run_timers_for_ms = 1000;
    let run = room.hosting.rehearse(&rehearsal).await.expect("played").first;
    assert_eq!(run.fired.iter().map(|timer| timer.at.get()).collect::<Vec<_>>(), [2300]);
    assert_eq!(run.calls.last().expect("calls").now.get(), 2300);
    assert!(run.timers.is_empty());
    assert_eq!(run.emitted.last().expect("outputs").record.value.as_deref(), Some(&b"tick"[..]));
}

#[tokio::test]
async fn timers_fire_between_the_records_at_their_own_time() {
    let room = Room::new();
    let mut rehearsal = rehearsal(&room, hostile::relay(), &keys_but(3, &[])).await;
    rehearsal.records_per_call = 1;
    rehearsal.records[1].timestamp = Timestamp::new(1500);
    rehearsal.records[2].timestamp = Timestamp::new(60_000);
    let run = room.hosting.rehearse(&rehearsal).await.expect("played").first;
    // Moved by the second record to 2500, which is before the third one.
    let fired: Vec<_> =
        run.fired.iter().map(|timer| (timer.at.get(), run.calls[timer.call].now.get())).collect();
    assert_eq!(fired, [(2500, 2500)]);
    let calls: Vec<_> = run.calls.iter().map(|call| (call.records.clone(), call.timers)).collect();
    assert_eq!(calls, [(0..1, 0), (1..2, 0), (0..0, 1), (2..3, 0)]);
}

#[tokio::test]
async fn what_a_consumer_leaves_and_rejects_is_told() {
    let run = played(hostile::one_at_a_time(), &keys_but(4, &[2])).await.first;
    let rejected = Answer::Rejected("not this one".to_owned());
    assert_eq!(answers(&run), [Answer::Handled, Answer::Handled, rejected, Answer::Handled]);
    assert_eq!(run.calls.len(), 4);
}

#[tokio::test]
async fn a_failure_names_its_record() {
    for misdeed in [Misdeed::Trap, Misdeed::Loop, Misdeed::Grow, Misdeed::Retry, Misdeed::Reject] {
        let keys = keys_but(13, &[10]);
        let rehearsed = played(hostile::misbehaves_at_a_null_key(misdeed), &keys).await;
        let failure = rehearsed.first.failure.expect("it fails");
        assert_eq!(failure.at, FailedAt::Record(10), "{misdeed:?}");
        assert_eq!(rehearsed.first.verdicts.len(), 10, "{misdeed:?}: those before it are answered");
        assert!(rehearsed.second.is_none());
    }
    let first = played(hostile::traps(World::Partitioner), &keys_but(9, &[])).await.first;
    assert_eq!(first.failure.expect("it fails").at, FailedAt::Record(0));
    let trap = hostile::keeps_its_first_call_or_traps();
    let failure = played(trap, &keys_but(4, &[0])).await.first.failure.expect("it fails");
    assert_eq!((failure.at, failure.failure.kind), (FailedAt::Record(0), CallFailureKind::Trapped));
}

#[tokio::test]
async fn a_failure_in_timers_names_the_timer() {
    let room = Room::new();
    let component = hostile::misbehaves_in_timers(Misdeed::Trap);
    let mut rehearsal = rehearsal(&room, component, &keys_but(2, &[])).await;
    rehearsal.run_timers_for_ms = 5000;
    let failure = room.hosting.rehearse(&rehearsal).await.expect("played").first.failure.expect("it fails");
    assert_eq!(failure.at, FailedAt::Timer("i".into()));
}

/// A batch that fails only as a whole is a failure, but the rest is seen.
#[tokio::test]
async fn records_that_fail_only_together_are_named_together() {
    // Its bitmap is right for 9 to 16 records.
    let rehearsed = played(hostile::bitmap_of(2), &keys_but(16, &[])).await;
    assert!(rehearsed.first.failure.is_none());
    let found = rehearsed.difference.expect("the second run has smaller calls");
    let DifferenceAt::Failure(failure) = found.at else { panic!("{found:?}") };
    assert_eq!(failure.at, FailedAt::Record(0));
}

#[tokio::test]
async fn a_plugin_that_does_not_start_is_told() {
    let room = Room::new();
    for world in [World::Filter, World::Partitioner] {
        let rehearsal = rehearsal(&room, hostile::refuses_its_config(world), &keys_but(2, &[])).await;
        let Err(error) = room.hosting.rehearse(&rehearsal).await else { panic!("it starts") };
        let error = error.to_string();
        assert!(error.contains("not this one"), "{error}");
    }
    let consumer = played(hostile::refuses_its_config(World::Consumer), &keys_but(2, &[])).await;
    let failure = consumer.first.failure.expect("it fails");
    assert!(failure.failure.message.contains("not this one"), "{failure:?}");
}
