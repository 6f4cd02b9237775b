//! Reading whole batches.
//!
//! A read is one `pread` of about as many bytes as the reader asked for, checked, and handed out as few [`Bytes`].
//! The frames' own 24 bytes must go, because a consumer gets batches back to back: a small batch is moved left over
//! the gap, inside the buffer and while it is in the CPU's cache; a large one stays where it is and begins a region
//! of its own. So the regions are few, whatever the batches' size, and large batches are never copied.
//!
//! ```text
//!   file     |frame|batch 1|frame|batch 2|frame|      large batch 3      |frame|batch 4|
//!   buffer   |     |batch 1 batch 2|     .     |      large batch 3       batch 4|
//!                  \____ part 0 ___/            \___________ part 1 ____________/
//! ```

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use thiserror::Error;
use tidemill_protocol::Offset;

use super::SegmentStore;
use super::ends::SegmentEnd;
use super::frame::{FRAME_BYTES, FrameFault, FrameHead, HEAD_BYTES};
use super::index::IndexEntry;
use super::single::Segment;
use super::walk::{LARGE_FRAME_BYTES, Walk, WalkError};
use crate::fs::StorageFile;

/// Consecutive whole batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batches {
    /// Kafka batches back to back; no batch lies in two parts. Empty where there is nothing to read yet.
    pub parts: Vec<Bytes>,
    /// Base offset of the first batch, which may be before the offset asked for.
    pub first: Offset,
    /// Where to read on: the offset after the last batch, or the offset asked for where there is none.
    pub next: Offset,
    /// Bytes of all parts.
    pub bytes: usize,
}

/// Bytes of a segment that can't be what was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "segment file {}: bytes {} to {} are damaged: {fault}; where no other broker has the segment, restore the file from a copy",
    file.display(), position.start, position.end
)]
pub struct Damage {
    /// The log file, relative to the storage's root.
    pub file: PathBuf,
    /// The segment's base offset.
    pub segment: Offset,
    /// Where in the file. Where a frame's head is unreadable it runs to the end of what is recorded.
    pub position: Range<u64>,
    /// What is wrong.
    pub fault: FrameFault,
}

/// Why there are no batches.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The offset is before the first segment or beyond the end.
    #[error("offset {wanted} is not stored: the segments hold {first} up to, and not with, {next}")]
    OutOfRange {
        /// The offset asked for.
        wanted: Offset,
        /// Base offset of the first segment.
        first: Offset,
        /// The end.
        next: Offset,
    },
    /// The bytes there are not what was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The file can't be read.
    #[error("reading segment file {}: {source}", file.display())]
    Io {
        /// The file, relative to the storage's root.
        file: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
}

/// What a read wants.
#[derive(Clone, Copy)]
struct Wanted {
    from: Offset,
    until: Offset,
    bytes_max: usize,
}

impl SegmentStore {
    /// Reads whole batches from the one that holds `from` on, up to `bytes_max` bytes of the file (24 more per batch
    /// than are returned), and at least one batch where there is one that begins before `until`. It stops at the end of a segment; at the end of the log the
    /// answer is empty. A batch that begins at or after `until` is not read. Blocking.
    ///
    /// # Errors
    /// See [`ReadError`]. Damage is reported when it is met first: batches before it are returned.
    pub fn read(&self, from: Offset, until: Offset, bytes_max: usize) -> Result<Batches, ReadError> {
        let nothing = Batches { first: from, next: from, ..Batches::default() };
        let wanted = Wanted { from, until, bytes_max };
        let view = self.view();
        let Some((first, last)) = view.first().zip(view.last()) else { return Ok(nothing) };
        let next = last.end().next_offset;
        if from < first.base_offset || from > next {
            return Err(ReadError::OutOfRange { wanted: from, first: first.base_offset, next });
        }
        let at = view.partition_point(|segment| segment.base_offset <= from).saturating_sub(1);
        for segment in view.iter().skip(at) {
            let end = segment.end();
            // Past the last batch of a segment that was rolled at a later offset.
            if end.next_offset <= from || end.is_empty() {
                continue;
            }
            return self.read_segment(segment, &end, wanted);
        }
        Ok(nothing)
    }

    fn read_segment(
        &self,
        segment: &Segment,
        end: &SegmentEnd,
        wanted: Wanted,
    ) -> Result<Batches, ReadError> {
        segment.reads.fetch_add(1, Ordering::Relaxed);
        let file = segment.log_file(self.files(), self.key())?;
        let mut walk = self.walk_to(segment, &file, end, wanted.from)?;
        let planned = plan(&mut walk, wanted);
        let Some(plan) = planned.map_err(|error| segment.walk_error(walk.position(), error))? else {
            return Ok(Batches { first: wanted.from, next: wanted.from, ..Batches::default() });
        };
        let mut buffer = self.files().buffer(plan.bytes);
        file.read_exact_at(plan.position, buffer.as_mut()).map_err(|source| segment.io_error(source))?;
        let Checked { regions, bytes, first, next, consumed, fault } = self.check(buffer.as_mut(), wanted);
        if regions.is_empty() {
            let fault = fault.unwrap_or(FrameFault::BeyondEnd);
            return Err(segment.damage(plan.position..plan.first_frame_end, fault).into());
        }
        self.cursors().lock().note(next, segment.base_offset, plan.position + consumed as u64);
        let whole = buffer.freeze();
        let parts = regions.into_iter().map(|region| whole.slice(region)).collect();
        Ok(Batches { parts, first, next, bytes })
    }

    /// A walk that stands before the frame that holds `from`, or the first after it, by no more than an interval of
    /// the index.
    fn walk_to(
        &self,
        segment: &Segment,
        file: &Arc<dyn StorageFile>,
        end: &SegmentEnd,
        from: Offset,
    ) -> Result<Walk, ReadError> {
        let known = self.cursors().lock().take(from, segment.base_offset);
        if let Some(position) = known.filter(|position| *position < end.bytes) {
            return Ok(Walk::new(file, self.key(), position, end.bytes, from));
        }
        let entry = segment.last_indexed(self.files(), |entry| entry.offset <= from);
        self.walk_from(segment, file, end, &entry).map_err(|source| segment.io_error(source))
    }

    /// A walk from an indexed place; from the first frame where the frame there is not the one that is named.
    pub(super) fn walk_from(
        &self,
        segment: &Segment,
        file: &Arc<dyn StorageFile>,
        end: &SegmentEnd,
        entry: &IndexEntry,
    ) -> io::Result<Walk> {
        let first = IndexEntry::first(segment.base_offset);
        let mut walk = Walk::new(file, self.key(), entry.position, end.bytes, entry.offset);
        if entry.position == first.position {
            return Ok(walk);
        }
        match walk.peek() {
            Ok(Some((head, _))) if head.base_offset == entry.offset => Ok(walk),
            Err(WalkError::Io(error)) => Err(error),
            _ if segment.index_is_confirmed() => Ok(walk),
            _ => {
                // The index or the frame is damaged: walking from the start tells which.
                segment.suspect_index();
                Ok(Walk::new(file, self.key(), first.position, end.bytes, first.offset))
            }
        }
    }

    /// Checks the frames in `buffer` and moves their batches together, until the reader has enough, the buffer
    /// holds no whole frame any more, or a frame is damaged.
    fn check(&self, buffer: &mut [u8], wanted: Wanted) -> Checked {
        let mut checked = Checked {
            regions: Vec::new(),
            bytes: 0,
            first: wanted.from,
            next: Offset::ZERO,
            consumed: 0,
            fault: None,
        };
        loop {
            let at = checked.consumed;
            let rest = buffer.get(at..).filter(|rest| rest.len() >= HEAD_BYTES);
            let Some(rest) = rest else { return checked };
            let (head, frame) = match self.check_frame(rest, checked.next) {
                Ok(Some(found)) => found,
                Ok(None) => return checked,
                Err(fault) => return Checked { fault: Some(fault), ..checked },
            };
            let enough = at > 0 && at + frame > wanted.bytes_max;
            if enough || head.base_offset >= wanted.until {
                return checked;
            }
            if checked.regions.is_empty() {
                checked.first = head.base_offset;
            }
            join(buffer, &mut checked.regions, at + FRAME_BYTES..at + frame);
            checked.bytes += frame - FRAME_BYTES;
            checked.next = head.next_offset();
            checked.consumed = at + frame;
        }
    }

    /// The frame at the front of `bytes` and its length; `None` if it goes on beyond them.
    fn check_frame(&self, bytes: &[u8], floor: Offset) -> Result<Option<(FrameHead, usize)>, FrameFault> {
        let (head, mut hasher) = FrameHead::decode(self.key(), bytes)?;
        let length = usize::try_from(head.frame_bytes()).map_err(|_| FrameFault::Contradiction)?;
        let Some(body) = bytes.get(HEAD_BYTES..length) else { return Ok(None) };
        hasher.update(body);
        if hasher.finalize() != head.frame_crc {
            return Err(FrameFault::FrameCrc);
        }
        if head.base_offset < floor {
            return Err(FrameFault::OutOfOrder);
        }
        Ok(Some((head, length)))
    }
}

/// What the frames in a buffer came to.
struct Checked {
    /// Where the batches are now.
    regions: Vec<Range<usize>>,
    bytes: usize,
    first: Offset,
    next: Offset,
    /// Bytes of the frames that were taken.
    consumed: usize,
    /// What is wrong with the frame after those.
    fault: Option<FrameFault>,
}

/// Adds `batch` to the regions: moved to the end of the last one if it is small, else as a region of its own.
fn join(buffer: &mut [u8], regions: &mut Vec<Range<usize>>, batch: Range<usize>) {
    match regions.last_mut() {
        Some(last) if (batch.len() as u64) < LARGE_FRAME_BYTES => {
            let to = last.end;
            last.end += batch.len();
            buffer.copy_within(batch, to);
        }
        _ => regions.push(batch),
    }
}

/// Which bytes of a log file to read. A frame of a wanted batch begins at `position`.
struct Plan {
    position: u64,
    bytes: usize,
    first_frame_end: u64,
}

/// Goes to the wanted batch and decides what to read so that little is read in vain: heads of large frames are
/// looked at one by one until the bytes are enough; from a small frame on, the rest is read as it comes.
fn plan(walk: &mut Walk, wanted: Wanted) -> Result<Option<Plan>, WalkError> {
    let first = walk.skip_while(|head| head.last_offset < wanted.from)?;
    let Some(first) = first.filter(|head| head.base_offset < wanted.until) else { return Ok(None) };
    let position = walk.position();
    let first_frame_end = position + first.frame_bytes();
    let most = position.saturating_add(wanted.bytes_max as u64).clamp(first_frame_end, walk.end());
    let mut to = first_frame_end;
    let mut head = first;
    while to < most {
        if head.frame_bytes() < LARGE_FRAME_BYTES {
            to = most;
            break;
        }
        walk.advance(&head);
        // Whatever is wrong with a later frame is said when it is the first.
        let Ok(Some((next, _))) = walk.peek() else { break };
        let frame_end = to + next.frame_bytes();
        if frame_end > most || next.base_offset >= wanted.until {
            break;
        }
        to = frame_end;
        head = next;
    }
    let bytes = usize::try_from(to - position).unwrap_or(usize::MAX);
    Ok(Some(Plan { position, bytes, first_frame_end }))
}
