//! What a log holds after a restart.
//!
//! Reading goes from the oldest live segment to the first thing that is wrong. The tail from there on is cut if
//! nothing that comes later proves that it had been flushed: a torn write that nobody was told about. If something
//! does prove it (a block's `flushed`, a later segment), what was lost may have been acknowledged, and every shard is
//! in [`Doubt`].
//!
//! A segment is missed only if it was not released. The frame that released it may lie behind the damage:
//!
//! ```text
//!   1: erased | 2: live | 3: ... damaged ... release of 1 ... |     2, and 3 up to the damage, are what is left
//! ```
//!
//! So releases are looked for there too (`scan`). Purges are not: they would have to be taken in with all that was between,
//! in order. A shard whose purge is lost so has a log that begins behind a gap, and its doubt says so.
//!
//! Recovery changes nothing, and writes at most what it read once more (`rewrite`). The log goes on in a new segment,
//! begun with the first write, whose header records the cut for good; until then a second recovery finds the same as
//! the first.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidemill_protocol::{LogIndex, ShardId};

use super::config::WalConfig;
use super::doubt::{Doubt, DoubtReason};
use super::entry::EntryId;
use super::error::WalOpenError;
use super::fold::Fold;
use super::frame::Position;
use super::header::{HeaderBlock, PreviousSegment};
use super::rewrite;
use super::scan::{self, ScanEnd, ScanStop, Segment, SegmentFile};
use super::state::State;
use crate::fs::{OpenMode, Storage};

/// Name of a segment file ends so.
pub(super) const SEGMENT_EXTENSION: &str = "wal";

/// What [`super::Wal::open`] found.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// What is known of each shard.
    pub shards: BTreeMap<ShardId, RecoveredShard>,
    /// Set where flushed bytes are missing: shards that are not in `shards` may have been there.
    pub damage: Option<Doubt>,
    /// Whether the log had been closed in good order.
    pub closed_cleanly: bool,
    /// Segments read.
    pub segments: usize,
    /// Frames read.
    pub frames: u64,
    /// Bytes of segments read.
    pub bytes_scanned: u64,
    /// Whether the log is written past the page cache.
    pub direct: bool,
    /// One line for people per thing worth knowing.
    pub report: Vec<String>,
}

/// What is known of a shard after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveredShard {
    /// The last vote saved.
    pub vote: Option<Bytes>,
    /// The last committed position saved (lazily, so perhaps behind).
    pub committed: Option<Bytes>,
    /// The last note of an installed snapshot.
    pub snapshot_installed: Option<Bytes>,
    /// Purged up to and with this entry.
    pub purged: Option<EntryId>,
    /// Index of the first entry held; `None` where there is none.
    pub first: Option<LogIndex>,
    /// The last entry; the purged one where none is held.
    pub last: Option<EntryId>,
    /// Set where the shard may have known more than this.
    pub doubtful: Option<Doubt>,
}

/// Everything the writer needs to go on.
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) recovery: Recovery,
    /// Files that hold nothing of the log and may be reused at once.
    pub(super) free: Vec<SegmentFile>,
    /// Files that a cut leaves over: kept as they are until the next segment has recorded the cut.
    pub(super) cut_off: Vec<SegmentFile>,
    pub(super) previous: Option<PreviousSegment>,
    pub(super) chain: u32,
    pub(super) next_number: u64,
    pub(super) next_sequence: u64,
    pub(super) first_live: u64,
}

/// Reads the log in `config.dir`.
pub(super) fn recover(
    storage: &dyn Storage,
    config: &WalConfig,
    direct: bool,
) -> Result<Recovered, WalOpenError> {
    let files = open_files(storage, &config.dir, OpenMode::WRITE.with_direct(direct))?;
    let (segments, bare) = read_headers(files)?;
    let newest = segments.values().next_back().cloned();
    let Some(newest) = newest else {
        return Recovered::empty(config, direct, bare);
    };
    let chain = linked_to(&segments, &newest);
    let mut outcome = walk(&chain, newest.header.first_live, config)?;
    let mut evidence = Evidence::gather(&outcome, &chain, &segments, &bare)?;
    if outcome.front == Front::Missing {
        let begin = chain.first().unwrap_or(&newest).header.number;
        let first_live = outcome.fold.first_live;
        if evidence.released_max >= begin {
            outcome.front = Front::Released;
            // No further than that: released segments that are still there do no harm, and may be all that is left of
            // something.
            outcome.fold.first_live = first_live.max(begin);
        } else {
            // The chain from the newest segment back is broken, so what counts is what leads up to the break. What was
            // released behind it stays so: its file may be erased.
            let first_live = first_live.max(evidence.released_max);
            let chain = leading(&segments, first_live);
            outcome = Walk { front: Front::Missing, ..walk(&chain, first_live, config)? };
            evidence = Evidence::gather(&outcome, &chain, &segments, &bare)?;
        }
    }
    conclude(outcome, &evidence, segments, bare, config, direct)
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalOpenError {
    let path = path.to_owned();
    move |source| WalOpenError::Io { action, path, source }
}

/// All segment files of a directory, in the order of their names. An absent directory has none.
pub(super) fn open_files(
    storage: &dyn Storage,
    dir: &Path,
    mode: OpenMode,
) -> Result<Vec<SegmentFile>, WalOpenError> {
    let entries = match storage.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(io_error("list", dir))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path: PathBuf = dir.join(&entry.name);
        if entry.is_dir || path.extension().is_none_or(|extension| extension != SEGMENT_EXTENSION) {
            continue;
        }
        let file = storage.open(&path, mode).map_err(io_error("open", &path))?;
        let blocks = u32::try_from(entry.len / super::block::BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        files.push(SegmentFile { path, file, blocks });
    }
    Ok(files)
}

type Segments = BTreeMap<u64, Segment>;

/// Tells files with a life from those without.
pub(super) fn read_headers(files: Vec<SegmentFile>) -> Result<(Segments, Vec<SegmentFile>), WalOpenError> {
    let mut segments = Segments::new();
    let mut bare = Vec::new();
    for file in files {
        match file.read_header().map_err(io_error("read", &file.path))? {
            HeaderBlock::Header(header) => {
                segments.insert(header.number, Segment { file, header });
            }
            HeaderBlock::None => bare.push(file),
            HeaderBlock::Newer(version) => return Err(WalOpenError::Version { path: file.path, version }),
        }
    }
    Ok((segments, bare))
}

/// The segments that lead to `newest`, oldest first, as far back as they are there.
fn linked_to(segments: &Segments, newest: &Segment) -> Vec<Segment> {
    let mut chain = vec![newest.clone()];
    let mut at = newest;
    while let Some(previous) =
        at.header.previous.filter(|previous| previous.number >= newest.header.first_live)
    {
        let Some(segment) =
            segments.get(&previous.number).filter(|found| found.header.number < at.header.number)
        else {
            break;
        };
        chain.push(segment.clone());
        at = segment;
    }
    chain.reverse();
    chain
}

/// The segments from `first_live` on, oldest first, as far as they follow each other.
fn leading(segments: &Segments, first_live: u64) -> Vec<Segment> {
    let mut chain: Vec<Segment> = segments.get(&first_live).cloned().into_iter().collect();
    while let Some(last) = chain.last() {
        let follows = |next: &&Segment| {
            next.header.previous.is_some_and(|previous| previous.number == last.header.number)
        };
        let Some(next) = segments.range(last.header.number + 1..).map(|(_, next)| next).find(follows) else {
            break;
        };
        chain.push(next.clone());
    }
    chain
}

/// How far a segment is part of the log: up to where the one behind it in `chain` says that it ends. Not at all where it is
/// none of the chain.
fn end_in(chain: &[Segment], number: u64) -> Position {
    let mut from = chain.iter().skip_while(|segment| segment.header.number != number);
    match (from.next(), from.next()) {
        (None, _) => Position::block(0),
        (Some(_), None) => Position::END,
        (Some(_), Some(next)) => next.header.previous.map_or(Position::END, |previous| previous.end),
    }
}

/// What became of the segment before the first one of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    /// It is no longer part of the log as far as that was read, or there never was one.
    Whole,
    /// It was released by a frame behind the point where the walk stopped.
    Released,
    /// It should be there.
    Missing,
}

/// A walk over a chain of segments.
struct Walk {
    fold: Fold,
    /// The segments that contributed.
    used: Vec<Segment>,
    stopped: Option<ScanEnd>,
    /// In which segment it stopped.
    stopped_in: Option<u64>,
    previous: Option<PreviousSegment>,
    chain: u32,
    front: Front,
    /// Every block with a smaller sequence was on the device.
    flushed: u64,
    bytes_scanned: u64,
}

/// Walks over a chain of which segments before `first_live` are known to be no part.
fn walk(chain: &[Segment], first_live: u64, config: &WalConfig) -> Result<Walk, WalOpenError> {
    let before = chain.first().and_then(|segment| segment.header.previous);
    let mut walk = Walk {
        fold: Fold::new(config.cache_bytes, first_live),
        used: Vec::new(),
        stopped: None,
        stopped_in: None,
        previous: before,
        chain: chain.first().map_or(0, |segment| segment.header.chain),
        front: Front::Whole,
        flushed: 0,
        bytes_scanned: 0,
    };
    let mut chain = chain.iter().peekable();
    while let Some(segment) = chain.next() {
        let until = chain.peek().and_then(|next| next.header.previous);
        walk.fold.enter(segment);
        let end = scan::scan(segment, until.map(|previous| previous.end), &mut |frame, role| {
            walk.fold.frame(frame, role)
        })
        .map_err(io_error("read", &segment.file.path))?;
        walk.bytes_scanned += (end.end.sequence.saturating_sub(segment.header.first_sequence) + 1)
            .saturating_mul(super::block::BLOCK_BYTES as u64);
        let as_next_says = chain.peek().is_some_and(|next| next.header.chain == end.chain);
        let good = match end.stop {
            ScanStop::Sealed => as_next_says,
            ScanStop::EndOfFile => true,
            ScanStop::BadBlock | ScanStop::BadFrame | ScanStop::BadPreamble => false,
        };
        walk.flushed = walk.flushed.max(end.flushed);
        if end.stop != ScanStop::BadPreamble {
            walk.previous = Some(PreviousSegment { number: segment.header.number, end: end.end });
            walk.chain = end.chain;
            walk.used.push(segment.clone());
        }
        if !good {
            walk.stopped = Some(end);
            walk.stopped_in = Some(segment.header.number);
            break;
        }
    }
    if before.is_some_and(|previous| previous.number >= walk.fold.first_live) {
        walk.front = Front::Missing;
    }
    Ok(walk)
}

/// What lies behind the point where the walk stopped.
#[derive(Debug, Default)]
struct Evidence {
    /// Everything below was on the device at some time.
    flushed_max: u64,
    /// No sequence above was ever given.
    sequence_max: u64,
    /// Segments below are no longer part of the log, whatever was read; 0 where nothing says so.
    released_max: u64,
}

impl Evidence {
    fn gather(
        walk: &Walk,
        chain: &[Segment],
        segments: &Segments,
        bare: &[SegmentFile],
    ) -> Result<Self, WalOpenError> {
        let mut evidence = Self::default();
        for segment in segments.values() {
            let header = &segment.header;
            evidence.sequence_max =
                evidence.sequence_max.max(header.first_sequence.saturating_add(u64::from(header.blocks)));
            evidence.flushed_max = evidence.flushed_max.max(header.flushed);
        }
        if let (Some(stopped), Some(number)) = (&walk.stopped, walk.stopped_in) {
            for (number, segment) in segments.range(number..) {
                let first = stopped.suspect.saturating_sub(segment.header.first_sequence);
                let first = u32::try_from(first).unwrap_or(u32::MAX);
                let behind = scan::behind(segment, first, end_in(chain, *number))
                    .map_err(io_error("read", &segment.file.path))?;
                evidence.flushed_max = evidence.flushed_max.max(behind.flushed_max);
                evidence.released_max = evidence.released_max.max(behind.released_max);
            }
        }
        let last = walk.used.last().map(|segment| &segment.header);
        let of_bare = Self::of_bare(bare, last.map_or(0, |header| header.first_sequence))?;
        evidence.flushed_max = evidence.flushed_max.max(of_bare.flushed_max);
        evidence.sequence_max = evidence.sequence_max.max(of_bare.sequence_max).max(evidence.flushed_max);
        // Only what is newer than every segment: anything else may have been cut off long ago.
        if last.map(|header| &header.number) == segments.keys().next_back() {
            evidence.released_max = evidence.released_max.max(of_bare.released_max);
        }
        Ok(evidence)
    }

    fn of_bare(bare: &[SegmentFile], newer_than: u64) -> Result<Self, WalOpenError> {
        let mut evidence = Self::default();
        for file in bare {
            if let Some(remains) = scan::remains(file, newer_than).map_err(io_error("read", &file.path))? {
                evidence.sequence_max =
                    evidence.sequence_max.max(remains.sequence_max.saturating_add(u64::from(file.blocks)));
                evidence.flushed_max = evidence.flushed_max.max(remains.flushed_max);
                evidence.released_max = evidence.released_max.max(remains.released_max);
            }
        }
        Ok(evidence)
    }
}

fn conclude(
    walk: Walk,
    evidence: &Evidence,
    segments: Segments,
    bare: Vec<SegmentFile>,
    config: &WalConfig,
    direct: bool,
) -> Result<Recovered, WalOpenError> {
    let Walk { mut fold, used, stopped, previous, chain, front, flushed, bytes_scanned, .. } = walk;
    let end = previous.map_or(Position::block(0), |previous| previous.end);
    let segment = previous.map_or(0, |previous| previous.number);
    // Where the first block that is not known to be good would be.
    let suspect = match &stopped {
        Some(stopped) => stopped.suspect,
        None => used.last().map_or(0, |last| last.header.first_sequence + u64::from(last.header.blocks)),
    };
    fold.settle();
    let mut report = Vec::new();
    // A segment that was released is gone only after the frame that released it was flushed, with all that is before it.
    let is_flushed = front == Front::Released || evidence.flushed_max > suspect;
    let damage_reason = if front == Front::Missing {
        Some(DoubtReason::SegmentMissing)
    } else if is_flushed {
        Some(if stopped.is_some() { DoubtReason::Damaged } else { DoubtReason::SegmentMissing })
    } else {
        fold.power_loss(config.boot_id).then_some(DoubtReason::PowerLoss)
    };
    let damage =
        damage_reason.map(|reason| Doubt { reason, segment, block_sequence: suspect, sure_to: None });
    if let Some(damage) = &damage {
        report.push(damage.to_string());
        fold.doubt_all(damage);
    } else if let Some(stopped) = stopped.filter(|stopped| stopped.stop != ScanStop::EndOfFile)
        && !fold.closed
    {
        report.push(format!(
            "the log ends in segment {segment} at block {}; nothing was flushed behind it",
            stopped.suspect
        ));
    }
    // What the kernel has but the device may not: from now on it counts as flushed.
    if let Some(last) = used.last() {
        rewrite::make_durable(last, flushed, end)?;
    }
    let (state, shards) = fold.finish(segment, end, &used, &mut report);
    let first_live = shards.first_live;
    let in_use: Vec<u64> = used.iter().map(|segment| segment.header.number).collect();
    let mut free = Vec::new();
    let mut cut_off = Vec::new();
    let next_number = segments.keys().next_back().map_or(1, |newest| newest + 1);
    for (number, segment) in segments {
        if number < first_live {
            // After damage it may be all that is left of entries whose copies were behind that.
            if damage.is_none() { free.push(segment.file) } else { cut_off.push(segment.file) }
        } else if !in_use.contains(&number) {
            cut_off.push(segment.file);
        }
    }
    // Without a header a file is free, unless its remains may be all that is left of something.
    if damage.is_some() {
        cut_off.extend(bare);
    } else {
        free.extend(bare);
    }
    let recovery = Recovery {
        shards: shards.shards,
        damage,
        closed_cleanly: shards.closed,
        segments: used.len(),
        frames: shards.frames,
        bytes_scanned,
        direct,
        report,
    };
    let next_sequence = evidence.sequence_max.saturating_add(1);
    Ok(Recovered { state, recovery, free, cut_off, previous, chain, next_number, next_sequence, first_live })
}

impl Recovered {
    /// No file has a header: a new log, or one whose only header is lost.
    fn empty(config: &WalConfig, direct: bool, bare: Vec<SegmentFile>) -> Result<Self, WalOpenError> {
        let evidence = Evidence::of_bare(&bare, 0)?;
        let lost =
            Doubt { reason: DoubtReason::SegmentMissing, segment: 0, block_sequence: 0, sure_to: None };
        let damage = (evidence.flushed_max > 0).then_some(lost);
        let report = damage.iter().map(Doubt::to_string).collect();
        let (free, cut_off) = if damage.is_some() { (Vec::new(), bare) } else { (bare, Vec::new()) };
        let recovery = Recovery {
            shards: BTreeMap::new(),
            closed_cleanly: damage.is_none(),
            damage,
            segments: 0,
            frames: 0,
            bytes_scanned: 0,
            direct,
            report,
        };
        Ok(Self {
            state: State::new(config.cache_bytes),
            recovery,
            free,
            cut_off,
            previous: None,
            chain: 0,
            next_number: 1,
            next_sequence: evidence.sequence_max.saturating_add(1),
            first_live: 1,
        })
    }
}
