//! `tidemill produce`: lines or JSON to records.

mod input;
mod lines;

use std::collections::VecDeque;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidemill_client::{
    Acks, Client, Compression, Delivery, DeliveryError, ErrorCode, Header, PartitionId, Producer, Receipt,
    Record, Timestamp, TopicMetadata,
};

pub(crate) use self::input::{InputRecord, RecordFormat};
use self::lines::{LINE_BYTES_MAX, Lines};
use crate::error::CliError;
use crate::waiting::{Broker, Progress};
use crate::{output, text};

/// Write records
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo hello | tidemill produce plays
  tidemill produce plays --key-separator : < lines.txt          KEY:VALUE lines
  tidemill produce plays --value-field-key user_id < events.jsonl  each line is the value, its field the key
  tidemill produce plays --format json --routed --file events.jsonl
      {\"key\": \"u1\", \"value\": {\"song\": 17}, \"headers\": {\"source\": \"web\"}, \"timestamp\": 1767225600000}
  tidemill topic create copy --with plays                       for a copy: as many partitions
  tidemill consume plays --json | tidemill produce copy --format json

With --format json a line may also be what `consume --json` prints: headers as a list, bytes
that are no text as {\"base16\": \"00ff\"}; its topic and offset say where it was, and are
passed over. A key or value that is null or left out is null; one that is no string is
stored as its JSON, letter for letter. A record's partition counts unless --partition or
--routed say otherwise.

A batch of which the topic's filter leaves nothing is sent and not stored; it has no offset.")]
pub(crate) struct Produce {
    /// Where to.
    topic: String,
    #[command(flatten)]
    pub(crate) format: RecordFormat,
    /// Read this instead of standard input; shows a progress bar.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// To this partition, whatever the key or the record says.
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
    /// Size of a batch; a larger record goes in one of its own, up to the topic's limit.
    #[arg(long, value_name = "SIZE", value_parser = text::size, default_value = "256KiB")]
    batch_bytes: u64,
    /// Do not wait for acknowledgements: records may be lost. What the broker refuses is told at the
    /// end, without saying which records.
    #[arg(long)]
    no_acks: bool,
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

/// Whoever lets batches linger for longer is not told that nothing comes back.
const LINGER_NOTICED: Duration = Duration::from_millis(500);
/// How long a record may go unacknowledged where `--timeout` says no other.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run(
    produce: Produce,
    client: Client,
    broker: &Broker,
    json: bool,
) -> Result<(), CliError> {
    let timeout = broker.timeout.unwrap_or(DELIVERY_TIMEOUT);
    let batch_bytes =
        usize::try_from(produce.batch_bytes).map_err(|_| CliError::usage("the batch size is too large"))?;
    let mut builder = client
        .producer(produce.topic.clone())
        .linger(produce.linger)
        .compression(produce.compression.into())
        .batch_bytes(batch_bytes)
        .delivery_timeout(timeout)
        .acks(if produce.no_acks { Acks::None } else { Acks::Quorum });
    if produce.routed {
        builder = builder.routed();
    }
    let building = async { Ok(builder.build().await?) };
    let producer = broker.asked(&client, building).await?;
    if !produce.routed && produce.partition.is_none() {
        note_partitioner(producer.topic());
    }
    let started = Instant::now();
    let (watched, troubled, lingers) = (producer.clone(), client.clone(), produce.linger > LINGER_NOTICED);
    let progress = move || {
        let stats = watched.stats();
        // What lingers waits for more records, not for the broker.
        let is_under_way = stats.buffered_bytes > 0 && (!lingers || troubled.trouble().is_some());
        // That nothing is under way any more because it failed is no answer; the command is about to end.
        let is_waiting = is_under_way || stats.failed_batches > 0;
        Progress { is_waiting, answers: stats.batches.saturating_sub(stats.failed_batches) }
    };
    let sent = broker.told(&client, timeout, progress, send_all(&produce, &producer)).await?;
    producer.close().await?;
    client.close().await;
    let seconds = started.elapsed().as_secs_f64();
    let document = json!({
        "records": sent.records, "bytes": sent.bytes, "seconds": seconds, "left_out": sent.left_out,
        "last_offset": sent.last_offset(), "last_partition": sent.last_partition(),
    });
    output::print(json, &document, || println!("{}", sent.summary(seconds)))
}

/// A partitioner that was deployed and has no say is likely not what was meant.
fn note_partitioner(topic: &TopicMetadata) {
    if let Some(partitioner) = &topic.partitioner {
        eprintln!(
            "note: the partitioner {} of topic {} places only what is produced with --routed",
            partitioner.name, topic.name
        );
    }
}

/// So many deliveries are remembered at most: before there are more the oldest is waited for.
const DELIVERIES_MAX: usize = 10_000;
/// So many refused lines are named.
const REJECTIONS_SHOWN_MAX: usize = 10;

/// What was read and sent so far.
#[derive(Default)]
struct Sent {
    lines: u64,
    records: u64,
    /// Of these, those that have their acknowledgement.
    stored: u64,
    /// Those in batches of which the topic's filter left nothing. What it takes out of others the broker does not say.
    left_out: u64,
    bytes: u64,
    /// What became of the last one that is settled.
    last: Option<Receipt>,
    /// With the number of the line that each was.
    deliveries: VecDeque<(u64, Delivery)>,
    /// Lines that a plugin refused, the first few with its reasons.
    rejected: Vec<String>,
    rejected_count: u64,
    /// The first record that was not stored.
    failed: Option<CliError>,
}

async fn send_all(produce: &Produce, producer: &Producer) -> Result<Sent, CliError> {
    let (mut lines, progress) = open_input(produce)?;
    let mut sent = Sent::default();
    let read = sent.read_lines(produce, producer, &mut lines, &progress).await;
    // What is gathered is sent now rather than after the linger, whatever came behind it.
    let flushed = producer.flush().await;
    while sent.settle_oldest().await {}
    progress.finish_and_clear();
    if let Some(error) = sent.failed.take().or_else(|| flushed.err().map(CliError::from)) {
        let (stored, records) = (sent.stored, sent.records);
        let fate = if produce.no_acks {
            format!("how many of the {records} records sent before that are stored is not known")
        } else {
            format!("{stored} of the {records} records read so far are stored")
        };
        let lines = sent.rejected_lines();
        return Err(error.worded(|words| format!("{words}; {fate}{lines}")));
    }
    match read {
        Ok(()) => Ok(sent),
        Err(error) => {
            let is_stored = !produce.no_acks && sent.left_out == 0;
            let before = lines_before(sent.lines, if is_stored { "stored" } else { "sent" });
            Err(error.worded(|words| format!("line {}: {words}; {before}", sent.lines)))
        }
    }
}

/// What became of the lines before a bad one.
fn lines_before(number: u64, done: &str) -> String {
    match number {
        0 | 1 => format!("nothing was {done}"),
        2 => format!("the line before it is {done}"),
        _ => format!("the {} lines before it are {done}", number - 1),
    }
}

impl Sent {
    /// Sends a record per line, up to the end, a line that can't be sent, or a record that was not stored.
    async fn read_lines(
        &mut self,
        produce: &Produce,
        producer: &Producer,
        lines: &mut Lines,
        progress: &ProgressBar,
    ) -> Result<(), CliError> {
        let fixed: Vec<Header<'_>> = produce
            .format
            .fixed_headers
            .iter()
            .map(|(key, value)| Header { key: key.as_str(), value: Some(value.as_bytes()) })
            .collect();
        while self.awaits_line(lines).await? {
            let line = lines.take();
            progress.inc(line.len() as u64);
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if line.len() >= LINE_BYTES_MAX {
                let limit = output::bytes(LINE_BYTES_MAX as u64);
                return Err(CliError::usage(format!("it is longer than {limit}")));
            }
            let record = produce.format.parse(line).map_err(CliError::Usage)?;
            let Some(record) = record else { continue };
            let delivery = send(produce, producer, &fixed, &record).await?;
            self.records += 1;
            self.bytes += line.len() as u64;
            self.deliveries.push_back((self.lines, delivery));
            if self.deliveries.len() > DELIVERIES_MAX {
                self.settle_oldest().await;
            }
        }
        Ok(())
    }

    /// Waits for the next line, and learns meanwhile what becomes of those before it: who feeds a slow input must not wait for its end
    /// to hear of a failure. `false` at the end, and where a record was not stored.
    async fn awaits_line(&mut self, lines: &mut Lines) -> Result<bool, CliError> {
        loop {
            self.settle_known();
            if self.failed.is_some() {
                return Ok(false);
            }
            tokio::select! {
                biased;
                is_there = lines.ready() => {
                    self.lines += 1;
                    return is_there.map_err(CliError::from);
                }
                () = self.oldest_is_known() => {}
            }
        }
    }

    /// Waits until the outcome of the record that waits the longest is known; for ever where none does. Cancel-safe.
    async fn oldest_is_known(&mut self) {
        match self.deliveries.front_mut() {
            // It is taken where it is settled.
            Some((_, oldest)) => _ = oldest.await,
            None => std::future::pending().await,
        }
    }

    /// Takes the outcomes that are known, of those that wait the longest.
    fn settle_known(&mut self) {
        while let Some((line, oldest)) = self.deliveries.front()
            && let Some(outcome) = oldest.now()
        {
            let (line, ordinal) = (*line, oldest.ordinal());
            drop(self.deliveries.pop_front());
            self.settle(line, ordinal, outcome);
        }
    }

    /// Waits for the outcome of the record that waits the longest; `false` where none does.
    async fn settle_oldest(&mut self) -> bool {
        let Some((line, oldest)) = self.deliveries.pop_front() else { return false };
        let ordinal = oldest.ordinal();
        let outcome = oldest.await;
        self.settle(line, ordinal, outcome);
        true
    }

    /// What became of the record of a line.
    fn settle(&mut self, line: u64, ordinal: u32, outcome: Result<Receipt, DeliveryError>) {
        match outcome {
            Ok(receipt) => {
                let count = if receipt.is_left_out() { &mut self.left_out } else { &mut self.stored };
                *count += 1;
                self.last = Some(receipt);
            }
            Err(error) => {
                self.note_rejection(line, ordinal, &error);
                _ = self.failed.get_or_insert_with(|| error.into());
            }
        }
    }

    /// Where the last record is stored, where that is known.
    fn last_offset(&self) -> Option<i64> {
        self.last.as_ref().and_then(Receipt::offset).map(|offset| offset.get())
    }

    /// Where the last record went, where that is known.
    fn last_partition(&self) -> Option<u32> {
        self.last.as_ref().and_then(Receipt::partition).map(|partition| partition.get())
    }

    /// What became of it all, for people.
    fn summary(&self, seconds: f64) -> String {
        let Self { records, left_out, .. } = self;
        let bytes = output::bytes(self.bytes);
        let (all, dropped) = (text::counted(*records, "record"), text::counted(*left_out, "record"));
        if self.last.as_ref().is_some_and(Receipt::is_left_out) {
            let before = if left_out == records { String::new() } else { format!(", {dropped} in all") };
            return format!(
                "{all} sent ({bytes}) in {seconds:.2} s; the last batch was left out whole by the topic's \
                 filter{before}"
            );
        }
        let last = match (self.last_partition(), self.last_offset()) {
            (Some(partition), Some(offset)) => {
                format!(", the last at offset {offset} of partition {partition}")
            }
            _ => String::new(),
        };
        let before = match left_out {
            0 => String::new(),
            _ => format!("; batches were left out whole by the topic's filter, {dropped} in all"),
        };
        format!("{all} ({bytes}) in {seconds:.2} s{last}{before}")
    }

    /// A plugin names records by their places in a batch; whoever wrote them knows lines.
    fn note_rejection(&mut self, line: u64, ordinal: u32, error: &DeliveryError) {
        let DeliveryError::Refused(server) = error else { return };
        let Some(rejection) = server.rejections.iter().find(|rejection| rejection.ordinal == ordinal) else {
            return;
        };
        self.rejected_count += 1;
        if self.rejected.len() < REJECTIONS_SHOWN_MAX {
            self.rejected.push(format!("line {line}: {}", rejection.reason));
        }
    }

    /// Which lines a plugin refused, behind the error.
    fn rejected_lines(&self) -> String {
        let mut words: String = self.rejected.iter().map(|line| format!("\n  {line}")).collect();
        let more = self.rejected_count - self.rejected.len() as u64;
        if more > 0 {
            words.push_str(&format!("\n  and {more} more"));
        }
        words
    }
}

async fn send(
    produce: &Produce,
    producer: &Producer,
    fixed: &[Header<'_>],
    input: &InputRecord<'_>,
) -> Result<Delivery, CliError> {
    let mut headers = fixed.to_vec();
    headers.extend(input.headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }));
    let mut record = match &input.value {
        Some(value) => Record::new(value),
        None => Record::default(),
    };
    record = record.headers(&headers);
    if let Some(key) = &input.key {
        record = record.key(key);
    }
    if let Some(timestamp) = input.timestamp {
        record = record.timestamp(Timestamp::new(timestamp));
    }
    // The flags say where to; where they don't, the record may.
    let named = if produce.routed { None } else { input.partition };
    if let Some(partition) = produce.partition.or(named) {
        record = record.partition(PartitionId::new(partition));
    }
    producer.send(record).await.map_err(|error| match CliError::from(error) {
        CliError::Refused { message, code: Some(ErrorCode::UnknownPartition) }
            if produce.partition.is_none() =>
        {
            let way_out = "--partition or --routed send it elsewhere";
            CliError::refused(ErrorCode::UnknownPartition, format!("{message}; {way_out}"))
        }
        other => other,
    })
}

fn open_input(produce: &Produce) -> Result<(Lines, ProgressBar), CliError> {
    let Some(path) = &produce.file else {
        if std::io::stdin().is_terminal() {
            eprintln!("reading records from the terminal, one a line; end with Ctrl-D");
        }
        return Ok((Lines::of(std::io::stdin())?, ProgressBar::hidden()));
    };
    let file = File::open(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
    let progress = ProgressBar::new(file.metadata()?.len());
    let style = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    progress.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    Ok((Lines::of(file)?, progress))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemill_client::Offset;

    use super::*;

    #[test]
    fn what_the_filter_left_out_is_not_told_as_stored() {
        let partition = PartitionId::new(1);
        let stored = Receipt::Stored { partition, offset: Offset::new(7), log_append_time: None };
        let left_out = Receipt::LeftOut { partition };
        let sent = |left_out: u64, last: &Receipt| Sent {
            records: 3,
            bytes: 30,
            left_out,
            last: Some(last.clone()),
            ..Sent::default()
        };
        assert_eq!(
            sent(0, &stored).summary(0.5),
            "3 records (30 B) in 0.50 s, the last at offset 7 of partition 1"
        );
        assert_eq!(
            sent(2, &stored).summary(0.5),
            "3 records (30 B) in 0.50 s, the last at offset 7 of partition 1; batches were left out whole by the \
             topic's filter, 2 records in all"
        );
        let none = sent(3, &left_out);
        assert_eq!((none.last_partition(), none.last_offset()), (Some(1), None));
        assert_eq!(
            none.summary(0.5),
            "3 records sent (30 B) in 0.50 s; the last batch was left out whole by the topic's filter"
        );
        assert!(sent(1, &left_out).summary(0.5).ends_with("by the topic's filter, 1 record in all"));
        let routed = Receipt::Routed { placements: Arc::new([]) };
        assert!(sent(3, &routed).summary(0.5).contains("left out whole"));
        assert_eq!(sent(0, &Receipt::Sent).summary(0.5), "3 records (30 B) in 0.50 s");
    }
}
