//! Frames of a stream's bytes, however they are cut.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{FRAME_LENGTH_BYTES, FRAME_PREFIX_BYTES, FrameError, FrameLimits, RawFrame, check_lengths};

/// What the buffer of a stranger's payload begins with: a usual batch lies in it without a move, and an announced length alone takes
/// no more than this.
const BUFFER_BYTES_FIRST: usize = (1 << 20) + (64 << 10);

/// Makes frames of a stream's bytes.
///
/// Header and payload are copied once, from the chunks they came in to buffers of their own size: a slice of a packet would keep
/// the packet, and those that came with it, alive for as long as the payload lives. Take frames until there is none before
/// pushing more: then nothing is held but the frame under way.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    buffer_bytes_first: usize,
    /// Received and not used yet, in order; none empty.
    chunks: VecDeque<Bytes>,
    chunks_bytes: usize,
    partial: Option<Partial>,
}

/// Who counts the memory that frames on their way in take.
pub trait FrameMemory {
    /// Raises what the frame under way takes to so many bytes; `false` where it may not.
    fn raise_to(&mut self, bytes: usize) -> bool;
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A whole frame.
    Frame(RawFrame),
    /// Not yet: push more.
    More,
    /// [`FrameMemory`] allows no more. The stream is lost.
    NoMemory,
}

/// A frame whose lengths are here and which is not complete.
#[derive(Debug)]
struct Partial {
    header: Part,
    payload: Part,
}

impl Partial {
    fn received(&self) -> usize {
        FRAME_PREFIX_BYTES + self.header.bytes.len() + self.payload.bytes.len()
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
    /// How much the buffer must grow before it takes `count` bytes: to twice its size, never to more than there will be.
    fn growth(&self, count: usize) -> usize {
        if self.bytes.len() + count <= self.bytes.capacity() {
            return 0;
        }
        self.missing.min(self.bytes.capacity().max(count))
    }
}

impl FrameDecoder {
    /// A decoder at the start of a stranger's stream: what is held is what was received, not what a length promised.
    #[must_use]
    pub const fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            buffer_bytes_first: BUFFER_BYTES_FIRST,
            chunks: VecDeque::new(),
            chunks_bytes: 0,
            partial: None,
        }
    }

    /// The same for a stream of somebody who is believed: a payload gets its whole buffer at once, and is moved never.
    #[must_use]
    pub const fn trusting(limits: FrameLimits) -> Self {
        let mut decoder = Self::new(limits);
        decoder.buffer_bytes_first = usize::MAX;
        decoder
    }

    /// Changes the limits for frames from the next one on.
    pub const fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Takes the stream's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks_bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame; `None` until more bytes come. After an error the stream is lost.
    #[allow(clippy::should_implement_trait, reason = "None means not yet, which is no iterator's end")]
    pub fn next(&mut self) -> Result<Option<RawFrame>, FrameError> {
        struct Uncounted;
        impl FrameMemory for Uncounted {
            fn raise_to(&mut self, _bytes: usize) -> bool {
                true
            }
        }
        self.next_within(&mut Uncounted).map(|next| match next {
            Next::Frame(frame) => Some(frame),
            Next::More | Next::NoMemory => None,
        })
    }

    /// The same, where the frame's memory is counted. Lengths are checked before anything is allocated for them.
    pub fn next_within(&mut self, memory: &mut impl FrameMemory) -> Result<Next, FrameError> {
        if self.partial.is_none() {
            let Some((header, payload)) = self.lengths()? else {
                self.unpin();
                return Ok(Next::More);
            };
            let first = |length: usize| length.min(self.buffer_bytes_first);
            if !memory.raise_to(first(header) + first(payload)) {
                return Ok(Next::NoMemory);
            }
            let part = |length| Part { bytes: BytesMut::with_capacity(first(length)), missing: length };
            self.partial = Some(Partial { header: part(header), payload: part(payload) });
            self.skip(FRAME_PREFIX_BYTES);
        }
        let Some(partial) = &mut self.partial else { return Ok(Next::More) };
        let mut capacity = partial.capacity();
        for part in [&mut partial.header, &mut partial.payload] {
            while part.missing > 0 {
                let Some(chunk) = self.chunks.front_mut() else { return Ok(Next::More) };
                let take = part.missing.min(chunk.len());
                let growth = part.growth(take);
                if growth > 0 {
                    capacity += growth;
                    if !memory.raise_to(capacity) {
                        return Ok(Next::NoMemory);
                    }
                    part.bytes.reserve(growth);
                }
                part.bytes.put_slice(chunk.get(..take).unwrap_or_default());
                part.missing -= take;
                self.chunks_bytes -= take;
                chunk.advance(take);
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
            }
        }
        let freeze = |part: Part| part.bytes.freeze();
        Ok(self.partial.take().map_or(Next::More, |done| {
            Next::Frame(RawFrame { header: freeze(done.header), payload: freeze(done.payload) })
        }))
    }

    /// Whether a frame was begun: its lengths are here, and it is not complete.
    #[must_use]
    pub const fn is_inside(&self) -> bool {
        self.partial.is_some()
    }

    /// Bytes received and not yet taken as frames; 0 between two frames.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.partial.as_ref().map_or(0, Partial::received) + self.chunks_bytes
    }

    /// The stream ended: an error where it did so inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffered() {
            0 => Ok(()),
            received => Err(FrameError::Truncated { received }),
        }
    }

    /// The lengths of the next frame's header and payload; `None` until they are here.
    fn lengths(&self) -> Result<Option<(usize, usize)>, FrameError> {
        let Some(length) = self.peek::<FRAME_LENGTH_BYTES>() else { return Ok(None) };
        let Some([_, _, _, _, header @ ..]) = self.peek::<FRAME_PREFIX_BYTES>() else {
            check_lengths(length, None, &self.limits)?;
            return Ok(None);
        };
        check_lengths(length, Some(header), &self.limits).map(Some)
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

    /// Drops the next bytes, which are there.
    fn skip(&mut self, mut count: usize) {
        debug_assert!(count <= self.chunks_bytes);
        self.chunks_bytes -= count;
        while count > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            let step = count.min(chunk.len());
            chunk.advance(step);
            count -= step;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}
