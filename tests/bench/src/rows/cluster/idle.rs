//! Many partitions in three brokers: what they cost when nothing happens, and a start of all of them.

use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_client::Client;

use super::{CLUSTER_BYTES, RETURN_SECONDS, START_SECONDS};
use crate::Outcome;
use crate::broker::topic;
use crate::cluster::{Cluster, settled};
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::rows::partitions::{batches, load};
use crate::rows::{Bench, Family, Measured};
use crate::scale::Scale;
use crate::usage::{cpu_seconds, resident_bytes};
use crate::work::Until;

const TOPIC: &str = "idle";
const PARTITIONS: u32 = 3_000;
/// What they have received beside a first batch of 64 KiB each.
const BYTES: u64 = 64 << 20;
/// Idle brokers are looked at for so long at a time.
const WINDOW: Duration = Duration::from_secs(15);
/// From a start until all leaders are known, or something is broken.
const START_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) const MANY_PARTITIONS: Family = Family {
    name: "idle",
    about: "3,000 partitions that were written to, left alone; then cold starts",
    by_default: true,
    seconds: |scale| {
        let round = window(scale).as_secs_f64() + 2.0 * RETURN_SECONDS;
        START_SECONDS + 20.0 + scale.settle.as_secs_f64() + round * scale.rounds as f64
    },
    disk_bytes: |_| CLUSTER_BYTES,
    run: |bench| idle(bench).boxed(),
};

fn window(scale: &Scale) -> Duration {
    if scale.quick { scale.leg } else { WINDOW }
}

async fn idle(bench: Bench) -> Outcome<Measured> {
    let cluster = &Cluster::start(&bench.dir).await?;
    let client = cluster.client().await?;
    topic(&client, TOPIC, PARTITIONS).await?;
    load(&client, TOPIC, &batches()?, Until::Bytes(BYTES)).await?;
    settled(&client).await?;
    client.close().await;
    println!("  {PARTITIONS} partitions written to; settling");
    tokio::time::sleep(bench.scale.settle).await;

    let window = window(&bench.scale);
    let resting = [Leg::new("idle", move |_| left_alone(cluster, window))];
    let at_rest = interleave(bench.scale.rounds, &resting).await?;
    let starting = [Leg::new("cold start", move |_| cold_start(cluster))];
    let started = interleave(bench.scale.rounds, &starting).await?;
    let rows = vec![
        Row::at_most(
            "3,000 partitions: idle CPU per broker (% of a core)",
            "% of a core",
            3.0,
            at_rest.value("CPU %")?,
        ),
        Row::at_most("3,000 partitions: RSS per broker (MiB)", "MiB", 500.0, at_rest.value("RSS MiB")?),
        Row::at_most(
            "3,000 partitions: seconds from cold start to all leaders known",
            "s",
            3.0,
            started.value("seconds")?,
        ),
    ];
    let mut notes = at_rest.notes();
    notes.extend(started.notes());
    Ok(Measured { rows, notes })
}

/// Of the broker that uses most.
async fn left_alone(cluster: &Cluster, window: Duration) -> Outcome<Sample> {
    let processes = cluster.process_ids().await?;
    let begun = Instant::now();
    let before = processes.iter().map(|process| cpu_seconds(*process)).collect::<Outcome<Vec<_>>>()?;
    tokio::time::sleep(window).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (mut most_cpu, mut least_cpu, mut most_resident) = (0.0_f64, f64::MAX, 0.0_f64);
    for (process, before) in processes.iter().zip(before) {
        let used = (cpu_seconds(*process)? - before) / seconds * 100.0;
        most_cpu = most_cpu.max(used);
        least_cpu = least_cpu.min(used);
        most_resident = most_resident.max(resident_bytes(*process)? as f64 / f64::from(1 << 20));
    }
    let sample = Sample::of("CPU %", most_cpu).and("CPU % of the least busy broker", least_cpu);
    Ok(sample.and("RSS MiB", most_resident))
}

/// All brokers are stopped, then started at once: from then until a client hears of a leader for every partition.
async fn cold_start(cluster: &Cluster) -> Outcome<Sample> {
    cluster.stop_all().await?;
    let begun = Instant::now();
    cluster.start_all().await?;
    let serving = begun.elapsed();
    let client = cluster.client().await?;
    while !all_led(&client).await? {
        if begun.elapsed() > START_DEADLINE {
            return Err(format!("not all leaders were known within {} s", START_DEADLINE.as_secs()).into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let taken = begun.elapsed();
    // The next stop finds them as an operator would stop them.
    settled(&client).await?;
    client.close().await;
    let sample = Sample::of("seconds", taken.as_secs_f64());
    Ok(sample.and("seconds until all serve", serving.as_secs_f64()))
}

async fn all_led(client: &Client) -> Outcome<bool> {
    let metadata = client.metadata().await?;
    let Some(topic) = metadata.topics.iter().find(|topic| topic.name == TOPIC) else { return Ok(false) };
    let led = topic.partitions.iter().filter(|partition| partition.leader != 0).count();
    Ok(led == PARTITIONS as usize)
}
