//! Files come and go, and a broker comes back.

use std::time::Duration;

use tidemill_client::messages::TopicConfig;
use tidemill_client::{NewTopic, PartitionId, Record};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::reading::{count, digest, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome};

use crate::kit::{PATIENCE, broker_with, create};

/// Much more than the write-ahead log holds: its files are recycled, segments roll, checkpoints come. Then kill -9, again and again.
#[ignore = "how many bytes of log stand at the end depends on the machine: open"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_larger_than_its_write_ahead_log_survives_kills() -> Outcome<()> {
    let options = BrokerOptions::default()
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 16 << 20)
        .set("storage.checkpoint_bytes", 2 << 20);
    let (mut broker, client) = broker_with(options).await?;
    let config = TopicConfig { segment_bytes: Some(1 << 20), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 3).config(config)).await?;
    let producer = client.producer("t").build().await?;
    let mut random = Random::new(7);
    let mut value = vec![0; 10_000];
    let mut sent = 0;
    for round in 0..4 {
        let mut deliveries = Vec::new();
        for _ in 0..400u32 {
            random.fill(&mut value);
            deliveries.push(producer.send(Record::new(&value).partition(PartitionId::new(sent % 3))).await?);
            sent += 1;
            if deliveries.len() == 200 && round > 0 {
                // In the middle of it: half of them may be under way.
                broker.kill().await?;
                broker.restart().await?;
            }
        }
        for delivery in deliveries {
            delivery.await?;
        }
        let read = read_all(&client, "t").await?;
        assert_eq!(count(&read), sent as usize, "round {round}: each record once");
    }
    let before = digest(read_all(&client, "t").await?.values().flatten());
    // What is to be read lies in segments now; the log beside them stays small.
    let wal_bytes: u64 = std::fs::read_dir(broker.data_dir().join("wal"))?
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    assert!(wal_bytes <= 24 << 20, "the write-ahead log has {wal_bytes} bytes");
    for _ in 0..3 {
        broker.kill().await?;
        broker.restart().await?;
        assert_eq!(digest(read_all(&client, "t").await?.values().flatten()), before);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_frees_what_is_too_much() -> Outcome<()> {
    let (mut broker, client) =
        broker_with(BrokerOptions::default().set("storage.retention_interval_ms", 200)).await?;
    let config = TopicConfig {
        segment_bytes: Some(256 << 10),
        retention_bytes: Some(1 << 20),
        ..TopicConfig::default()
    };
    client.topics().create(NewTopic::new("t", 1).config(config)).await?;
    create(&client, "kept", 1).await?;
    let value = vec![b'x'; 50_000];
    for topic in ["t", "kept"] {
        let producer = client.producer(topic).build().await?;
        for _ in 0..100 {
            producer.send_and_forget(Record::new(&value)).await?;
        }
        producer.flush().await?;
    }
    let start_of = async |topic: &str| -> Option<(i64, i64)> {
        let described = client.topics().describe(topic).await.ok()?;
        let partition = described.partitions.first()?;
        Some((partition.log_start_offset, partition.high_watermark))
    };
    let (start, end) =
        eventually("retention", PATIENCE, async || start_of("t").await.filter(|(start, _)| *start >= 70))
            .await?;
    assert_eq!(end, 100);
    assert!(start <= 85, "about 1 MiB of 5 is left: {start}");
    assert_eq!(start_of("kept").await, Some((0, 100)), "the other topic has all it had");
    broker.kill().await?;
    broker.restart().await?;
    let read = read_all(&client, "t").await?;
    let first = read[&0][0].offset.get();
    assert!(first >= start, "the start never moves back: {first} < {start}");
    assert_eq!(count(&read) as i64, 100 - first);
    Ok(())
}

/// A producer that was cut off goes on by itself when the broker is back, however long that takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_wait_for_a_broker_that_is_away() -> Outcome<()> {
    let (mut broker, client) = broker_with(BrokerOptions::default()).await?;
    create(&client, "t", 1).await?;
    let producer = client.producer("t").build().await?;
    producer.send(Record::new("before")).await?.await?;
    broker.kill().await?;
    let waiting = producer.send(Record::new("while it is away")).await?;
    let requested = tokio::spawn({
        let client = client.clone();
        async move { client.topics().list().await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(waiting.now().is_none() && !requested.is_finished());
    broker.restart().await?;
    assert_eq!(waiting.await?.offset().map(|offset| offset.get()), Some(1));
    assert_eq!(requested.await??, ["t"]);
    Ok(())
}
