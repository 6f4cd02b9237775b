//! Bulk produce: 1 KiB records in 1 MiB batches.

use std::time::Duration;

use futures::FutureExt;
use tidemill_client::{BatchBuilder, BuilderOptions, PartitionId, RecordBatch, Timestamp};

use super::{BROKER_BYTES, Bench, Family, Measured, room_for_legs};
use crate::Outcome;
use crate::broker::{Broker, checkpoints, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::peer::PeerProcess;
use crate::report::{Better, Row};
use crate::usage::Meter;
use crate::work::{Until, Values, produce};

pub(super) const RECORD_BYTES: usize = 1 << 10;
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Long enough for the batches of eight partitions to become full: the rows say how large they are.
pub(super) const LINGER: Duration = Duration::from_millis(500);
/// Batches that are encoded beforehand, and sent in turn.
const ENCODED_BATCHES: usize = 64;

pub(crate) const ONE_PARTITION: Family = Family {
    name: "produce",
    about: "bulk produce to one partition, beside a bare quinn stream",
    by_default: true,
    seconds: |scale| scale.seconds(2),
    disk_bytes: room_for_legs,
    run: |bench| {
        beside_bare(bench, 1, "produce, 1 KiB records in 1 MiB batches, 1 partition, fsync: MB/s / bare quinn produce-like stream (framed, small acks)").boxed()
    },
};

pub(crate) const EIGHT_PARTITIONS: Family = Family {
    name: "produce-8",
    about: "bulk produce to eight partitions, beside eight bare quinn streams",
    by_default: true,
    seconds: |scale| scale.seconds(2),
    disk_bytes: room_for_legs,
    run: |bench| beside_bare(bench, 8, "the same, 8 partitions").boxed(),
};

pub(crate) const REPLICATED: Family = Family {
    name: "replicated",
    about: "bulk produce with fsync, beside durability = replicated",
    by_default: true,
    seconds: |scale| scale.seconds(2),
    disk_bytes: |scale| room_for_legs(scale) + BROKER_BYTES,
    run: |bench| beside_replicated(bench).boxed(),
};

pub(crate) const ENCODED: Family = Family {
    name: "encoded",
    about: "as produce, with batches that are encoded beforehand: what the client's encoding costs",
    by_default: false,
    seconds: |scale| scale.seconds(2),
    disk_bytes: room_for_legs,
    run: |bench| encoded_beside_bare(bench).boxed(),
};

async fn beside_bare(bench: Bench, partitions: u32, row: &'static str) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let peer = &PeerProcess::start(&bench.dir).await?;
    let legs = [
        Leg::new("Tidemill", move |round| produce_leg(broker, partitions, round, leg, "Tidemill MB/s")),
        Leg::new("bare quinn", move |_| async move {
            let bare = peer.connect().await?;
            let rate = bare.produce(partitions as usize, BATCH_BYTES, leg).await?;
            bare.close().await;
            Ok(Sample::of("bare quinn MB/s", rate / 1e6))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let ratio = runs.ratio("Tidemill MB/s", "bare quinn MB/s")?;
    Ok(Measured { rows: vec![Row::at_least(row, "ratio", 0.45, ratio)], notes: runs.notes() })
}

async fn beside_replicated(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let fsync = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let replicated = &Broker::start(&bench.dir, "replicated", &[("durability", "replicated")]).await?;
    let legs = [
        Leg::new("fsync", move |round| produce_leg(fsync, 1, round, leg, "fsync MB/s")),
        Leg::new("replicated", move |round| produce_leg(replicated, 1, round, leg, "replicated MB/s")),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = Row::at_least(
        "fsync / replicated, same shape",
        "ratio",
        0.8,
        runs.ratio("fsync MB/s", "replicated MB/s")?,
    );
    Ok(Measured { rows: vec![row], notes: runs.notes() })
}

/// One leg with the client as applications use it: records are sent one by one, encoded, acknowledged.
pub(super) async fn produce_leg(
    broker: &Broker,
    partitions: u32,
    round: usize,
    leg: Duration,
    name: &'static str,
) -> Outcome<Sample> {
    let client = broker.client().await?;
    let topic = topic(&client, format!("produce-{round}"), partitions).await?;
    let producer =
        client.producer(&topic).batch_bytes(BATCH_BYTES).eager(false).linger(LINGER).build().await?;
    let before = checkpoints(&client).await?;
    let meter = Meter::start(broker.process_id().await?)?;
    let produced = produce(&producer, RECORD_BYTES, Until::Passed(leg)).await?;
    let (of_broker, of_client) = meter.cores()?;
    let checkpoints = checkpoints(&client).await? - before;
    producer.close().await?;
    client.topics().delete(&topic).await?;
    client.close().await;
    broker.tidy().await?;
    let sample = Sample::of(name, produced.bytes_per_second() / 1e6);
    let sample = sample.and("batch KiB", produced.batch_bytes / 1024.0);
    Ok(sample.and("broker cores", of_broker).and("client cores", of_client).checkpoints(checkpoints))
}

async fn encoded_beside_bare(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let peer = &PeerProcess::start(&bench.dir).await?;
    let batches = &encoded_batches()?;
    let legs = [
        Leg::new("Tidemill", move |round| encoded_leg(broker, batches, round, leg)),
        Leg::new("bare quinn", move |_| async move {
            let bare = peer.connect().await?;
            let rate = bare.produce(1, BATCH_BYTES, leg).await?;
            bare.close().await;
            Ok(Sample::of("bare quinn MB/s", rate / 1e6))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let ratio = runs.ratio("Tidemill MB/s", "bare quinn MB/s")?;
    let row = Row::shown(
        "produce of batches encoded beforehand, 1 partition, fsync: MB/s / bare quinn produce-like stream",
        "ratio",
        Better::Higher,
        ratio,
    );
    Ok(Measured { rows: vec![row], notes: runs.notes() })
}

fn encoded_batches() -> Outcome<Vec<RecordBatch>> {
    let mut values = Values::new(RECORD_BYTES);
    let mut batches = Vec::new();
    let mut builder =
        BatchBuilder::new(BuilderOptions { batch_bytes_max: BATCH_BYTES, ..BuilderOptions::default() });
    for _ in 0..ENCODED_BATCHES {
        while builder.append(Timestamp::new(1_700_000_000_000), None, Some(values.next()), []).is_ok() {}
        batches.push(builder.build_batch()?);
    }
    Ok(batches)
}

async fn encoded_leg(
    broker: &Broker,
    batches: &[RecordBatch],
    round: usize,
    leg: Duration,
) -> Outcome<Sample> {
    let client = broker.client().await?;
    let topic = topic(&client, format!("encoded-{round}"), 1).await?;
    let producer = client.producer(&topic).batch_bytes(BATCH_BYTES).build().await?;
    let before = checkpoints(&client).await?;
    let begun = std::time::Instant::now();
    let mut bytes = 0_u64;
    for batch in batches.iter().cycle() {
        if begun.elapsed() >= leg {
            break;
        }
        // Its fate is told by the flush.
        drop(producer.send_batch(PartitionId::new(0), batch.clone()).await?);
        bytes += batch.bytes().len() as u64;
    }
    producer.flush().await?;
    let rate = bytes as f64 / begun.elapsed().as_secs_f64();
    let checkpoints = checkpoints(&client).await? - before;
    producer.close().await?;
    client.topics().delete(&topic).await?;
    client.close().await;
    broker.tidy().await?;
    Ok(Sample::of("Tidemill MB/s", rate / 1e6).checkpoints(checkpoints))
}
