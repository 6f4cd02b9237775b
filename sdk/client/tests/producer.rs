//! The producer against a broker that misbehaves.

mod fake;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{FakeBroker, Fault, PATIENCE, TOPIC, value, within};
use tidemill_client::{
    Acks, BatchBuilder, BuilderOptions, Compression, DeliveryError, ErrorCode, PartitionId, ProducerBuilder,
    Receipt, Record, SendError, Timestamp,
};

async fn until(is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    within(looking).await;
}

/// Sends records 0 to `count` so that each is a batch of its own, and returns what became of them.
async fn send_singly(builder: ProducerBuilder, count: usize) -> Vec<Result<Receipt, DeliveryError>> {
    let producer = builder.build().await.expect("a producer");
    let mut deliveries = Vec::new();
    for number in 0..count {
        let mut batch = BatchBuilder::new(BuilderOptions::default());
        batch.append(Timestamp::new(1), None, Some(value(number).as_bytes()), []).expect("room");
        let batch = batch.build_batch().expect("a record");
        deliveries.push(producer.send_batch(PartitionId::new(0), batch).await.expect("taken"));
    }
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(within(delivery).await);
    }
    outcomes
}

#[tokio::test]
async fn records_are_there_once_and_in_order_whatever_breaks() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let faults = [
        Fault::Honest,
        Fault::ResetBefore,
        Fault::ResetAfter,
        Fault::WrongId,
        Fault::Garbage,
        Fault::CloseAfter,
    ];
    // A different fault after every few batches, so that several are under way each time.
    broker
        .model
        .script((0..60).map(|n| if n % 4 == 3 { faults[n / 4 % faults.len()] } else { Fault::Honest }));
    let outcomes = send_singly(client.producer(TOPIC), 100).await;
    let offsets: Vec<_> =
        outcomes.into_iter().map(|o| o.expect("stored").offset().expect("known").get()).collect();
    assert_eq!(offsets, (0..100).collect::<Vec<_>>());
    assert_eq!(broker.model.values(0), (0..100).map(value).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refused_batch_fails_alone_and_the_others_keep_their_order() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    for (code, ids) in
        [(ErrorCode::RecordsRejected, 0), (ErrorCode::RecordTooLarge, 1), (ErrorCode::UnknownProducer, 1)]
    {
        let first = broker.model.values(0).len();
        let producers = broker.model.next_producer.load(Ordering::Relaxed);
        broker.model.script([Fault::Honest, Fault::Honest, Fault::Refuse(code)]);
        let outcomes = send_singly(client.producer(TOPIC), 12).await;
        let used = broker.model.next_producer.load(Ordering::Relaxed) - producers;
        assert_eq!(used, 1 + ids, "identities for {code}");
        let stored = &broker.model.values(0)[first..];
        if code == ErrorCode::UnknownProducer {
            // Not a word against the records: they are numbered anew.
            assert!(outcomes.iter().all(Result::is_ok));
            assert_eq!(stored, (0..12).map(value).collect::<Vec<_>>());
        } else {
            let failed: Vec<_> = (0..12).filter(|n| outcomes[*n].is_err()).collect();
            assert_eq!(failed, [2], "for {code}");
            assert!(outcomes[2].as_ref().is_err_and(|error| error.is(code)));
            assert_eq!(stored, (0..12).filter(|n| *n != 2).map(value).collect::<Vec<_>>());
        }
    }
}

/// A refusal that the shard has no part in says nothing of an attempt before it: called refused, the record would be sent again
/// by whoever reads that, and be there twice.
#[tokio::test]
async fn a_refusal_does_not_speak_for_an_attempt_before_it() {
    for code in [ErrorCode::BatchTooLarge, ErrorCode::PluginTrapped] {
        let broker = FakeBroker::start(1);
        let client = broker.client().await;
        broker.model.script([Fault::ResetAfter, Fault::Refuse(code)]);
        let outcomes = send_singly(client.producer(TOPIC), 1).await;
        assert_eq!(broker.model.values(0), [value(0)], "stored, and not answered");
        assert!(
            matches!(&outcomes[0], Err(DeliveryError::Unknown(error)) if error.is(code)),
            "{code}: {:?}",
            outcomes[0]
        );
    }
}

#[tokio::test]
async fn what_may_be_stored_is_not_sent_under_another_identity() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    // Stored, no answer; and then the broker has forgotten who sent it.
    broker.model.script([Fault::ResetAfter, Fault::Refuse(ErrorCode::UnknownProducer)]);
    let outcomes = send_singly(client.producer(TOPIC), 12).await;
    let failed: Vec<_> = (0..12).filter(|n| outcomes[*n].is_err()).collect();
    assert_eq!(failed, [0]);
    assert!(
        matches!(&outcomes[0], Err(DeliveryError::Unknown(error)) if error.is(ErrorCode::UnknownProducer))
    );
    assert_eq!(broker.model.values(0), (0..12).map(value).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_retriable_refusal_is_invisible() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    broker.model.script([
        Fault::Honest,
        Fault::Refuse(ErrorCode::NotLeader),
        Fault::Refuse(ErrorCode::Overloaded),
    ]);
    let outcomes = send_singly(client.producer(TOPIC), 8).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(broker.model.values(0), (0..8).map(value).collect::<Vec<_>>());
}

#[tokio::test]
async fn memory_is_bounded_when_the_broker_stops_answering() {
    const LIMIT: usize = 256 << 10;
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    broker.model.script(std::iter::repeat_n(Fault::Silence, 100_000));
    let timeout = Duration::from_millis(700);
    let producer = client
        .producer(TOPIC)
        .buffer_bytes_max(LIMIT)
        .batch_bytes(8 << 10)
        .delivery_timeout(timeout)
        .build()
        .await
        .expect("a producer");
    let record = [7; 500];
    let mut first = None;
    let full = loop {
        match producer.try_send(Record::new(&record)) {
            Ok(delivery) => drop(first.get_or_insert(delivery)),
            Err(error) => break error,
        }
    };
    assert_eq!(full, SendError::Full { limit: LIMIT });
    assert!(producer.stats().buffered_bytes <= LIMIT);
    // Waits for memory, which the first delivery's timeout frees.
    let later = within(producer.send(Record::new(&record))).await.expect("taken in the end");
    assert!(matches!(within(first.expect("sent")).await, Err(DeliveryError::TimedOut { sent: true, .. })));
    assert!(matches!(within(later).await, Err(DeliveryError::TimedOut { .. })));
    within(producer.flush()).await.expect_err("remembers the failures");
    assert_eq!(producer.stats().buffered_bytes, 0);
}

#[tokio::test]
async fn records_given_up_leave_no_gap_for_those_behind() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer = client
        .producer(TOPIC)
        .delivery_timeout(Duration::from_millis(300))
        .linger(Duration::ZERO)
        .build()
        .await
        .expect("a producer");
    // Lost on the way, and no answer to anything else on that stream.
    broker.model.script([Fault::Refuse(ErrorCode::OutcomeUnknown); 40]);
    let lost = producer.send(Record::new("lost")).await.expect("taken");
    within(lost).await.expect_err("given up");
    broker.model.script([]);
    let next = producer.send(Record::new("next")).await.expect("taken");
    within(next).await.expect("stored");
    assert_eq!(broker.model.values(0), ["next"]);
}

#[tokio::test]
async fn keys_choose_partitions_and_batches_gather() {
    let broker = FakeBroker::start(4);
    let client = broker.client().await;
    let producer = client
        .producer(TOPIC)
        .linger(Duration::from_secs(5))
        .eager(false)
        .compression(Compression::Lz4)
        .build()
        .await
        .expect("a producer");
    assert_eq!(
        producer.try_send(Record::new("x").partition(PartitionId::new(4))).err(),
        Some(SendError::NoPartition { partition: 4, count: 4 })
    );
    let mut deliveries = Vec::new();
    for number in 0..1_000 {
        let key = format!("user-{}", number % 10);
        deliveries
            .push((key.clone(), producer.send(Record::new(&value(number)).key(&key)).await.expect("taken")));
    }
    within(producer.flush()).await.expect("stored");
    for (key, delivery) in deliveries {
        let partition = tidemill_protocol::partitioner::partition_for_key(key.as_bytes(), 4);
        assert_eq!(delivery.now().expect("flushed").expect("stored").partition(), Some(partition));
    }
    let batches: usize =
        broker.model.logs.iter().map(|log| log.lock().expect("no panic").batches.len()).sum();
    assert!(batches <= 4, "one batch per partition, not {batches}");
    assert_eq!(producer.stats().records, 1_000);
    within(producer.clone().close()).await.expect("nothing left");
    assert!(matches!(producer.try_send(Record::new("late")), Err(SendError::Stopped(DeliveryError::Closed))));
}

#[tokio::test]
async fn the_compression_asked_for_reaches_the_wire() {
    for compression in
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let broker = FakeBroker::start(1);
        let client = broker.client().await;
        let builder = client.producer(TOPIC).compression(compression).linger(PATIENCE).eager(false);
        let producer = builder.build().await.expect("a producer");
        for number in 0..500 {
            producer.send_and_forget(Record::new(&value(number))).await.expect("taken");
        }
        within(producer.flush()).await.expect("stored");
        assert_eq!(broker.model.batches(0), [(compression, 500)]);
        assert_eq!(broker.model.values(0), (0..500).map(value).collect::<Vec<_>>(), "{compression}");
    }
}

#[tokio::test]
async fn a_batch_goes_when_it_has_lingered_and_not_before() {
    const LINGER: Duration = Duration::from_secs(2);
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer = client.producer(TOPIC).linger(LINGER).eager(false).build().await.expect("a producer");
    for round in 1..=2 {
        let begun = Instant::now();
        let first = producer.send(Record::new("first")).await.expect("taken");
        tokio::time::sleep(LINGER / 4).await;
        let second = producer.send(Record::new("second")).await.expect("taken");
        assert!(first.now().is_none() && broker.model.batches(0).len() == round - 1, "it waits for more");
        // Nobody flushes.
        within(first).await.expect("stored");
        within(second).await.expect("stored");
        assert!(begun.elapsed() >= LINGER, "after {:?}", begun.elapsed());
        assert_eq!(broker.model.batches(0).last(), Some(&(Compression::None, 2)), "with what came meanwhile");
    }
    // Eager, which is the default, a single record does not wait at all.
    let eager = client.producer(TOPIC).linger(PATIENCE).build().await.expect("a producer");
    within(eager.send(Record::new("at once")).await.expect("taken")).await.expect("stored");
}

#[tokio::test]
async fn batches_are_on_their_way_up_to_the_window_and_no_further() {
    // As the fake broker's hello has it: five batches, and 4 MiB.
    for (batch_bytes, most) in [(100, 5), (900 << 10, 4)] {
        let broker = FakeBroker::start(1);
        let client = broker.client().await;
        broker.model.acks_held.store(most, Ordering::Relaxed);
        let producer = client.producer(TOPIC).build().await.expect("a producer");
        let value = vec![7; batch_bytes];
        let mut deliveries = Vec::new();
        for _ in 0..2 * most {
            let mut batch = BatchBuilder::new(BuilderOptions::default());
            batch.append(Timestamp::new(1), None, Some(&value), []).expect("room");
            let batch = batch.build_batch().expect("a record");
            deliveries.push(producer.send_batch(PartitionId::new(0), batch).await.expect("taken"));
        }
        // The broker answers only when so many are unanswered: with fewer on their way this would not end.
        for delivery in deliveries {
            within(delivery).await.expect("stored");
        }
        assert_eq!(broker.model.most_unanswered.load(Ordering::Relaxed), most);
        let bytes = broker.model.most_unanswered_bytes.load(Ordering::Relaxed);
        assert!(bytes >= most * batch_bytes && bytes <= 4 << 20, "{bytes}");
    }
    // The producer may want fewer.
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    broker.model.acks_held.store(2, Ordering::Relaxed);
    let outcomes = send_singly(client.producer(TOPIC).in_flight_max(2), 8).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(broker.model.most_unanswered.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn without_acknowledgements_handed_over_is_delivered() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer =
        client.producer(TOPIC).acks(Acks::None).linger(Duration::ZERO).build().await.expect("a producer");
    for number in 0..20 {
        let delivery = producer.send(Record::new(&value(number))).await.expect("taken");
        assert_eq!(within(delivery).await, Ok(Receipt::Sent));
    }
    until(|| broker.model.values(0).len() == 20).await;
}

/// `flush` without acknowledgements ends the streams: what the broker made of them is known then.
#[tokio::test]
async fn without_acknowledgements_a_flush_tells_what_the_broker_refused() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer =
        client.producer(TOPIC).acks(Acks::None).linger(Duration::ZERO).build().await.expect("a producer");
    for number in 0..20 {
        drop(producer.send(Record::new(&value(number))).await.expect("taken"));
    }
    within(producer.flush()).await.expect("nothing is wrong");
    assert_eq!(broker.model.values(0).len(), 20, "the broker has dealt with everything");
    within(producer.flush()).await.expect("there is nothing to flush");

    // As a broker refuses where there is no acknowledgement that could say so.
    broker.model.script([Fault::Honest, Fault::ResetBefore]);
    for number in 20..22 {
        let delivery = producer.send(Record::new(&value(number))).await.expect("taken");
        assert_eq!(within(delivery).await, Ok(Receipt::Sent));
    }
    let refused = within(producer.flush()).await.expect_err("one of them was refused");
    assert!(
        matches!(&refused, DeliveryError::Unacknowledged(error) if error.is(ErrorCode::Internal)),
        "{refused:?}"
    );
    assert!(refused.is(ErrorCode::Internal) && producer.stats().broken_streams == 1);

    // It was told once, and the producer goes on over another stream.
    drop(producer.send(Record::new("later")).await.expect("taken"));
    within(producer.clone().flush()).await.expect("nothing new is wrong");
    assert_eq!(broker.model.values(0).last().expect("stored"), "later");
    broker.model.script([Fault::CloseAfter]);
    drop(producer.send(Record::new("last")).await.expect("taken"));
    assert_eq!(within(producer.close()).await, Err(DeliveryError::Lost));
}

#[tokio::test]
async fn without_acknowledgements_a_stream_that_is_given_up_is_told() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer =
        client.producer(TOPIC).acks(Acks::None).linger(Duration::ZERO).build().await.expect("a producer");
    broker.model.script([Fault::Nonsense]);
    let delivery = producer.send(Record::new("on its way")).await.expect("taken");
    assert_eq!(within(delivery).await, Ok(Receipt::Sent));
    until(|| producer.stats().broken_streams == 1).await;
    assert_eq!(within(producer.flush()).await, Err(DeliveryError::Lost));
    within(producer.flush()).await.expect("it is told once");
}

#[tokio::test]
async fn what_has_no_answer_when_the_client_is_closed_fails_at_once_and_is_told() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer = client.producer(TOPIC).linger(Duration::ZERO).build().await.expect("a producer");
    broker.model.script([Fault::Silence]);
    let delivery = producer.send(Record::new("unanswered")).await.expect("taken");
    until(|| !broker.model.values(0).is_empty()).await;
    client.close().await;
    assert_eq!(within(delivery).await, Err(DeliveryError::Closed));
    let refused = producer.send(Record::new("too late")).await.map(drop);
    assert!(matches!(refused, Err(SendError::Stopped(DeliveryError::Closed))), "{refused:?}");
    assert_eq!(within(producer.flush()).await, Err(DeliveryError::Closed));
}

/// A flush waits for what was sent before it, and for nothing that others send over the same lane meanwhile.
#[tokio::test]
async fn without_acknowledgements_a_flush_ends_while_others_go_on_sending() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let producer =
        client.producer(TOPIC).acks(Acks::None).linger(Duration::ZERO).build().await.expect("a producer");
    let other = producer.clone();
    let sending = tokio::spawn(async move {
        while let Ok(delivery) = other.send(Record::new("another's")).await {
            drop(delivery);
            tokio::task::yield_now().await;
        }
    });
    for number in 0..5 {
        let value = value(number);
        drop(producer.send(Record::new(&value)).await.expect("taken"));
        within(producer.flush()).await.expect("nothing is wrong");
        let stored = broker.model.values(0);
        assert!(stored.iter().any(|stored| *stored == value), "the broker has dealt with it");
    }
    within(producer.close()).await.expect("nothing is wrong");
    within(sending).await.expect("it hears of the end");
}

#[tokio::test]
async fn a_record_larger_than_a_batch_is_meant_to_be_goes_alone() {
    let broker = FakeBroker::start(1);
    let client = broker.client().await;
    let builder = client.producer(TOPIC).batch_bytes(1_000).compression(Compression::Lz4);
    let producer = builder.linger(Duration::from_secs(5)).eager(false).build().await.expect("a producer");
    let large = "x".repeat(500_000);
    let mut deliveries = Vec::new();
    for text in ["before", &large, "behind"] {
        deliveries.push(producer.send(Record::new(text)).await.expect("taken"));
    }
    within(producer.flush()).await.expect("stored");
    let offsets: Vec<_> = deliveries.iter().map(|delivery| delivery.now()).collect();
    for (number, stored) in (0..).zip(offsets) {
        assert_eq!(stored.expect("flushed").expect("stored").offset().expect("known").get(), number);
    }
    assert_eq!(
        broker.model.batches(0),
        [Compression::None, Compression::Lz4, Compression::None].map(|c| (c, 1))
    );
    // As the fake broker's hello has it, a batch has a mebibyte at the most.
    let too_large = producer.try_send(Record::new(&"x".repeat(1 << 20))).expect_err("no batch holds it");
    assert!(matches!(too_large, SendError::TooLarge { limit: 1_048_576, .. }), "{too_large}");
    assert_eq!(producer.stats().buffered_bytes, 0, "and it takes no memory");
}

#[tokio::test]
async fn a_sink_takes_everything_without_a_broker() {
    let broker = FakeBroker::start(1);
    let producer = broker.client().await.producer("anything").build_sink(1).expect("a sink");
    let mut last = None;
    for number in 0..50_000 {
        last = Some(producer.send(Record::new(&value(number))).await.expect("taken"));
    }
    within(producer.flush()).await.expect("acknowledged");
    assert_eq!(
        last.expect("sent").now().expect("flushed").expect("kept").offset().expect("known").get(),
        49_999
    );
    assert!(broker.model.values(0).is_empty());
}
