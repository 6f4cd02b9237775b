//! The consumer and the requests against a broker that misbehaves.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{FakeBroker, Fault, PATIENCE, TOPIC, within};
use tidemill_client::{
    ClientConfig, ConnectError, ConsumeError, Consumer, ConsumerBuilder, ErrorCode, Offset, PartitionId,
    Position, Record, RequestError, Start, TopicId, TopicPartition,
};

fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&fake::topic_id()).expect("an id"), PartitionId::new(number))
}

/// Puts records "0", "1", ... into each partition, `per_batch` to a batch.
async fn fill(broker: &FakeBroker, count: usize, per_batch: usize) {
    let producer =
        broker.client().await.producer(TOPIC).linger(PATIENCE).eager(false).build().await.expect("one");
    for number in 0..count {
        for partition in 0..broker.model.logs.len() {
            let partition = PartitionId::new(partition as u32);
            producer
                .send_and_forget(Record::new(&number.to_string()).partition(partition))
                .await
                .expect("taken");
        }
        if number % per_batch == per_batch - 1 {
            within(producer.flush()).await.expect("stored");
        }
    }
    within(producer.flush()).await.expect("stored");
}

/// Reads to the end, and checks that each partition's records came once and in order from `first` on.
async fn read_all(builder: ConsumerBuilder, first: i64, count: usize) -> Consumer {
    let mut consumer = builder.stop_at_end().build().await.expect("a consumer");
    let mut next = std::collections::HashMap::new();
    let reading = async {
        while let Some(record) = consumer.next().await {
            let record = record.expect("a record");
            let expected = next.entry(record.partition).or_insert(first);
            assert_eq!(record.offset.get(), *expected, "partition {}", record.partition);
            assert_eq!(record.value.expect("a value"), record.offset.to_string());
            *expected += 1;
        }
    };
    within(reading).await;
    assert!(next.values().all(|next| *next == count as i64), "{next:?}");
    consumer
}

#[tokio::test]
async fn reading_goes_on_without_gap_or_duplicate_whatever_breaks() {
    let broker = FakeBroker::start(3);
    fill(&broker, 200, 7).await;
    let client = broker.client().await;
    let faults = [Fault::ResetBefore, Fault::CloseAfter, Fault::Garbage, Fault::Corrupt];
    broker
        .model
        .script((0..80).map(|n| if n % 5 == 4 { faults[n / 5 % faults.len()] } else { Fault::Honest }));
    let consumer = read_all(client.consumer().topic(TOPIC).from(Position::Earliest), 0, 200).await;
    let stats = consumer.stats();
    assert!(stats.reconnects >= 5, "{stats:?}");
    assert_eq!(stats.records, 600);

    // From the middle of a batch.
    read_all(client.consumer().topic(TOPIC).from(Start::Offset(Offset::new(10))), 10, 200).await;

    // From where a group left off; partitions without a position from the end of what there was.
    consumer.commit("royalties").await.expect("committed");
    fill_more(&broker, 200, 20).await;
    read_all(client.consumer().topic(TOPIC).from(Start::committed("royalties")), 200, 220).await;
}

async fn fill_more(broker: &FakeBroker, first: usize, count: usize) {
    let producer = broker.client().await.producer(TOPIC).build().await.expect("a producer");
    for number in first..first + count {
        for partition in 0..broker.model.logs.len() {
            let partition = PartitionId::new(partition as u32);
            producer
                .send_and_forget(Record::new(&number.to_string()).partition(partition))
                .await
                .expect("taken");
        }
    }
    within(producer.flush()).await.expect("stored");
}

#[tokio::test]
async fn an_end_that_is_asked_for_once_reached_is_the_end() {
    let broker = FakeBroker::start(3);
    fill(&broker, 50, 7).await;
    let client = broker.client().await;
    for (start, expected) in [
        (Start::Earliest, 150),
        (Start::Offset(Offset::new(40)), 30),
        (Start::Offset(Offset::new(50)), 0),
        (Start::Latest, 0),
    ] {
        let builder = client.consumer().topic(TOPIC).from(start.clone()).stop_at_end_once_reached();
        let mut consumer = builder.build().await.expect("a consumer");
        let mut records = 0;
        while let Some(record) = within(consumer.next()).await {
            record.expect("a record");
            records += 1;
        }
        assert_eq!(records, expected, "{start:?}");
    }
}

#[tokio::test]
async fn what_is_not_read_costs_no_more_than_its_window() {
    const WINDOW: usize = 64 << 10;
    let broker = FakeBroker::start(2);
    fill(&broker, 20_000, 500).await;
    let client = broker.client().await;
    let builder =
        client.consumer().topic(TOPIC).from(Position::Earliest).partition_window_bytes(WINDOW).stop_at_end();
    let mut consumer = builder.build().await.expect("a consumer");
    // Nobody reads: the broker sends one window of each partition, and one frame more at most.
    let first = within(consumer.next_batch()).await.expect("more").expect("a batch");
    consumer.pause(partition(1));
    let largest = first.bytes() * 2;
    let mut records = [0; 2];
    records[first.partition.partition.get() as usize] += first.records().expect("valid").len();
    while records[0] < 20_000 {
        let batch = within(consumer.next_batch()).await.expect("more").expect("a batch");
        records[batch.partition.partition.get() as usize] += batch.records().expect("valid").len();
    }
    // The paused one did not hold up the other, and was itself held.
    assert!(records[1] < 20_000);
    consumer.resume(partition(1));
    while let Some(batch) = within(consumer.next_batch()).await {
        records[1] += batch.expect("a batch").records().expect("valid").len();
    }
    assert_eq!(records, [20_000, 20_000]);
    let most = broker.model.most_unreturned.load(Ordering::Relaxed);
    assert!(most <= WINDOW + WINDOW / 8 + largest, "{most} bytes were on their way");
}

#[tokio::test]
async fn partitions_are_moved_added_and_removed_under_way() {
    let broker = FakeBroker::start(2);
    fill(&broker, 100, 10).await;
    let client = broker.client().await;
    let builder = client.consumer().topic(TOPIC).partitions([PartitionId::new(0)]).from(Position::Earliest);
    let mut consumer = builder.build().await.expect("a consumer");
    for offset in 0..25 {
        assert_eq!(within(consumer.next()).await.expect("more").expect("a record").offset.get(), offset);
    }
    assert_eq!(consumer.positions()[&partition(0)].next, Some(Offset::new(25)));

    consumer.seek(partition(0), Position::Offset(Offset::new(90)));
    for offset in 90..100 {
        assert_eq!(within(consumer.next()).await.expect("more").expect("a record").offset.get(), offset);
    }
    assert!(consumer.is_at_end());
    consumer.remove(partition(0));
    let added =
        consumer.add(TOPIC, PartitionId::new(1), Position::Offset(Offset::new(50))).await.expect("added");
    assert_eq!(added, partition(1));
    for offset in 50..100 {
        let record = within(consumer.next()).await.expect("more").expect("a record");
        assert_eq!((record.partition.get(), record.offset.get()), (1, offset));
    }
    // Adding again begins again.
    consumer.add(TOPIC, PartitionId::new(1), Position::Offset(Offset::new(98))).await.expect("added");
    assert_eq!(within(consumer.next()).await.expect("more").expect("a record").offset.get(), 98);
    client.close().await;
    let rest = async { while consumer.next().await.is_some() {} };
    within(rest).await;
}

#[tokio::test]
async fn one_bad_partition_does_not_stop_the_others() {
    let broker = FakeBroker::start(2);
    fill(&broker, 50, 10).await;
    let client = broker.client().await;
    let mut consumer = client
        .consumer()
        .topic(TOPIC)
        .from(Position::Earliest)
        .stop_at_end()
        .build()
        .await
        .expect("a consumer");
    consumer.seek(partition(1), Position::Offset(Offset::new(1_000)));
    let (mut records, mut errors) = (0, Vec::new());
    while let Some(next) = within(consumer.next()).await {
        match next {
            Ok(record) => records += usize::from(record.partition.get() == 0),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(records, 50);
    assert!(
        matches!(&errors[..], [ConsumeError::OutOfRange { partition: p, .. }] if *p == partition(1)),
        "{errors:?}"
    );

    // Damage that does not go away ends the partition.
    broker.model.script(std::iter::repeat_n(Fault::Corrupt, 100));
    let one = client.consumer().topic(TOPIC).partitions([PartitionId::new(0)]).from(Position::Earliest);
    let mut consumer = one.build().await.expect("a consumer");
    let error = within(consumer.next()).await.expect("an error").expect_err("damaged");
    assert!(matches!(error, ConsumeError::Corrupt { offset, .. } if offset == Offset::ZERO), "{error}");
    assert!(within(consumer.next()).await.is_none());
}

#[tokio::test]
async fn requests_are_repeated_refused_and_given_up() {
    let broker = FakeBroker::start(1);
    let config: ClientConfig = broker.config().request_timeout(Duration::from_secs(2));
    let client = tidemill_client::Client::connect(config).await.expect("a connection");

    broker
        .model
        .request_errors
        .lock()
        .expect("no panic")
        .extend([ErrorCode::Overloaded, ErrorCode::OutcomeUnknown]);
    assert_eq!(client.topics().list().await, Ok(vec![TOPIC.to_owned()]));

    // What may have taken effect is not repeated where twice is not as good as once.
    broker
        .model
        .request_errors
        .lock()
        .expect("no panic")
        .extend([ErrorCode::Overloaded, ErrorCode::OutcomeUnknown]);
    let error = client.topics().delete(TOPIC).await.expect_err("not known");
    assert!(error.is(ErrorCode::OutcomeUnknown), "{error}");

    broker.model.request_errors.lock().expect("no panic").push_back(ErrorCode::InvalidGroup);
    assert!(client.groups().list().await.expect_err("refused").is(ErrorCode::InvalidGroup));
    assert!(matches!(client.cluster_status().await, Err(RequestError::Deadline { .. })));
    assert!(matches!(client.metrics().await, Err(RequestError::BadAnswer(_))));

    let component: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let version = client.plugins().upload("filter", "1", component.clone()).await.expect("uploaded");
    assert_eq!(version.size, 3_000_000);
    // All but what came with the request itself.
    assert!(component.ends_with(&broker.model.uploaded.lock().expect("no panic")));

    let nobody = ClientConfig::new(["127.0.0.1:9"]).insecure().connect_timeout(Duration::from_millis(200));
    let error = tidemill_client::Client::connect(nobody).await.expect_err("nobody there");
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    let strict =
        ClientConfig::new([format!("localhost:{}", broker.address.port())]).trust_file("/nowhere/ca.pem");
    let error = tidemill_client::Client::connect(strict).await.expect_err("no such file");
    assert!(matches!(error, ConnectError::File { .. }), "{error}");
}

/// Bytes of record batches that have come, whoever has them by now.
async fn has_received(consumer: &Consumer, bytes: u64) {
    within(async {
        while consumer.stats().received_bytes < bytes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_stops_at_the_end_commits_no_more_than_was_handed_out() {
    let broker = FakeBroker::start(1);
    fill(&broker, 10, 5).await;
    let client = broker.client().await;
    let builder = client.consumer().topic(TOPIC).from(Position::Earliest).stop_at_end();
    let mut consumer = builder.build().await.expect("a consumer");
    within(consumer.next()).await.expect("more").expect("a record");
    has_received(&consumer, 1).await;
    let before = consumer.stats().received_bytes;
    fill_more(&broker, 10, 100).await;
    // What comes behind the end waits in the queue, too.
    has_received(&consumer, before * 2).await;
    let mut last = 0;
    while let Some(record) = within(consumer.next()).await {
        last = record.expect("a record").offset.get();
    }
    assert_eq!(last, 9);
    assert_eq!(
        consumer.positions()[&partition(0)].next,
        Some(Offset::new(10)),
        "the rest was not handed out"
    );
}

#[tokio::test]
async fn what_came_before_a_failure_is_handed_out_before_it() {
    let broker = FakeBroker::start(1);
    fill(&broker, 30, 5).await;
    let client = broker.client().await;
    broker.model.script([Fault::Honest; 2].into_iter().chain(std::iter::repeat_n(Fault::Corrupt, 100)));
    let builder = client.consumer().topic(TOPIC).from(Position::Earliest).stop_at_end();
    let mut consumer = builder.build().await.expect("a consumer");
    within(async {
        while consumer.stats().reconnects < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!consumer.is_at_end(), "an error is to be told");
    for offset in 0..10 {
        assert_eq!(within(consumer.next()).await.expect("more").expect("a record").offset.get(), offset);
    }
    let error = within(consumer.next()).await.expect("an error").expect_err("damaged");
    assert!(matches!(error, ConsumeError::Corrupt { offset, .. } if offset.get() == 10), "{error}");
    assert_eq!(consumer.positions()[&partition(0)].next, Some(Offset::new(10)));
    assert!(within(consumer.next()).await.is_none());

    // Sought in, it goes on.
    broker.model.script([]);
    consumer.seek(partition(0), Position::Offset(Offset::new(10)));
    for offset in 10..30 {
        assert_eq!(within(consumer.next()).await.expect("more").expect("a record").offset.get(), offset);
    }
}

#[tokio::test]
async fn a_partition_that_is_added_again_begins_where_it_is_asked_to() {
    let broker = FakeBroker::start(1);
    fill(&broker, 100, 1).await;
    let client = broker.client().await;
    let builder = client.consumer().topic(TOPIC).from(Position::Offset(Offset::new(50)));
    let mut consumer = builder.build().await.expect("a consumer");
    for (round, offset) in [3, 60, 0, 99, 20].into_iter().cycle().take(50).enumerate() {
        // Data of the stay before is on its way, now and then.
        tokio::time::sleep(Duration::from_micros(200 * (round as u64 % 5))).await;
        consumer.add(TOPIC, PartitionId::new(0), Position::Offset(Offset::new(offset))).await.expect("added");
        let first = within(consumer.next()).await.expect("more").expect("a record");
        assert_eq!(first.offset.get(), offset, "round {round}");
    }
}

#[tokio::test]
async fn a_client_that_is_closed_ends_its_readers_with_an_error() {
    let broker = FakeBroker::start(1);
    fill(&broker, 10, 5).await;
    let read = async |is_led: bool, stops: bool, records: usize| {
        let client = broker.client().await;
        broker.model.elect(0, u32::from(is_led));
        let builder = client.consumer().topic(TOPIC).from(Position::Earliest);
        let builder = if stops { builder.stop_at_end() } else { builder };
        let mut consumer = builder.build().await.expect("a consumer");
        for _ in 0..records {
            within(consumer.next()).await.expect("more").expect("a record");
        }
        client.close().await;
        let mut rest = Vec::new();
        while let Some(next) = within(consumer.next()).await {
            rest.push(next);
        }
        rest
    };
    let rest = read(true, false, 1).await;
    assert!(matches!(rest.last(), Some(Err(ConsumeError::Closed))), "more was to come: {rest:?}");
    let rest = read(false, true, 0).await;
    assert!(matches!(&rest[..], [Err(ConsumeError::Closed)]), "nobody was there to ask: {rest:?}");
    let rest = read(true, true, 10).await;
    assert!(rest.is_empty(), "it had everything: {rest:?}");
}
