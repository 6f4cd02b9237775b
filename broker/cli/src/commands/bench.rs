//! `tidemill bench`: made-up records against a running broker.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::json;
use tidemill_client::{Client, PartitionId, Record, Start};

use crate::commands::produce::CompressionName;
use crate::error::CliError;
use crate::{output, text};

/// Measure a broker with made-up records
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill topic create bench --partitions 4
  tidemill bench produce --topic bench --record-bytes 100 --seconds 10
  tidemill bench latency --topic bench --rate 1000 --seconds 10
  tidemill bench consume --topic bench")]
pub(crate) struct Bench {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// A topic for it; its records are made up.
    #[arg(long)]
    topic: String,
    /// Bytes of a record's value.
    #[arg(long, value_name = "SIZE", value_parser = text::size, default_value = "1KiB")]
    record_bytes: u64,
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Records a second, for latency.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Size of a batch, for produce.
    #[arg(long, value_name = "SIZE", value_parser = text::size, default_value = "1MiB")]
    batch_bytes: u64,
    /// Compress batches.
    #[arg(long, value_enum, default_value_t = CompressionName::None)]
    compression: CompressionName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// As many records as it takes.
    Produce,
    /// Time from sending a record to its acknowledgement, at a steady rate.
    Latency,
    /// Read the topic from its start.
    Consume,
}

pub(crate) async fn run(bench: Bench, client: Client, json: bool) -> Result<(), CliError> {
    match bench.what {
        What::Produce => produce(&bench, &client, json).await,
        What::Latency => latency(&bench, &client, json).await,
        What::Consume => consume(&bench, &client, json).await,
    }
}

/// Contents that compress as little as real ones of high entropy would.
fn value(bench: &Bench) -> Result<Vec<u8>, CliError> {
    let bytes =
        usize::try_from(bench.record_bytes).map_err(|_| CliError::usage("the record is too large"))?;
    let mut value = vec![0; bytes];
    rand::fill(&mut value[..]);
    Ok(value)
}

async fn produce(bench: &Bench, client: &Client, json: bool) -> Result<(), CliError> {
    let value = value(bench)?;
    let batch_bytes = usize::try_from(bench.batch_bytes).unwrap_or(1 << 20);
    let producer = client
        .producer(bench.topic.clone())
        .batch_bytes(batch_bytes)
        .linger(Duration::from_millis(5))
        .compression(bench.compression.into())
        .build()
        .await?;
    let partitions = producer.topic().partition_count();
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(bench.seconds);
    let mut records = 0_u64;
    while Instant::now() < until {
        // The clock is looked at once for many records.
        for _ in 0..256 {
            let partition = PartitionId::new(u32::try_from(records % u64::from(partitions)).unwrap_or(0));
            let record = Record::new(&value).partition(partition);
            producer.send_and_forget(record).await?;
            records += 1;
        }
    }
    producer.flush().await?;
    report_rate("produced and acknowledged", records, records * bench.record_bytes, started.elapsed(), json)
}

/// The longest latency that is told from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

async fn latency(bench: &Bench, client: &Client, json: bool) -> Result<(), CliError> {
    let value = value(bench)?;
    let producer = client.producer(bench.topic.clone()).linger(Duration::ZERO).build().await?;
    // Bounds of its own: one that grows by itself cuts values that are recorded saturating.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_US_MAX, 3)
        .map_err(|error| CliError::other(error.to_string()))?;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / f64::from(bench.rate.max(1))));
    let until = Instant::now() + Duration::from_secs_f64(bench.seconds);
    let (report, mut latencies) = tokio::sync::mpsc::unbounded_channel();
    let mut sent = 0_u64;
    while Instant::now() < until {
        let due = ticks.tick().await;
        let delivery = producer.send(Record::new(&value).partition(PartitionId::new(0))).await?;
        sent += 1;
        let report = report.clone();
        tokio::spawn(async move {
            if delivery.await.is_ok() {
                // From when it was due: a stall counts for every record that it held up.
                let _ = report.send(due.elapsed());
            }
        });
    }
    producer.flush().await?;
    drop(report);
    while let Some(latency) = latencies.recv().await {
        histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile);
    let document = json!({
        "records": sent, "acknowledged": histogram.len(), "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99),
        "p999_us": at(0.999), "max_us": histogram.max(),
    });
    output::print(json, &document, || {
        println!(
            "{}: p50 {} us, p90 {} us, p99 {} us, p99.9 {} us, max {} us",
            text::counted(histogram.len(), "record"),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            histogram.max()
        );
    })
}

async fn consume(bench: &Bench, client: &Client, json: bool) -> Result<(), CliError> {
    let mut consumer =
        client.consumer().topic(bench.topic.clone()).from(Start::Earliest).stop_at_end().build().await?;
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(bench.seconds);
    let (mut records, mut bytes) = (0_u64, 0_u64);
    while Instant::now() < until {
        let Some(batch) = consumer.next_batch().await else { break };
        let batch = batch?;
        bytes += batch.bytes() as u64;
        records +=
            batch.batches().iter().map(|b| u64::try_from(b.header().record_count).unwrap_or(0)).sum::<u64>();
    }
    report_rate("consumed", records, bytes, started.elapsed(), json)
}

fn report_rate(what: &str, records: u64, bytes: u64, elapsed: Duration, json: bool) -> Result<(), CliError> {
    let seconds = elapsed.as_secs_f64();
    let (record_rate, byte_rate) = (records as f64 / seconds, bytes as f64 / seconds);
    let document = json!({
        "what": what, "records": records, "bytes": bytes, "seconds": seconds, "records_per_second": record_rate,
        "bytes_per_second": byte_rate,
    });
    output::print(json, &document, || {
        println!(
            "{} ({}) {what} in {seconds:.1} s: {record_rate:.0} records/s, {:.1} MB/s",
            text::counted(records, "record"),
            output::bytes(bytes),
            byte_rate / 1e6
        );
    })
}
