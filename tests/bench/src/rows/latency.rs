//! Single records: how long until they are acknowledged, and until a reader has them.

use std::time::{Duration, Instant};

use futures::FutureExt;
use tidemill_client::{Client, PartitionId, Record, Start};
use tokio::time::timeout;

use super::{BROKER_BYTES, Bench, Family, Measured};
use crate::Outcome;
use crate::broker::{Broker, checkpoints, topic};
use crate::disk::BareFile;
use crate::legs::{Leg, Sample, interleave};
use crate::peer::{PeerClient, PeerProcess};
use crate::report::Row;
use crate::stats::Latencies;
use crate::work::noise;

const RECORD_BYTES: usize = 1 << 10;
/// Between two records at a steady rate: 1,000 per second.
const PERIOD: Duration = Duration::from_millis(1);
/// A leg of these rows writes some ten MiB, far less than what is checkpointed after by default: that no checkpoint falls into it
/// would flatter us. With this several do.
const CHECKPOINTS: [(&str, &str); 1] = [("storage.checkpoint_bytes", "4194304")];
/// For the last records to arrive.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) const ACKNOWLEDGEMENT: Family = Family {
    name: "latency",
    about: "one record at a time until its acknowledgement, beside a round trip and a sync",
    by_default: true,
    seconds: |scale| scale.seconds(3),
    disk_bytes: |_| BROKER_BYTES,
    run: |bench| acknowledgement(bench).boxed(),
};

pub(crate) const END_TO_END: Family = Family {
    name: "end-to-end",
    about: "a steady rate from producer to reader, beside a round trip and a sync",
    by_default: true,
    seconds: |scale| scale.seconds(3),
    disk_bytes: |_| BROKER_BYTES,
    run: |bench| end_to_end(bench).boxed(),
};

async fn acknowledgement(bench: Bench) -> Outcome<Measured> {
    let broker = &Broker::start(&bench.dir, "fsync", &CHECKPOINTS).await?;
    let parts = &Parts::start(&bench).await?;
    let leg = bench.scale.leg;
    let measured = Leg::new("Tidemill", move |round| async move {
        let client = broker.client().await?;
        let topic = topic(&client, format!("latency-{round}"), 1).await?;
        let before = checkpoints(&client).await?;
        let latencies = acknowledged(&client, &topic, leg).await?;
        let checkpoints = checkpoints(&client).await? - before;
        client.close().await;
        let sample = named(&latencies, "ack p50 us", "ack p99 us");
        Ok(sample.and("records", latencies.count() as f64).checkpoints(checkpoints))
    });
    let legs = [measured, parts.round_trip(leg, None), parts.sync(leg, None)];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let ratio = runs.each(|of| of("ack p50 us") / (of("round trip p50 us") + of("fdatasync p50 us")))?;
    let row = "one 1 KiB record at a time, fsync: ack p50 / (QUIC round trip p50 + one fdatasync p50)";
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 2.0, ratio)], notes: runs.notes() })
}

async fn end_to_end(bench: Bench) -> Outcome<Measured> {
    let broker = &Broker::start(&bench.dir, "fsync", &CHECKPOINTS).await?;
    let parts = &Parts::start(&bench).await?;
    let leg = bench.scale.leg;
    let measured = Leg::new("Tidemill", move |round| async move {
        let client = broker.client().await?;
        let topic = topic(&client, format!("end-to-end-{round}"), 1).await?;
        let before = checkpoints(&client).await?;
        let latencies = delivered(broker, &client, &topic, leg).await?;
        let checkpoints = checkpoints(&client).await? - before;
        client.close().await;
        let sample = named(&latencies, "end to end p50 us", "end to end p99 us");
        Ok(sample.and("records", latencies.count() as f64).checkpoints(checkpoints))
    });
    let legs = [measured, parts.round_trip(leg, Some(PERIOD)), parts.sync(leg, Some(PERIOD))];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let ratio =
        runs.each(|of| of("end to end p99 us") / (of("round trip p99 us") + of("fdatasync p99 us")))?;
    let row = "end to end at 1,000 records/s of 1 KiB with fsync: p99 / (round trip p99 + fdatasync p99)";
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 4.0, ratio)], notes: runs.notes() })
}

/// What an acknowledgement is made of: a round trip over bare quinn, and an append with fdatasync on the same disk.
struct Parts {
    _peer: PeerProcess,
    bare: PeerClient,
    file: BareFile,
}

impl Parts {
    async fn start(bench: &Bench) -> Outcome<Self> {
        let peer = PeerProcess::start(&bench.dir).await?;
        let bare = peer.connect().await?;
        Ok(Self { _peer: peer, bare, file: BareFile::create(&bench.dir)? })
    }

    /// One after another, or at the steady rate that is asked for: a machine that stands still for some milliseconds holds up one
    /// operation of those that wait for each other, and each that falls due meanwhile of those that do not. So a part is loaded
    /// as the whole is.
    fn round_trip(&self, leg: Duration, period: Option<Duration>) -> Leg<'_> {
        Leg::new("round trip", move |_| async move {
            let latencies = match period {
                None => self.bare.echo(RECORD_BYTES, leg).await?,
                Some(period) => self.bare.echo_at(RECORD_BYTES, leg, period).await?,
            };
            Ok(named(&latencies, "round trip p50 us", "round trip p99 us"))
        })
    }

    fn sync(&self, leg: Duration, period: Option<Duration>) -> Leg<'_> {
        Leg::new("fdatasync", move |_| async move {
            let latencies = self.file.appends(RECORD_BYTES, leg, period).await?;
            Ok(named(&latencies, "fdatasync p50 us", "fdatasync p99 us"))
        })
    }
}

fn named(latencies: &Latencies, p50: &'static str, p99: &'static str) -> Sample {
    Sample::of(p50, latencies.at(0.5)).and(p99, latencies.at(0.99))
}

/// Sends a record, waits for its acknowledgement, sends the next.
async fn acknowledged(client: &Client, topic: &str, leg: Duration) -> Outcome<Latencies> {
    let producer = client.producer(topic).build().await?;
    let value = noise(RECORD_BYTES);
    let mut latencies = Latencies::new()?;
    // The first opens the stream.
    producer.send(Record::new(&value)).await?.await?;
    let until = Instant::now() + leg;
    let mut begun = Instant::now();
    while begun < until {
        producer.send(Record::new(&value)).await?.await?;
        let now = Instant::now();
        latencies.record(now - begun);
        begun = now;
    }
    producer.close().await?;
    Ok(latencies)
}

/// Sends at a steady rate from a thread that nothing holds up, and reads over a connection of its own: from the call that sends a
/// record until the reader has it.
async fn delivered(broker: &Broker, client: &Client, topic: &str, leg: Duration) -> Outcome<Latencies> {
    /// Instead of a time: the reader has begun; there is nothing more.
    const BEGUN: u64 = 0;
    const ENDED: u64 = u64::MAX;

    let reading = broker.client().await?;
    let mut consumer = reading.consumer().topic(topic).from(Start::Earliest).build().await?;
    let producer = client.producer(topic).build().await?;
    let clock = Instant::now();
    let mut value = noise(RECORD_BYTES).to_vec();
    let mut send = {
        let producer = producer.clone();
        move |mark: u64| {
            value[..8].copy_from_slice(&mark.to_be_bytes());
            producer.try_send(Record::new(&value).partition(PartitionId::new(0)))
        }
    };
    send(BEGUN)?.await?;
    timeout(GRACE, consumer.next()).await?.ok_or("the reader ended")??;

    let sending = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut due = begun;
        while due < begun + leg {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // What becomes of a record is the reader's to see.
            drop(send(u64::try_from(clock.elapsed().as_nanos()).unwrap_or(ENDED - 1).max(BEGUN + 1))?);
            due += PERIOD;
        }
        drop(send(ENDED)?);
        Ok::<_, tidemill_client::SendError>(())
    });
    let mut latencies = Latencies::new()?;
    let reading_all = async {
        while let Some(record) = consumer.next().await {
            let record = record?;
            let mark = record
                .value
                .as_deref()
                .and_then(|value| value.first_chunk())
                .copied()
                .map(u64::from_be_bytes);
            match mark.ok_or("a record came back without its mark")? {
                ENDED => return Outcome::Ok(()),
                sent => latencies.record(clock.elapsed().saturating_sub(Duration::from_nanos(sent))),
            }
        }
        Err("the reader ended".into())
    };
    timeout(leg + GRACE, reading_all).await??;
    sending.join().map_err(|_| "the sending thread panicked")??;
    producer.close().await?;
    reading.close().await;
    Ok(latencies)
}
