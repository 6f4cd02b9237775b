//! What plugins on the path of records are told the time is: never a broker's clock, always what comes again the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill_client::messages::TopicConfig;
use tidemill_client::{
    BatchBuilder, BuilderOptions, Client, ConsumerRecord, NewDeployment, NewTopic, PartitionId, Record,
    RecordBatch, Start, Timestamp,
};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::reading::{ByPartition, count, drain, read_all};

use crate::kit::{broker, create};

fn clock_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What `tell_now` was told, in its records' order.
fn told(records: &[ConsumerRecord]) -> Vec<i64> {
    let time = |record: &ConsumerRecord| record.value.as_deref().and_then(|value| value.try_into().ok());
    records.iter().map(|record| time(record).map_or(-1, i64::from_le_bytes)).collect()
}

fn batch_at(timestamps: &[i64]) -> Outcome<RecordBatch> {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    for timestamp in timestamps {
        builder.append(Timestamp::new(*timestamp), Some(b"k"), Some(b"v"), [])?;
    }
    Ok(builder.build_batch()?)
}

/// The log's time stands where the last entry left it, however late it is on the clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_filter_is_told_the_logs_time() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    client.plugins().upload("tell-now", "1", tidemill_hostile::tell_now()).await?;
    for topic in ["to-a-partition", "routed"] {
        create(&client, topic, 1).await?;
        client.deployments().create(NewDeployment::produce_filter(topic, "tell-now", topic)).await?;
        let routed = topic == "routed";
        let builder = client.producer(topic);
        let producer = if routed { builder.routed() } else { builder }.build().await?;
        let begin = clock_ms();
        producer.send(Record::new("moves the log's time")).await?.await?;
        let end = clock_ms();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        producer.send(Record::new("is told of it")).await?.await?;
        let read = read_all(&client, topic).await?;
        let [_, now] = told(&read[&0])[..] else { return Err("two records".into()) };
        assert!((begin..=end).contains(&now), "{topic}: {begin} <= {now} <= {end}");
        // A restart moves it no more than anything else that is not written.
        broker.kill().await?;
        broker.restart().await?;
        producer.send(Record::new("the same producer goes on")).await?.await?;
        assert_eq!(count(&read_all(&client, topic).await?), 3);
    }
    Ok(())
}

async fn filtered(client: &Client, topic: &str) -> Outcome<ByPartition> {
    let none: [(&str, &str); 0] = [];
    let consumer = client.consumer().topic(topic).from(Start::Earliest).filter("tell-now", none);
    drain(consumer.stop_at_end().build().await?).await
}

/// Whoever reads the batch again gets the same: hours later, or after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_filter_is_told_the_batchs_time() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    client.plugins().upload("tell-now", "1", tidemill_hostile::tell_now()).await?;
    create(&client, "by-producers", 1).await?;
    let config = TopicConfig { log_append_time: Some(true), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("by-the-broker", 1).config(config)).await?;
    for topic in ["by-producers", "by-the-broker"] {
        let producer = client.producer(topic).build().await?;
        for timestamps in [&[1_000, 3_000, 2_000][..], &[500]] {
            producer.send_batch(PartitionId::new(0), batch_at(timestamps)?).await?.await?;
        }
    }
    let first = filtered(&client, "by-producers").await?;
    assert_eq!(told(&first[&0]), [3_000, 500], "the newest of each batch");
    let stamped = filtered(&client, "by-the-broker").await?;
    let stamps: Vec<i64> = read_all(&client, "by-the-broker").await?[&0]
        .iter()
        .filter(|record| [0, 3].contains(&record.offset.get()))
        .map(|record| record.timestamp.get())
        .collect();
    assert_eq!(told(&stamped[&0]), stamps, "the broker's time of each batch");
    broker.kill().await?;
    broker.restart().await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(filtered(&client, "by-producers").await?, first);
    assert_eq!(filtered(&client, "by-the-broker").await?, stamped);
    Ok(())
}

/// Placed by `now`, the same batch goes to the same partition, whenever it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioner_is_told_the_batchs_time() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 7).await?;
    client.plugins().upload("by-now", "1", tidemill_hostile::by_now()).await?;
    client.deployments().create(NewDeployment::partitioner("by-now", "by-now", "t")).await?;
    let producer = client.producer("t").routed().build().await?;
    for _ in 0..3 {
        producer.send_batch(None, batch_at(&[999, 1_000])?).await?.await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let read = read_all(&client, "t").await?;
    assert_eq!(read.keys().copied().collect::<Vec<_>>(), [1_000 % 7]);
    assert_eq!(count(&read), 6);
    // And so do a hosted consumer's outputs: the records' time decides, not when they are emitted.
    create(&client, "source", 1).await?;
    client.plugins().upload("relay", "1", tidemill_hostile::relay()).await?;
    let relay = NewDeployment::consumer("relay", "relay").topic("source").target("t");
    client.deployments().create(relay.start(tidemill_client::Position::Earliest)).await?;
    let producer = client.producer("source").build().await?;
    for _ in 0..3 {
        producer.send_batch(PartitionId::new(0), batch_at(&[1_000])?).await?.await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let relayed = async || {
        let read = read_all(&client, "t").await.ok()?;
        let relayed = read.values().flatten().filter(|record| record.value.as_deref() == Some(b"v"));
        (relayed.count() == 9).then_some(read)
    };
    let read =
        tidemill_cluster_tests::waiting::eventually("the outputs", crate::kit::PATIENCE, relayed).await?;
    let placed = read.values().flatten().filter(|record| record.value.as_deref() == Some(b"v"));
    for record in placed {
        assert_eq!(record.partition.get(), 1_000 % 7, "{record:?}");
    }
    Ok(())
}
