//! What the state store records about a partition's files: the truth on restart.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tidemill_protocol::{Offset, Timestamp};

use super::frame::{CHAIN_START, FrameHead, chain};
use super::header::FIRST_FRAME;

/// Every segment of a partition, in order. Recorded with the checkpoint that made it durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionEnds {
    /// By base offset, rising; all but the last are sealed.
    pub segments: Vec<SegmentEnd>,
}

/// How far one segment goes. Two replicas hold the same bytes where all fields but the two of the index are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEnd {
    /// The offset it is named after: no record in it is earlier.
    pub base_offset: Offset,
    /// The offset after its last record; `base_offset` while it is empty.
    pub next_offset: Offset,
    /// Length of the log file; 0 while it is empty, and then there need not be a file.
    pub bytes: u64,
    /// Number of batches.
    pub batches: u64,
    /// Number of entries of the index file.
    pub index_entries: u64,
    /// Position of the frame that the last index entry names, or of the first frame.
    pub indexed_to: u64,
    /// The largest timestamp in it; `i64::MIN` while it is empty.
    pub max_timestamp: Timestamp,
    /// Whether it will never grow again.
    pub sealed: bool,
    /// A running digest of the frames' checksums: cheap to compare, not proof against intent.
    pub digest: u64,
}

/// Recorded ends that contradict themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EndsError {
    /// A segment's own fields disagree.
    #[error("the recorded end of the segment at offset {0} contradicts itself")]
    Segment(Offset),
    /// Segments overlap, are out of order, or one before the last is not sealed.
    #[error("the recorded segment at offset {0} does not follow the one before it")]
    Order(Offset),
}

impl SegmentEnd {
    /// Whether both describe the same sealed log file; indexes are each broker's own.
    #[must_use]
    pub fn is_same_file(&self, described: &Self) -> bool {
        let Self { index_entries, indexed_to, .. } = *described;
        self.sealed && Self { index_entries, indexed_to, ..*self } == *described
    }

    /// The end of a segment that has nothing in it yet.
    #[must_use]
    pub const fn empty(base_offset: Offset) -> Self {
        Self {
            base_offset,
            next_offset: base_offset,
            bytes: 0,
            batches: 0,
            index_entries: 0,
            indexed_to: FIRST_FRAME,
            max_timestamp: Timestamp::new(i64::MIN),
            sealed: false,
            digest: CHAIN_START,
        }
    }

    /// Whether nothing was appended to it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The end after one more frame, whose position is the present end.
    pub(super) fn extend(&mut self, head: &FrameHead) {
        self.bytes = self.frames_end() + head.frame_bytes();
        self.next_offset = head.next_offset();
        self.batches += 1;
        self.max_timestamp = self.max_timestamp.max(head.max_timestamp);
        self.digest = chain(self.digest, head.frame_crc);
    }

    /// Where the next frame goes.
    pub(super) fn frames_end(&self) -> u64 {
        self.bytes.max(FIRST_FRAME)
    }

    fn check(&self) -> Result<(), EndsError> {
        let offsets = self.base_offset >= Offset::ZERO && self.next_offset >= self.base_offset;
        let filled = if self.is_empty() {
            self.next_offset == self.base_offset && self.batches == 0 && self.index_entries == 0
        } else {
            self.bytes > FIRST_FRAME && self.next_offset > self.base_offset && self.batches > 0
        };
        let indexed = self.index_entries < self.batches.max(1)
            && self.indexed_to >= FIRST_FRAME
            && self.indexed_to <= self.frames_end();
        if offsets && filled && indexed { Ok(()) } else { Err(EndsError::Segment(self.base_offset)) }
    }
}

impl PartitionEnds {
    /// Bytes of all log files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The offset after the last record; `None` where there is no segment.
    #[must_use]
    pub fn next_offset(&self) -> Option<Offset> {
        self.segments.last().map(|segment| segment.next_offset)
    }

    /// The recorded end of the segment named after `base_offset`.
    #[must_use]
    pub fn find(&self, base_offset: Offset) -> Option<&SegmentEnd> {
        let at = self.segments.binary_search_by_key(&base_offset, |segment| segment.base_offset).ok()?;
        self.segments.get(at)
    }

    /// Checks what [`SegmentStore::open`](super::SegmentStore::open) relies on.
    ///
    /// # Errors
    /// The first segment that is wrong in itself or does not follow its predecessor.
    pub fn check(&self) -> Result<(), EndsError> {
        self.segments.iter().try_for_each(SegmentEnd::check)?;
        let follows = |pair: &[SegmentEnd]| match pair {
            [a, b] if a.sealed && !a.is_empty() && a.next_offset <= b.base_offset => Ok(()),
            [_, b] => Err(EndsError::Order(b.base_offset)),
            _ => Ok(()),
        };
        self.segments.windows(2).try_for_each(follows)
    }
}
