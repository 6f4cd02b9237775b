use bytes::Bytes;
use prost::Message;
use tidemill_protocol::frame::{FrameEncoder, FrameTooLong, RawFrame};

use crate::WriteError;

/// Writes whole frames to a stream. Payloads are handed to quinn as they are, never copied (small ones excepted).
#[derive(Debug)]
pub struct FrameWriter {
    stream: quinn::SendStream,
    frames: FrameEncoder,
}

impl FrameWriter {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, frames: FrameEncoder::new() }
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
    /// The caller bounds what it queues.
    ///
    /// # Errors
    /// Only [`WriteError::TooLarge`].
    pub fn feed(&mut self, header: &impl Message, payload: &[Bytes]) -> Result<(), WriteError> {
        self.frames.feed(header, payload).map_err(|FrameTooLong { length }| WriteError::TooLarge { length })
    }

    /// Queues a frame as it came from somewhere else, its header undecoded.
    ///
    /// # Errors
    /// Only [`WriteError::TooLarge`].
    pub fn feed_raw(&mut self, frame: &RawFrame) -> Result<(), WriteError> {
        self.frames.feed_raw(frame).map_err(|FrameTooLong { length }| WriteError::TooLarge { length })
    }

    /// Hands everything queued to quinn. Cancel-safe.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        loop {
            let chunks = self.frames.chunks();
            if chunks.is_empty() {
                return Ok(());
            }
            let done = self.stream.write_chunks(chunks).await?;
            self.frames.wrote(done.chunks, done.bytes);
        }
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
}
