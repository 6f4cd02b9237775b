//! One stored batch.
//!
//! ```text
//!   0        4        8         12             16              24                       40
//!   +--------+--------+---------+--------------+---------------+------------------------+--------- - - -+
//!   | frame  | head   | batch   | last offset  | max timestamp | base offset i64,       | body          |
//!   | crc32  | crc32  | length  | delta        | i64           | length i32, epoch i32  |               |
//!   +--------+--------+---------+--------------+---------------+------------------------+--------- - - -+
//!                                                              |<------- batch: `batch length` bytes -->|
//!                     |<---- head crc: stream key, then this ------------------------->|
//!                     |<---- frame crc: stream key, then this ----------------------------------- - - ->|
//! ```
//!
//! All numbers are big-endian, as in the batch. From byte 24 on this is a Kafka RecordBatch v2, byte for byte; its
//! own CRC begins after the leader epoch, so base offset and epoch are covered by ours alone. The head has a
//! checksum of its own: a walk over frames trusts a length without reading the body, and steps over a damaged body.
//! Both checksums begin with the stream's key: a frame of another partition can't pass for one of this.

use thiserror::Error;
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp};

use super::key::KeyHasher;
use super::stored::{PREFIX_BYTES, StoredBatch};

/// Bytes of a frame before the batch.
pub(super) const FRAME_BYTES: usize = 24;
/// Bytes of a frame that the head's checksum makes trustworthy: through the end of the batch's prefix.
pub(super) const HEAD_BYTES: usize = FRAME_BYTES + PREFIX_BYTES;
/// What the two checksums take.
const CRC_BYTES: usize = 8;

/// Where the digest chain of a segment begins.
pub(super) const CHAIN_START: u64 = 0x7469_6465_6d69_6c6c;

/// The running digest after a frame with `frame_crc`: one-to-one in `chain`, so no later frame undoes a difference.
pub(super) fn chain(chain: u64, frame_crc: u32) -> u64 {
    (chain.rotate_left(23) ^ u64::from(frame_crc)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What is wrong with bytes that should be a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameFault {
    /// The recorded end falls inside the frame.
    #[error("it reaches beyond the segment's recorded end")]
    BeyondEnd,
    /// The head's checksum does not match: nothing in it can be trusted.
    #[error("the checksum of its head does not match")]
    HeadCrc,
    /// The head is sound and the body is not.
    #[error("the checksum of its batch does not match")]
    FrameCrc,
    /// The checksums match and the fields contradict each other.
    #[error("its lengths or offsets contradict each other")]
    Contradiction,
    /// The batch does not come after the one before it.
    #[error("its offset does not come after the batch before it")]
    OutOfOrder,
    /// All frames are sound and yet are not those that were written.
    #[error("its frames are sound but not the ones recorded for this segment")]
    OtherContents,
    /// The file ends before what is recorded of it.
    #[error("the file is shorter than recorded")]
    FileShort,
    /// The file's header is not the one of this partition and segment.
    #[error("the file's header is damaged or belongs to another segment")]
    FileHeader,
}

/// A frame's head, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) frame_crc: u32,
    pub(super) batch_bytes: u32,
    pub(super) base_offset: Offset,
    pub(super) last_offset: Offset,
    pub(super) max_timestamp: Timestamp,
    pub(super) epoch: LeaderEpoch,
}

impl FrameHead {
    /// The head of a frame for `batch`, as bytes and as read.
    pub(super) fn encode(key: &KeyHasher, batch: &StoredBatch) -> ([u8; HEAD_BYTES], Self) {
        let mut checked = [0; HEAD_BYTES - CRC_BYTES];
        let fields = (batch.batch_bytes().to_be_bytes().into_iter())
            .chain(batch.last_offset_delta().to_be_bytes())
            .chain(batch.max_timestamp().get().to_be_bytes())
            .chain(*batch.prefix());
        checked.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
        let mut hasher = key.start();
        hasher.update(&checked);
        let head_crc = hasher.clone().finalize();
        hasher.update(batch.body());
        let frame_crc = hasher.finalize();

        let mut head = [0; HEAD_BYTES];
        let bytes = (frame_crc.to_be_bytes().into_iter()).chain(head_crc.to_be_bytes()).chain(checked);
        head.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
        let fields = Self {
            frame_crc,
            batch_bytes: batch.batch_bytes(),
            base_offset: batch.base_offset(),
            last_offset: batch.last_offset(),
            max_timestamp: batch.max_timestamp(),
            epoch: batch.epoch(),
        };
        (head, fields)
    }

    /// Checks and reads a head. The hasher that comes with it has seen all but the body of the frame.
    pub(super) fn decode(key: &KeyHasher, bytes: &[u8]) -> Result<(Self, crc32fast::Hasher), FrameFault> {
        let mut fields = Fields(bytes.get(..HEAD_BYTES).ok_or(FrameFault::BeyondEnd)?);
        let frame_crc = u32::from_be_bytes(fields.take());
        let head_crc = u32::from_be_bytes(fields.take());
        let mut hasher = key.start();
        hasher.update(fields.0);
        if hasher.clone().finalize() != head_crc {
            return Err(FrameFault::HeadCrc);
        }
        let batch_bytes = u32::from_be_bytes(fields.take());
        let last_offset_delta = u32::from_be_bytes(fields.take());
        let max_timestamp = Timestamp::new(i64::from_be_bytes(fields.take()));
        let base_offset = i64::from_be_bytes(fields.take());
        let kafka_length = i32::from_be_bytes(fields.take());
        let epoch = LeaderEpoch::new(i32::from_be_bytes(fields.take()));
        let lengths_agree = i64::from(kafka_length) + 12 == i64::from(batch_bytes);
        let last_offset = base_offset.checked_add(i64::from(last_offset_delta));
        let (true, true, Some(last_offset)) = (lengths_agree, base_offset >= 0, last_offset) else {
            return Err(FrameFault::Contradiction);
        };
        if last_offset == i64::MAX || (batch_bytes as usize) < PREFIX_BYTES {
            return Err(FrameFault::Contradiction);
        }
        let head = Self {
            frame_crc,
            batch_bytes,
            base_offset: Offset::new(base_offset),
            last_offset: Offset::new(last_offset),
            max_timestamp,
            epoch,
        };
        Ok((head, hasher))
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        FRAME_BYTES as u64 + u64::from(self.batch_bytes)
    }

    /// The offset after the batch's last.
    pub(super) fn next_offset(&self) -> Offset {
        self.last_offset.plus(1)
    }
}

/// Takes fixed-size fields off the front of bytes whose length was checked.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes; zeros if there are fewer, which the caller has ruled out.
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => {
                debug_assert!(false, "a field is taken from bytes that are too short");
                [0; N]
            }
        }
    }
}
