//! `tidemill inspect`: files of a stopped broker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;
use tidemill_log::fs::{DirectoryLock, DiskStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig, SegmentInspection};
use tidemill_log::wal;
use tidemill_protocol::ShardId;
use tidemill_shard::{Shard, ShardConfig};

use crate::error::CliError;
use crate::output;

/// Look into files of a stopped broker
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill inspect wal tidemill-data                 what the write-ahead log holds of each shard
  tidemill inspect state tidemill-data --shard 1     topics, partitions and groups as of its last checkpoint

The write-ahead log and segments are read and never written. A state is opened as the broker opens it, which completes
what a crash left half-done: keep a copy of the directory where that must not be.")]
pub(crate) enum Inspect {
    /// The write-ahead log: its segments, and what it holds of each shard
    #[command(
        after_help = "Examples:\n  tidemill inspect wal tidemill-data\n  tidemill inspect wal tidemill-data --frames --json"
    )]
    Wal {
        /// The data directory.
        data_dir: PathBuf,
        /// Show every frame.
        #[arg(long)]
        frames: bool,
    },
    /// A segment file: its batches, each with its checksum verified
    #[command(
        after_help = "Example:\n  tidemill inspect segment tidemill-data/shard-01/TOPIC-0/00000000000000000000.log"
    )]
    Segment {
        /// The `.log` file.
        file: PathBuf,
    },
    /// A shard's state as its last checkpoint left it
    #[command(after_help = "\
Example:
  tidemill inspect state tidemill-data --shard 1

It is opened as a broker opens it, under the directory's lock: an interrupted checkpoint or installation is completed, and
files that no checkpoint names are removed, as the next start would.")]
    State {
        /// The data directory.
        data_dir: PathBuf,
        /// Which shard.
        #[arg(long, default_value_t = 0)]
        shard: u16,
    },
}

pub(crate) fn run(inspect: &Inspect, json: bool) -> Result<(), CliError> {
    match inspect {
        Inspect::Wal { data_dir, frames } => inspect_wal(data_dir, *frames, json),
        Inspect::Segment { file } => inspect_segment(file, json),
        Inspect::State { data_dir, shard } => inspect_state(data_dir, ShardId::new(*shard), json),
    }
}

fn storage(root: &Path) -> Result<DiskStorage, CliError> {
    if !root.is_dir() {
        return Err(CliError::usage(format!("{} is not a directory", root.display())));
    }
    DiskStorage::new(root).map_err(|error| CliError::other(format!("{}: {error}", root.display())))
}

fn inspect_wal(data_dir: &Path, frames: bool, json: bool) -> Result<(), CliError> {
    let storage = storage(data_dir)?;
    let mut shards: BTreeMap<u16, (u64, u64, u64, u64)> = BTreeMap::new();
    let inspection = wal::inspect(&storage, Path::new("wal"), &mut |frame| {
        let shard = frame.shard.map_or(u16::MAX, ShardId::get);
        let index = frame.id.index.get();
        let summary = shards.entry(shard).or_insert((0, 0, u64::MAX, 0));
        summary.0 += 1;
        summary.1 += frame.payload_bytes as u64;
        if frame.kind.holds_entry() {
            summary.2 = summary.2.min(index);
            summary.3 = summary.3.max(index);
        }
        if frames && json {
            println!(
                "{}",
                json!({ "segment": frame.segment, "block": frame.block, "kind": format!("{:?}", frame.kind),
                    "shard": frame.shard.map(ShardId::get), "index": index, "term": frame.id.term.get(),
                    "payload_bytes": frame.payload_bytes, "crc": frame.crc, "repeated": frame.repeated })
            );
        } else if frames {
            println!(
                "segment {} block {:6} {:17} shard {:5} index {index:10} term {:4} {:9} bytes crc {:08x}",
                frame.segment,
                frame.block,
                format!("{:?}", frame.kind),
                frame.shard.map_or_else(|| "-".to_owned(), |shard| shard.to_string()),
                frame.id.term,
                frame.payload_bytes,
                frame.crc
            );
        }
    })
    .map_err(|error| CliError::other(error.to_string()))?;
    let segments: Vec<_> = inspection
        .segments
        .iter()
        .map(|segment| {
            json!({ "path": segment.path, "number": segment.number, "frames": segment.frames,
                "blocks": segment.blocks, "end": format!("{:?}", segment.end) })
        })
        .collect();
    let document = json!({ "segments": segments, "free": inspection.free });
    output::print(json, &document, || {
        let rows: Vec<Vec<String>> = inspection
            .segments
            .iter()
            .map(|segment| {
                vec![
                    segment.number.to_string(),
                    segment.path.display().to_string(),
                    segment.frames.to_string(),
                    format!("{:?}", segment.end),
                ]
            })
            .collect();
        output::table(&["segment", "file", "frames", "ends"], &rows, &[0, 2]);
        println!();
        let rows: Vec<Vec<String>> = shards
            .iter()
            .map(|(shard, (count, bytes, first, last))| {
                vec![
                    if *shard == u16::MAX { "(log)".to_owned() } else { shard.to_string() },
                    count.to_string(),
                    output::bytes(*bytes),
                    if first <= last { format!("{first} to {last}") } else { "-".to_owned() },
                ]
            })
            .collect();
        output::table(&["shard", "frames", "bytes", "entries"], &rows, &[0, 1, 2]);
    })
}

fn inspect_segment(file: &Path, json: bool) -> Result<(), CliError> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(CliError::usage(format!("{} is not a file", file.display())));
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let inspection = SegmentInspection::open(&storage(dir)?, Path::new(name))
        .map_err(|error| CliError::other(error.to_string()))?;
    if !json {
        output::facts(&[
            ("base offset", inspection.base_offset().to_string()),
            ("bytes", output::bytes(inspection.bytes())),
        ]);
        println!();
    }
    for batch in inspection {
        // What cannot be read ends the walk: the error says where.
        let batch = batch.map_err(|error| CliError::Failed(error.to_string()))?;
        if json {
            println!(
                "{}",
                json!({ "position": batch.position, "frame_bytes": batch.frame_bytes,
                    "base_offset": batch.base_offset.get(), "last_offset": batch.last_offset.get(),
                    "leader_epoch": batch.epoch.get(), "max_timestamp": batch.max_timestamp.get() })
            );
        } else {
            println!(
                "at {:10}  offsets {} to {}  {} bytes  epoch {}  crc {:08x}",
                batch.position,
                batch.base_offset,
                batch.last_offset,
                batch.frame_bytes,
                batch.epoch,
                batch.crc
            );
        }
    }
    Ok(())
}

fn inspect_state(data_dir: &Path, shard: ShardId, json: bool) -> Result<(), CliError> {
    let storage: Arc<dyn Storage> = Arc::new(storage(data_dir)?);
    // A shard that is open may complete what a crash left half-done: never beside a running broker.
    let _lock = DirectoryLock::acquire(storage.as_ref(), Path::new("lock"))
        .map_err(|error| CliError::usage(format!("{error}; stop the broker first")))?;
    let config = ShardConfig::new(shard);
    if !data_dir.join(&config.dir).is_dir() {
        return Err(CliError::usage(format!("there is no shard {shard} in {}", data_dir.display())));
    }
    let files = SegmentFiles::new(storage, SegmentFilesConfig::default());
    let shard = Shard::open(config, &files).map_err(|error| CliError::other(error.to_string()))?;
    let partitions: Vec<_> = shard
        .partitions()
        .into_iter()
        .map(|(id, view)| {
            json!({ "partition": id.to_string(), "log_start": view.log_start.get(),
                "high_watermark": view.high_watermark.get(), "bytes": view.bytes, "segments": view.segments })
        })
        .collect();
    let applied = shard.applied().last.map(|id| id.index.get());
    let topics: Vec<_> = shard.topics().iter().map(|topic| topic.name.clone()).collect();
    let document = json!({
        "applied": applied, "log_time": shard.log_time().get(), "topics": topics, "partitions": partitions,
        "groups": shard.group_names(), "tasks": shard.tasks().len(),
    });
    output::print(json, &document, || {
        output::facts(&[
            ("applied", applied.map_or_else(|| "nothing".to_owned(), |index| index.to_string())),
            ("log time", crate::text::time(shard.log_time().get())),
            ("topics", topics.join(", ")),
            ("groups", shard.group_names().join(", ")),
            ("tasks", shard.tasks().len().to_string()),
        ]);
        println!();
        let rows: Vec<Vec<String>> = shard
            .partitions()
            .into_iter()
            .map(|(id, view)| {
                vec![
                    id.to_string(),
                    view.log_start.to_string(),
                    view.high_watermark.to_string(),
                    output::bytes(view.bytes),
                    view.segments.to_string(),
                ]
            })
            .collect();
        output::table(
            &["partition", "log start", "high watermark", "bytes", "segments"],
            &rows,
            &[1, 2, 3, 4],
        );
    })
}
