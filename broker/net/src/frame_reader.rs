use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ReadError;

/// One frame as it stood on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// A Protobuf message, not looked at yet.
    pub header: Bytes,
    /// The raw bytes behind it, in a buffer of exactly their size.
    pub payload: Bytes,
}

/// Bytes of the length field and of the header's length field.
const PREFIX_BYTES: usize = 6;
/// Bytes of the header's length field, which the frame's length counts.
const HEADER_LENGTH_BYTES: usize = 2;
/// A header's length of this value says: the header is all that follows, and there is no payload.
const HEADER_IS_THE_REST: u16 = u16::MAX;
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
    frame_bytes_max: usize,
}

/// A frame whose header is here and whose payload is not complete.
#[derive(Debug)]
struct Partial {
    header: Bytes,
    payload: BytesMut,
    missing: usize,
}

impl FrameReader {
    pub(crate) fn new(stream: quinn::RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, chunks: VecDeque::new(), chunks_bytes: 0, partial: None, frame_bytes_max }
    }

    /// Changes the limit for frames from the next one on.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// The next frame; `None` where the stream ended between two frames.
    ///
    /// Cancel-safe: what was read stays for the next call.
    ///
    /// # Errors
    /// See [`ReadError`]. After one the stream is of no further use.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.take_buffered()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                let missing = self.missing();
                return if missing == 0 { Ok(None) } else { Err(ReadError::EndInsideFrame { missing }) };
            }
        }
    }

    /// A frame that is already here in full, without waiting: lets a handler take what arrived together as one.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn take_buffered(&mut self) -> Result<Option<Frame>, ReadError> {
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
        Ok(done.map(|partial| Frame { header: partial.header, payload: partial.payload.freeze() }))
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
        let Some(prefix) = self.peek_prefix() else { return Ok(false) };
        let [a, b, c, d, e, f] = prefix;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.frame_bytes_max {
            return Err(ReadError::TooLarge { length, max: self.frame_bytes_max });
        }
        let announced = u16::from_be_bytes([e, f]);
        let room = length
            .checked_sub(HEADER_LENGTH_BYTES)
            .ok_or(ReadError::Malformed { length, header: usize::from(announced) })?;
        let header_length = if announced == HEADER_IS_THE_REST { room } else { usize::from(announced) };
        let missing =
            room.checked_sub(header_length).ok_or(ReadError::Malformed { length, header: header_length })?;
        if self.chunks_bytes < PREFIX_BYTES + header_length {
            return Ok(false);
        }
        self.skip(PREFIX_BYTES);
        let header = self.take(header_length);
        self.partial = Some(Partial { header, payload: BytesMut::with_capacity(missing), missing });
        Ok(true)
    }

    fn peek_prefix(&self) -> Option<[u8; PREFIX_BYTES]> {
        if self.chunks_bytes < PREFIX_BYTES {
            return None;
        }
        let mut prefix = [0; PREFIX_BYTES];
        let mut bytes = self.chunks.iter().flat_map(|chunk| chunk.iter());
        for slot in &mut prefix {
            *slot = *bytes.next()?;
        }
        Some(prefix)
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

    /// How many bytes at least are missing for the frame that was begun; 0 between two frames.
    fn missing(&self) -> usize {
        match (&self.partial, self.chunks_bytes) {
            (Some(partial), _) => partial.missing,
            (None, 0) => 0,
            (None, have) => PREFIX_BYTES.saturating_sub(have).max(1),
        }
    }
}
