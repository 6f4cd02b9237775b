//! Filters and partitioners: an instance that trapped gets no other call.

use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tidemill_hosting::*;
use tidemill_protocol::Timestamp;

use crate::kit::*;

async fn asked(filter: &Filter, keys: &[Option<&str>]) -> Result<Kept, CallFailureKind> {
    let place = BatchPlace { topic: 0, partition: 0 };
    let outcome = filter.apply(&batch(keys, 5), place, Timestamp::new(9), Lane::Produce).await;
    outcome.map(|outcome| outcome.kept).map_err(|failure| failure.kind)
}

#[tokio::test]
async fn a_filters_instance_lives_on_until_it_traps() {
    let room = Room::new();
    let plan = room.plugin(hostile::keeps_its_first_call_or_traps()).await;
    let filter = room.hosting.filter(&plan).await.expect("it opens");
    assert_eq!(asked(&filter, &keys_but(2, &[])).await, Ok(Kept::All));
    assert_eq!(asked(&filter, &keys_but(2, &[])).await, Ok(Kept::None), "the same instance");
    assert_eq!(asked(&filter, &keys_but(2, &[0])).await, Err(CallFailureKind::Trapped));
    assert_eq!(asked(&filter, &keys_but(2, &[])).await, Ok(Kept::All), "another one");
    let counters = room.hosting.counters(DEPLOYMENT);
    assert_eq!((counters["calls"], counters["records_in"], counters["failures"]), (4, 8, 1));
}

#[tokio::test]
async fn a_failure_that_a_filter_answers_with_is_a_value() {
    let room = Room::new();
    for (component, retry) in
        [(hostile::asks_to_retry(World::Filter), true), (hostile::refuses_the_batch(World::Filter), false)]
    {
        let plan = room.plugin(component).await;
        let filter = room.hosting.filter(&plan).await.expect("it opens");
        assert_eq!(asked(&filter, &keys_but(1, &[])).await, Err(CallFailureKind::Failed { retry }));
    }
}

#[tokio::test]
async fn each_misdeed_of_a_filter_has_its_kind_and_the_next_call_works() {
    let room = Room::new();
    for (component, kind) in [
        (hostile::traps(World::Filter), CallFailureKind::Trapped),
        (hostile::loops(World::Filter), CallFailureKind::TimedOut),
        (hostile::grows(World::Filter), CallFailureKind::OutOfMemory),
        (hostile::bitmap_of(9), CallFailureKind::BadAnswer),
        (hostile::replaces_outside_data(), CallFailureKind::BadAnswer),
    ] {
        let plan = room.plugin(component).await;
        let filter = room.hosting.filter(&plan).await.expect("it opens");
        for _ in 0..2 {
            assert_eq!(asked(&filter, &keys_but(2, &[])).await, Err(kind));
        }
    }
    let good = room.hosting.filter(&room.plugin(hostile::keep_all()).await).await.expect("it opens");
    assert_eq!(asked(&good, &keys_but(2, &[])).await, Ok(Kept::All));
}

#[tokio::test]
async fn a_partitioner_remembers_nothing() {
    let room = Room::new();
    let plan = room.plugin(hostile::places_by_memory()).await;
    let partitioner = room.hosting.partitioner(&plan).await.expect("it opens");
    for _ in 0..3 {
        let placed = partitioner.place(&batch(&keys_but(1, &[]), 5), 8, 0, Timestamp::new(5)).await;
        assert_eq!(placed.expect("an answer").partitions, [2]);
    }
}

#[tokio::test]
async fn a_partitioner_that_failed_serves_the_next_batch() {
    let room = Room::new();
    for (component, kind) in [
        (hostile::traps(World::Partitioner), CallFailureKind::Trapped),
        (hostile::loops(World::Partitioner), CallFailureKind::TimedOut),
        (hostile::places_in(8), CallFailureKind::BadAnswer),
        (hostile::places(5), CallFailureKind::BadAnswer),
    ] {
        let partitioner = room.hosting.partitioner(&room.plugin(component).await).await.expect("it opens");
        for _ in 0..2 {
            let placed = partitioner.place(&batch(&keys_but(2, &[]), 5), 8, 0, Timestamp::new(5)).await;
            assert_eq!(placed.map_err(|failure| failure.kind), Err(kind));
        }
    }
}

#[tokio::test]
async fn records_that_may_go_anywhere_stay_together() {
    let room = Room::new();
    let plan = room.plugin(hostile::by_key_length()).await;
    let partitioner = room.hosting.partitioner(&plan).await.expect("it opens");
    let keys = [None, Some("a"), None];
    for (tie, partitions) in [(0, [0, 1, 0]), (5, [1, 1, 1]), (7, [3, 1, 3])] {
        let placed = partitioner.place(&batch(&keys, 5), 4, tie, Timestamp::new(5)).await;
        assert_eq!(placed.expect("an answer").partitions, partitions);
    }
}

#[tokio::test]
async fn a_component_of_another_world_is_not_opened() {
    let room = Room::new();
    let plan = room.plugin(hostile::keep_all()).await;
    let error = room.hosting.partitioner(&plan).await.err().expect("an error");
    assert!(error.to_string().contains("is a filter, not a partitioner"), "{error}");
    let lost = PluginPlan { digest: [9; 32], ..plan };
    let error = room.hosting.filter(&lost).await.err().expect("an error");
    assert!(error.to_string().contains("upload the plugin again"), "{error}");
}
