//! A broker comes back without its data: how fast its replicas are rebuilt, and what producers notice.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_client::Client;

use super::{CLUSTER_BYTES, RETURN_SECONDS, START_SECONDS};
use crate::Outcome;
use crate::broker::topic;
use crate::cluster::{Cluster, leader_of, life_of, others, rebuild, settled, shard_of};
use crate::legs::{Leg, Sample, interleave};
use crate::peer::PeerProcess;
use crate::report::Row;
use crate::rows::produce::{BATCH_BYTES, RECORD_BYTES};
use crate::rows::{Bench, Family, Measured};
use crate::scale::Scale;
use crate::steady::{Steady, latencies};
use crate::work::{Until, Values, produce};

/// What the replicas hold.
const FILLED: &str = "filled";
/// As many as a planned cluster has shards, so that most of these hold something.
const PARTITIONS: u32 = 12;
/// What is written to meanwhile.
const LOADED: &str = "loaded";
/// Who loses its data where nobody writes.
const VICTIM: u32 = 2;
/// Of each of the two brokers that send: 50 MB/s together.
const THROTTLE_BYTES_PER_SECOND: u64 = 25_000_000;
/// Bytes per second that a rebuild reaches at least, or it is stuck.
const RATE_LEAST: f64 = 10e6;
/// What it may take beside that.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const UNLOADED: Family = Family {
    name: "rebuild",
    about: "a broker comes back without its data, beside a file that is copied over bare quinn",
    by_default: true,
    seconds: |scale| {
        let bytes = scale.fill_bytes as f64;
        let round = 2.0 * RETURN_SECONDS + bytes / 150e6 + bytes / 300e6;
        START_SECONDS + bytes / 50e6 + scale.settle.as_secs_f64() + round * scale.rounds as f64
    },
    // Three replicas, a file, its copy.
    disk_bytes: |scale| CLUSTER_BYTES + 5 * scale.fill_bytes,
    run: |bench| unloaded(bench).boxed(),
};

pub(crate) const THROTTLED: Family = Family {
    name: "throttled",
    about: "the same throttled to 50 MB/s, while a partition is written to",
    by_default: true,
    seconds: |scale| {
        let bytes = throttled_bytes(scale) as f64;
        let round = scale.leg.as_secs_f64() + 2.0 * RETURN_SECONDS + bytes / 50e6;
        START_SECONDS + bytes / 50e6 + scale.settle.as_secs_f64() + round * scale.rounds as f64
    },
    disk_bytes: |scale| CLUSTER_BYTES + 3 * throttled_bytes(scale),
    run: |bench| throttled(bench).boxed(),
};

/// At the throttled rate less is enough to take its time.
const fn throttled_bytes(scale: &Scale) -> u64 {
    scale.fill_bytes / 2
}

async fn unloaded(bench: Bench) -> Outcome<Measured> {
    let cluster = &Cluster::start(&bench.dir).await?;
    let client = &cluster.client().await?;
    let bytes = fill(client, bench.scale.fill_bytes).await?;
    let peer = &PeerProcess::start(&bench.dir).await?;
    let file = &bench.dir.join("source");
    let making = file.clone();
    tokio::task::spawn_blocking(move || make_file(&making, bytes)).await??;
    println!("  {} MB written; settling", bytes / 1_000_000);
    tokio::time::sleep(bench.scale.settle).await;
    let legs = [
        Leg::new("rebuild", move |_| rebuild_leg(cluster, client, bytes)),
        Leg::new("file copy over bare quinn", move |_| async move {
            let bare = peer.connect().await?;
            let rate = bare.copy(file).await?;
            bare.close().await;
            Ok(Sample::of("file copy MB/s", rate / 1e6))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "rebuilding an emptied replica, unloaded: MB/s / plain file copy over bare quinn";
    let ratio = runs.ratio("rebuild MB/s", "file copy MB/s")?;
    Ok(Measured { rows: vec![Row::at_least(row, "ratio", 0.5, ratio)], notes: runs.notes() })
}

async fn rebuild_leg(cluster: &Cluster, client: &Client, bytes: u64) -> Outcome<Sample> {
    let life = life_of(&settled(client).await?, VICTIM);
    cluster.empty(VICTIM).await?;
    let (begun, ended) = rebuild(cluster, client, VICTIM, life, deadline(bytes)).await?;
    let seconds = (ended - begun).as_secs_f64();
    Ok(Sample::of("rebuild MB/s", bytes as f64 / 1e6 / seconds).and("rebuild seconds", seconds))
}

async fn throttled(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let cluster = &Cluster::start(&bench.dir).await?;
    let client = &cluster.client().await?;
    let bytes = fill(client, throttled_bytes(&bench.scale)).await?;
    topic(client, LOADED, 1).await?;
    client.alter_cluster(None, Some(THROTTLE_BYTES_PER_SECOND)).await?;
    println!("  {} MB written; settling", bytes / 1_000_000);
    tokio::time::sleep(bench.scale.settle).await;
    let legs =
        [Leg::new("throttled rebuild", move |round| throttled_leg(cluster, client, round, leg, bytes))];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row =
        "rebuilding an emptied replica, throttled to 50 MB/s under load: produce p99 / before (median of 5)";
    let ratio = runs.ratio("during p99 us", "before p99 us")?;
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 1.5, ratio)], notes: runs.notes() })
}

/// One load for both halves: before the broker loses its data, and while its replicas are rebuilt.
async fn throttled_leg(
    cluster: &Cluster,
    client: &Client,
    round: usize,
    leg: Duration,
    bytes: u64,
) -> Outcome<Sample> {
    settled(client).await?;
    let shard = shard_of(client, LOADED).await?;
    let load = Steady::start(client, LOADED).await?;
    let begun = Instant::now();
    tokio::time::sleep(leg).await;
    // Only now: a lead goes back to the planned leader some seconds after that has come back.
    let status = client.cluster_status().await?;
    let victim = others(leader_of(&status, shard)?)[round % 2];
    let life = life_of(&status, victim);
    let emptied = Instant::now();
    cluster.empty(victim).await?;
    let (from, until) = rebuild(cluster, client, victim, life, deadline(bytes)).await?;
    let all = load.finish().await?;
    let (before, during) = (latencies(&all, begun, emptied)?, latencies(&all, from, until)?);
    let seconds = (until - from).as_secs_f64();
    let sample = Sample::of("before p50 us", before.at(0.5)).and("before p99 us", before.at(0.99));
    let sample = sample.and("during p50 us", during.at(0.5)).and("during p99 us", during.at(0.99));
    let sample = sample.and("during, most us", during.at(1.0)).and("rebuild seconds", seconds);
    Ok(sample.and("rebuild MB/s", bytes as f64 / 1e6 / seconds))
}

fn deadline(bytes: u64) -> Duration {
    DEADLINE + Duration::from_secs_f64(bytes as f64 / RATE_LEAST)
}

/// Writes so many bytes of values; answers how many those were.
async fn fill(client: &Client, bytes: u64) -> Outcome<u64> {
    topic(client, FILLED, PARTITIONS).await?;
    let producer = client.producer(FILLED).batch_bytes(BATCH_BYTES).eager(false).build().await?;
    let produced = produce(&producer, RECORD_BYTES, Until::Bytes(bytes)).await?;
    producer.close().await?;
    Ok(produced.bytes)
}

/// A file of as many bytes, of which none is like its neighbours.
fn make_file(path: &Path, bytes: u64) -> Outcome<()> {
    let mut values = Values::new(BATCH_BYTES);
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let value = values.next();
        let step = value.len().min(usize::try_from(left)?);
        file.write_all(&value[..step])?;
        left -= step as u64;
    }
    file.sync_all()?;
    Ok(())
}
