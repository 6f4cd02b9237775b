//! A follower is killed: what producers notice.

use futures::FutureExt;
use tidemill_client::Client;

use super::{CLUSTER_BYTES, RETURN_SECONDS, START_SECONDS};
use crate::Outcome;
use crate::broker::topic;
use crate::cluster::{Cluster, leader_of, others, settled, shard_of};
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::rows::{Bench, Family, Measured};
use crate::steady::{Steady, latencies};

const TOPIC: &str = "follower";

pub(crate) const FOLLOWER_KILLED: Family = Family {
    name: "follower",
    about: "a follower of a loaded partition is killed",
    by_default: true,
    seconds: |scale| START_SECONDS + scale.seconds(2) + RETURN_SECONDS * scale.rounds as f64,
    disk_bytes: |_| CLUSTER_BYTES,
    run: |bench| follower(bench).boxed(),
};

async fn follower(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let cluster = &Cluster::start(&bench.dir).await?;
    let client = &cluster.client().await?;
    topic(client, TOPIC, 1).await?;
    // One load for both halves: neighbours in time that differ in nothing else.
    let legs = [Leg::new("follower killed", move |round| killed(cluster, client, round, leg))];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "follower killed: produce p99 / before (median of 5)";
    let ratio = runs.ratio("after p99 us", "before p99 us")?;
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 1.5, ratio)], notes: runs.notes() })
}

async fn killed(
    cluster: &Cluster,
    client: &Client,
    round: usize,
    leg: std::time::Duration,
) -> Outcome<Sample> {
    settled(client).await?;
    let shard = shard_of(client, TOPIC).await?;
    let load = Steady::start(client, TOPIC).await?;
    let begun = std::time::Instant::now();
    tokio::time::sleep(leg).await;
    // Only now: a lead goes back to the planned leader some seconds after that has come back.
    let leader = leader_of(&client.cluster_status().await?, shard)?;
    // Now the one, now the other.
    let victim = others(leader)[round % 2];
    let kill = std::time::Instant::now();
    cluster.kill(victim).await?;
    tokio::time::sleep(leg).await;
    let ended = std::time::Instant::now();
    let all = load.finish().await;
    cluster.restart(victim).await?;
    let all = all?;
    let (before, after) = (latencies(&all, begun, kill)?, latencies(&all, kill, ended)?);
    let sample = Sample::of("before p50 us", before.at(0.5)).and("before p99 us", before.at(0.99));
    let sample = sample.and("after p50 us", after.at(0.5)).and("after p99 us", after.at(0.99));
    Ok(sample.and("after, most us", after.at(1.0)))
}
