//! The producer of batches that the broker partitions, against one that misbehaves.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{FakeBroker, Fault, TOPIC, value, within};
use tidemill_client::{
    BatchBuilder, BuilderOptions, Delivery, DeliveryError, ErrorCode, PartitionId, Producer, Receipt, Record,
    SendError, Timestamp,
};

/// Each record is a batch of its own.
async fn producer(broker: &FakeBroker) -> Producer {
    let client = broker.client().await;
    client.producer(TOPIC).routed().linger(Duration::ZERO).build().await.expect("a producer")
}

/// Sends a record in a batch of its own, though the one before it may not have gone out yet.
async fn send_alone(producer: &Producer, number: usize) -> Delivery {
    let mut batch = BatchBuilder::new(BuilderOptions::default());
    batch.append(Timestamp::new(1), None, Some(value(number).as_bytes()), []).expect("room");
    let batch = batch.build_batch().expect("a record");
    producer.send_batch(None::<PartitionId>, batch).await.expect("taken")
}

#[tokio::test]
async fn a_routed_batch_that_is_stored_in_part_fails_and_says_what_is_stored() {
    let broker = FakeBroker::start(2);
    let producer = producer(&broker).await;
    broker.model.script([Fault::Honest, Fault::Refuse(ErrorCode::PartlyStored)]);
    let mut outcomes = Vec::new();
    for number in 0..4 {
        let delivery = producer.send(Record::new(value(number).as_bytes())).await.expect("taken");
        outcomes.push(within(delivery).await);
    }
    let Err(DeliveryError::PartlyStored { placements, error }) = &outcomes[1] else {
        panic!("{:?}", outcomes[1])
    };
    assert!(error.is(ErrorCode::PartlyStored));
    assert_eq!((placements[0].base_offset.get(), placements[0].record_count), (1, 1));
    assert!([0, 2, 3].iter().all(|n| outcomes[*n].is_ok()));
    assert_eq!(broker.model.values(0), (0..4).map(value).collect::<Vec<_>>(), "each once");
}

/// A shard had not had what comes before it: what is missing comes with it, and the whole is stored once.
#[tokio::test]
async fn a_routed_batch_that_came_too_early_to_a_shard_comes_again() {
    let broker = FakeBroker::start(2);
    let producer = producer(&broker).await;
    broker.model.script([Fault::Honest, Fault::Early]);
    for number in 0..4 {
        let delivery = producer.send(Record::new(value(number).as_bytes())).await.expect("taken");
        let receipt = within(delivery).await.expect("stored");
        let Receipt::Routed { placements } = receipt else { panic!("routed, not {receipt:?}") };
        assert_eq!(placements[0].base_offset.get(), number as i64);
    }
    assert_eq!(broker.model.routed_seen.lock().expect("no panic").len(), 5, "one of them twice");
    assert_eq!(broker.model.values(0), (0..4).map(value).collect::<Vec<_>>(), "each once");
}

/// Nothing of it is stored: it comes again under the number that it has, with what is behind it.
#[tokio::test]
async fn a_routed_batch_that_overtook_another_keeps_its_number() {
    let broker = FakeBroker::start(2);
    let producer = producer(&broker).await;
    broker.model.script([Fault::Honest, Fault::Overtaking, Fault::Overtaking]);
    for number in 0..3 {
        let delivery = producer.send(Record::new(value(number).as_bytes())).await.expect("taken");
        within(delivery).await.expect("stored");
    }
    let seen = broker.model.routed_seen.lock().expect("no panic").clone();
    let numbers: Vec<u64> = seen.iter().map(|batch| batch.topic_sequence).collect();
    assert_eq!(numbers, [0, 1, 1, 1, 2]);
    assert_eq!(broker.model.values(0), (0..3).map(value).collect::<Vec<_>>(), "each once");
}

/// A batch that was given up for want of an answer was stored: what follows it was, so there is no gap.
#[tokio::test]
async fn a_gap_ends_with_what_is_stored_behind_it() {
    let broker = FakeBroker::start(2);
    let client = broker.client().await;
    let producer = client.producer(TOPIC).routed().linger(Duration::ZERO);
    let producer = producer.delivery_timeout(Duration::from_secs(1)).build().await.expect("a producer");
    broker.model.script([Fault::Unheard, Fault::Honest, Fault::Early]);
    let mut outcomes = Vec::new();
    for number in 0..3 {
        let delivery = producer.send(Record::new(value(number).as_bytes())).await.expect("taken");
        outcomes.push(within(delivery).await);
    }
    assert!(matches!(outcomes[0], Err(DeliveryError::TimedOut { sent: true, .. })), "{:?}", outcomes[0]);
    assert!(outcomes[1].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    assert_eq!(broker.model.values(0), (0..3).map(value).collect::<Vec<_>>(), "each once");
}

/// The one before it was given up, and never comes.
#[tokio::test]
async fn a_routed_batch_behind_one_that_was_given_up_fails_and_says_what_is_stored() {
    let broker = FakeBroker::start(2);
    let producer = producer(&broker).await;
    broker.model.script([Fault::Refuse(ErrorCode::PartlyStored), Fault::Early]);
    let mut deliveries = Vec::new();
    for number in 0..2 {
        deliveries.push(producer.send(Record::new(value(number).as_bytes())).await.expect("taken"));
    }
    for delivery in deliveries {
        let outcome = within(delivery).await;
        assert!(matches!(outcome, Err(DeliveryError::PartlyStored { .. })), "{outcome:?}");
    }
}

/// Copies of it, and of the one that is missing before it, may be under way from another broker: under another number it could be
/// stored twice.
#[tokio::test]
async fn a_routed_batch_behind_a_gap_that_was_sent_before_is_not_numbered_anew() {
    let broker = FakeBroker::start(2);
    let client = broker.client().await;
    // As many as come over the first stream.
    let producer = client.producer(TOPIC).routed().in_flight_max(2).build().await.expect("a producer");
    broker.model.script([
        // Both get through in the end, as copies that are under way do.
        Fault::Unheard,
        Fault::ResetAfter,
        // Over the next stream the first is refused before any shard sees it, so that the second has nothing to follow.
        Fault::Refuse(ErrorCode::BatchTooLarge),
        Fault::Refuse(ErrorCode::OutOfOrderSequence),
    ]);
    let mut deliveries = Vec::new();
    for number in 0..3 {
        deliveries.push(send_alone(&producer, number).await);
    }
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(within(delivery).await);
    }
    for (outcome, code) in outcomes.iter().zip([ErrorCode::BatchTooLarge, ErrorCode::OutOfOrderSequence]) {
        assert!(
            matches!(outcome, Err(DeliveryError::Unknown(error)) if error.is(code)),
            "{code}: {outcome:?}"
        );
    }
    assert!(outcomes[2].is_ok(), "it was not sent before: {:?}", outcomes[2]);
    assert_eq!(broker.model.values(0), (0..3).map(value).collect::<Vec<_>>(), "each once");
}

/// It has its answer, and no copy of it is anywhere.
#[tokio::test]
async fn a_routed_batch_behind_a_gap_that_was_sent_once_is_numbered_anew() {
    let broker = FakeBroker::start(2);
    let producer = producer(&broker).await;
    broker
        .model
        .script([Fault::Refuse(ErrorCode::BatchTooLarge), Fault::Refuse(ErrorCode::OutOfOrderSequence)]);
    let (refused, stored) = (send_alone(&producer, 0).await, send_alone(&producer, 1).await);
    let refused = within(refused).await;
    assert!(matches!(&refused, Err(error) if error.is(ErrorCode::BatchTooLarge)), "{refused:?}");
    within(stored).await.expect("stored");
    assert_eq!(broker.model.values(0), [value(1)]);
}

#[tokio::test]
async fn routed_batches_keep_the_route_of_their_first_attempt() {
    let broker = FakeBroker::start(3);
    let producer = producer(&broker).await;
    assert_eq!(
        producer.try_send(Record::new("x").partition(PartitionId::new(1))).err(),
        Some(SendError::Routed)
    );

    broker.model.script([Fault::Honest, Fault::ResetAfter]);
    for number in 0..2 {
        let delivery = producer.send(Record::new(&value(number))).await.expect("taken");
        // The partitioner changes between the first and the second attempt.
        broker.model.partitioner_epoch.store(1 + number as u64, Ordering::Relaxed);
        let receipt = within(delivery).await.expect("stored");
        let Receipt::Routed { placements } = receipt else { panic!("routed, not {receipt:?}") };
        assert_eq!(placements[0].base_offset.get(), number as i64);
    }
    let seen = broker.model.routed_seen.lock().expect("no panic").clone();
    let facts: Vec<_> =
        seen.iter().map(|b| (b.topic_sequence, b.partitioner_epoch, b.partition_count)).collect();
    assert_eq!(facts, [(0, 1, 3), (1, 1, 3), (1, 1, 3)]);
    assert_eq!(broker.model.values(0), [value(0), value(1)]);
}
