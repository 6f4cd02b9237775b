//! `tidemill produce`: lines or JSON to records.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use tidemill_client::{
    Acks, Client, Compression, Delivery, DeliveryError, Header, PartitionId, Producer, Receipt, Record,
    Timestamp,
};

use crate::error::CliError;
use crate::{output, text};

/// Write records
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo hello | tidemill produce plays
  tidemill produce plays --key-separator : < lines.txt          KEY:VALUE lines
  tidemill produce plays --format json --routed --file events.jsonl
      {\"key\": \"u1\", \"value\": {\"song\": 17}, \"headers\": {\"source\": \"web\"}, \"timestamp\": 1767225600000}
  tidemill produce plays --value-field-key user_id < events.jsonl  each line is the value, its field the key")]
pub(crate) struct Produce {
    /// Where to.
    topic: String,
    /// What the input is.
    #[arg(long, value_enum, default_value_t = Format::Lines)]
    format: Format,
    /// Read this instead of standard input; shows a progress bar.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Key of every record.
    #[arg(long, conflicts_with = "key_separator")]
    key: Option<String>,
    /// A line is KEY, this, VALUE.
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// A line is a JSON object, whole the value; this field of it is the key.
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["key", "key_separator"])]
    value_field_key: Option<String>,
    /// A header of every record; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = text::key_value)]
    headers: Vec<(String, String)>,
    /// To this partition, whatever the key.
    #[arg(long, conflicts_with = "routed")]
    partition: Option<u32>,
    /// Let the broker place records, by the topic's partitioner.
    #[arg(long)]
    routed: bool,
    /// Compress batches.
    #[arg(long, value_enum, default_value_t = CompressionName::None)]
    compression: CompressionName,
    /// Wait so long for a batch to fill.
    #[arg(long, value_name = "TIME", value_parser = text::duration, default_value = "5ms")]
    linger: Duration,
    /// Size of a batch.
    #[arg(long, value_name = "SIZE", value_parser = text::size, default_value = "256KiB")]
    batch_bytes: u64,
    /// Do not wait for acknowledgements: records may be lost.
    #[arg(long)]
    no_acks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A record per line.
    Lines,
    /// A JSON object per line: key, value, headers, timestamp, partition.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionName {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<CompressionName> for Compression {
    fn from(name: CompressionName) -> Self {
        match name {
            CompressionName::None => Self::None,
            CompressionName::Gzip => Self::Gzip,
            CompressionName::Snappy => Self::Snappy,
            CompressionName::Lz4 => Self::Lz4,
            CompressionName::Zstd => Self::Zstd,
        }
    }
}

/// A record as `--format json` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord {
    #[serde(default)]
    key: Option<serde_json::Value>,
    #[serde(default)]
    value: Option<serde_json::Value>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, Option<String>>,
    timestamp: Option<i64>,
    partition: Option<u32>,
}

pub(crate) async fn run(produce: Produce, client: Client, json: bool) -> Result<(), CliError> {
    let batch_bytes =
        usize::try_from(produce.batch_bytes).map_err(|_| CliError::usage("the batch size is too large"))?;
    let mut builder = client
        .producer(produce.topic.clone())
        .linger(produce.linger)
        .compression(produce.compression.into())
        .batch_bytes(batch_bytes)
        .acks(if produce.no_acks { Acks::None } else { Acks::Quorum });
    if produce.routed {
        builder = builder.routed();
    }
    let producer = builder.build().await.map_err(|error| CliError::other(error.to_string()))?;
    let started = Instant::now();
    let sent = send_all(&produce, &producer).await?;
    producer.close().await.map_err(|error| failed(&error))?;
    client.close().await;
    let seconds = started.elapsed().as_secs_f64();
    let document = json!({
        "records": sent.records, "bytes": sent.bytes, "seconds": seconds, "last_offset": sent.last_offset,
        "last_partition": sent.last_partition,
    });
    output::print(json, &document, || {
        let last = match (sent.last_partition, sent.last_offset) {
            (Some(partition), Some(offset)) => {
                format!(", the last at offset {offset} of partition {partition}")
            }
            _ => String::new(),
        };
        println!("{} records ({}) in {seconds:.2} s{last}", sent.records, output::bytes(sent.bytes));
    })
}

#[derive(Default)]
struct Sent {
    records: u64,
    bytes: u64,
    last_offset: Option<i64>,
    last_partition: Option<u32>,
}

/// How many deliveries are remembered before the oldest is looked at: errors come early, memory stays bounded.
const DELIVERIES_MAX: usize = 10_000;

async fn send_all(produce: &Produce, producer: &Producer) -> Result<Sent, CliError> {
    let (mut input, progress) = open_input(produce)?;
    let mut line = Vec::new();
    let mut number = 0_u64;
    let mut sent = Sent::default();
    let mut deliveries = std::collections::VecDeque::new();
    loop {
        line.clear();
        // Standard input may be a person: reading it must not hold up the runtime's other threads.
        let read = tokio::task::block_in_place(|| input.read_until(b'\n', &mut line))?;
        if read == 0 {
            break;
        }
        number += 1;
        progress.inc(read as u64);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.is_empty() && produce.format == Format::Json {
            continue;
        }
        let delivery = send_line(produce, producer, &line)
            .await
            .map_err(|error| CliError::usage(format!("line {number}: {error}")))?;
        sent.records += 1;
        sent.bytes += line.len() as u64;
        deliveries.push_back(delivery);
        if deliveries.len() > DELIVERIES_MAX
            && let Some(oldest) = deliveries.pop_front()
        {
            settle(oldest, &mut sent).await?;
        }
    }
    // What is gathered is sent now rather than after the linger.
    producer.flush().await.map_err(|error| failed(&error))?;
    for delivery in deliveries {
        settle(delivery, &mut sent).await?;
    }
    progress.finish_and_clear();
    Ok(sent)
}

async fn settle(delivery: Delivery, sent: &mut Sent) -> Result<(), CliError> {
    match delivery.await.map_err(|error| failed(&error))? {
        Receipt::Stored { partition, offset, .. } => {
            sent.last_offset = Some(offset.get());
            sent.last_partition = Some(partition.get());
        }
        Receipt::Routed { .. } | Receipt::Sent => {}
    }
    Ok(())
}

fn failed(error: &DeliveryError) -> CliError {
    CliError::other(error.to_string())
}

fn open_input(produce: &Produce) -> Result<(Box<dyn BufRead>, ProgressBar), CliError> {
    const BUFFER_BYTES: usize = 1 << 20;
    let Some(path) = &produce.file else {
        if std::io::stdin().is_terminal() {
            eprintln!("reading records from the terminal, one a line; end with Ctrl-D");
        }
        let input: Box<dyn Read> = Box::new(std::io::stdin());
        return Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, input)), ProgressBar::hidden()));
    };
    let file = File::open(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
    let progress = ProgressBar::new(file.metadata()?.len());
    let style = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    progress.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), progress))
}

async fn send_line(produce: &Produce, producer: &Producer, line: &[u8]) -> Result<Delivery, String> {
    let fixed: Vec<Header<'_>> = produce
        .headers
        .iter()
        .map(|(key, value)| Header { key: key.as_str(), value: Some(value.as_bytes()) })
        .collect();
    match produce.format {
        Format::Lines => {
            let (key, value) = split_key(produce, line)?;
            let mut record = Record::new(value).headers(&fixed);
            if let Some(key) = &key {
                record = record.key(key);
            }
            if let Some(partition) = produce.partition {
                record = record.partition(PartitionId::new(partition));
            }
            producer.send(record).await.map_err(|error| error.to_string())
        }
        Format::Json => {
            let parsed: JsonRecord = serde_json::from_slice(line).map_err(|error| {
                format!(
                    "{error}; a line is {{\"key\": .., \"value\": .., \"headers\": {{}}, \"timestamp\": ..}}"
                )
            })?;
            send_json(produce, producer, &fixed, &parsed).await
        }
    }
}

async fn send_json(
    produce: &Produce,
    producer: &Producer,
    fixed: &[Header<'_>],
    parsed: &JsonRecord,
) -> Result<Delivery, String> {
    let key = parsed.key.as_ref().map(text_of).or_else(|| produce.key.clone().map(String::into_bytes));
    let value = parsed.value.as_ref().map(text_of);
    let mut headers = fixed.to_vec();
    headers.extend(
        parsed
            .headers
            .iter()
            .map(|(name, value)| Header { key: name.as_str(), value: value.as_ref().map(String::as_bytes) }),
    );
    let nothing: [u8; 0] = [];
    let mut record = match (&value, &key) {
        (Some(value), _) => Record::new(value),
        (None, Some(key)) => Record::tombstone(key),
        (None, None) => Record::new(&nothing),
    };
    record = record.headers(&headers);
    if let Some(key) = &key {
        record = record.key(key);
    }
    if let Some(timestamp) = parsed.timestamp {
        record = record.timestamp(Timestamp::new(timestamp));
    }
    if let Some(partition) = parsed.partition.or(produce.partition) {
        record = record.partition(PartitionId::new(partition));
    }
    producer.send(record).await.map_err(|error| error.to_string())
}

/// A string as its text, anything else as JSON.
fn text_of(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

fn split_key<'a>(produce: &Produce, line: &'a [u8]) -> Result<(Option<Vec<u8>>, &'a [u8]), String> {
    if let Some(separator) = produce.key_separator.as_ref().filter(|separator| !separator.is_empty()) {
        let separator = separator.as_bytes();
        let at = line
            .windows(separator.len())
            .position(|window| window == separator)
            .ok_or_else(|| "there is no key separator in it".to_owned())?;
        return Ok((Some(line[..at].to_vec()), &line[at + separator.len()..]));
    }
    if let Some(field) = &produce.value_field_key {
        let value: serde_json::Value =
            serde_json::from_slice(line).map_err(|error| format!("it is not JSON: {error}"))?;
        let key = value.get(field).ok_or_else(|| format!("it has no field '{field}'"))?;
        return Ok((Some(text_of(key)), line));
    }
    Ok((produce.key.clone().map(String::into_bytes), line))
}
