//! `tidemill topic`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_client::messages::{TopicConfig, TopicDescription};
use tidemill_client::{Client, NewTopic, TopicId};

use crate::error::CliError;
use crate::{output, text};

/// Topics
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill topic create plays --partitions 3
  tidemill topic describe plays
  tidemill topic alter plays --retention 30d")]
pub(crate) enum Topic {
    /// Make a topic
    #[command(after_help = "\
Examples:
  tidemill topic create plays --partitions 3
  tidemill topic create audit --partitions 1 --retention forever
  tidemill topic create enriched --with plays      same partitions, same shards: a consumer may read both")]
    Create(Create),
    /// Show the topics
    #[command(after_help = "Example:\n  tidemill topic list")]
    List,
    /// Show one topic: settings, partitions, offsets, bytes
    #[command(after_help = "Example:\n  tidemill topic describe plays")]
    Describe {
        /// Which topic.
        name: String,
    },
    /// Change settings
    #[command(after_help = "Example:\n  tidemill topic alter plays --retention 30d --retention-bytes 10GiB")]
    Alter {
        /// Which topic.
        name: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Delete a topic and its records
    #[command(after_help = "Example:\n  tidemill topic delete plays")]
    Delete {
        /// Which topic.
        name: String,
    },
}

/// See `tidemill topic create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// 1 to 249 letters, digits, '.', '_' or '-'.
    name: String,
    /// How many partitions. With `--with`: as many as that topic has.
    #[arg(long, short, default_value_t = 1)]
    partitions: u32,
    /// Co-partitioned with this topic.
    #[arg(long, value_name = "TOPIC", conflicts_with = "partitions")]
    with: Option<String>,
    /// No error where it is there already.
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    settings: Settings,
}

/// A topic's settings.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Records older than this may go: 7d, 12h, forever.
    #[arg(long, value_name = "TIME", value_parser = text::retention, allow_hyphen_values = true)]
    retention: Option<i64>,
    /// A partition larger than this loses its oldest segments: 10GiB, unlimited.
    #[arg(long, value_name = "SIZE", value_parser = text::size_or_unlimited, allow_hyphen_values = true)]
    retention_bytes: Option<i64>,
    /// Size of a segment.
    #[arg(long, value_name = "SIZE", value_parser = text::size)]
    segment_bytes: Option<u64>,
    /// Age of a segment.
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    segment_time: Option<std::time::Duration>,
    /// Largest record batch.
    #[arg(long, value_name = "SIZE", value_parser = text::size)]
    batch_bytes_max: Option<u64>,
    /// The broker's timestamps instead of the producer's.
    #[arg(long)]
    log_append_time: Option<bool>,
}

impl Settings {
    fn message(&self) -> Result<TopicConfig, CliError> {
        let batch_bytes_max = self.batch_bytes_max.map(u32::try_from).transpose();
        Ok(TopicConfig {
            retention_ms: self.retention,
            retention_bytes: self.retention_bytes,
            segment_bytes: self.segment_bytes,
            segment_ms: self.segment_time.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
            batch_bytes_max: batch_bytes_max.map_err(|_| CliError::usage("a batch is at most 16 MiB"))?,
            log_append_time: self.log_append_time,
        })
    }
}

pub(crate) async fn run(topic: Topic, client: Client, json: bool) -> Result<(), CliError> {
    let topics = client.topics();
    match topic {
        Topic::Create(create) => {
            let partitions = if create.with.is_some() { 0 } else { create.partitions };
            let mut new = NewTopic::new(create.name, partitions).config(create.settings.message()?);
            if let Some(with) = create.with {
                new = new.with(with);
            }
            let may_exist = create.if_not_exists;
            if may_exist {
                new = new.if_not_exists();
            }
            let description = topics.create(new).await?;
            output::print(json, &document(&description), || {
                if let Some(info) = &description.info {
                    let (name, partitions) = (&info.name, info.partitions.len());
                    let noun = if partitions == 1 { "partition" } else { "partitions" };
                    if may_exist {
                        println!("topic {name} is there, with {partitions} {noun}");
                    } else {
                        println!("created topic {name} with {partitions} {noun}");
                    }
                }
            })
        }
        Topic::List => {
            let mut described = Vec::new();
            for name in topics.list().await? {
                described.push(topics.describe(&name).await?);
            }
            let documents: Vec<Value> = described.iter().map(document).collect();
            output::print(json, &json!(documents), || list(&described))
        }
        Topic::Describe { name } => {
            let description = topics.describe(&name).await?;
            output::print(json, &document(&description), || describe(&description))
        }
        Topic::Alter { name, settings } => {
            let description = topics.alter(&name, settings.message()?).await?;
            output::print(json, &document(&description), || describe(&description))
        }
        Topic::Delete { name } => {
            topics.delete(&name).await?;
            output::print(json, &json!({ "deleted": name }), || println!("deleted topic {name}"))
        }
    }
}

fn list(topics: &[TopicDescription]) {
    let rows: Vec<Vec<String>> = topics
        .iter()
        .filter_map(|topic| {
            let info = topic.info.as_ref()?;
            let records: i64 = topic.partitions.iter().map(|p| p.high_watermark - p.log_start_offset).sum();
            let bytes: u64 = topic.partitions.iter().map(|p| p.bytes).sum();
            let config = info.config.unwrap_or_default();
            Some(vec![
                info.name.clone(),
                info.partitions.len().to_string(),
                records.to_string(),
                output::bytes(bytes),
                output::duration(config.retention_ms.unwrap_or(-1)),
                info.partitioner
                    .as_ref()
                    .map_or_else(|| "murmur2 of the key".to_owned(), |p| p.deployment.clone()),
            ])
        })
        .collect();
    output::table(&["name", "partitions", "offsets", "bytes", "retention", "partitioner"], &rows, &[1, 2, 3]);
}

fn describe(topic: &TopicDescription) {
    let Some(info) = &topic.info else { return };
    let config = info.config.unwrap_or_default();
    let filter = produce_filter(topic);
    let is_appended = config.log_append_time == Some(true);
    let timestamps = if is_appended { "the broker's" } else { "the producer's" };
    output::facts(&[
        ("topic", info.name.clone()),
        ("id", id(&info.topic_id)),
        (
            "partitioner",
            info.partitioner.as_ref().map_or_else(
                || "murmur2 of the key".to_owned(),
                |partitioner| format!("{} (epoch {})", partitioner.deployment, partitioner.epoch),
            ),
        ),
        ("produce filter", filter.unwrap_or("(none)").to_owned()),
        ("retention", output::duration(config.retention_ms.unwrap_or(-1))),
        (
            "retention bytes",
            match config.retention_bytes {
                Some(bytes) if bytes >= 0 => output::bytes(bytes.unsigned_abs()),
                _ => "unlimited".to_owned(),
            },
        ),
        ("segment bytes", output::bytes(config.segment_bytes.unwrap_or(0))),
        ("segment time", output::duration(config.segment_ms.unwrap_or(-1))),
        ("batch bytes max", output::bytes(u64::from(config.batch_bytes_max.unwrap_or(0)))),
        ("timestamps", timestamps.to_owned()),
    ]);
    println!();
    let rows: Vec<Vec<String>> = topic
        .partitions
        .iter()
        .map(|p| {
            vec![
                p.partition.to_string(),
                p.shard.to_string(),
                p.leader.to_string(),
                known(p.log_start_offset),
                known(p.high_watermark),
                output::bytes(p.bytes),
                p.segments.to_string(),
            ]
        })
        .collect();
    output::table(
        &["partition", "shard", "leader", "log start", "high watermark", "bytes", "segments"],
        &rows,
        &[0, 1, 2, 3, 4, 5, 6],
    );
}

/// An offset; one of a partition of which the broker could not be told anything is negative.
fn known(offset: i64) -> String {
    if offset < 0 { "?".to_owned() } else { offset.to_string() }
}

/// The deployment that filters what is produced.
fn produce_filter(topic: &TopicDescription) -> Option<&str> {
    Some(topic.produce_filter.as_str()).filter(|name| !name.is_empty())
}

fn id(bytes: &[u8]) -> String {
    TopicId::from_slice(bytes).map(|id| id.to_string()).unwrap_or_default()
}

fn document(topic: &TopicDescription) -> Value {
    let info = topic.info.clone().unwrap_or_default();
    let config = info.config.unwrap_or_default();
    json!({
        "name": info.name,
        "id": id(&info.topic_id),
        "partitioner": info.partitioner.map(|p| json!({ "deployment": p.deployment, "epoch": p.epoch })),
        "produce_filter": produce_filter(topic),
        "config": {
            "retention_ms": config.retention_ms,
            "retention_bytes": config.retention_bytes,
            "segment_bytes": config.segment_bytes,
            "segment_ms": config.segment_ms,
            "batch_bytes_max": config.batch_bytes_max,
            "log_append_time": config.log_append_time,
        },
        "partitions": topic.partitions.iter().map(|p| json!({
            "partition": p.partition,
            "shard": p.shard,
            "leader": p.leader,
            "leader_epoch": p.leader_epoch,
            "log_start_offset": p.log_start_offset,
            "last_stable_offset": p.last_stable_offset,
            "high_watermark": p.high_watermark,
            "bytes": p.bytes,
            "segments": p.segments,
        })).collect::<Vec<_>>(),
    })
}
