use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::frame::{FrameDecoder, FrameLimits, FrameMemory, Next, RawFrame};
use tokio::time::Instant;

use crate::ReadError;
use crate::receiving::{Charge, ReceiveBudget};

/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;

/// Reads whole frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: quinn::RecvStream,
    frames: FrameDecoder,
    /// For the frame that is being received, then for the one that the handler has.
    charge: Charge,
    /// When the frame under way began.
    begun: Option<Instant>,
    /// How long a frame may take from its first byte to its last.
    deadline: Duration,
}

impl FrameMemory for Charge {
    fn raise_to(&mut self, bytes: usize) -> bool {
        Self::raise_to(self, bytes)
    }
}

impl FrameReader {
    pub(crate) fn new(
        stream: quinn::RecvStream,
        limits: FrameLimits,
        budget: &ReceiveBudget,
        deadline: Duration,
    ) -> Self {
        Self { stream, frames: FrameDecoder::new(limits), charge: budget.charge(), begun: None, deadline }
    }

    /// The next frame; `None` where the stream ended between two frames. The memory of the frame before counts as the
    /// caller's own from here on.
    ///
    /// Cancel-safe: what was read stays for the next call.
    ///
    /// # Errors
    /// See [`ReadError`]. After one the stream is of no further use.
    pub async fn next(&mut self) -> Result<Option<RawFrame>, ReadError> {
        self.done();
        loop {
            match self.frames.next_within(&mut self.charge)? {
                Next::Frame(frame) => {
                    self.begun = None;
                    return Ok(Some(frame));
                }
                Next::NoMemory => return Err(ReadError::Overloaded),
                Next::More => {}
            }
            if !self.fill_in_time().await? {
                self.frames.finish()?;
                return Ok(None);
            }
        }
    }

    /// The handler has done with the frame that it took last: its memory counts no longer. Asking for the next says the
    /// same.
    pub fn done(&mut self) {
        if !self.frames.is_inside() {
            self.charge.clear();
        }
    }

    /// Tells the peer to send no more on this stream.
    pub fn stop(&mut self, code: u32) {
        // An error says that the stream is over already.
        let _ = self.stream.stop(code.into());
    }

    /// As [`Self::fill`]; a frame that was begun has an end to its time.
    async fn fill_in_time(&mut self) -> Result<bool, ReadError> {
        if !self.frames.is_inside() {
            return self.fill().await;
        }
        let until = *self.begun.get_or_insert_with(Instant::now) + self.deadline;
        match tokio::time::timeout_at(until, self.fill()).await {
            Ok(filled) => filled,
            Err(_) => {
                let (received, seconds) = (self.frames.buffered(), self.deadline.as_secs());
                Err(ReadError::TooSlow { received, seconds })
            }
        }
    }

    /// Waits for more bytes; `false` at the end of the stream.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = self.stream.read_chunks(&mut chunks).await? else { return Ok(false) };
        chunks.into_iter().take(count).for_each(|chunk| self.frames.push(chunk));
        Ok(true)
    }
}
