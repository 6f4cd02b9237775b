//! Lookup by time.

use tidemill_protocol::{Offset, Timestamp};

use super::SegmentStore;
use super::read::ReadError;

/// A batch found by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundByTime {
    /// Its base offset: the record asked for is in this batch.
    pub offset: Offset,
    /// Its largest timestamp.
    pub max_timestamp: Timestamp,
}

impl SegmentStore {
    /// The first batch that holds a record at or after `timestamp`; `None` where all are earlier. Blocking.
    ///
    /// # Errors
    /// `Damaged` or `Io` of [`ReadError`].
    pub fn find_by_time(&self, timestamp: Timestamp) -> Result<Option<FoundByTime>, ReadError> {
        let view = self.view();
        // Timestamps need not rise with offsets, so the first segment whose maximum is late enough is it.
        let Some(segment) = view.iter().find(|segment| segment.max_timestamp() >= timestamp) else {
            return Ok(None);
        };
        let end = segment.end();
        if end.is_empty() {
            return Ok(None);
        }
        let file = segment.log_file(self.files(), self.key())?;
        let entry = segment.last_indexed(self.files(), |entry| entry.max_before < timestamp);
        let walk = self.walk_from(segment, &file, &end, &entry);
        let mut walk = walk.map_err(|source| segment.io_error(source))?;
        let head = walk.skip_while(|head| head.max_timestamp < timestamp);
        let head = head.map_err(|error| segment.walk_error(walk.position(), error))?;
        Ok(head.map(|head| FoundByTime { offset: head.base_offset, max_timestamp: head.max_timestamp }))
    }
}
