//! Small records, sent one by one.

use std::time::Duration;

use futures::FutureExt;
use tidemill_client::{Client, ClientConfig};

use super::{Bench, Family, Measured, room_for_legs};
use crate::Outcome;
use crate::broker::{Broker, checkpoints, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::report::{Better, Row};
use crate::usage::Meter;
use crate::work::{Until, produce};

const RECORD_BYTES: usize = 100;

pub(crate) const SMALL: Family = Family {
    name: "small",
    about: "100 B records one by one, beside the same client in front of a sink",
    by_default: true,
    seconds: |scale| scale.seconds(2),
    disk_bytes: room_for_legs,
    run: |bench| small(bench).boxed(),
};

async fn small(bench: Bench) -> Outcome<Measured> {
    let leg = bench.scale.leg;
    let broker = &Broker::start(&bench.dir, "fsync", &[]).await?;
    let legs =
        [Leg::new("Tidemill", move |round| sent(broker, round, leg)), Leg::new("sink", move |_| sunk(leg))];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let rows = vec![
        Row::at_least(
            "100 B records sent one by one through the client, 1 partition, fsync: records/s / the same client encoding into a sink",
            "ratio",
            0.6,
            runs.ratio("Tidemill records/s", "sink records/s")?,
        ),
        Row::shown("that, records/s", "records/s", Better::Higher, runs.value("Tidemill records/s")?),
        Row::shown(
            "client encoding alone, ns per record",
            "ns",
            Better::Lower,
            runs.each(|of| 1e9 / of("sink records/s"))?,
        ),
    ];
    Ok(Measured { rows, notes: runs.notes() })
}

/// The client with the settings that it has by default.
async fn sent(broker: &Broker, round: usize, leg: Duration) -> Outcome<Sample> {
    let client = broker.client().await?;
    let topic = topic(&client, format!("small-{round}"), 1).await?;
    let producer = client.producer(&topic).build().await?;
    let before = checkpoints(&client).await?;
    let meter = Meter::start(broker.process_id().await?)?;
    let produced = produce(&producer, RECORD_BYTES, Until::Passed(leg)).await?;
    let (of_broker, of_client) = meter.cores()?;
    let checkpoints = checkpoints(&client).await? - before;
    producer.close().await?;
    client.topics().delete(&topic).await?;
    client.close().await;
    broker.tidy().await?;
    let sample = Sample::of("Tidemill records/s", produced.records_per_second());
    let sample = sample.and("batch KiB", produced.batch_bytes / 1024.0);
    Ok(sample.and("broker cores", of_broker).and("client cores", of_client).checkpoints(checkpoints))
}

/// The same in front of a sink: what is left when nothing is sent.
async fn sunk(leg: Duration) -> Outcome<Sample> {
    // It never connects.
    let client = Client::detached(ClientConfig::new(["localhost:1"]).insecure())?;
    let producer = client.producer("sink").build_sink(1)?;
    let produced = produce(&producer, RECORD_BYTES, Until::Passed(leg)).await?;
    producer.close().await?;
    Ok(Sample::of("sink records/s", produced.records_per_second()))
}
