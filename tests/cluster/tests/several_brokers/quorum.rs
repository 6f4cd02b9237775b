//! Two of three brokers are gone.

use std::time::{Duration, Instant};

use tidemill_client::messages::{ClusterStatus, SubscribeAdd, subscribe_event};
use tidemill_client::{
    Client, Consumer, DeliveryError, ErrorCode, NewTopic, PartitionId, Position, Record, Start, TopicId,
    TopicPartition,
};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::raw::{RawPeer, RawStream};

/// How long a broker may take to say in its log how it is.
const PATIENCE: Duration = Duration::from_secs(60);
/// One in each data shard, of which each broker leads one.
const PARTITIONS: u32 = 3;
/// What is in them.
const RECORDS: u32 = 50;
/// What may be said of a record to a shard without a majority: by its leader, or by who looks for one.
const NOBODY_DECIDES: [ErrorCode; 3] = [ErrorCode::NoQuorum, ErrorCode::NotLeader, ErrorCode::OutcomeUnknown];

/// Producers get an error within their deadline, nobody is told of an end that may be an old one, readers go on with what is committed, and all is well when the others are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_written_and_what_is_there_is_read() -> Outcome<()> {
    const DEADLINE: Duration = Duration::from_secs(3);
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.led_as_planned(&client).await?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    let topic = client.topic_metadata("plays").await?.id;
    let producer = client.producer("plays").build().await?;
    let hasty = client.producer("plays").delivery_timeout(DEADLINE).build().await?;
    for number in 0..RECORDS {
        // Each leader must have heard of the hasty one: a new one would have to wait for the controller.
        let sender = if number < PARTITIONS { &hasty } else { &producer };
        let partition = PartitionId::new(number % PARTITIONS);
        sender.send(Record::new(&number.to_be_bytes()).partition(partition)).await?.await?;
    }
    // Two of three acknowledge: the third may not have heard yet.
    let shown = async || shown_at(&cluster, topic).await.ok().filter(|shown| *shown == i64::from(RECORDS));
    eventually("the first broker shows all", PATIENCE, shown).await?;
    cluster.broker(2).kill().await?;
    cluster.broker(3).kill().await?;

    // What it leads it still leads, as far as it knows: that others have not written more is not its to say.
    let asking = cluster.broker(1).client_config().request_timeout(Duration::from_secs(5));
    let asking = Client::connect(asking).await?;
    for number in 0..PARTITIONS {
        let partition = TopicPartition::new(topic, PartitionId::new(number));
        let end = asking.offsets().find(&[(partition, Position::Latest)]).await;
        let is_told = end.as_ref().is_ok_and(|answers| answers.iter().any(Result::is_ok));
        assert!(!is_told, "nobody knows the end of partition {number}: {end:?}");
    }

    let alone = cluster.broker(1).client().await?;
    // The controller can't write down that they are silent: whoever is asked says what it sees.
    let said = |status: &ClusterStatus| {
        let lost = status.risks.iter().any(|risk| risk.contains("which is no majority"));
        lost && status.brokers.iter().filter(|broker| broker.alive).count() == 1
    };
    cluster.until(&alone, "say that there is no majority", said).await?;
    let begun = Instant::now();
    let mut sent = Vec::new();
    for number in 0..PARTITIONS {
        let record = Record::new(b"lost?").partition(PartitionId::new(number));
        sent.push((number, hasty.send(record).await?));
    }
    for (number, delivery) in sent {
        match delivery.await {
            Err(DeliveryError::TimedOut { last: Some(last), .. }) => {
                let is_said = NOBODY_DECIDES.iter().any(|code| last.contains(code.name()));
                assert!(is_said, "a record of partition {number}: {last}");
            }
            other => panic!("no majority has the record of partition {number}: {other:?}"),
        }
    }
    let took = begun.elapsed();
    assert!(took < DEADLINE + Duration::from_secs(5), "the deadline was {DEADLINE:?}, and it took {took:?}");

    // From the start, by offsets: what is committed here is there to read.
    let from_the_start = || alone.consumer().topic("plays").from(Start::Earliest);
    reads(&mut from_the_start().build().await?, RECORDS).await?;
    // Also by whoever stops at the end, as long as that does not matter yet.
    let mut consumer = from_the_start().stop_at_end_once_reached().build().await?;
    reads(&mut consumer, RECORDS).await?;
    let next = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await;
    assert!(next.is_err(), "nobody knows the end, and it says: {next:?}");
    drop(consumer);
    // Whoever has seen more elsewhere must not begin where that may be missing.
    let (peer, _control) = RawPeer::greeted_without_ids(cluster.broker(1)).await?;
    let partition = |number| TopicPartition::new(topic, PartitionId::new(number));
    // All at once: each waits for an answer that does not come.
    tokio::try_join!(
        begins_up_to_what_is_here(&peer, partition(0)),
        begins_up_to_what_is_here(&peer, partition(1)),
        begins_up_to_what_is_here(&peer, partition(2)),
    )?;

    let waits = "waiting for brokers 2 and 3: until a majority of the brokers is there";
    let is_told = async || says(&cluster, waits);
    eventually("the one that is left says whom it waits for", PATIENCE, is_told).await?;
    cluster.broker(2).restart().await?;
    cluster.broker(3).restart().await?;
    cluster.settled(&client).await?;
    let is_over = async || says(&cluster, "a majority of the brokers that decide is there again");
    eventually("and that it waits no longer", PATIENCE, is_over).await?;
    producer.send(Record::new(b"again")).await?.await?;
    let there = count(&read_all(&client, "plays").await?);
    // Of those that were given up each may be there all the same.
    let least = RECORDS as usize + 1;
    assert!((least..=least + PARTITIONS as usize).contains(&there), "{there} records");
    Ok(())
}

/// How many records the first broker shows.
async fn shown_at(cluster: &TestCluster, topic: TopicId) -> Outcome<i64> {
    let first = cluster.brokers().first().ok_or("there is none")?;
    let (peer, _control) = RawPeer::greeted_without_ids(first).await?;
    let mut shown = 0;
    for number in 0..PARTITIONS {
        let partition = TopicPartition::new(topic, PartitionId::new(number));
        match begin(&mut peer.subscribing().await?, 1, partition, 0).await? {
            subscribe_event::Kind::Started(started) => shown += started.high_watermark,
            other => return Err(format!("{other:?}").into()),
        }
    }
    Ok(shown)
}

/// Whether this is in the log of the first broker.
fn says(cluster: &TestCluster, words: &str) -> Option<()> {
    cluster.brokers().first()?.log_text().ok()?.contains(words).then_some(())
}

/// That so many records come.
async fn reads(consumer: &mut Consumer, count: u32) -> Outcome<()> {
    for read in 0..count {
        match tokio::time::timeout(Duration::from_secs(20), consumer.next()).await {
            Ok(Some(record)) => drop(record?),
            other => panic!("{read} of {count} records were read, then: {other:?}"),
        }
    }
    Ok(())
}

/// That a replica which can ask nobody serves a reader who has seen nothing elsewhere, or no more than is here, and nobody else.
async fn begins_up_to_what_is_here(peer: &RawPeer, partition: TopicPartition) -> Outcome<()> {
    let mut stream = peer.subscribing().await?;
    let end = match begin(&mut stream, 1, partition, 0).await? {
        subscribe_event::Kind::Started(started) => started.high_watermark,
        other => panic!("{partition:?}: {other:?}"),
    };
    assert!(end > 0, "{partition:?} has records");
    let at_the_floor = begin(&mut stream, 2, partition, end).await?;
    assert!(matches!(at_the_floor, subscribe_event::Kind::Started(_)), "{partition:?}: {at_the_floor:?}");
    match begin(&mut stream, 3, partition, end + 1).await? {
        subscribe_event::Kind::Failed(failed) => {
            let code = failed.error.as_ref().and_then(|error| ErrorCode::from_code(error.code));
            let is_said = code.is_some_and(|code| NOBODY_DECIDES.contains(&code));
            assert!(failed.id == 3 && is_said, "{partition:?}: {failed:?}");
        }
        other => panic!("{partition:?}, and the floor is beyond its end: {other:?}"),
    }
    Ok(())
}

/// Adds a partition from its start, for a reader who has seen what is below the floor elsewhere. Without credit nothing comes but the answer.
async fn begin(
    stream: &mut RawStream,
    id: u32,
    partition: TopicPartition,
    floor_offset: i64,
) -> Outcome<subscribe_event::Kind> {
    let add = SubscribeAdd { id, partition: Some(partition.into()), floor_offset, ..Default::default() };
    stream.subscribe_to(add).await
}

/// Where a partition ends nobody knows, so those to be read from there don't begin; those with records to read are served meanwhile, by the same subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_cannot_begin_hold_up_no_others() -> Outcome<()> {
    /// One after the other they would take longer than the reader waits, those alone that are led where it reads.
    const WAITING: u32 = 120;
    const PATIENCE: Duration = Duration::from_secs(20);
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    client.topics().create(NewTopic::new("waiting", WAITING)).await?;
    let producer = client.producer("plays").build().await?;
    for number in 0..RECORDS {
        producer.send(Record::new(&number.to_be_bytes())).await?.await?;
    }
    // The broker that stays hears with the next heartbeats that all of it is committed.
    cluster.settled(&client).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.broker(2).kill().await?;
    cluster.broker(3).kill().await?;
    let alone = cluster.broker(1).client().await?;
    let said = |status: &ClusterStatus| status.risks.iter().any(|risk| risk.contains("which is no majority"));
    cluster.until(&alone, "say that there is no majority", said).await?;

    let waiting = alone.consumer().topic("waiting").from(Start::Latest).partition_window_bytes(128 << 10);
    let mut consumer = waiting.build().await?;
    // They are refused, and added again and again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..PARTITIONS {
        consumer.add("plays", PartitionId::new(number), Start::Earliest).await?;
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut read = 0;
    while read < RECORDS {
        match tokio::time::timeout_at(deadline, consumer.next()).await {
            Ok(Some(record)) => {
                record?;
                read += 1;
            }
            other => panic!("{read} of {RECORDS} records were read, then: {other:?}"),
        }
    }
    Ok(())
}
