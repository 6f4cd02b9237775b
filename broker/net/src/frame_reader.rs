use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tidemill_protocol::frame::{
    FRAME_LENGTH_BYTES, FRAME_PREFIX_BYTES, FrameError, FrameLimits, RawFrame, rest_length,
};

use tokio::time::Instant;

use crate::ReadError;
use crate::receiving::{Charge, ReceiveBudget};

/// Bytes of the header's length field, which the frame's length counts.
const HEADER_LENGTH_BYTES: usize = FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES;
/// Chunks taken from quinn under one lock.
const CHUNKS_PER_READ: usize = 32;
/// What a payload's buffer begins with: a usual batch lies in it without a move, and an announced length alone takes no
/// more than this.
const BUFFER_BYTES_FIRST: usize = (1 << 20) + (64 << 10);

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
    /// For the frame that is being received, then for the one that the handler has.
    charge: Charge,
    /// How long a frame may take from its first byte to its last.
    deadline: Duration,
}

/// A frame whose lengths are here and which is not complete.
#[derive(Debug)]
struct Partial {
    header: Part,
    payload: Part,
    begun: Instant,
}

impl Partial {
    fn received(&self) -> usize {
        self.header.bytes.len() + self.payload.bytes.len()
    }

    fn capacity(&self) -> usize {
        self.header.bytes.capacity() + self.payload.bytes.capacity()
    }
}

/// A run of bytes of known length that grows as it arrives.
#[derive(Debug)]
struct Part {
    bytes: BytesMut,
    missing: usize,
}

impl Part {
    fn new(length: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(Self::first_capacity(length)), missing: length }
    }

    fn first_capacity(length: usize) -> usize {
        length.min(BUFFER_BYTES_FIRST)
    }

    /// How much the buffer must grow before it takes `count` bytes: to twice its size, never to more than there will be.
    fn growth(&self, count: usize) -> usize {
        if self.bytes.len() + count <= self.bytes.capacity() {
            return 0;
        }
        self.missing.min(self.bytes.capacity().max(count))
    }
}

impl FrameReader {
    pub(crate) fn new(
        stream: quinn::RecvStream,
        limits: FrameLimits,
        budget: &ReceiveBudget,
        deadline: Duration,
    ) -> Self {
        let (chunks, charge) = (VecDeque::new(), budget.charge());
        Self { stream, chunks, chunks_bytes: 0, partial: None, limits, charge, deadline }
    }

    /// Changes the limits for frames from the next one on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
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
            if let Some(frame) = self.take_buffered()? {
                return Ok(Some(frame));
            }
            if !self.fill_in_time().await? {
                let received = self.received();
                return if received == 0 { Ok(None) } else { Err(FrameError::Truncated { received }.into()) };
            }
        }
    }

    /// The handler has done with the frame that it took last: its memory counts no longer. Asking for the next says the
    /// same.
    pub fn done(&mut self) {
        if self.partial.is_none() {
            self.charge.clear();
        }
    }

    /// A frame that is already here in full.
    fn take_buffered(&mut self) -> Result<Option<RawFrame>, ReadError> {
        if self.partial.is_none() && !self.begin()? {
            self.unpin();
            return Ok(None);
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        let mut capacity = partial.capacity();
        for part in [&mut partial.header, &mut partial.payload] {
            while part.missing > 0 {
                let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
                let take = part.missing.min(chunk.len());
                let growth = part.growth(take);
                if growth > 0 {
                    capacity += growth;
                    if !self.charge.raise_to(capacity) {
                        return Err(ReadError::Overloaded);
                    }
                    part.bytes.reserve(growth);
                }
                part.bytes.put_slice(&chunk[..take]);
                part.missing -= take;
                self.chunks_bytes -= take;
                chunk.advance(take);
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
            }
        }
        let done = self.partial.take();
        let freeze = |part: Part| part.bytes.freeze();
        Ok(done.map(|done| RawFrame { header: freeze(done.header), payload: freeze(done.payload) }))
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

    /// Starts a frame where its lengths are here. Checks them before anything is allocated.
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
        let payload = (length - HEADER_LENGTH_BYTES)
            .checked_sub(header)
            .ok_or(FrameError::HeaderOutside { header, length })?;
        if !self.charge.raise_to(Part::first_capacity(header) + Part::first_capacity(payload)) {
            return Err(ReadError::Overloaded);
        }
        self.skip(FRAME_PREFIX_BYTES);
        let (header, payload) = (Part::new(header), Part::new(payload));
        self.partial = Some(Partial { header, payload, begun: Instant::now() });
        Ok(true)
    }

    /// Lets go of the packets that the first bytes of a frame came in: a stream that goes on no further would keep them.
    fn unpin(&mut self) {
        for chunk in &mut self.chunks {
            *chunk = Bytes::copy_from_slice(chunk);
        }
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

    /// As [`Self::fill`]; a frame that was begun has an end to its time.
    async fn fill_in_time(&mut self) -> Result<bool, ReadError> {
        let Some(partial) = &self.partial else { return self.fill().await };
        let (received, until) = (partial.received(), partial.begun + self.deadline);
        match tokio::time::timeout_at(until, self.fill()).await {
            Ok(filled) => filled,
            Err(_) => Err(ReadError::TooSlow { received, seconds: self.deadline.as_secs() }),
        }
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
        let begun = self.partial.as_ref().map_or(0, |partial| FRAME_PREFIX_BYTES + partial.received());
        begun + self.chunks_bytes
    }
}
