//! Reading what is there: records of sealed segments, from the page cache.

use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_client::{Client, Start};

use super::{BROKER_BYTES, Bench, Family, Measured};
use crate::Outcome;
use crate::broker::{Broker, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::peer::PeerProcess;
use crate::report::Row;
use crate::usage::Meter;
use crate::work::{Until, produce};

const RECORD_BYTES: usize = 1 << 10;
const BATCH_BYTES: usize = 1 << 20;
/// What a data frame carries where the client names no size.
const FRAME_BYTES: usize = 1 << 20;
const TOPIC: &str = "consume";

pub(crate) const CATCH_UP: Family = Family {
    name: "consume",
    about: "catching up on cached records, beside a bare quinn peer that pushes",
    by_default: true,
    seconds: |scale| scale.seconds(2) + 15.0,
    disk_bytes: |scale| BROKER_BYTES + 2 * scale.fill_bytes,
    run: |bench| catch_up(bench).boxed(),
};

async fn catch_up(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let client = broker.client().await?;
    topic(&client, TOPIC, 1).await?;
    let producer = client.producer(TOPIC).batch_bytes(BATCH_BYTES).eager(false).build().await?;
    let filled = produce(&producer, RECORD_BYTES, Until::Bytes(bench.scale.fill_bytes)).await?;
    producer.close().await?;
    // What the write left in memory is not what a reader meets; and once around brings the segments into the page cache.
    broker.tidy().await?;
    let cached = read(&broker.client().await?, Duration::MAX, 1).await?;
    println!("  filled with {} records, read {} once", filled.records, cached.records);
    if cached.records != filled.records {
        return Err(format!("{} records were read of {}", cached.records, filled.records).into());
    }
    let peer = &PeerProcess::start(&bench.dir).await?;
    let legs = [
        Leg::new("Tidemill", move |_| async move {
            let client = broker.client().await?;
            let meter = Meter::start(broker.process_id().await?)?;
            let read = read(&client, leg, usize::MAX).await?;
            let (of_broker, of_client) = meter.cores()?;
            client.close().await;
            let sample = Sample::of("Tidemill MB/s", read.bytes as f64 / read.taken.as_secs_f64() / 1e6);
            Ok(sample.and("broker cores", of_broker).and("client cores", of_client))
        }),
        Leg::new("bare quinn", move |_| async move {
            let bare = peer.connect().await?;
            let rate = bare.fetch(FRAME_BYTES, leg).await?;
            bare.close().await;
            Ok(Sample::of("bare quinn MB/s", rate / 1e6))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "catch-up consume of cached data / bare quinn fetch-like";
    let ratio = runs.ratio("Tidemill MB/s", "bare quinn MB/s")?;
    Ok(Measured { rows: vec![Row::at_least(row, "ratio", 0.7, ratio)], notes: runs.notes() })
}

struct Read {
    records: u64,
    /// Of their values.
    bytes: u64,
    taken: Duration,
}

/// Reads the topic record by record from its beginning to its end, and again, so many times or for so long.
async fn read(client: &Client, leg: Duration, times: usize) -> Outcome<Read> {
    /// Records between two looks at the clock.
    const RECORDS_PER_LOOK: u64 = 256;
    let begun = Instant::now();
    let (mut records, mut bytes) = (0_u64, 0_u64);
    'legs: for _ in 0..times {
        let mut consumer = client.consumer().topic(TOPIC).from(Start::Earliest).stop_at_end().build().await?;
        while let Some(record) = consumer.next().await {
            records += 1;
            bytes += record?.value.map_or(0, |value| value.len() as u64);
            if records.is_multiple_of(RECORDS_PER_LOOK) && begun.elapsed() >= leg {
                break 'legs;
            }
        }
    }
    Ok(Read { records, bytes, taken: begun.elapsed() })
}
