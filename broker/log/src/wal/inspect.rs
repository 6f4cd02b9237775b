//! A look at a log's files without opening the log: nothing is written, nothing is locked, nothing is cut.

use std::path::{Path, PathBuf};

use tidemill_protocol::ShardId;

use super::block::Role;
use super::entry::EntryId;
use super::error::WalOpenError;
use super::frame::FrameKind;
use super::recovery::{open_files, read_headers};
use super::scan::{self, ScanStop};
use crate::fs::{OpenMode, Storage};

/// What a directory of segment files holds.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Files that hold a life of the log, oldest first, recycled ones that were not erased yet included.
    pub segments: Vec<InspectedSegment>,
    /// Files without a header: prepared, erased, or torn.
    pub free: Vec<PathBuf>,
}

/// A segment file.
#[derive(Debug, Clone)]
pub struct InspectedSegment {
    /// The file.
    pub path: PathBuf,
    /// Number of the segment, rising.
    pub number: u64,
    /// Number of the segment before it in the log.
    pub previous: Option<u64>,
    /// Segments below this were released when it began.
    pub first_live: u64,
    /// Sequence of its header's block.
    pub first_sequence: u64,
    /// Salt of this life.
    pub salt: u32,
    /// Blocks in the file, the header included.
    pub blocks: u32,
    /// Blocks of repeated state after the header.
    pub preamble_blocks: u32,
    /// Whether it was written with completions that did not wait for the device.
    pub replicated: bool,
    /// Frames read.
    pub frames: u64,
    /// How reading ended.
    pub end: InspectedEnd,
}

/// How reading a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InspectedEnd {
    /// Where the next segment says it ends.
    Sealed,
    /// At the end of the file.
    Full,
    /// At a block that is not of this life or not whole: the end of the log if it is the last segment, else damage.
    BadBlock {
        /// Number of the block in the file.
        block: u64,
    },
    /// At a frame whose checksum or chain is wrong: the same.
    BadFrame {
        /// Number of the block in the file.
        block: u64,
    },
}

/// A frame whose checksum and chain are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectedFrame {
    /// Number of its segment.
    pub segment: u64,
    /// The block where it begins: its number in the file.
    pub block: u64,
    /// Where in the block's payload it begins.
    pub offset: u16,
    /// What it says.
    pub kind: FrameKind,
    /// About whom; `None` for frames of the log itself.
    pub shard: Option<ShardId>,
    /// About which entry; zeros where it is about none.
    pub id: EntryId,
    /// Length of its payload.
    pub payload_bytes: usize,
    /// Its checksum.
    pub crc: u32,
    /// Whether it repeats state at the beginning of a segment.
    pub repeated: bool,
}

/// Reads all segment files of `dir` and shows each sound frame to `visit`, in the log's order.
///
/// # Errors
/// Where a file can't be read, or has a format that this release does not know.
pub fn inspect(
    storage: &dyn Storage,
    dir: &Path,
    visit: &mut dyn FnMut(&InspectedFrame),
) -> Result<Inspection, WalOpenError> {
    let (segments, bare) = read_headers(open_files(storage, dir, OpenMode::READ)?)?;
    let mut inspected = Vec::new();
    for segment in segments.values() {
        let header = &segment.header;
        let next = segments
            .values()
            .find_map(|next| next.header.previous.filter(|previous| previous.number == header.number));
        let mut frames = 0;
        let mut show = |frame: &super::frame::Frame, role| {
            frames += 1;
            visit(&InspectedFrame {
                segment: header.number,
                block: frame.position.sequence - header.first_sequence,
                offset: frame.position.offset,
                kind: frame.header.kind,
                shard: (frame.header.shard != super::frame::NO_SHARD).then_some(frame.header.shard),
                id: frame.header.id,
                payload_bytes: frame.payload.len(),
                crc: frame.crc,
                repeated: role == Role::Preamble,
            });
            true
        };
        let scanned = scan::scan(segment, next.map(|previous| previous.end), &mut show);
        let end = scanned.map_err(|source| WalOpenError::Io {
            action: "read",
            path: segment.file.path.clone(),
            source,
        })?;
        let block = end.suspect.saturating_sub(header.first_sequence);
        inspected.push(InspectedSegment {
            path: segment.file.path.clone(),
            number: header.number,
            previous: header.previous.map(|previous| previous.number),
            first_live: header.first_live,
            first_sequence: header.first_sequence,
            salt: header.salt,
            blocks: header.blocks,
            preamble_blocks: header.preamble_blocks,
            replicated: header.replicated,
            frames,
            end: match end.stop {
                ScanStop::Sealed => InspectedEnd::Sealed,
                ScanStop::EndOfFile => InspectedEnd::Full,
                ScanStop::BadBlock | ScanStop::BadPreamble => InspectedEnd::BadBlock { block },
                ScanStop::BadFrame => InspectedEnd::BadFrame { block },
            },
        });
    }
    Ok(Inspection { segments: inspected, free: bare.into_iter().map(|file| file.path).collect() })
}
