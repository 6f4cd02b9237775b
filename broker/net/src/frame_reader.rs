use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tidemill_protocol::frame::{
    FRAME_LENGTH_BYTES, FRAME_PREFIX_BYTES, FrameError, FrameLimits, RawFrame, rest_length,
};

use crate::ReadError;

/// Bytes of the header's length field, which the frame's length counts.
const HEADER_LENGTH_BYTES: usize = FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES;
/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;

/// Reads whole frames from a stream.
///
/// A payload is copied once, from the packets it came in to a buffer of its own size: a slice of a packet would
/// keep the packet, and up to 63 that came with it, alive for as long as the payload lives.
#[derive(Debug)]
pub struct FrameReader {
    stream: quinn::RecvStream,
    /// Received and not used yet, in order; none empty.
    chunks: VecDeque<Bytes>,
    chunks_bytes: usize,
    partial: Option<Partial>,
    limits: FrameLimits,
}

/// A frame whose header is here and whose payload is not complete.
#[derive(Debug)]
struct Partial {
    header: Bytes,
    payload: BytesMut,
    missing: usize,
}

impl FrameReader {
    pub(crate) fn new(stream: quinn::RecvStream, limits: FrameLimits) -> Self {
        Self { stream, chunks: VecDeque::new(), chunks_bytes: 0, partial: None, limits }
    }

    /// Changes the limits for frames from the next one on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// The next frame; `None` where the stream ended between two frames.
    ///
    /// Cancel-safe: what was read stays for the next call.
    ///
    /// # Errors
    /// See [`ReadError`]. After one the stream is of no further use.
    pub async fn next(&mut self) -> Result<Option<RawFrame>, ReadError> {
        loop {
            if let Some(frame) = self.take_buffered()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                let received = self.received();
                return if received == 0 { Ok(None) } else { Err(FrameError::Truncated { received }.into()) };
            }
        }
    }

    /// A frame that is already here in full, without waiting: lets a handler take what arrived together as one.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn take_buffered(&mut self) -> Result<Option<RawFrame>, ReadError> {
        if self.partial.is_none() && !self.begin()? {
            return Ok(None);
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        while partial.missing > 0 {
            let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
            let take = partial.missing.min(chunk.len());
            partial.payload.put_slice(&chunk[..take]);
            partial.missing -= take;
            self.chunks_bytes -= take;
            chunk.advance(take);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        let done = self.partial.take();
        Ok(done.map(|partial| RawFrame { header: partial.header, payload: partial.payload.freeze() }))
    }

    /// Tells the peer to send no more on this stream.
    pub fn stop(&mut self, code: u32) {
        // An error says that the stream is over already.
        let _ = self.stream.stop(code.into());
    }

    /// Waits until the peer resets the stream or ends it, without reading: for handlers that only write.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn received_reset(&mut self) -> Result<Option<u64>, ReadError> {
        match self.stream.received_reset().await {
            Ok(code) => Ok(code.map(quinn::VarInt::into_inner)),
            Err(quinn::ResetError::ConnectionLost(lost)) => Err(ReadError::Connection(lost.into())),
            Err(quinn::ResetError::ZeroRttRejected) => Err(ReadError::Closed),
        }
    }

    /// Starts a frame where its header is here in full. Checks the lengths before anything is allocated for them.
    fn begin(&mut self) -> Result<bool, ReadError> {
        let Some(length) = self.peek::<FRAME_LENGTH_BYTES>() else { return Ok(false) };
        let length = rest_length(length, &self.limits)?;
        let Some(prefix) = self.peek::<FRAME_PREFIX_BYTES>() else { return Ok(false) };
        let [.., a, b, c, d] = prefix;
        let header = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if header > self.limits.header_bytes_max {
            let limit = self.limits.header_bytes_max;
            return Err(FrameError::HeaderTooLarge { length: header, limit }.into());
        }
        // `rest_length` has seen that the length holds at least the header's length.
        let missing = (length - HEADER_LENGTH_BYTES)
            .checked_sub(header)
            .ok_or(FrameError::HeaderOutside { header, length })?;
        if self.chunks_bytes < FRAME_PREFIX_BYTES + header {
            return Ok(false);
        }
        self.skip(FRAME_PREFIX_BYTES);
        let header = self.take(header);
        self.partial = Some(Partial { header, payload: BytesMut::with_capacity(missing), missing });
        Ok(true)
    }

    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.chunks_bytes < N {
            return None;
        }
        if let Some(bytes) = self.chunks.front().and_then(|chunk| chunk.first_chunk()) {
            return Some(*bytes);
        }
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.chunks.iter().flatten()) {
            *to = *from;
        }
        Some(bytes)
    }

    fn skip(&mut self, mut count: usize) {
        self.chunks_bytes -= count;
        while count > 0 {
            let Some(chunk) = self.chunks.front_mut() else { return };
            let step = count.min(chunk.len());
            chunk.advance(step);
            count -= step;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// The next `count` bytes: a slice where one chunk holds them all.
    fn take(&mut self, count: usize) -> Bytes {
        if let Some(chunk) = self.chunks.front_mut()
            && chunk.len() > count
        {
            self.chunks_bytes -= count;
            return chunk.split_to(count);
        }
        let mut bytes = BytesMut::with_capacity(count);
        while bytes.len() < count {
            let Some(chunk) = self.chunks.front_mut() else { break };
            let step = (count - bytes.len()).min(chunk.len());
            bytes.put_slice(&chunk[..step]);
            self.skip(step);
        }
        bytes.freeze()
    }

    /// Waits for more bytes; `false` at the end of the stream.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = self.stream.read_chunks(&mut chunks).await? else { return Ok(false) };
        for chunk in chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty()) {
            self.chunks_bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
        Ok(true)
    }

    /// Bytes of a frame that was begun; 0 between two frames.
    fn received(&self) -> usize {
        let begun = self
            .partial
            .as_ref()
            .map_or(0, |partial| FRAME_PREFIX_BYTES + partial.header.len() + partial.payload.len());
        begun + self.chunks_bytes
    }
}
