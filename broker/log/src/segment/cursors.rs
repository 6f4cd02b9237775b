//! Where readers stand: whoever reads on from where a read ended needs no index.

use tidemill_protocol::Offset;

/// Places remembered per partition.
const CURSORS_MAX: usize = 8;

#[derive(Clone, Copy)]
struct Cursor {
    offset: Offset,
    segment: Offset,
    position: u64,
}

/// The ends of the last reads; nothing is held for a partition that nobody reads.
#[derive(Default)]
pub(super) struct Cursors {
    places: Vec<Cursor>,
    oldest: usize,
}

impl Cursors {
    /// The frame of the first batch from `offset` on begins at `position` of the segment.
    pub(super) fn note(&mut self, offset: Offset, segment: Offset, position: u64) {
        let cursor = Cursor { offset, segment, position };
        if self.places.len() < CURSORS_MAX {
            self.places.push(cursor);
        } else if let Some(slot) = self.places.get_mut(self.oldest) {
            *slot = cursor;
            self.oldest = (self.oldest + 1) % CURSORS_MAX;
        }
    }

    /// Takes out where a read from `offset` begins in the segment, if the last read there ended so.
    pub(super) fn take(&mut self, offset: Offset, segment: Offset) -> Option<u64> {
        let at = self.places.iter().position(|place| place.offset == offset && place.segment == segment)?;
        // Whoever reads on leaves a new place: the old one would only push out another reader's.
        let found = self.places.swap_remove(at);
        self.oldest = 0;
        Some(found.position)
    }
}
