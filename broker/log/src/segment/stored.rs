//! A batch as the log takes it.

use bytes::Bytes;
use thiserror::Error;
use tidemill_protocol::{LeaderEpoch, Offset, Timestamp};

/// Bytes at the head of a Kafka batch that stand before its CRC's range: base offset, length, leader epoch.
pub(super) const PREFIX_BYTES: usize = 16;
/// Bytes of the prefix that the batch's own length does not count.
const UNCOUNTED_BYTES: usize = 12;

/// A record batch with its place in the partition: a 16-byte prefix made here, and a body that is stored as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    prefix: [u8; PREFIX_BYTES],
    body: Bytes,
    base_offset: Offset,
    last_offset_delta: u32,
    max_timestamp: Timestamp,
    epoch: LeaderEpoch,
}

/// Why a batch can't be stored. The caller checks batches before it gives them offsets, so this is a fault of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StoredBatchError {
    /// An offset below zero, or a last offset before the base offset or more than 2^32 - 1 after it.
    #[error("a batch with offsets {base} to {last} can't be stored")]
    Offsets {
        /// Its first offset.
        base: Offset,
        /// Its last offset.
        last: Offset,
    },
    /// A batch whose length does not fit the format's signed 32 bits.
    #[error("a batch of {bytes} bytes is too long for its own length field")]
    TooLong {
        /// Length of the body.
        bytes: usize,
    },
}

impl StoredBatch {
    /// Gives `body` (a batch without its first 16 bytes) its place: offsets `base..=last`, under `epoch`.
    /// `max_timestamp` is the batch's, for lookups by time.
    ///
    /// # Errors
    /// See [`StoredBatchError`].
    pub fn new(
        base: Offset,
        last: Offset,
        epoch: LeaderEpoch,
        max_timestamp: Timestamp,
        body: Bytes,
    ) -> Result<Self, StoredBatchError> {
        let delta = last.get().checked_sub(base.get()).and_then(|delta| u32::try_from(delta).ok());
        let (Some(last_offset_delta), 0.., true) = (delta, base.get(), last.get() < i64::MAX) else {
            return Err(StoredBatchError::Offsets { base, last });
        };
        let kafka_length = i32::try_from(body.len().saturating_add(PREFIX_BYTES - UNCOUNTED_BYTES))
            .ok()
            .filter(|length| *length < i32::MAX - UNCOUNTED_BYTES as i32)
            .ok_or(StoredBatchError::TooLong { bytes: body.len() })?;
        let mut prefix = [0; PREFIX_BYTES];
        let fields = (base.get().to_be_bytes().into_iter())
            .chain(kafka_length.to_be_bytes())
            .chain(epoch.get().to_be_bytes());
        prefix.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
        Ok(Self { prefix, body, base_offset: base, last_offset_delta, max_timestamp, epoch })
    }

    /// The first 16 bytes of the batch as stored.
    #[must_use]
    pub fn prefix(&self) -> &[u8; PREFIX_BYTES] {
        &self.prefix
    }

    /// What follows the prefix.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Offset of the first record.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        self.base_offset
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_offset_delta))
    }

    /// The largest timestamp in the batch.
    #[must_use]
    pub fn max_timestamp(&self) -> Timestamp {
        self.max_timestamp
    }

    /// The leader epoch it was appended under.
    #[must_use]
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Bytes of prefix and body.
    #[must_use]
    pub fn bytes(&self) -> usize {
        PREFIX_BYTES + self.body.len()
    }

    pub(super) fn last_offset_delta(&self) -> u32 {
        self.last_offset_delta
    }

    pub(super) fn batch_bytes(&self) -> u32 {
        u32::try_from(self.bytes()).unwrap_or(u32::MAX)
    }
}
