//! Going from frame to frame, by their heads.

use std::io;
use std::sync::Arc;

use tidemill_protocol::Offset;

use super::frame::{FrameFault, FrameHead, HEAD_BYTES};
use super::key::KeyHasher;
use crate::fs::StorageFile;

/// Bytes read at once where frames are small: at first, and at most, doubled in between.
const WINDOW_BYTES_MIN: usize = 8 * 1024;
const WINDOW_BYTES_MAX: usize = 64 * 1024;
/// Frames at least this long are stepped over: reading their heads alone is cheaper than reading through them.
pub(super) const LARGE_FRAME_BYTES: u64 = 32 * 1024;
/// Bytes of a body checked at once.
const BODY_CHUNK_BYTES: usize = 256 * 1024;

/// Why a walk can't go on.
#[derive(Debug)]
pub(super) enum WalkError {
    Io(io::Error),
    /// The bytes from the walk's position to `to` are no frame.
    Fault {
        fault: FrameFault,
        to: u64,
    },
}

/// A walk over the frames of a log file.
pub(super) struct Walk {
    file: Arc<dyn StorageFile>,
    key: KeyHasher,
    position: u64,
    end: u64,
    /// The next frame's offset must not be before this.
    floor: Offset,
    window: Vec<u8>,
    window_at: u64,
    small_frames: bool,
}

impl Walk {
    /// A walk from the frame at `position` to `end`, which expects offsets from `floor` on.
    pub(super) fn new(
        file: &Arc<dyn StorageFile>,
        key: &KeyHasher,
        position: u64,
        end: u64,
        floor: Offset,
    ) -> Self {
        let (file, key, window) = (Arc::clone(file), key.clone(), Vec::new());
        Self { file, key, position, end, floor, window, window_at: 0, small_frames: false }
    }

    /// Where the next frame begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Where the walk ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The head of the frame at the present position, and a hasher that has seen it; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<(FrameHead, crc32fast::Hasher)>, WalkError> {
        if self.position >= self.end {
            return Ok(None);
        }
        self.fill()?;
        let start = usize::try_from(self.position - self.window_at).unwrap_or(usize::MAX);
        let bytes = self.window.get(start..).unwrap_or_default();
        let fault = |fault| WalkError::Fault { fault, to: self.end };
        let (head, hasher) = FrameHead::decode(&self.key, bytes).map_err(fault)?;
        let frame_end = self.position.saturating_add(head.frame_bytes());
        if frame_end > self.end {
            return Err(fault(FrameFault::BeyondEnd));
        }
        if head.base_offset < self.floor {
            return Err(WalkError::Fault { fault: FrameFault::OutOfOrder, to: frame_end });
        }
        Ok(Some((head, hasher)))
    }

    /// Steps over frames until one is not `passed`; returns its head.
    pub(super) fn skip_while(
        &mut self,
        passed: impl Fn(&FrameHead) -> bool,
    ) -> Result<Option<FrameHead>, WalkError> {
        while let Some((head, _)) = self.peek()? {
            if !passed(&head) {
                return Ok(Some(head));
            }
            self.advance(&head);
        }
        Ok(None)
    }

    /// Steps over the frame with this head, which `peek` returned.
    pub(super) fn advance(&mut self, head: &FrameHead) {
        self.position += head.frame_bytes();
        self.floor = head.next_offset();
        self.small_frames = head.frame_bytes() < LARGE_FRAME_BYTES;
    }

    /// Steps to `position`, past bytes that are no frame.
    pub(super) fn skip_to(&mut self, position: u64) {
        self.position = position;
    }

    /// Gives the pages from `start` to the present position back.
    pub(super) fn advise_dont_need(&self, start: u64) {
        // Advice alone: there is nothing to do if it is not taken.
        let _ = self.file.advise_dont_need(start, self.position.saturating_sub(start).max(1));
    }

    /// Checks the body of the frame that `peek` returned.
    pub(super) fn check_body(
        &self,
        head: &FrameHead,
        mut hasher: crc32fast::Hasher,
    ) -> Result<(), WalkError> {
        let mut at = self.position + HEAD_BYTES as u64;
        let to = self.position + head.frame_bytes();
        let mut chunk = Vec::new();
        while at < to {
            let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(BODY_CHUNK_BYTES);
            chunk.resize(length, 0);
            self.file.read_exact_at(at, &mut chunk).map_err(WalkError::Io)?;
            hasher.update(&chunk);
            at += length as u64;
        }
        let sound = hasher.finalize() == head.frame_crc;
        if sound { Ok(()) } else { Err(WalkError::Fault { fault: FrameFault::FrameCrc, to }) }
    }

    /// Makes the window hold the head at the present position, as far as the file goes.
    fn fill(&mut self) -> Result<(), WalkError> {
        let have = self.window_at + self.window.len() as u64;
        let inside = self.position >= self.window_at && self.position + HEAD_BYTES as u64 <= have;
        if inside {
            return Ok(());
        }
        let wanted = match self.small_frames {
            true => (self.window.len() * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
            false => HEAD_BYTES,
        };
        let length = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(wanted);
        self.window.resize(length, 0);
        self.window_at = self.position;
        self.file.read_exact_at(self.position, &mut self.window).map_err(|error| {
            self.window = Vec::new();
            WalkError::Io(error)
        })
    }
}
