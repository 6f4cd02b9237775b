//! Two of three brokers are gone.

use std::time::{Duration, Instant};

use tidemill_client::messages::ClusterStatus;
use tidemill_client::{Client, Consumer, NewTopic, PartitionId, Position, Record, Start, TopicPartition};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

/// One in each data shard, of which each broker leads one.
const PARTITIONS: u32 = 3;

/// Producers get an error within their deadline, nobody is told of an end that may be an old one, readers go on with what is committed, and all is well when the others are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_written_and_what_is_there_is_read() -> Outcome<()> {
    const DEADLINE: Duration = Duration::from_secs(3);
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    let topic = client.topic_metadata("plays").await?.id;
    let producer = client.producer("plays").build().await?;
    for number in 0..50u32 {
        producer.send(Record::new(&number.to_be_bytes())).await?.await?;
    }
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
    let hasty = client.producer("plays").delivery_timeout(DEADLINE).build().await;
    let begun = Instant::now();
    if let Ok(hasty) = hasty {
        let sent = hasty.send(Record::new(b"lost?")).await?;
        sent.await.expect_err("no majority has it");
    }
    let took = begun.elapsed();
    assert!(took < DEADLINE + Duration::from_secs(5), "the deadline was {DEADLINE:?}, and it took {took:?}");

    // From the start, by offsets: what is committed here is there to read.
    let from_the_start = || alone.consumer().topic("plays").from(Start::Earliest);
    reads(&mut from_the_start().build().await?, 50).await?;
    // Also by whoever stops at the end, as long as that does not matter yet.
    let mut consumer = from_the_start().stop_at_end_once_reached().build().await?;
    reads(&mut consumer, 50).await?;
    let next = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await;
    assert!(next.is_err(), "nobody knows the end, and it says: {next:?}");
    drop(consumer);

    cluster.broker(2).restart().await?;
    cluster.broker(3).restart().await?;
    cluster.settled(&client).await?;
    producer.send(Record::new(b"again")).await?.await?;
    let there = count(&read_all(&client, "plays").await?);
    assert!((51..=52).contains(&there), "{there} records");
    Ok(())
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
