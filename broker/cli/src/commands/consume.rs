//! `tidemill consume`: records to standard output.

use std::io::{BufWriter, Write};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tidemill_client::{Client, ConsumeError, Consumer, ConsumerRecord, PartitionId, Position, Start};

use crate::error::CliError;
use crate::{output, text};

/// Read records
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill consume plays --from earliest --max 10
  tidemill consume plays --follow                              new records as they come
  tidemill consume plays --from -5m --json                     the last five minutes
  tidemill consume plays --group royalties                     from the group's positions, and commit
  tidemill consume plays --filter json-filter --set where='device == \"phone\"'
  tidemill consume plays --follow --rack a                     from replicas in rack a, where there are any

Without --follow it ends where the topic ended when it got there.")]
pub(crate) struct Consume {
    /// Which topic.
    topic: String,
    /// Where to begin: earliest, latest, an offset, -5m, or a time. Unless said, earliest, with --follow latest. An offset counts
    /// in each partition that is read, so it mostly goes with --partition. With --group the position counts only where
    /// the group has none yet; `tidemill group seek` moves one.
    #[arg(long, value_name = "POSITION", value_parser = text::position, allow_hyphen_values = true)]
    from: Option<Position>,
    /// Only these partitions; may be repeated.
    #[arg(long)]
    partition: Vec<u32>,
    /// Begin at this group's committed positions, and commit what was read. A group has no members: two readers of one group each
    /// get everything. Divide its partitions between them with --partition.
    #[arg(long)]
    group: Option<String>,
    /// A filter plugin, or a filter deployment: NAME or NAME@VERSION.
    #[arg(long, value_name = "NAME[@VERSION]")]
    filter: Option<String>,
    /// Configuration of the filter; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = text::key_value, requires = "filter")]
    settings: Vec<(String, String)>,
    /// End after so many records.
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
    /// Wait for new records at the end.
    #[arg(long, short)]
    follow: bool,
    /// Read from replicas in this rack, as the brokers name theirs, where there are any: nearer, and a moment later than where a
    /// partition is led, which is read by default. A saved connection may have one: `tidemill context save --rack`.
    #[arg(long, value_name = "RACK")]
    rack: Option<String>,
    /// Say at the end, on standard error, what was read and what the broker read for it.
    #[arg(long)]
    stats: bool,
}

/// Positions are committed at least this often.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const COMMIT_RECORDS: u64 = 10_000;

/// How long a broker may be away before reading to the end gives up, and `bench` with it.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(60);

impl Consume {
    /// Whoever follows waits until the broker is back.
    pub(crate) const fn gives_up_after(&self) -> Option<Duration> {
        if self.follow { None } else { Some(AWAY_MAX) }
    }

    /// As it is, and what to do where a partition has no record at the position.
    fn not_read(&self, error: ConsumeError) -> CliError {
        let ConsumeError::OutOfRange { partition: outside, .. } = &error else {
            return error.into();
        };
        let outside = outside.partition;
        let error = CliError::from(error);
        let (topic, counts) = (&self.topic, "An offset counts in each partition that is read");
        let way_out = match (&self.group, self.partition.len()) {
            (Some(group), _) => {
                format!(
                    "`tidemill group seek {group} {topic} --partition {outside} --to earliest` moves the group"
                )
            }
            (None, 1) => "Name an offset in it, or begin with --from earliest".to_owned(),
            (None, _) => format!("{counts}: name one with --partition N, or begin with --from earliest"),
        };
        error.worded(|words| format!("{words}. {way_out}"))
    }
}

pub(crate) async fn run(consume: Consume, client: Client, json: bool) -> Result<(), CliError> {
    let mut consumer = open(&consume, &client).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut read = 0_u64;
    let mut commit_due = tokio::time::interval(COMMIT_INTERVAL);
    commit_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut is_read = true;
    while is_read && consume.max.is_none_or(|max| read < max) {
        tokio::select! {
            biased;
            _ = &mut interrupted => break,
            record = consumer.next() => {
                let Some(record) = record else { break };
                let record = record.map_err(|error| consume.not_read(error))?;
                is_read = still_read(write_record(&mut out, &record, json))?;
                read += u64::from(is_read);
                if is_read && read.is_multiple_of(COMMIT_RECORDS) {
                    is_read = hand_over(&mut out, &consume, &consumer).await?;
                }
            }
            _ = commit_due.tick() => is_read = hand_over(&mut out, &consume, &consumer).await?,
        }
    }
    if is_read {
        hand_over(&mut out, &consume, &consumer).await?;
    }
    if consume.stats {
        let stats = consumer.stats();
        eprintln!(
            "{}; {} received, {} read by the broker for it",
            text::counted(read, "record"),
            output::bytes(stats.received_bytes),
            output::bytes(stats.scanned_bytes)
        );
    }
    client.close().await;
    Ok(())
}

async fn open(consume: &Consume, client: &Client) -> Result<Consumer, CliError> {
    let start = match (&consume.group, consume.from) {
        (Some(group), from) => {
            Start::Committed { group: group.clone(), or: from.unwrap_or(Position::Earliest) }
        }
        (None, Some(from)) => from.into(),
        (None, None) if consume.follow => Start::Latest,
        (None, None) => Start::Earliest,
    };
    let mut builder = client.consumer().topic(consume.topic.clone()).from(start);
    if !consume.partition.is_empty() {
        builder = builder.partitions(consume.partition.iter().map(|partition| PartitionId::new(*partition)));
    }
    if let Some(filter) = &consume.filter {
        let (name, version) = text::name_version(filter);
        builder = builder.filter(name, consume.settings.clone());
        if !version.is_empty() {
            builder = builder.filter_version(version);
        }
    }
    builder = match (consume.follow, consume.max) {
        (true, _) => builder,
        // So many may be there whoever can say where the end is.
        (false, Some(_)) => builder.stop_at_end_once_reached(),
        (false, None) => builder.stop_at_end(),
    };
    if let Some(rack) = &consume.rack {
        builder = builder.rack(rack.clone());
    }
    Ok(builder.build().await?)
}

/// Whether somebody still reads: a closed pipe (`| head`) is the reader's way to say that it has enough.
fn still_read(written: std::io::Result<()>) -> Result<bool, CliError> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Prints what was read and commits it, in this order: what nobody got is read again. Answers as [`still_read`].
async fn hand_over(out: &mut impl Write, consume: &Consume, consumer: &Consumer) -> Result<bool, CliError> {
    if !still_read(out.flush())? {
        return Ok(false);
    }
    if let Some(group) = &consume.group {
        consumer.commit(group).await?;
    }
    Ok(true)
}

fn write_record(out: &mut impl Write, record: &ConsumerRecord, json: bool) -> std::io::Result<()> {
    if !json {
        out.write_all(record.value.as_deref().unwrap_or_default())?;
        return out.write_all(b"\n");
    }
    let headers: Vec<Value> = record
        .headers()
        .iter()
        .map(|header| json!({ "name": header.key, "value": output::readable(header.value) }))
        .collect();
    let document = json!({
        "topic": &*record.topic,
        "partition": record.partition.get(),
        "offset": record.offset.get(),
        "timestamp": record.timestamp.get(),
        "key": output::readable(record.key.as_deref()),
        "value": output::readable(record.value.as_deref()),
        "headers": headers,
    });
    writeln!(out, "{document}")
}
