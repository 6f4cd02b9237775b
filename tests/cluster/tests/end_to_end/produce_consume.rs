//! Records in, records out.

use tidemill_client::messages::TopicConfig;
use tidemill_client::{
    Acks, Compression, ErrorCode, NewTopic, Offset, OutOfRange, PartitionId, Position, Record, Start,
    Timestamp,
};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::fixtures::{self, Fixture};
use tidemill_cluster_tests::reading::{count, digest, drain, read_all};

use crate::kit::{as_fixture, broker, create, header_views, offsets, partition_of, refused, values};

/// Room for values of 1 MiB with their headers.
const BATCH_BYTES: usize = 4 << 20;
const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// Keys, values, headers, timestamps: null, empty, Unicode, binary, 1 MiB. Through a kill and a stop, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_compression_carries_every_record_unchanged() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    let fixtures = fixtures::records(1, 2_000);
    for compression in COMPRESSIONS {
        let topic = format!("with-{compression}");
        create(&client, &topic, 2).await?;
        let producer =
            client.producer(&topic).compression(compression).batch_bytes(BATCH_BYTES).build().await?;
        for (number, fixture) in (0u32..).zip(&fixtures) {
            let headers = header_views(fixture);
            let record = match (&fixture.key, &fixture.value) {
                (Some(key), Some(value)) => Record::new(value).key(key),
                (Some(key), None) => Record::tombstone(key),
                (None, Some(value)) => Record::new(value),
                (None, None) => Record::default(),
            };
            let timestamp = Timestamp::new(fixture.timestamp);
            let record =
                record.headers(&headers).timestamp(timestamp).partition(PartitionId::new(number % 2));
            producer.send_and_forget(record).await?;
        }
        producer.close().await?;
    }
    let mut digests = Vec::new();
    for compression in COMPRESSIONS {
        let read = read_all(&client, &format!("with-{compression}")).await?;
        for (partition, records) in &read {
            let expected: Vec<&Fixture> = fixtures.iter().skip(*partition as usize).step_by(2).collect();
            assert_eq!(records.len(), expected.len(), "{compression}");
            for (number, (record, expected)) in records.iter().zip(expected).enumerate() {
                assert_eq!(record.offset.get(), number as i64);
                // Compared without printing 1 MiB where they differ.
                assert!(
                    as_fixture(record) == *expected,
                    "{compression}: record {number} of partition {partition}"
                );
            }
        }
        digests.push(digest(read.values().flatten()));
    }
    broker.kill().await?;
    broker.restart().await?;
    for (compression, digest_before) in COMPRESSIONS.iter().zip(&digests) {
        let read = read_all(&client, &format!("with-{compression}")).await?;
        assert_eq!(digest(read.values().flatten()), *digest_before, "{compression} after kill -9");
    }
    assert!(broker.stop().await?.success(), "an orderly stop is a success");
    broker.restart().await?;
    for (compression, digest_before) in COMPRESSIONS.iter().zip(&digests) {
        let read = read_all(&client, &format!("with-{compression}")).await?;
        assert_eq!(digest(read.values().flatten()), *digest_before, "{compression} after a stop");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_begins_where_one_says() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let producer = client.producer("t").build().await?;
    for number in 0..100 {
        let value = number.to_string();
        producer.send_and_forget(Record::new(&value).timestamp(Timestamp::new(1_000 + 10 * number))).await?;
    }
    producer.flush().await?;
    let first = async |start: Start| -> Outcome<Option<i64>> {
        let consumer = client.consumer().topic("t").from(start).stop_at_end().build().await?;
        let read = drain(consumer).await?;
        Ok(read.get(&0).and_then(|records| offsets(records).first().copied()))
    };
    assert_eq!(first(Start::Earliest).await?, Some(0));
    assert_eq!(first(Start::Offset(Offset::new(42))).await?, Some(42));
    assert_eq!(first(Start::Time(Timestamp::new(1_355))).await?, Some(36), "the first at or after");
    assert_eq!(first(Start::Latest).await?, None);
    assert_eq!(first(Start::committed("g")).await?, Some(0), "without a position, from the first");
    let found =
        client.offsets().find(&[(partition, Position::Latest), (partition, Position::Earliest)]).await?;
    let found: Vec<i64> =
        found.into_iter().map(|answer| answer.map(|a| a.offset.get())).collect::<Result<_, _>>()?;
    assert_eq!(found, [100, 0]);

    // A reader that stops in the middle of a batch commits what it was given, no more; across a crash, too.
    let mut consumer = client.consumer().topic("t").from(Start::committed("g")).build().await?;
    for _ in 0..37 {
        consumer.next().await.ok_or("it never ends")??;
    }
    consumer.commit("g").await?;
    drop(consumer);
    broker.kill().await?;
    broker.restart().await?;
    assert_eq!(first(Start::committed("g")).await?, Some(37));
    assert_eq!(client.groups().list().await?, ["g"]);
    client.groups().delete("g").await?;
    assert_eq!(refused(client.groups().describe("g").await), ErrorCode::UnknownGroup);

    // What was deleted is out of range, and the start moves.
    client.topics().delete_records("t", PartitionId::new(0), Offset::new(60)).await?;
    assert_eq!(first(Start::Earliest).await?, Some(60));
    let gone = client.consumer().topic("t").from(Start::Offset(Offset::new(5))).stop_at_end().build().await?;
    let error = drain(gone).await.expect_err("offset 5 is gone").to_string();
    assert!(error.contains("OFFSET_OUT_OF_RANGE"), "{error}");
    let tolerant = client
        .consumer()
        .topic("t")
        .from(Start::Offset(Offset::new(5)))
        .on_out_of_range(OutOfRange::Earliest);
    assert_eq!(count(&drain(tolerant.stop_at_end().build().await?).await?), 40);
    let beyond = client.topics().delete_records("t", PartitionId::new(0), Offset::new(1_000)).await;
    assert_eq!(refused(beyond), ErrorCode::OffsetOutOfRange);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_readers_see_records_as_they_come() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 3).await?;
    let mut everything = client.consumer().topic("t").from(Start::Latest).build().await?;
    let mut one =
        client.consumer().topic("t").partitions([PartitionId::new(1)]).from(Start::Earliest).build().await?;
    let producer = client.producer("t").build().await?;
    // "Latest" is known once the broker has answered.
    while everything.positions().values().any(|position| position.next.is_none()) {
        tokio::task::yield_now().await;
        let _ = tokio::time::timeout(std::time::Duration::from_millis(10), everything.next()).await;
    }
    for number in 0..30u32 {
        let value = number.to_string();
        producer.send(Record::new(&value).partition(PartitionId::new(number % 3))).await?.await?;
    }
    let mut seen = Vec::new();
    while seen.len() < 30 {
        seen.push(everything.next().await.ok_or("it never ends")??);
    }
    for partition in 0..3 {
        let of_partition: Vec<_> = seen.iter().filter(|r| r.partition.get() == partition).cloned().collect();
        let expected: Vec<String> = (0..10).map(|n| (n * 3 + partition).to_string()).collect();
        assert_eq!(values(&of_partition), expected);
    }
    let mut of_one = Vec::new();
    while of_one.len() < 10 {
        of_one.push(one.next().await.ok_or("it never ends")??);
    }
    assert!(of_one.iter().all(|record| record.partition.get() == 1));
    assert_eq!(offsets(&of_one), (0..10).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_made_changed_and_deleted() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    let topics = client.topics();
    topics.create(NewTopic::new("plays", 4)).await?;
    topics.create(NewTopic::new("plays", 4).if_not_exists()).await?;
    assert_eq!(refused(topics.create(NewTopic::new("plays", 4)).await), ErrorCode::TopicExists);
    assert_eq!(refused(topics.create(NewTopic::new("a/b", 1)).await), ErrorCode::InvalidTopic);
    assert_eq!(refused(topics.create(NewTopic::new("none", 0)).await), ErrorCode::InvalidTopic);
    assert_eq!(refused(topics.describe("elsewhere").await), ErrorCode::UnknownTopic);
    let beside = topics.create(NewTopic::new("beside", 4).with("plays")).await?;
    let shards = |described: &tidemill_client::messages::TopicDescription| -> Vec<u32> {
        described.partitions.iter().map(|partition| partition.shard).collect()
    };
    assert_eq!(
        shards(&beside),
        shards(&topics.describe("plays").await?),
        "co-partitioned, so in the same shards"
    );

    let config =
        TopicConfig { retention_ms: Some(3_600_000), log_append_time: Some(true), ..TopicConfig::default() };
    topics.alter("plays", config).await?;
    let producer = client.producer("plays").build().await?;
    let old = Record::new("old").timestamp(Timestamp::new(5)).partition(PartitionId::new(2));
    producer.send(old).await?.await?;
    let read = read_all(&client, "plays").await?;
    assert!(read[&2][0].timestamp.get() > 1_700_000_000_000, "the broker's time counts now");

    let unacknowledged = client.producer("plays").acks(Acks::None).build().await?;
    for _ in 0..10 {
        unacknowledged.send_and_forget(Record::new("no matter")).await?;
    }
    unacknowledged.flush().await?;

    topics.delete("plays").await?;
    assert_eq!(refused(topics.describe("plays").await), ErrorCode::UnknownTopic);
    broker.kill().await?;
    broker.restart().await?;
    assert_eq!(topics.list().await?, ["beside"]);
    // A new topic of the old name is another topic.
    topics.create(NewTopic::new("plays", 1)).await?;
    let fresh = broker.client().await?;
    assert_eq!(count(&read_all(&fresh, "plays").await?), 0);
    Ok(())
}
