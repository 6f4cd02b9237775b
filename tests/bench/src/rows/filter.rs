//! A filter in the broker: what it keeps off the network.

use futures::FutureExt;
use tidemill_client::{Client, ConsumerStats, PartitionId, Record, Start};
use tidemill_cluster_tests::plugins;

use super::{BROKER_BYTES, Bench, Family, Measured};
use crate::Outcome;
use crate::broker::{Broker, topic};
use crate::legs::{Leg, Sample, interleave};
use crate::report::Row;

/// Events, of which one in so many passes.
const RECORDS: u64 = 500_000;
const ONE_IN: u64 = 100;
const TOPIC: &str = "filter";
const PLUGIN: &str = "json-filter";

pub(crate) const PASSES_ONE_PERCENT: Family = Family {
    name: "filter",
    about: "bytes that a filter in the broker sends, beside all",
    by_default: true,
    seconds: |scale| 5.0 + 2.0 * scale.rounds as f64,
    disk_bytes: |_| BROKER_BYTES,
    run: |bench| passes_one_percent(bench).boxed(),
};

async fn passes_one_percent(bench: Bench) -> Outcome<Measured> {
    let broker = Broker::start(&bench.dir, "fsync", &[]).await?;
    let client = &broker.client().await?;
    plugins::upload(client, PLUGIN).await?;
    topic(client, TOPIC, 1).await?;
    let producer = client.producer(TOPIC).eager(false).build().await?;
    for number in 0..RECORDS {
        let event = event(number);
        producer.send_and_forget(Record::new(&event).partition(PartitionId::new(0))).await?;
    }
    producer.close().await?;
    let legs = [
        Leg::new("all", move |_| async move {
            let (count, stats) = read(client, None).await?;
            expect("all", count, RECORDS)?;
            Ok(Sample::of("all bytes", stats.received_bytes as f64))
        }),
        Leg::new("filtered", move |_| async move {
            let (count, stats) = read(client, Some(r#"device == "car""#)).await?;
            expect("filtered", count, RECORDS / ONE_IN)?;
            let sample = Sample::of("filtered bytes", stats.received_bytes as f64);
            Ok(sample.and("scanned bytes", stats.scanned_bytes as f64))
        }),
    ];
    let runs = interleave(bench.scale.rounds, &legs).await?;
    let row = "filter passing 1 %: bytes sent / bytes without the filter";
    let ratio = runs.ratio("filtered bytes", "all bytes")?;
    Ok(Measured { rows: vec![Row::at_most(row, "ratio", 0.02, ratio)], notes: runs.notes() })
}

/// A play as an application would report it: some hundred bytes of JSON.
fn event(number: u64) -> String {
    let device = if number.is_multiple_of(ONE_IN) { "car" } else { "phone" };
    let (user, song) = (number.wrapping_mul(7919) % 100_000, number.wrapping_mul(104_729) % 50_000);
    format!(
        r#"{{"user_id":"user-{user}","song_id":"song-{song}","ts":{},"device":"{device}"}}"#,
        1_700_000_000 + number
    )
}

/// Reads everything from the beginning, with or without a filter.
async fn read(client: &Client, condition: Option<&str>) -> Outcome<(u64, ConsumerStats)> {
    let mut builder = client.consumer().topic(TOPIC).from(Start::Earliest).stop_at_end();
    if let Some(condition) = condition {
        builder = builder.filter(PLUGIN, [("where", condition)]);
    }
    let mut consumer = builder.build().await?;
    let mut count = 0;
    while let Some(record) = consumer.next().await {
        record?;
        count += 1;
    }
    Ok((count, consumer.stats()))
}

fn expect(what: &str, count: u64, expected: u64) -> Outcome<()> {
    if count == expected {
        return Ok(());
    }
    Err(format!("{what}: {count} records were read, {expected} should have been").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_in_a_hundred_passes() {
        let passing = (0..10_000).filter(|number| event(*number).contains(r#""device":"car""#)).count();
        assert_eq!(passing, 100);
        assert!((80..120).contains(&event(123_456).len()), "{}", event(123_456));
    }
}
