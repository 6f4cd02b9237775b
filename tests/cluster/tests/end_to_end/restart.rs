//! Files come and go, and a broker comes back.

use std::path::Path;
use std::time::Duration;

use tidemill_client::messages::TopicConfig;
use tidemill_client::{ErrorCode, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::reading::{count, digest, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome};

use crate::kit::{PATIENCE, batch_of, broker_with, create, partition_of};
use crate::raw::RawPeer;

/// Much more than the write-ahead log holds: its files are recycled, segments roll, checkpoints come. Then kill -9, again and again.
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
    // What is to be read lies in segments now; the log beside them keeps its bound, and three files that are made ready.
    let wal_bytes = bytes_in(&broker.data_dir().join("wal"))?;
    assert!(wal_bytes <= (16 + 3 * 4) << 20, "the write-ahead log has {wal_bytes} bytes");
    for _ in 0..3 {
        broker.kill().await?;
        broker.restart().await?;
        assert_eq!(digest(read_all(&client, "t").await?.values().flatten()), before);
    }
    Ok(())
}

fn bytes_in(directory: &Path) -> Outcome<u64> {
    let files = std::fs::read_dir(directory)?;
    Ok(files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum())
}

/// Much faster than checkpoints come, in large batches, to every shard, and from clients that want no acknowledgement: writers wait
/// for the checkpoints, and the log's files never take more than they may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_keeps_its_bound_whatever_comes() -> Outcome<()> {
    let options = BrokerOptions::default()
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 24 << 20)
        .set("storage.checkpoint_bytes", 1 << 30);
    let (mut broker, client) = broker_with(options).await?;
    create(&client, "t", 8).await?;
    create(&client, "routed", 8).await?;
    let wal = broker.data_dir().join("wal");
    let watching = tokio::spawn(async move {
        let mut most = 0;
        while let Ok(bytes) = bytes_in(&wal) {
            most = most.max(bytes);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        most
    });
    let mut value = vec![0; 20_000];
    Random::new(3).fill(&mut value);
    let builders = [
        client.producer("t").batch_bytes(1 << 20),
        client.producer("t").batch_bytes(200_000),
        client.producer("routed").routed().batch_bytes(1 << 20),
        client.producer("t").batch_bytes(500_000).acks(tidemill_client::Acks::None),
    ];
    let mut sending = tokio::task::JoinSet::new();
    for builder in builders {
        let producer = builder.build().await?;
        let value = value.clone();
        sending.spawn(async move {
            for number in 0..2_000 {
                let record = Record::new(&value);
                let key = format!("key-{number}");
                producer.send_and_forget(record.key(&key)).await.map_err(|error| error.to_string())?;
            }
            producer.flush().await.map_err(|error| error.to_string())
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    assert_eq!(count(&read_all(&client, "routed").await?), 2_000);
    // What nobody waited for comes a moment later.
    let all_there = async || read_all(&client, "t").await.ok().filter(|read| count(read) == 6_000);
    eventually("all records", PATIENCE, all_there).await?;
    broker.kill().await?;
    drop(broker);
    let most = watching.await?;
    println!("the write-ahead log's files had {most} bytes at most");
    assert!(most <= (24 + 3 * 4) << 20, "the write-ahead log had {most} bytes");
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

/// By age, too, and where nothing more is written to any partition of the shard: time passes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_frees_what_is_too_old_where_nobody_writes() -> Outcome<()> {
    let (_broker, client) =
        broker_with(BrokerOptions::default().set("storage.retention_interval_ms", 200)).await?;
    let config = TopicConfig { retention_ms: Some(1_500), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 1).config(config)).await?;
    let producer = client.producer("t").build().await?;
    for _ in 0..3 {
        producer.send(Record::new("old soon")).await?.await?;
    }
    eventually("retention", PATIENCE, async || {
        let described = client.topics().describe("t").await.ok()?;
        (described.partitions.first()?.log_start_offset == 3).then_some(())
    })
    .await?;
    assert_eq!(count(&read_all(&client, "t").await?), 0);
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

/// A producer that names the leader epoch it knows is served under that one alone: not by a leader whom it takes for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_epoch_that_is_named_must_be_the_leaders() -> Outcome<()> {
    let (mut broker, client) = broker_with(BrokerOptions::default()).await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let batch = batch_of(&["one"]);
    let mut earlier = None;
    for _ in 0..2 {
        let (peer, _control) = RawPeer::greeted(&broker).await?;
        let (mut unnamed, opened) = peer.try_producing_in(partition, -1).await?;
        assert_eq!(opened.error, None);
        assert_eq!(unnamed.produce(0, batch.bytes()).await?.error, None);
        let now = opened.leader_epoch;
        assert!(now > earlier.unwrap_or(0), "each start elects anew: {now} after {earlier:?}");
        let (mut stream, opened) = peer.try_producing_in(partition, now).await?;
        assert_eq!((opened.error, opened.leader_epoch), (None, now));
        assert_eq!(stream.produce(0, batch.bytes()).await?.error, None);
        for (other, whose) in [(now + 1, "newer"), (now - 1, "older"), (earlier.unwrap_or(0), "older")] {
            let error = peer.try_producing_in(partition, other).await?.1.error.ok_or("it is another")?;
            assert_eq!(ErrorCode::from_code(error.code), Some(ErrorCode::NotLeader));
            assert!(error.retriable && error.message.contains(whose), "{}", error.message);
        }
        earlier = Some(now);
        broker.kill().await?;
        broker.restart().await?;
    }
    assert_eq!(count(&read_all(&broker.client().await?, "t").await?), 4);
    Ok(())
}
