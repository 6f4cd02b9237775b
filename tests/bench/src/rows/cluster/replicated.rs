//! Bulk produce to three replicas, beside one broker.

use std::time::Duration;

use futures::FutureExt;

use super::{CLUSTER_BYTES, RETURN_SECONDS, START_SECONDS};
use crate::Outcome;
use crate::broker::{Broker, topic};
use crate::cluster::Cluster;
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::rows::produce::{BATCH_BYTES, LINGER, RECORD_BYTES, produce_leg};
use crate::rows::{Bench, Family, Measured, room_for_legs};
use crate::work::{Until, produce};

pub(crate) const BESIDE_SINGLE: Family = Family {
    name: "replicated",
    about: "bulk produce to three replicas, beside a single broker",
    by_default: true,
    // Both are stopped and started between legs.
    seconds: |scale| START_SECONDS + scale.seconds(2) + 2.0 * RETURN_SECONDS * scale.rounds as f64,
    disk_bytes: |scale| CLUSTER_BYTES + room_for_legs(scale),
    run: |bench| beside_single(bench).boxed(),
};

async fn beside_single(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let single = &Broker::start(&bench.dir, "single", &[]).await?;
    let cluster = &Cluster::start(&bench.dir).await?;
    let legs = [
        Leg::new("three brokers", move |round| replicated_leg(cluster, round, leg)),
        Leg::new("one broker", move |round| produce_leg(single, 1, round, leg, "single MB/s")),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "produce with three replicas and fsync, 1 MiB batches, MB/s / single node in the same run";
    let ratio = runs.ratio("replicated MB/s", "single MB/s")?;
    Ok(Measured { rows: vec![Row::at_least(row, "ratio", 0.28, ratio)], notes: runs.notes() })
}

async fn replicated_leg(cluster: &Cluster, round: usize, leg: Duration) -> Outcome<Sample> {
    let client = cluster.client().await?;
    let topic = topic(&client, format!("produce-{round}"), 1).await?;
    let producer =
        client.producer(&topic).batch_bytes(BATCH_BYTES).eager(false).linger(LINGER).build().await?;
    let produced = produce(&producer, RECORD_BYTES, Until::Passed(leg)).await?;
    producer.close().await?;
    client.topics().delete(&topic).await?;
    client.close().await;
    cluster.tidy().await?;
    let sample = Sample::of("replicated MB/s", produced.bytes_per_second() / 1e6);
    Ok(sample.and("replicated batch KiB", produced.batch_bytes / 1024.0))
}
