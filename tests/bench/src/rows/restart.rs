//! A start after kill -9.

use std::time::Instant;

use futures::FutureExt;
use tidemill_client::{Client, PartitionId, Record};

use super::{BROKER_BYTES, Bench, Family, Measured};
use crate::Outcome;
use crate::broker::{Broker, metric, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::work::{Until, produce};

const TOPIC: &str = "restart";
/// One in each shard, where the broker places them in turn.
const PARTITIONS: u32 = 4;
const RECORD_BYTES: usize = 1 << 10;
const BATCH_BYTES: usize = 1 << 20;
/// Written before each kill: with what is left since each shard's last checkpoint, some hundred MiB are to be replayed.
const BYTES_PER_ROUND: u64 = 300 << 20;
/// The rate that a replay is granted.
const REPLAY_BYTES_PER_SECOND: f64 = 300e6;

pub(crate) const AFTER_KILL: Family = Family {
    name: "restart",
    about: "a start after kill -9, with much in segments and some in the write-ahead log",
    by_default: true,
    seconds: |scale| scale.restart_bytes as f64 / 200e6 + 6.0 * scale.rounds as f64,
    disk_bytes: |scale| BROKER_BYTES + scale.restart_bytes + (scale.rounds as u64 + 2) * BYTES_PER_ROUND,
    run: |bench| after_kill(bench).boxed(),
};

async fn after_kill(bench: Bench) -> Outcome<Measured> {
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let client = broker.client().await?;
    topic(&client, TOPIC, PARTITIONS).await?;
    write(&client, bench.scale.restart_bytes).await?;
    client.close().await;
    println!("  {} GiB written", bench.scale.restart_bytes >> 30);
    let legs = [Leg::new("restart", move |_| restart(broker))];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "restart: seconds / (1 + WAL bytes to replay / 300 MB/s), with 5 GiB in segments";
    let ratio = runs.each(|of| of("seconds") / (1.0 + of("MB to replay") * 1e6 / REPLAY_BYTES_PER_SECOND))?;
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 1.0, ratio)], notes: runs.notes() })
}

async fn write(client: &Client, bytes: u64) -> Outcome<()> {
    let producer = client.producer(TOPIC).batch_bytes(BATCH_BYTES).eager(false).build().await?;
    produce(&producer, RECORD_BYTES, Until::Bytes(bytes)).await?;
    producer.close().await?;
    Ok(())
}

/// Writes a little, kills, starts: from the start of the process until every partition has taken a record.
async fn restart(broker: &Broker) -> Outcome<Sample> {
    let client = broker.client().await?;
    write(&client, BYTES_PER_ROUND).await?;
    broker.process().await.kill().await?;
    client.close().await;

    let begun = Instant::now();
    broker.process().await.restart().await?;
    let client = broker.client().await?;
    let serving = begun.elapsed();
    let found = client.topic_metadata(TOPIC).await?.partition_count();
    let producer = client.producer(TOPIC).build().await?;
    let mut deliveries = Vec::new();
    for partition in 0..found {
        deliveries.push(producer.send(Record::new("again").partition(PartitionId::new(partition))).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }
    let taken = begun.elapsed();
    producer.close().await?;
    let replayed = metric(&client, "tidemill_raft_replayed_bytes").await?;
    client.close().await;
    let sample =
        Sample::of("seconds", taken.as_secs_f64()).and("seconds until it serves", serving.as_secs_f64());
    Ok(sample.and("MB to replay", replayed / 1e6))
}
