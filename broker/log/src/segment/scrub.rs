//! Looking for damage before a reader does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemill_protocol::Offset;

use super::SegmentStore;
use super::ends::SegmentEnd;
use super::frame::FrameFault;
use super::header::FIRST_FRAME;
use super::read::ReadError;
use super::single::Segment;
use super::walk::Walk;

/// A walk over one segment that checks every byte, in steps, so that the caller sets the pace. Holds the files.
pub struct Scrub {
    segment: Arc<Segment>,
    /// How far it went when the walk began.
    recorded: SegmentEnd,
    /// What the frames so far come to.
    found: SegmentEnd,
    walk: Walk,
    reads_before: u64,
}

/// How far a scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubStep {
    /// There is more to check.
    More,
    /// All is as it was written.
    Sound,
}

impl SegmentStore {
    /// Checks all of the segment named after `base_offset`, as far as it goes now. Blocking, and reads all of it.
    ///
    /// # Errors
    /// `Damaged` with the first damaged range.
    pub fn verify(&self, base_offset: Offset) -> Result<(), ReadError> {
        let Some(mut scrub) = self.scrub(base_offset)? else { return Ok(()) };
        while scrub.step(u64::MAX)? == ScrubStep::More {}
        Ok(())
    }

    /// Begins to check the segment named after `base_offset`; `None` where there is none, or nothing in it.
    ///
    /// # Errors
    /// Where the file can't be opened, or its header is damaged.
    pub fn scrub(&self, base_offset: Offset) -> Result<Option<Scrub>, ReadError> {
        let view = self.view();
        let segment = view.iter().find(|segment| segment.base_offset == base_offset);
        let Some(segment) = segment.filter(|segment| !segment.end().is_empty()) else { return Ok(None) };
        let recorded = segment.end();
        // The header is checked again although this process has seen it before.
        segment.distrust_header();
        let file = segment.log_file(self.files(), self.key())?;
        Ok(Some(Scrub {
            segment: Arc::clone(segment),
            recorded,
            found: SegmentEnd::empty(base_offset),
            walk: Walk::new(&file, self.key(), FIRST_FRAME, recorded.bytes, base_offset),
            reads_before: segment.reads.load(Ordering::Relaxed),
        }))
    }
}

impl Scrub {
    /// Checks about `bytes_max` bytes more, and at least one batch.
    ///
    /// # Errors
    /// `Damaged` with the first damaged range; the same again if called again.
    pub fn step(&mut self, bytes_max: u64) -> Result<ScrubStep, ReadError> {
        let start = self.walk.position();
        let step = self.check(start.saturating_add(bytes_max))?;
        let sealed_and_unread =
            self.recorded.sealed && self.segment.reads.load(Ordering::Relaxed) == self.reads_before;
        if sealed_and_unread {
            self.walk.advise_dont_need(start);
        }
        Ok(step)
    }

    /// Where in the file it is.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.walk.position()
    }

    fn check(&mut self, to: u64) -> Result<ScrubStep, ReadError> {
        loop {
            let at = self.walk.position();
            let fail = |error| self.segment.walk_error(at, error);
            let Some((head, hasher)) = self.walk.peek().map_err(fail)? else { break };
            self.walk.check_body(&head, hasher).map_err(fail)?;
            self.walk.advance(&head);
            self.found.extend(&head);
            if self.walk.position() >= to && self.walk.position() < self.recorded.bytes {
                return Ok(ScrubStep::More);
            }
        }
        let (found, recorded) = (&self.found, &self.recorded);
        if found.digest != recorded.digest || found.next_offset != recorded.next_offset {
            let range = FIRST_FRAME..recorded.bytes;
            return Err(self.segment.damage(range, FrameFault::OtherContents).into());
        }
        Ok(ScrubStep::Sound)
    }
}
