//! Walking a log file once, for what its frames add up to and for the index that they want: at once, or on and on while it is received.

use std::sync::Arc;

use tidemill_protocol::Offset;

use super::ends::SegmentEnd;
use super::index::{IndexEntry, wants_entry};
use super::key::KeyHasher;
use super::walk::{Walk, WalkError};
use crate::fs::StorageFile;

/// What is looked at of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Its head, which has a checksum of its own.
    Heads,
    /// All of its bytes.
    Bodies,
}

/// The frames of a log file from its first one on, as far as they were walked.
pub(super) struct Survey {
    found: SegmentEnd,
    entries: Vec<IndexEntry>,
}

impl Survey {
    /// Nothing was walked yet of the file named after that offset.
    pub(super) fn new(base_offset: Offset) -> Self {
        Self { found: SegmentEnd::empty(base_offset), entries: Vec::new() }
    }

    /// Where the next frame begins.
    pub(super) fn position(&self) -> u64 {
        self.found.frames_end()
    }

    /// What the frames add up to; whether it is sealed they don't say.
    pub(super) fn found(&self) -> &SegmentEnd {
        &self.found
    }

    /// The index that the frames want.
    pub(super) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Goes on over the frames that end at or before `end`.
    ///
    /// # Errors
    /// Why the frame at the present position can't be passed, with `BeyondEnd` for one that ends later.
    pub(super) fn go_on(
        &mut self,
        file: &Arc<dyn StorageFile>,
        key: &KeyHasher,
        end: u64,
        interval_bytes: u64,
        depth: Depth,
    ) -> Result<(), WalkError> {
        let mut walk = Walk::new(file, key, self.position(), end, self.found.next_offset);
        while let Some((head, hasher)) = walk.peek()? {
            if depth == Depth::Bodies {
                walk.check_body(&head, hasher)?;
            }
            let position = walk.position();
            if let Some(entry) = wants_entry(&head, position, &self.found, interval_bytes) {
                self.entries.push(entry);
                self.found.index_entries += 1;
                self.found.indexed_to = position;
            }
            self.found.extend(&head);
            walk.advance(&head);
        }
        Ok(())
    }
}
