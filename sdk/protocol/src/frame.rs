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
//! Nothing here reads or writes: [`FrameDecoder`] takes a stream's bytes as they come, [`FrameEncoder`] says which are to be
//! written. Broker and client have no other.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

mod decoder;
mod encoder;

pub use decoder::{FrameDecoder, FrameMemory, Next};
pub use encoder::FrameEncoder;

/// The length at the start of a frame.
pub const FRAME_LENGTH_BYTES: usize = 4;
/// Everything before the header: the length, and the header's length.
pub const FRAME_PREFIX_BYTES: usize = 8;

/// The header's length, which the frame's length counts.
const HEADER_LENGTH_BYTES: usize = FRAME_PREFIX_BYTES - FRAME_LENGTH_BYTES;

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
    /// Decodes the header.
    pub fn message<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.header.clone())
    }
}

/// Header and payload do not fit a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes is beyond what the format can say")]
pub struct FrameTooLong {
    /// Bytes after the length.
    pub length: usize,
}

/// The bytes of a frame before its payload: write these, then `payload_len` bytes.
///
/// # Panics
///
/// Where header and payload together reach 4 GiB, which no limit allows.
#[must_use]
pub fn encode_head(header: &impl Message, payload_len: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(FRAME_PREFIX_BYTES + header.encoded_len());
    match put_head(&mut head, header, payload_len) {
        Ok(_) => head.freeze(),
        Err(error) => panic!("{error}"),
    }
}

/// Puts what stands before a payload; answers the bytes of the whole frame. After an error nothing is put.
fn put_head(to: &mut BytesMut, header: &impl Message, payload_len: usize) -> Result<usize, FrameTooLong> {
    let bytes = put_lengths(to, header.encoded_len(), payload_len)?;
    header.encode_raw(to);
    Ok(bytes)
}

/// Puts a frame's two lengths; answers the bytes of the whole frame. After an error nothing is put.
fn put_lengths(to: &mut BytesMut, header_len: usize, payload_len: usize) -> Result<usize, FrameTooLong> {
    let length = header_len.saturating_add(payload_len).saturating_add(HEADER_LENGTH_BYTES);
    let Ok(frame_length) = u32::try_from(length) else { return Err(FrameTooLong { length }) };
    to.put_u32(frame_length);
    // Smaller than the frame's, which fits.
    to.put_u32(header_len as u32);
    Ok(FRAME_LENGTH_BYTES + length)
}

/// Checks a frame's lengths as far as they are known; answers those of header and payload.
fn check_lengths(
    length: [u8; FRAME_LENGTH_BYTES],
    header: Option<[u8; HEADER_LENGTH_BYTES]>,
    limits: &FrameLimits,
) -> Result<(usize, usize), FrameError> {
    let (length, limit) = (widen(length), limits.frame_bytes_max);
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    let Some(rest) = length.checked_sub(HEADER_LENGTH_BYTES) else {
        return Err(FrameError::TooShort { length });
    };
    let header = header.map_or(0, widen);
    if header > limits.header_bytes_max {
        return Err(FrameError::HeaderTooLarge { length: header, limit: limits.header_bytes_max });
    }
    match rest.checked_sub(header) {
        Some(payload) => Ok((header, payload)),
        None => Err(FrameError::HeaderOutside { header, length }),
    }
}

const fn widen(length: [u8; 4]) -> usize {
    u32::from_be_bytes(length) as usize
}

#[cfg(test)]
mod tests;
