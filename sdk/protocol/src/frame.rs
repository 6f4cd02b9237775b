//! The frame: what every stream consists of.
//!
//! ```text
//!  0               4               8
//! +---------------+---------------+------------------------+---------------------------+
//! | length   u32  | header   u32  | header                 | payload                   |
//! | of the rest   | length        | one Protobuf message   | raw bytes, often batches  |
//! +---------------+---------------+------------------------+---------------------------+
//!                 |<------------------------- length ---------------------------------->|
//!                                 |<---- header length --->|
//! ```
//!
//! Both numbers are big-endian. Which message the header is depends on the stream and the place in it. Record
//! bytes are payload and never part of the message, so that they are neither copied into it nor out of it.
//!
//! Nothing here reads or writes: [`encode_head`] makes the bytes before the payload, [`FrameDecoder`] takes
//! bytes as they come. A reader that reads exact lengths itself uses [`FRAME_LENGTH_BYTES`], [`rest_length`]
//! and [`RawFrame::split`].

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// The length at the start of a frame.
pub const FRAME_LENGTH_BYTES: usize = 4;
/// Everything before the header: the length, and the header's length.
pub const FRAME_PREFIX_BYTES: usize = 8;

/// Chunks smaller than this are gathered instead of kept: a peer that sends byte by byte must not cost a
/// buffer per byte.
const GATHER_BELOW_BYTES: usize = 4096;

/// What a frame may measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Everything after the length: header length, header and payload.
    pub frame_bytes_max: usize,
    /// The header alone.
    pub header_bytes_max: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { frame_bytes_max: 16 << 20, header_bytes_max: 4 << 20 }
    }
}

/// A frame that can't be. The stream has no way back to the next frame: reset it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than the limit; said before anything is allocated for it.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes after the length, as announced.
        length: usize,
        /// `frame_bytes_max`.
        limit: usize,
    },
    /// The header alone is longer than the limit.
    #[error("a frame header of {length} bytes is over the limit of {limit}")]
    HeaderTooLarge {
        /// Bytes of the header, as announced.
        length: usize,
        /// `header_bytes_max`.
        limit: usize,
    },
    /// The frame is too short for the header length.
    #[error("a frame of {length} bytes is too short to hold the length of its header")]
    TooShort {
        /// Bytes after the length.
        length: usize,
    },
    /// The header is longer than the frame.
    #[error("a frame header of {header} bytes does not fit into a frame of {length} bytes")]
    HeaderOutside {
        /// Bytes of the header, as announced.
        header: usize,
        /// Bytes after the length, as announced.
        length: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, {received} bytes after its start")]
    Truncated {
        /// Bytes of the unfinished frame.
        received: usize,
    },
}

/// A frame taken apart; the header not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The Protobuf message.
    pub header: Bytes,
    /// What follows it.
    pub payload: Bytes,
}

impl RawFrame {
    /// Takes apart what follows a frame's length. Copies nothing.
    pub fn split(mut rest: Bytes, limits: &FrameLimits) -> Result<Self, FrameError> {
        let length = rest.len();
        let header = check_head(length, rest.first_chunk().copied(), limits)?;
        rest.advance(FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES);
        let header = rest.split_to(header);
        Ok(Self { header, payload: rest })
    }

    /// Decodes the header.
    pub fn message<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.header.clone())
    }
}

/// The bytes of a frame before its payload: write these, then `payload_len` bytes.
///
/// # Panics
///
/// Where header and payload together reach 4 GiB, which no limit allows.
#[must_use]
pub fn encode_head(header: &impl Message, payload_len: usize) -> Bytes {
    let header_length = header.encoded_len();
    let length =
        header_length.saturating_add(payload_len).saturating_add(FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES);
    let Ok(length) = u32::try_from(length) else { panic!("a frame of {length} bytes can't be written") };
    let mut head = BytesMut::with_capacity(FRAME_PREFIX_BYTES + header_length);
    head.put_u32(length);
    // Smaller than `length`, which fits.
    head.put_u32(header_length as u32);
    header.encode_raw(&mut head);
    head.freeze()
}

/// The number of bytes that follow a frame's length, checked against the limit: read exactly as many, then
/// [`RawFrame::split`] them.
pub fn rest_length(length: [u8; FRAME_LENGTH_BYTES], limits: &FrameLimits) -> Result<usize, FrameError> {
    let length = widen(u32::from_be_bytes(length));
    check_head(length, None, limits)?;
    Ok(length)
}

/// Checks a frame's lengths as far as they are known; answers the header's.
fn check_head(length: usize, header: Option<[u8; 4]>, limits: &FrameLimits) -> Result<usize, FrameError> {
    let limit = limits.frame_bytes_max;
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    let Some(header_max) = length.checked_sub(FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES) else {
        return Err(FrameError::TooShort { length });
    };
    let header = header.map_or(0, |bytes| widen(u32::from_be_bytes(bytes)));
    if header > limits.header_bytes_max {
        return Err(FrameError::HeaderTooLarge { length: header, limit: limits.header_bytes_max });
    }
    if header > header_max {
        return Err(FrameError::HeaderOutside { header, length });
    }
    Ok(header)
}

const fn widen(length: u32) -> usize {
    length as usize
}

/// Makes frames of a stream's bytes, however they are cut.
///
/// A header or payload that came in one chunk is a slice of it; one that came in several is copied once. What
/// is held is what was received, not what a length promised. Take frames until there is none before pushing
/// more, and the buffer stays below one frame and one chunk.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    chunks: VecDeque<Bytes>,
    /// Small chunks behind `chunks`, gathered.
    tail: BytesMut,
    buffered: usize,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, chunks: VecDeque::new(), tail: BytesMut::new(), buffered: 0 }
    }

    /// Takes the stream's next bytes.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.buffered += chunk.len();
        if chunk.len() < GATHER_BELOW_BYTES && self.buffered > chunk.len() {
            self.tail.extend_from_slice(&chunk);
        } else {
            self.flush_tail();
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame; `None` until more bytes come. After an error the stream is lost.
    #[allow(clippy::should_implement_trait, reason = "None means not yet, which is no iterator's end")]
    pub fn next(&mut self) -> Result<Option<RawFrame>, FrameError> {
        let Some(prefix) = self.peek::<FRAME_PREFIX_BYTES>() else {
            if let Some(length) = self.peek::<FRAME_LENGTH_BYTES>() {
                rest_length(length, &self.limits)?;
            }
            return Ok(None);
        };
        let [l0, l1, l2, l3, header @ ..] = prefix;
        let length = widen(u32::from_be_bytes([l0, l1, l2, l3]));
        let header = check_head(length, Some(header), &self.limits)?;
        if self.buffered - FRAME_LENGTH_BYTES < length {
            return Ok(None);
        }
        self.skip(FRAME_PREFIX_BYTES);
        let header_bytes = self.take(header);
        let payload = self.take(length - (FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES) - header);
        Ok(Some(RawFrame { header: header_bytes, payload }))
    }

    /// Bytes received and not yet taken as frames.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.buffered
    }

    /// The stream ended: an error where it did so inside a frame.
    pub const fn finish(&self) -> Result<(), FrameError> {
        if self.buffered == 0 { Ok(()) } else { Err(FrameError::Truncated { received: self.buffered }) }
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if let Some(first) = self.chunks.front()
            && let Some(bytes) = first.first_chunk()
        {
            return Some(*bytes);
        }
        if self.buffered < N {
            return None;
        }
        let mut bytes = [0; N];
        let pieces = self.chunks.iter().map(|chunk| &**chunk).chain([&*self.tail]);
        for (to, from) in bytes.iter_mut().zip(pieces.flatten()) {
            *to = *from;
        }
        Some(bytes)
    }

    fn skip(&mut self, mut count: usize) {
        self.flush_tail();
        self.buffered -= count;
        while count > 0
            && let Some(first) = self.chunks.front_mut()
        {
            let step = count.min(first.len());
            first.advance(step);
            count -= step;
            if first.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// `count` bytes, which are there.
    fn take(&mut self, count: usize) -> Bytes {
        debug_assert!(count <= self.buffered);
        if let Some(first) = self.chunks.front_mut()
            && first.len() >= count
        {
            self.buffered -= count;
            let taken = first.split_to(count);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            return taken;
        }
        let mut joined = BytesMut::with_capacity(count);
        for chunk in &self.chunks {
            let missing = count - joined.len();
            joined.extend_from_slice(chunk.get(..missing).unwrap_or(chunk));
            if joined.len() == count {
                break;
            }
        }
        self.skip(count);
        joined.freeze()
    }
}

#[cfg(test)]
mod tests;
