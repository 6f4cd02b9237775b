//! A disk that fills up.

use std::time::Duration;

use tidemill_client::{DeliveryError, Offset, PartitionId, Record};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};

use crate::kit::{PATIENCE, create};
use crate::small_disk::SmallDisk;

/// A broker that takes about 128 MB for a whole disk.
fn small(disk: &SmallDisk) -> BrokerOptions {
    BrokerOptions::default()
        .directory(disk.path())
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 16 << 20)
        .set("storage.checkpoint_bytes", 2 << 20)
        .set("storage.disk_free_min_bytes", 24 << 20)
        .set("storage.disk_reserve_bytes", 4 << 20)
        .set("storage.retention_interval_ms", 200)
}

/// Refused before the disk is full, so that nothing breaks; what was acknowledged stays; deleting records makes room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_produce_and_nothing_else() -> Outcome<()> {
    let Some(disk) = SmallDisk::mount("size=128m") else { return Ok(()) };
    let mut broker = TestBroker::start(small(&disk)).await?;
    let client = broker.client().await?;
    let config =
        tidemill_client::messages::TopicConfig { segment_bytes: Some(1 << 20), ..Default::default() };
    client.topics().create(tidemill_client::NewTopic::new("t", 1).config(config)).await?;
    // Longer than the broker waits for its checkpoints before it says that it is overloaded.
    let producer = client.producer("t").delivery_timeout(Duration::from_secs(8)).build().await?;
    let value = vec![b'x'; 200_000];
    let mut acknowledged = 0;
    let refusal = loop {
        match producer.send(Record::new(&value)).await?.await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 2_000, "128 MB do not take 400 MB");
    };
    match &refusal {
        DeliveryError::TimedOut { last: Some(last), .. } => assert!(last.contains("DISK_FULL"), "{last}"),
        other => return Err(format!("the client waits for room, and says so: {other}").into()),
    }
    assert!(client.cluster_status().await?.produce_refused);
    let there = count(&read_all(&client, "t").await?);
    assert!(there >= acknowledged, "{there} of {acknowledged}");
    // Positions and restarts still work.
    broker.kill().await?;
    broker.restart().await?;
    assert_eq!(count(&read_all(&client, "t").await?), there);
    client.topics().delete_records("t", PartitionId::new(0), Offset::new(there as i64 - 10)).await?;
    eventually("room again", PATIENCE, async || {
        let status = client.cluster_status().await.ok()?;
        (!status.produce_refused).then_some(())
    })
    .await?;
    create(&client, "another", 1).await?;
    let producer = client.producer("t").build().await?;
    producer.send(Record::new("room again")).await?.await?;
    Ok(())
}

/// From all sides at once, as fast as it goes, with much under way: what is promised has its room, and what has none is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_at_full_speed_stops_no_shard() -> Outcome<()> {
    let Some(disk) = SmallDisk::mount("size=128m") else { return Ok(()) };
    let mut broker = TestBroker::start(small(&disk)).await?;
    let client = broker.client().await?;
    create(&client, "t", 4).await?;
    create(&client, "routed", 4).await?;
    // Longer than the broker waits for its checkpoints before it says that it is overloaded.
    let patience = Duration::from_secs(8);
    let mut value = vec![0; 50_000];
    tidemill_cluster_tests::fixtures::Random::new(5).fill(&mut value);
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..4 {
        let builder = client.producer(if number == 3 { "routed" } else { "t" }).delivery_timeout(patience);
        let builder = if number == 3 { builder.routed() } else { builder };
        let producer = builder.batch_bytes(1 << 20).build().await?;
        let value = value.clone();
        sending.spawn(async move {
            let mut deliveries = Vec::new();
            for _ in 0..1_500 {
                match producer.send(Record::new(&value)).await {
                    Ok(delivery) => deliveries.push(delivery),
                    Err(_) => break,
                }
            }
            let mut stored = 0;
            let mut refusals = Vec::new();
            for delivery in deliveries {
                match delivery.await {
                    Ok(_) => stored += 1,
                    Err(error) => refusals.push(error),
                }
            }
            (number, stored, refusals)
        });
    }
    let mut stored = [0; 2];
    while let Some(sent) = sending.join_next().await {
        let (number, acknowledged, refusals) = sent?;
        stored[usize::from(number == 3)] += acknowledged;
        for refusal in refusals {
            match &refusal {
                DeliveryError::TimedOut { last: Some(last), .. } => {
                    assert!(last.contains("DISK_FULL"), "{last}")
                }
                other => return Err(format!("it is refused for want of room: {other}").into()),
            }
        }
    }
    let status = client.cluster_status().await?;
    assert!(status.produce_refused);
    assert!(status.shards.iter().all(|shard| shard.state == "leader"), "{:?}", status.shards);
    println!("stored before the disk was full: {stored:?} records of 50 kB");
    for (topic, acknowledged) in ["t", "routed"].iter().zip(stored) {
        let there = count(&read_all(&client, topic).await?);
        assert!(there >= acknowledged, "{topic}: {there} of {acknowledged}");
    }
    broker.kill().await?;
    broker.restart().await?;
    for (topic, acknowledged) in ["t", "routed"].iter().zip(stored) {
        let there = count(&read_all(&client, topic).await?);
        assert!(there >= acknowledged, "{topic}: {there} of {acknowledged}");
    }
    Ok(())
}
