//! The sender's side: a checkpoint that stays as it is while it is sent.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Bytes, BytesMut};
use tidemill_log::segment::{PartitionEnds, ReadError, SegmentPin};
use tidemill_protocol::{Offset, TopicPartition};

use super::chunk::{CHUNK_BYTES, put_row};
use super::manifest::{ChunkRef, SegmentRef, SnapshotManifest};
use crate::keys::space;
use crate::shard::PinnedCheckpoint;
use crate::store::{BaseRows, StoreError};

/// Why there is no snapshot, or a part of it can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing was applied, or no checkpoint was made since.
    #[error("the shard has no checkpoint yet")]
    Nothing,
    /// A snapshot takes the shard's own place just now.
    #[error("the shard is being replaced by a snapshot itself; ask again")]
    Closed,
    /// The state store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The files of a segment that the checkpoint names are not there.
    #[error(
        "files of partition {0} that the checkpoint names are missing; restart the broker to have them checked"
    )]
    Missing(TopicPartition),
    /// A part that the manifest does not name.
    #[error("the snapshot has no such part")]
    UnknownPart,
    /// What is stored does not decode.
    #[error("the state store is damaged: {0}")]
    Damaged(String),
}

/// A pinned checkpoint: its files and rows stay until this is dropped.
pub struct Snapshot {
    manifest: SnapshotManifest,
    rows: BaseRows,
    /// First key of each chunk.
    chunk_starts: Vec<Bytes>,
    pins: BTreeMap<TopicPartition, SegmentPin>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("applied", &self.manifest.applied()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Reads all rows once for the chunks' digests; no records.
    pub(crate) fn new(checkpoint: PinnedCheckpoint) -> Result<Self, SnapshotError> {
        let PinnedCheckpoint { header, rows, segments } = checkpoint;
        let applied = header.applied().ok_or(SnapshotError::Nothing)?;
        let mut pins = BTreeMap::new();
        let mut named = Vec::new();
        for (id, ends, log) in segments {
            let store = log.as_ref().and_then(|log| log.store().ok()).ok_or(SnapshotError::Missing(id))?;
            pins.insert(id, store.pin(&ends).ok_or(SnapshotError::Missing(id))?);
            let PartitionEnds { segments } = ends;
            named.extend(segments.into_iter().map(|end| SegmentRef { partition: id, end }));
        }
        let (mut chunks, mut chunk_starts) = (Vec::new(), Vec::new());
        let mut from = Some(Bytes::new());
        while let Some(start) = from {
            let (chunk, next) = read_chunk(&rows, &start)?;
            let digest = *blake3::hash(&chunk).as_bytes();
            chunks.push(ChunkRef { bytes: chunk.len() as u64, digest });
            chunk_starts.push(start);
            from = next;
        }
        let manifest = SnapshotManifest::new(header.shard, applied, header.membership(), named, chunks);
        Ok(Self { manifest, rows, chunk_starts, pins })
    }

    /// What the snapshot consists of.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// One chunk of the state. Blocking.
    ///
    /// # Errors
    /// [`SnapshotError`]; `UnknownPart` for a number that the manifest does not have.
    pub fn chunk(&self, number: usize) -> Result<Bytes, SnapshotError> {
        let start = self.chunk_starts.get(number).ok_or(SnapshotError::UnknownPart)?;
        Ok(read_chunk(&self.rows, start)?.0)
    }

    /// Bytes of a segment's log file, from `position` on: as many as fit `buffer` and the recorded end allows. Blocking.
    ///
    /// # Errors
    /// [`SnapshotError`]; `UnknownPart` for a partition that the manifest does not name.
    pub fn read_segment(
        &self,
        partition: TopicPartition,
        base_offset: Offset,
        position: u64,
        buffer: &mut [u8],
    ) -> Result<usize, SnapshotError> {
        let pin = self.pins.get(&partition).ok_or(SnapshotError::UnknownPart)?;
        Ok(pin.read_raw(base_offset, position, buffer)?)
    }
}

/// The rows from a key on, up to a chunk's size, and the key of the row after them. Segment ends are left out: they are
/// each broker's own, and the receiver makes its own.
fn read_chunk(rows: &BaseRows, start: &[u8]) -> Result<(Bytes, Option<Bytes>), StoreError> {
    let mut chunk = BytesMut::new();
    for row in rows.range(Bound::Included(start), Bound::Unbounded)? {
        let (key, value) = row.map_err(|error| StoreError::new("can't be read", error))?;
        let key = key.value();
        if key.first() == Some(&space::SEGMENT_END) {
            continue;
        }
        if chunk.len() >= CHUNK_BYTES {
            return Ok((chunk.freeze(), Some(Bytes::copy_from_slice(key))));
        }
        put_row(&mut chunk, key, value.value());
    }
    Ok((chunk.freeze(), None))
}
