//! `tidemill inspect`: files of a stopped broker.

mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;
use tidemill_log::fs::DiskStorage;
use tidemill_log::segment::SegmentInspection;
use tidemill_log::wal;
use tidemill_protocol::ShardId;

use crate::error::CliError;
use crate::output;

/// Look into files of a stopped broker
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill inspect wal tidemill-data              what the write-ahead log holds of each shard
  tidemill inspect state tidemill-data            the controller: topics, plugins, deployments
  tidemill inspect state tidemill-data --shard 1  partitions, groups, tasks at its checkpoint

The write-ahead log and segments are read and never written. A state is opened as the broker
opens it, which completes what a crash left half-done: keep a copy of the directory where
that must not be.")]
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
    #[command(after_help = "\
Example:
  tidemill inspect segment tidemill-data/shard-01/TOPIC-ID-0/00000000000000000000.log

A partition's directory is named by its topic's id and its number.
`tidemill topic describe TOPIC` shows the id and each partition's shard; of a stopped
broker, `tidemill inspect state DIR --shard N` shows a shard's directories.")]
    Segment {
        /// The `.log` file.
        file: PathBuf,
    },
    /// A shard's state as its last checkpoint left it
    #[command(after_help = "\
Examples:
  tidemill inspect state tidemill-data             the controller: topics, plugins, deployments
  tidemill inspect state tidemill-data --shard 1   records, groups and tasks are in shards 1 and up

It is opened as a broker opens it, under the directory's lock: an interrupted checkpoint or
installation is completed, and files that no checkpoint names are removed, as the next start
would.")]
    State {
        /// The data directory.
        data_dir: PathBuf,
        /// Which shard; 0 is the controller.
        #[arg(long, default_value_t = 0)]
        shard: u16,
    },
}

pub(crate) fn run(inspect: &Inspect, json: bool) -> Result<(), CliError> {
    match inspect {
        Inspect::Wal { data_dir, frames } => inspect_wal(data_dir, *frames, json),
        Inspect::Segment { file } => inspect_segment(file, json),
        Inspect::State { data_dir, shard } => state::inspect(data_dir, ShardId::new(*shard), json),
    }
}

fn storage(root: &Path) -> Result<DiskStorage, CliError> {
    if !root.is_dir() {
        return Err(CliError::usage(format!("{} is not a directory", root.display())));
    }
    DiskStorage::new(root).map_err(|error| CliError::other(format!("{}: {error}", root.display())))
}

/// What the log holds of one shard.
#[derive(Debug, Default)]
struct OfShard {
    frames: u64,
    bytes: u64,
    /// First and last Raft index of its entries.
    entries: Option<(u64, u64)>,
    term: u64,
    /// Entries up to this one are no longer needed.
    purged: Option<u64>,
}

impl OfShard {
    fn count(&mut self, frame: &wal::InspectedFrame) {
        let index = frame.id.index.get();
        self.frames += 1;
        self.bytes += frame.payload_bytes as u64;
        self.term = self.term.max(frame.id.term.get());
        match frame.kind {
            kind if kind.holds_entry() => {
                let (first, last) = self.entries.unwrap_or((index, index));
                self.entries = Some((first.min(index), last.max(index)));
            }
            wal::FrameKind::Purge => self.purged = self.purged.max(Some(index)),
            _ => {}
        }
    }
}

fn inspect_wal(data_dir: &Path, frames: bool, json: bool) -> Result<(), CliError> {
    let storage = storage(data_dir)?;
    // Without a shard: what concerns the log as a whole.
    let mut shards: BTreeMap<Option<u16>, OfShard> = BTreeMap::new();
    let inspection = wal::inspect(&storage, Path::new("wal"), &mut |frame| {
        shards.entry(frame.shard.map(ShardId::get)).or_default().count(frame);
        if frames {
            show_frame(frame, json);
        }
    })
    .map_err(|error| CliError::other(error.to_string()))?;
    let segments: Vec<_> = inspection
        .segments
        .iter()
        .map(|segment| {
            json!({ "path": segment.path, "number": segment.number, "frames": segment.frames,
                "blocks": segment.blocks, "end": end_word(segment.end), "end_block": end_block(segment.end) })
        })
        .collect();
    let of_shards: Vec<_> = shards
        .iter()
        .filter_map(|(shard, of)| {
            let (first, last) = of.entries.unzip();
            Some(json!({ "shard": (*shard)?, "frames": of.frames, "bytes": of.bytes, "first_entry": first,
                "last_entry": last, "purged": of.purged, "term": of.term }))
        })
        .collect();
    let document = json!({ "segments": segments, "free": inspection.free, "shards": of_shards });
    output::print(json, &document, || {
        if frames {
            println!();
        }
        show_segments(&inspection);
        println!();
        show_shards(&shards);
    })
}

fn show_frame(frame: &wal::InspectedFrame, json: bool) {
    let kind = kind_word(frame.kind);
    let (index, term) = (frame.id.index, frame.id.term);
    if json {
        println!(
            "{}",
            json!({ "segment": frame.segment, "block": frame.block, "kind": kind,
                "shard": frame.shard.map(ShardId::get), "index": index.get(), "term": term.get(),
                "payload_bytes": frame.payload_bytes, "crc": frame.crc, "repeated": frame.repeated })
        );
        return;
    }
    let shard = frame.shard.map_or_else(|| "all shards".to_owned(), |shard| format!("shard {shard}"));
    let repeated = if frame.repeated { "  (repeated at the segment's start)" } else { "" };
    println!(
        "segment {} block {:6}  {shard:10}  {kind:19}  index {index:8}  term {term:4}  {:9} bytes  crc {:08x}{repeated}",
        frame.segment, frame.block, frame.payload_bytes, frame.crc
    );
}

fn show_segments(inspection: &wal::Inspection) {
    let last = inspection.segments.iter().map(|segment| segment.number).max();
    let rows: Vec<Vec<String>> = inspection
        .segments
        .iter()
        .map(|segment| {
            vec![
                segment.number.to_string(),
                segment.path.display().to_string(),
                segment.frames.to_string(),
                end_words(segment.end, Some(segment.number) == last),
            ]
        })
        .collect();
    output::table(&["segment", "file", "frames", "ends"], &rows, &[0, 2]);
    println!("\n{} further files are ready to be written", inspection.free.len());
}

fn show_shards(shards: &BTreeMap<Option<u16>, OfShard>) {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let rows: Vec<Vec<String>> = shards
        .iter()
        .filter_map(|(shard, of)| {
            let shard = (*shard)?;
            Some(vec![
                if shard == 0 { "0 (controller)".to_owned() } else { shard.to_string() },
                of.entries.map_or_else(|| "-".to_owned(), |(first, last)| format!("{first} to {last}")),
                number(of.purged),
                of.term.to_string(),
                of.frames.to_string(),
                output::bytes(of.bytes),
            ])
        })
        .collect();
    output::table(&["shard", "entries", "purged to", "term", "frames", "bytes"], &rows, &[2, 3, 4, 5]);
    println!(
        "\nEntries are counted by Raft index; offsets of records stand in segments (inspect segment, inspect state)."
    );
}

/// As programs read it.
const fn kind_word(kind: wal::FrameKind) -> &'static str {
    match kind {
        wal::FrameKind::Entry => "entry",
        wal::FrameKind::Carried => "carried-entry",
        wal::FrameKind::Vote => "vote",
        wal::FrameKind::Committed => "committed",
        wal::FrameKind::TruncateAfter => "truncate-after",
        wal::FrameKind::TruncateAll => "truncate-all",
        wal::FrameKind::Purge => "purge",
        wal::FrameKind::SnapshotInstalled => "snapshot-installed",
        wal::FrameKind::Forget => "forget",
        wal::FrameKind::Doubtful => "doubtful",
        wal::FrameKind::DoubtAccepted => "doubt-accepted",
        wal::FrameKind::Release => "release",
        wal::FrameKind::Close => "close",
    }
}

/// As programs read it.
const fn end_word(end: wal::InspectedEnd) -> &'static str {
    match end {
        wal::InspectedEnd::Sealed => "sealed",
        wal::InspectedEnd::Full => "full",
        wal::InspectedEnd::BadBlock { .. } => "bad-block",
        wal::InspectedEnd::BadFrame { .. } => "bad-frame",
    }
}

const fn end_block(end: wal::InspectedEnd) -> Option<u64> {
    match end {
        wal::InspectedEnd::Sealed | wal::InspectedEnd::Full => None,
        wal::InspectedEnd::BadBlock { block } | wal::InspectedEnd::BadFrame { block } => Some(block),
    }
}

/// Behind the last segment's last frame is what the file held before: that is the log's end. Anywhere else it is damage.
fn end_words(end: wal::InspectedEnd, is_last: bool) -> String {
    match (end, is_last) {
        (wal::InspectedEnd::Sealed, _) => "where the next one begins".to_owned(),
        (wal::InspectedEnd::Full, _) => "with the file".to_owned(),
        (wal::InspectedEnd::BadBlock { block }, true) => format!("at block {block}: the log's end"),
        (wal::InspectedEnd::BadFrame { block }, true) => {
            format!("at block {block}, in a frame that is not whole: the log's end")
        }
        (wal::InspectedEnd::BadBlock { block }, false) => format!("DAMAGED at block {block}"),
        (wal::InspectedEnd::BadFrame { block }, false) => format!("DAMAGED in a frame of block {block}"),
    }
}

fn inspect_segment(file: &Path, json: bool) -> Result<(), CliError> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(CliError::usage(format!("{} is not a file", file.display())));
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let inspection = SegmentInspection::open(&storage(dir)?, Path::new(name))
        .map_err(|error| CliError::other(error.to_string()))?;
    let (first, bytes) = (inspection.base_offset(), inspection.bytes());
    if !json {
        output::facts(&[("base offset", first.to_string()), ("bytes", output::bytes(bytes))]);
        println!();
    }
    let (mut batches, mut end) = (0_u64, first);
    for batch in inspection {
        // What cannot be read ends the walk: the error says where.
        let batch = batch.map_err(|error| {
            CliError::Failed(format!(
                "{error}; the {batches} batches before it, up to offset {end}, are whole"
            ))
        })?;
        batches += 1;
        end = batch.last_offset.plus(1);
        if json {
            println!(
                "{}",
                json!({ "position": batch.position, "frame_bytes": batch.frame_bytes,
                    "base_offset": batch.base_offset.get(), "last_offset": batch.last_offset.get(),
                    "leader_epoch": batch.epoch.get(), "max_timestamp": batch.max_timestamp.get() })
            );
        } else {
            println!(
                "at byte {:10}  offsets {} to {}  {} bytes  epoch {}  newest {}  crc {:08x}",
                batch.position,
                batch.base_offset,
                batch.last_offset,
                batch.frame_bytes,
                batch.epoch,
                crate::text::time(batch.max_timestamp.get()),
                batch.crc
            );
        }
    }
    if !json {
        println!("\n{batches} batches, whole, each with a good checksum; the next offset is {end}");
    }
    Ok(())
}
