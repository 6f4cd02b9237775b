//! What a snapshot consists of.
//!
//! ```text
//! format u8 (1) | postcard of the manifest
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_log::segment::{PartitionEnds, SegmentEnd};
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, Offset, ShardId, Term, TopicPartition};

use super::chunk::CHUNK_BYTES_MAX;

const FORMAT: u8 = 1;

/// A snapshot's parts and what they must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Of which shard.
    pub shard: ShardId,
    applied: (LogIndex, Term, u64),
    membership: Option<Vec<u8>>,
    /// The segments, by partition and base offset.
    pub segments: Vec<SegmentRef>,
    /// The state, in order.
    pub chunks: Vec<ChunkRef>,
}

/// A range of a segment's log file: from its start to the recorded end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// Whose.
    pub partition: TopicPartition,
    /// What it holds, with the running digest of its frames' checksums.
    pub end: SegmentEnd,
}

/// A chunk of the state's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its length.
    pub bytes: u64,
    /// blake3 of it.
    pub digest: [u8; 32],
}

/// Bytes that are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// From another release.
    #[error("the snapshot's manifest has format {0}; this release reads format 1")]
    Format(u8),
    /// Cut short or damaged.
    #[error("the snapshot's manifest is damaged: {0}")]
    Damaged(String),
    /// What it says can't be.
    #[error("the snapshot's manifest contradicts itself: {0}")]
    Contradiction(String),
}

impl SnapshotManifest {
    pub(super) fn new(
        shard: ShardId,
        applied: EntryId,
        membership: Option<Bytes>,
        segments: Vec<SegmentRef>,
        chunks: Vec<ChunkRef>,
    ) -> Self {
        let applied = (applied.index, applied.term, applied.leader_node);
        Self {
            shard,
            applied,
            membership: membership.map(|membership| membership.to_vec()),
            segments,
            chunks,
        }
    }

    /// The last entry that the snapshot covers.
    #[must_use]
    pub fn applied(&self) -> EntryId {
        let (index, term, leader_node) = self.applied;
        EntryId { index, term, leader_node }
    }

    /// Raft's membership as of then, opaque here.
    #[must_use]
    pub fn membership(&self) -> Option<&[u8]> {
        self.membership.as_deref()
    }

    /// Bytes of all parts: what a receiver that has nothing must fetch.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| segment.end.bytes).sum();
        segments + self.chunks.iter().map(|chunk| chunk.bytes).sum::<u64>()
    }

    /// The base offsets of each partition's segments, rising.
    pub(crate) fn bases(&self) -> BTreeMap<TopicPartition, Vec<Offset>> {
        let mut bases = BTreeMap::<_, Vec<Offset>>::new();
        for segment in &self.segments {
            bases.entry(segment.partition).or_default().push(segment.end.base_offset);
        }
        bases
    }

    /// What an install relies on: each partition's segments follow one another, and no part is larger than is kept in memory.
    fn check(self) -> Result<Self, ManifestError> {
        if self.chunks.is_empty() {
            return Err(ManifestError::Contradiction("it has no state".to_owned()));
        }
        if let Some(at) = self.chunks.iter().position(|chunk| chunk.bytes > CHUNK_BYTES_MAX) {
            return Err(ManifestError::Contradiction(format!("chunk {at} is too large")));
        }
        if !self.segments.is_sorted_by_key(|segment| (segment.partition, segment.end.base_offset)) {
            return Err(ManifestError::Contradiction("its segments are out of order".to_owned()));
        }
        for segments in self.segments.chunk_by(|a, b| a.partition == b.partition) {
            let ends = PartitionEnds { segments: segments.iter().map(|segment| segment.end).collect() };
            let Err(error) = ends.check() else { continue };
            let partition = segments.first().map(|segment| segment.partition.to_string());
            let partition = partition.unwrap_or_default();
            return Err(ManifestError::Contradiction(format!("partition {partition}: {error}")));
        }
        Ok(self)
    }

    /// The manifest for the wire and for the receiver's staging directory.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).expect("plain data always encodes into memory")
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] where it is of another format, damaged, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
                Ok((manifest, [])) => Self::check(manifest),
                Ok(_) => Err(ManifestError::Damaged("bytes are left over".to_owned())),
                Err(error) => Err(ManifestError::Damaged(error.to_string())),
            },
            Some((format, _)) => Err(ManifestError::Format(*format)),
            None => Err(ManifestError::Damaged("it is empty".to_owned())),
        }
    }
}
