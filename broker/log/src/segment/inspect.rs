//! Looking into a log file without a store, for people.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp};

use super::frame::FrameFault;
use super::header::{FIRST_FRAME, FileHeader, FileKind, HEADER_BYTES, HeaderError};
use super::key::{KeyHasher, StreamKey};
use super::walk::{Walk, WalkError};
use crate::fs::{OpenMode, Storage};

/// The batches of a log file in order, each checked. Reads the file only, and all of it.
pub struct SegmentInspection {
    path: PathBuf,
    header: FileHeader,
    bytes: u64,
    walk: Walk,
    over: bool,
}

/// One batch of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectedBatch {
    /// Where its frame begins in the file.
    pub position: u64,
    /// Length of the frame.
    pub frame_bytes: u64,
    /// Its first offset.
    pub base_offset: Offset,
    /// Its last offset.
    pub last_offset: Offset,
    /// The leader epoch it was appended under.
    pub epoch: LeaderEpoch,
    /// Its largest timestamp.
    pub max_timestamp: Timestamp,
    /// The checksum over all of it.
    pub crc: u32,
}

/// What stands in the way.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The file is not a log file of a segment.
    #[error("{}: {source}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with its start.
        source: HeaderError,
    },
    /// It is the index of a segment: there are no batches in it.
    #[error("{} is an index; inspect the .log file beside it", file.display())]
    IsIndex {
        /// The file.
        file: PathBuf,
    },
    /// Bytes that are no sound batch. The tail of a file that a broker wrote to when it was killed looks so too.
    #[error("bytes {start} to {end} are no sound batch: {fault}")]
    Fault {
        /// Where they begin.
        start: u64,
        /// Where the next batch begins, or the file ends.
        end: u64,
        /// What is wrong.
        fault: FrameFault,
    },
    /// The file can't be read.
    #[error("reading {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
}

impl SegmentInspection {
    /// Opens the log file at `path`.
    ///
    /// # Errors
    /// `Io`, `Header` or `IsIndex`.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Self, InspectError> {
        let io_error = |source| InspectError::Io { file: path.to_path_buf(), source };
        let file = storage.open(path, OpenMode::READ).map_err(io_error)?;
        let bytes = file.size().map_err(io_error)?;
        let mut start = vec![0; HEADER_BYTES.min(usize::try_from(bytes).unwrap_or(usize::MAX))];
        file.read_exact_at(0, &mut start).map_err(io_error)?;
        let header = FileHeader::decode(&start)
            .map_err(|source| InspectError::Header { file: path.to_path_buf(), source })?;
        if header.kind == FileKind::Index {
            return Err(InspectError::IsIndex { file: path.to_path_buf() });
        }
        let walk = Walk::new(&file, &KeyHasher::new(header.key), FIRST_FRAME, bytes, header.base_offset);
        Ok(Self { path: path.to_path_buf(), header, bytes, walk, over: false })
    }

    /// The stream the file belongs to.
    #[must_use]
    pub fn key(&self) -> StreamKey {
        self.header.key
    }

    /// The offset the segment is named after.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// Length of the file, which may go beyond what the state store has recorded.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn step(&mut self) -> Result<Option<InspectedBatch>, WalkError> {
        let Some((head, hasher)) = self.walk.peek()? else { return Ok(None) };
        self.walk.check_body(&head, hasher)?;
        let position = self.walk.position();
        self.walk.advance(&head);
        Ok(Some(InspectedBatch {
            position,
            frame_bytes: head.frame_bytes(),
            base_offset: head.base_offset,
            last_offset: head.last_offset,
            epoch: head.epoch,
            max_timestamp: head.max_timestamp,
            crc: head.frame_crc,
        }))
    }
}

impl Iterator for SegmentInspection {
    type Item = Result<InspectedBatch, InspectError>;

    /// The next batch. After a batch whose head is sound comes the next one; after anything else, nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let start = self.walk.position();
        match self.step() {
            Ok(batch) => batch.map(Ok),
            Err(WalkError::Fault { fault, to }) => {
                self.walk.skip_to(to);
                Some(Err(InspectError::Fault { start, end: to, fault }))
            }
            Err(WalkError::Io(source)) => {
                self.over = true;
                Some(Err(InspectError::Io { file: self.path.clone(), source }))
            }
        }
    }
}
