//! Holding files while a snapshot is sent, and reading them as they are.

use std::sync::Arc;

use tidemill_protocol::Offset;

use super::SegmentStore;
use super::ends::{PartitionEnds, SegmentEnd};
use super::files::SegmentFiles;
use super::key::KeyHasher;
use super::read::ReadError;
use super::single::Segment;

/// Bytes digested at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Keeps the files of the segments that recorded ends name, as long as it lives.
pub struct SegmentPin {
    files: Arc<SegmentFiles>,
    key: KeyHasher,
    segments: Vec<(SegmentEnd, Arc<Segment>)>,
}

impl SegmentStore {
    /// Holds the segments that `ends` name; `None` where files of one of them are gone already, or shorter.
    pub fn pin(&self, ends: &PartitionEnds) -> Option<SegmentPin> {
        let writer = self.writer.lock();
        let view = self.view();
        let find = |end: &SegmentEnd| {
            let mut all = view.iter().chain(&writer.dropped);
            let segment = all.find(|segment| segment.base_offset == end.base_offset)?;
            (segment.end().bytes >= end.bytes).then(|| (*end, Arc::clone(segment)))
        };
        let named = ends.segments.iter().filter(|end| !end.is_empty());
        let segments = named.map(find).collect::<Option<_>>()?;
        Some(SegmentPin { files: Arc::clone(self.shared_files()), key: self.key().clone(), segments })
    }
}

impl SegmentPin {
    /// The ends that are held, without empty segments.
    pub fn ends(&self) -> impl Iterator<Item = &SegmentEnd> {
        self.segments.iter().map(|(end, _)| end)
    }

    /// Reads a piece of a log file as it is, for another broker. Returns its length: less than the buffer's at the
    /// recorded end, and 0 beyond it or where the segment is not held. Blocking.
    ///
    /// # Errors
    /// `Io`, or `Damaged` where the file is shorter than recorded.
    pub fn read_raw(
        &self,
        base_offset: Offset,
        position: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ReadError> {
        let held = self.segments.iter().find(|(end, _)| end.base_offset == base_offset);
        let Some((end, segment)) = held else { return Ok(0) };
        let length = usize::try_from(end.bytes.saturating_sub(position)).unwrap_or(usize::MAX);
        let length = length.min(buffer.len());
        let file = segment.log_file(&self.files, &self.key)?;
        let read = file.read_exact_at(position, buffer.get_mut(..length).unwrap_or_default());
        read.map_err(|source| segment.io_error(source))?;
        Ok(length)
    }

    /// blake3 of a segment's log file up to its recorded end: reads all of it. Blocking.
    ///
    /// # Errors
    /// As [`SegmentPin::read_raw`].
    pub fn digest(&self, base_offset: Offset) -> Result<[u8; 32], ReadError> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut position = 0;
        loop {
            let length = self.read_raw(base_offset, position, &mut chunk)?;
            if length == 0 {
                return Ok(*hasher.finalize().as_bytes());
            }
            hasher.update(chunk.get(..length).unwrap_or_default());
            position += length as u64;
        }
    }
}
