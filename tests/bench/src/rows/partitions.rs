//! Many partitions: what they cost under load, and when nothing happens.

use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_client::{BatchBuilder, BuilderOptions, Client, PartitionId, RecordBatch, Timestamp};

use super::{BROKER_BYTES, Bench, Family, Measured, room_for_legs};
use crate::Outcome;
use crate::broker::{Broker, checkpoints, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;
use crate::usage::{Meter, cpu_seconds, resident_bytes};
use crate::work::{Until, Values};

const MANY: u32 = 1_000;
const FEW: u32 = 10;
const RECORD_BYTES: usize = 1 << 10;
const BATCH_BYTES: usize = 64 << 10;
/// Batches that are sent in turn.
const BATCHES: usize = 512;
/// What each partition has received before the broker is left alone.
const IDLE_BYTES: u64 = 1 << 30;
/// An idle broker is looked at for so long at a time.
const IDLE_WINDOW: Duration = Duration::from_secs(30);

pub(crate) const UNDER_LOAD: Family = Family {
    name: "partitions",
    about: "1,000 partitions beside 10, batches of 64 KiB in turn to all of them",
    by_default: true,
    seconds: |scale| scale.seconds(2) + 30.0,
    disk_bytes: room_for_legs,
    run: |bench| under_load(bench).boxed(),
};

pub(crate) const IDLE: Family = Family {
    name: "idle",
    about: "1,000 partitions that were written to, left alone",
    by_default: true,
    seconds: |scale| 30.0 + scale.settle.as_secs_f64() + window(scale).as_secs_f64() * scale.rounds as f64,
    disk_bytes: |_| BROKER_BYTES + 2 * IDLE_BYTES,
    run: |bench| idle(bench).boxed(),
};

fn window(scale: &crate::scale::Scale) -> Duration {
    if scale.quick { scale.leg } else { IDLE_WINDOW }
}

async fn under_load(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let batches = &batches()?;
    let legs = [
        Leg::new("1,000 partitions", move |round| {
            load_leg(broker, batches, MANY, round, leg, "1,000 partitions MB/s")
        }),
        Leg::new("10 partitions", move |round| {
            load_leg(broker, batches, FEW, round, leg, "10 partitions MB/s")
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "1,000 partitions / 10 partitions, 64 KiB batches, fsync: MB/s";
    let ratio = runs.ratio("1,000 partitions MB/s", "10 partitions MB/s")?;
    Ok(Measured { rows: vec![Row::at_least(row, "ratio", 0.7, ratio)], notes: runs.notes() })
}

async fn load_leg(
    broker: &Broker,
    batches: &[RecordBatch],
    partitions: u32,
    round: usize,
    leg: Duration,
    name: &'static str,
) -> Outcome<Sample> {
    let client = broker.client().await?;
    let topic = topic(&client, format!("partitions-{partitions}-{round}"), partitions).await?;
    let before = checkpoints(&client).await?;
    let meter = Meter::start(broker.process_id().await?)?;
    let rate = load(&client, &topic, batches, Until::Passed(leg)).await?;
    let (of_broker, of_client) = meter.cores()?;
    let checkpoints = checkpoints(&client).await? - before;
    client.topics().delete(&topic).await?;
    client.close().await;
    broker.tidy().await?;
    let sample = Sample::of(name, rate / 1e6).checkpoints(checkpoints);
    Ok(match partitions {
        MANY => sample.and("1,000: broker cores", of_broker).and("1,000: client cores", of_client),
        _ => sample.and("10: broker cores", of_broker).and("10: client cores", of_client),
    })
}

/// Whole batches of 64 KiB, encoded beforehand, one to each partition in turn: so every batch has the size that the row says.
pub(super) fn batches() -> Outcome<Vec<RecordBatch>> {
    let mut values = Values::new(RECORD_BYTES);
    let mut builder =
        BatchBuilder::new(BuilderOptions { batch_bytes_max: BATCH_BYTES, ..BuilderOptions::default() });
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        while builder.append(Timestamp::new(1_700_000_000_000), None, Some(values.next()), []).is_ok() {}
        batches.push(builder.build_batch()?);
    }
    Ok(batches)
}

/// Bytes of batches per second, until the last was acknowledged.
pub(super) async fn load(
    client: &Client,
    topic: &str,
    batches: &[RecordBatch],
    until: Until,
) -> Outcome<f64> {
    let producer = client.producer(topic).batch_bytes(BATCH_BYTES).build().await?;
    let partitions = producer.topic().partition_count().max(1);
    // The first to each partition opens its stream.
    for partition in 0..partitions {
        drop(producer.send_batch(PartitionId::new(partition), batches[0].clone()).await?);
    }
    producer.flush().await?;
    let (begun, mut bytes, mut partition) = (Instant::now(), 0_u64, 0);
    for batch in batches.iter().cycle() {
        let done = match until {
            Until::Passed(leg) => begun.elapsed() >= leg,
            Until::Bytes(most) => bytes >= most,
        };
        if done {
            break;
        }
        // Its fate is told by the flush.
        drop(producer.send_batch(PartitionId::new(partition), batch.clone()).await?);
        bytes += batch.bytes().len() as u64;
        partition = if partition + 1 == partitions { 0 } else { partition + 1 };
    }
    producer.flush().await?;
    let rate = bytes as f64 / begun.elapsed().as_secs_f64();
    producer.close().await?;
    Ok(rate)
}

async fn idle(bench: Bench) -> Outcome<Measured> {
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let client = broker.client().await?;
    let topic = topic(&client, "idle", MANY).await?;
    load(&client, &topic, &batches()?, Until::Bytes(IDLE_BYTES)).await?;
    client.close().await;
    println!("  {} MiB written to {MANY} partitions; settling", IDLE_BYTES >> 20);
    tokio::time::sleep(bench.scale.settle).await;
    let window = window(&bench.scale);
    let process = broker.process_id().await?;
    let legs = [Leg::new("idle", move |_| async move {
        let (begun, before) = (Instant::now(), cpu_seconds(process)?);
        tokio::time::sleep(window).await;
        let used = (cpu_seconds(process)? - before) / begun.elapsed().as_secs_f64();
        let resident = resident_bytes(process)? as f64 / f64::from(1 << 20);
        Ok(Sample::of("CPU %", used * 100.0).and("RSS MiB", resident))
    })];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let rows = vec![
        Row::at_most("1,000 partitions: idle CPU (% of a core)", "% of a core", 3.0, runs.value("CPU %")?),
        Row::at_most("1,000 partitions: RSS (MiB)", "MiB", 400.0, runs.value("RSS MiB")?),
    ];
    Ok(Measured { rows, notes: runs.notes() })
}
