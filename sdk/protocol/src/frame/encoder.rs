//! A stream's bytes of frames.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::{FrameTooLong, RawFrame, put_head, put_lengths};

/// Payload parts up to this size are copied beside the header; a write of its own costs more.
const JOINED_PART_BYTES_MAX: usize = 512;
/// What the buffer for headers starts with.
const HEADERS_BUFFER_BYTES: usize = 4 << 10;

/// Queues frames, and says what is to be written. Payloads are never copied (small ones excepted).
///
/// The caller bounds what it queues; see [`queued_bytes`](Self::queued_bytes).
#[derive(Debug, Default)]
pub struct FrameEncoder {
    /// Headers and small payloads since the last large one.
    joined: BytesMut,
    /// To be written, in order, from `written` on.
    queue: Vec<Bytes>,
    written: usize,
    queued_bytes: usize,
}

impl FrameEncoder {
    /// One with nothing queued.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues one frame. After an error nothing of it is.
    pub fn feed(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), FrameTooLong> {
        if self.joined.capacity() == 0 {
            self.joined.reserve(HEADERS_BUFFER_BYTES);
        }
        let payload_length = payload.iter().map(Bytes::len).fold(0, usize::saturating_add);
        self.queued_bytes += put_head(&mut self.joined, header, payload_length)?;
        payload.iter().for_each(|part| self.queue_part(part));
        Ok(())
    }

    /// Queues a frame as it came from somewhere else, its header undecoded. After an error nothing of it is.
    pub fn feed_raw(&mut self, frame: &RawFrame) -> Result<(), FrameTooLong> {
        self.queued_bytes += put_lengths(&mut self.joined, frame.header.len(), frame.payload.len())?;
        self.queue_part(&frame.header);
        self.queue_part(&frame.payload);
        Ok(())
    }

    fn queue_part(&mut self, part: &Bytes) {
        if part.len() <= JOINED_PART_BYTES_MAX {
            self.joined.put_slice(part);
        } else {
            self.close_joined();
            self.queue.push(part.clone());
        }
    }

    /// Bytes that were queued and not written.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What is to be written next, in order. Whoever writes a part of a chunk cuts that off its front.
    pub fn chunks(&mut self) -> &mut [Bytes] {
        self.close_joined();
        self.queue.get_mut(self.written..).unwrap_or_default()
    }

    /// So many whole chunks of [`chunks`](Self::chunks) were written, and so many bytes together.
    pub fn wrote(&mut self, chunks: usize, bytes: usize) {
        self.written += chunks;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        if self.written >= self.queue.len() {
            debug_assert!(self.queued_bytes == self.joined.len(), "bytes lost or made up");
            self.queue.clear();
            self.written = 0;
        }
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.queue.push(self.joined.split().freeze());
        }
    }
}
