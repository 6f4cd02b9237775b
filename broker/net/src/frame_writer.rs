use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tidemill_protocol::frame::{FRAME_LENGTH_BYTES, FRAME_PREFIX_BYTES};

use crate::WriteError;

/// Payload parts up to this size are copied beside the header; a write of its own costs more.
const JOINED_PART_BYTES_MAX: usize = 512;
/// What the buffer for headers starts with.
const HEADERS_BUFFER_BYTES: usize = 4 << 10;

/// Writes whole frames to a stream. Payloads are handed to quinn as they are, never copied (small ones excepted).
#[derive(Debug)]
pub struct FrameWriter {
    stream: quinn::SendStream,
    /// Headers and small payloads since the last large one.
    joined: BytesMut,
    /// To be written, in order, from `written` on.
    queue: Vec<Bytes>,
    written: usize,
    queued_bytes: usize,
}

impl FrameWriter {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, joined: BytesMut::new(), queue: Vec::new(), written: 0, queued_bytes: 0 }
    }

    /// Writes one frame: waits only while the peer's windows are full.
    ///
    /// Cancel-safe: what was not written is written by the next call.
    ///
    /// # Errors
    /// See [`WriteError`]. After one the stream is of no further use.
    pub async fn send(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        self.feed(header, payload)?;
        self.flush().await
    }

    /// Queues one frame without writing: several small ones then go out as one write with [`Self::flush`].
    /// The caller bounds what it queues; see [`Self::queued_bytes`].
    ///
    /// # Errors
    /// Only [`WriteError::TooLarge`].
    pub fn feed(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        let header_length = header.encoded_len();
        let payload_length: usize = payload.iter().map(Bytes::len).sum();
        let length = FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES + header_length + payload_length;
        let too_large = || WriteError::TooLarge { length };
        let frame_length = u32::try_from(length).map_err(|_| too_large())?;
        // Smaller than the frame's, which fits.
        let header_length = u32::try_from(header_length).map_err(|_| too_large())?;

        if self.joined.capacity() == 0 {
            self.joined.reserve(HEADERS_BUFFER_BYTES);
        }
        self.joined.put_u32(frame_length);
        self.joined.put_u32(header_length);
        header.encode(&mut self.joined).map_err(|_| too_large())?;
        self.queued_bytes += FRAME_LENGTH_BYTES + length;
        for part in payload {
            if part.len() <= JOINED_PART_BYTES_MAX {
                self.joined.put_slice(part);
            } else {
                self.close_joined();
                self.queue.push(part.clone());
            }
        }
        Ok(())
    }

    /// Bytes that [`Self::feed`] queued and [`Self::flush`] has not handed over yet.
    #[must_use]
    pub const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Hands everything queued to quinn. Cancel-safe.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        self.close_joined();
        while let Some(rest) = self.queue.get_mut(self.written..)
            && !rest.is_empty()
        {
            let done = self.stream.write_chunks(rest).await?;
            self.written += done.chunks;
            self.queued_bytes = self.queued_bytes.saturating_sub(done.bytes);
        }
        self.queue.clear();
        self.written = 0;
        Ok(())
    }

    /// Writes what is queued and ends the stream.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn finish(&mut self) -> Result<(), WriteError> {
        self.flush().await?;
        self.stream.finish().map_err(|_| WriteError::Closed)
    }

    /// Waits until the peer has acknowledged all of a finished stream, or stopped it.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn delivered(&mut self) -> Result<(), WriteError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(WriteError::Stopped { code: code.into_inner() }),
            Err(error) => Err(quinn::WriteError::from(error).into()),
        }
    }

    /// Gives the stream up: the peer sees a reset, and what it has not read yet may be lost.
    pub fn reset(&mut self, code: u32) {
        // An error says that the stream is over already.
        let _ = self.stream.reset(code.into());
    }

    /// Streams of higher priority are sent first; 0 is the usual one.
    pub fn set_priority(&self, priority: i32) {
        // An error says that the stream is over already.
        let _ = self.stream.set_priority(priority);
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.queue.push(self.joined.split().freeze());
        }
    }
}
