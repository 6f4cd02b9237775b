//! The fixed part of a record batch, as types.

use std::fmt;

use super::{BatchError, BatchLimits, FIXED_PREFIX_BYTES, HEADER_BYTES};
use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

/// The only format that is read and written.
const MAGIC: u8 = 2;
/// Where the bytes begin that the CRC covers: the attributes.
pub(super) const CRC_COVERS_FROM: usize = 21;
/// Base offset and length stand before what the length counts.
const LENGTH_COUNTS_FROM: usize = 12;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// gzip (RFC 1952).
    Gzip = 1,
    /// Snappy blocks in the framing of snappy-java, as Kafka has them; a raw block is read as well.
    Snappy = 2,
    /// An LZ4 frame.
    Lz4 = 3,
    /// Zstandard (RFC 8878).
    Zstd = 4,
}

impl Compression {
    /// Every compression.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The compression of this number.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name that users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A compression was named that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no compression {0:?}; use none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompressionName(String);

impl std::str::FromStr for Compression {
    type Err = UnknownCompressionName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|compression| compression.name() == name);
        found.ok_or_else(|| UnknownCompressionName(name.to_owned()))
    }
}

/// Whose clock the timestamps are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TimestampType {
    /// The producer's, one per record.
    #[default]
    CreateTime,
    /// The broker's at the append: all records have the batch's largest timestamp.
    LogAppendTime,
}

/// The attributes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Bits 0 to 2.
    pub compression: Compression,
    /// Bit 3.
    pub timestamp_type: TimestampType,
    /// Bit 4: part of a transaction.
    pub transactional: bool,
    /// Bit 5: a marker of the broker's own, not for applications.
    pub control: bool,
}

impl Attributes {
    const KNOWN: u16 = 0b11_1111;

    pub(super) fn from_bits(bits: u16) -> Result<Self, BatchError> {
        let id = (bits & 0b111) as u8;
        let compression = Compression::from_id(id).ok_or(BatchError::UnknownCompression(id))?;
        // Bit 6 (a delete horizon instead of the base timestamp) is of Kafka's own compaction, the others are unused.
        if bits & !Self::KNOWN != 0 {
            return Err(BatchError::ReservedAttributes(bits));
        }
        Ok(Self {
            compression,
            timestamp_type: if bits & 1 << 3 == 0 {
                TimestampType::CreateTime
            } else {
                TimestampType::LogAppendTime
            },
            transactional: bits & 1 << 4 != 0,
            control: bits & 1 << 5 != 0,
        })
    }

    pub(super) const fn bits(self) -> u16 {
        self.compression as u16
            | (matches!(self.timestamp_type, TimestampType::LogAppendTime) as u16) << 3
            | (self.transactional as u16) << 4
            | (self.control as u16) << 5
    }
}

/// The fixed part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record (before any was removed); -1 where none is assigned yet.
    pub base_offset: Offset,
    /// Bytes behind this field: the whole batch less 12.
    pub batch_length: i32,
    /// The reign in which the batch was appended; -1 where unknown.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// Compression and flags.
    pub attributes: Attributes,
    /// Offset of the last record (before any was removed) less the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamps count from.
    pub base_timestamp: Timestamp,
    /// The largest timestamp of a record, or the time of the append.
    pub max_timestamp: Timestamp,
    /// The idempotent producer, or -1.
    pub producer_id: ProducerId,
    /// Its epoch, or -1.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record, or -1.
    pub base_sequence: Sequence,
    /// Records in the batch.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may reach further or end behind the header. Checks every
    /// field on its own and against the others; neither the records nor the checksum.
    pub fn parse(bytes: &[u8], limits: &BatchLimits) -> Result<Self, BatchError> {
        let header = Self::read(bytes)?;
        header.check(limits)?;
        Ok(header)
    }

    fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let mut fields = Fields { rest: fixed_part(bytes)? };
        let base_offset = Offset::new(i64::from_be_bytes(fields.next()));
        let batch_length = i32::from_be_bytes(fields.next());
        let leader_epoch = LeaderEpoch::new(i32::from_be_bytes(fields.next()));
        let [magic] = fields.next();
        check_format(magic, batch_length)?;
        Ok(Self {
            base_offset,
            batch_length,
            leader_epoch,
            crc: u32::from_be_bytes(fields.next()),
            attributes: Attributes::from_bits(u16::from_be_bytes(fields.next()))?,
            last_offset_delta: i32::from_be_bytes(fields.next()),
            base_timestamp: Timestamp::new(i64::from_be_bytes(fields.next())),
            max_timestamp: Timestamp::new(i64::from_be_bytes(fields.next())),
            producer_id: ProducerId::new(i64::from_be_bytes(fields.next())),
            producer_epoch: ProducerEpoch::new(i16::from_be_bytes(fields.next())),
            base_sequence: Sequence::new(i32::from_be_bytes(fields.next())),
            record_count: i32::from_be_bytes(fields.next()),
        })
    }

    const fn check(&self, limits: &BatchLimits) -> Result<(), BatchError> {
        let (bytes, limit) = (self.batch_bytes(), limits.batch_bytes_max);
        if bytes > limit {
            return Err(BatchError::TooLarge { bytes, limit });
        }
        let (count, last_offset_delta) = (self.record_count, self.last_offset_delta);
        let possible = if limits.allow_gaps {
            count >= 0 && last_offset_delta >= 0 && count - 1 <= last_offset_delta
        } else {
            count >= 1 && count - 1 == last_offset_delta
        };
        if !possible {
            return Err(BatchError::Count { count, last_offset_delta });
        }
        if self.record_count() > limits.records_max {
            return Err(BatchError::TooManyRecords { count: self.record_count(), limit: limits.records_max });
        }
        let base = self.base_offset.get();
        if base < -1 || base.checked_add(last_offset_delta as i64).is_none() {
            return Err(BatchError::BaseOffset(base));
        }
        Ok(())
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub const fn batch_bytes(&self) -> usize {
        // Not negative: checked where it is read.
        self.batch_length as usize + LENGTH_COUNTS_FROM
    }

    /// Offset of the last record (before any was removed).
    #[must_use]
    pub const fn last_offset(&self) -> Offset {
        Offset::new(self.base_offset.get().saturating_add(self.last_offset_delta as i64))
    }

    /// The offset behind the batch.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.last_offset().plus(1)
    }

    /// Records in the batch, as what it is: not negative.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count as u32
    }

    /// Whether an idempotent producer sent it.
    #[must_use]
    pub const fn has_producer(&self) -> bool {
        self.producer_id.get() >= 0
    }

    /// Sequence of the last record.
    #[must_use]
    pub const fn last_sequence(&self) -> Sequence {
        self.base_sequence.plus(self.last_offset_delta as u32)
    }

    /// The header's bytes.
    pub(super) fn write(&self, to: &mut [u8; HEADER_BYTES]) {
        let mut bytes = Output { to, at: 0 };
        bytes.put(self.base_offset.get().to_be_bytes());
        bytes.put(self.batch_length.to_be_bytes());
        bytes.put(self.leader_epoch.get().to_be_bytes());
        bytes.put([MAGIC]);
        bytes.put(self.crc.to_be_bytes());
        bytes.put(self.attributes.bits().to_be_bytes());
        bytes.put(self.last_offset_delta.to_be_bytes());
        bytes.put(self.base_timestamp.get().to_be_bytes());
        bytes.put(self.max_timestamp.get().to_be_bytes());
        bytes.put(self.producer_id.get().to_be_bytes());
        bytes.put(self.producer_epoch.get().to_be_bytes());
        bytes.put(self.base_sequence.get().to_be_bytes());
        bytes.put(self.record_count.to_be_bytes());
        debug_assert_eq!(bytes.at, HEADER_BYTES);
    }

    /// Sets length and checksum to what the batch has, and writes the header to its start.
    pub(super) fn seal(&mut self, batch: &mut [u8]) {
        debug_assert!(batch.len() >= HEADER_BYTES);
        debug_assert!(i32::try_from(batch.len()).is_ok());
        self.batch_length = (batch.len() - LENGTH_COUNTS_FROM) as i32;
        if let Some(fixed) = batch.first_chunk_mut() {
            self.write(fixed);
        }
        self.crc = covered_crc(batch);
        if let Some(fixed) = batch.first_chunk_mut() {
            self.write(fixed);
        }
    }
}

/// Bytes of the whole batch by its own length, within the limit; nothing else of it is believed yet.
pub(super) fn announced_bytes(bytes: &[u8], limits: &BatchLimits) -> Result<usize, BatchError> {
    let mut fields = Fields { rest: fixed_part(bytes)? };
    let _base_offset: [u8; 8] = fields.next();
    let length = i32::from_be_bytes(fields.next());
    let _leader_epoch: [u8; 4] = fields.next();
    let [magic] = fields.next();
    let bytes = check_format(magic, length)?;
    let limit = limits.batch_bytes_max;
    if bytes > limit { Err(BatchError::TooLarge { bytes, limit }) } else { Ok(bytes) }
}

fn fixed_part(bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], BatchError> {
    let actual = bytes.len();
    bytes.first_chunk().ok_or(BatchError::Truncated { needed: HEADER_BYTES, actual })
}

/// Checks format and length; answers the bytes of the whole batch.
fn check_format(magic: u8, length: i32) -> Result<usize, BatchError> {
    if magic != MAGIC {
        return Err(BatchError::Magic(magic.cast_signed()));
    }
    let bytes = usize::try_from(length).ok().and_then(|length| length.checked_add(LENGTH_COUNTS_FROM));
    match bytes {
        Some(bytes) if bytes >= HEADER_BYTES => Ok(bytes),
        _ => Err(BatchError::Length { length }),
    }
}

/// CRC-32C of a batch's bytes from the attributes on.
pub(super) fn covered_crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(CRC_COVERS_FROM..).unwrap_or_default())
}

/// Who sent a batch: the three fields of KIP-98's idempotent producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerFields {
    /// The producer.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
}

impl ProducerFields {
    /// No idempotent producer.
    pub const NONE: Self =
        Self { id: ProducerId::NONE, epoch: ProducerEpoch::new(-1), base_sequence: Sequence::new(-1) };

    /// Those of a batch.
    #[must_use]
    pub const fn of(header: &BatchHeader) -> Self {
        Self { id: header.producer_id, epoch: header.producer_epoch, base_sequence: header.base_sequence }
    }

    pub(super) const fn set(self, header: &mut BatchHeader) {
        header.producer_id = self.id;
        header.producer_epoch = self.epoch;
        header.base_sequence = self.base_sequence;
    }
}

/// The first [`FIXED_PREFIX_BYTES`] of a stored batch whose other bytes, [`RecordBatch::body`], stay as they came.
///
/// [`RecordBatch::body`]: super::RecordBatch::body
#[must_use]
pub fn stored_prefix(
    base_offset: Offset,
    batch_body_len: usize,
    epoch: LeaderEpoch,
) -> [u8; FIXED_PREFIX_BYTES] {
    // The leader epoch is counted by the length, and is in the prefix.
    let length = batch_body_len + FIXED_PREFIX_BYTES - LENGTH_COUNTS_FROM;
    debug_assert!(i32::try_from(length).is_ok());
    let mut prefix = [0; FIXED_PREFIX_BYTES];
    let mut bytes = Output { to: &mut prefix, at: 0 };
    bytes.put(base_offset.get().to_be_bytes());
    bytes.put((length as i32).to_be_bytes());
    bytes.put(epoch.get().to_be_bytes());
    prefix
}

struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.rest.split_first_chunk() else {
            debug_assert!(false, "the fields are more than the header");
            return [0; N];
        };
        self.rest = rest;
        *field
    }
}

struct Output<'a> {
    to: &'a mut [u8],
    at: usize,
}

impl Output<'_> {
    fn put<const N: usize>(&mut self, field: [u8; N]) {
        if let Some(to) = self.to.get_mut(self.at..).and_then(|rest| rest.first_chunk_mut()) {
            *to = field;
        }
        self.at += N;
    }
}
