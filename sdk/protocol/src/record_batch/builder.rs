//! Makes record batches: records are encoded straight into one buffer, the checksum comes once at the end.

use bytes::{Bytes, BytesMut};

use super::varint::{OneVarint, RecordHead, VARINT_BYTES_MAX, encoded_len};
use super::{
    Attributes, BatchHeader, Compression, HEADER_BYTES, Header, HeadersView, ProducerFields, RecordBatch,
    TimestampType, compression,
};
use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

/// No batch is larger whatever the options say: its length is an i32, and some room is left.
const BATCH_BYTES_MOST: usize = 1 << 30;

/// Room behind a record, so that its small parts can be copied with constant lengths.
const SPARE_BYTES: usize = size_of::<RecordHead>();

/// How a [`BatchBuilder`] makes its batches.
#[derive(Debug, Clone)]
pub struct BuilderOptions {
    /// How the records are compressed, where that makes them smaller.
    pub compression: Compression,
    /// For gzip 0 to 9, for zstd its own levels; `None` is the format's default.
    pub compression_level: Option<i32>,
    /// What the records' timestamps count from; `None` is the first record's.
    pub base_timestamp: Option<Timestamp>,
    /// The batch's base offset.
    pub base_offset: Offset,
    /// The batch's leader epoch.
    pub leader_epoch: LeaderEpoch,
    /// Whether the batch is part of a transaction.
    pub transactional: bool,
    /// Whether the batch is a marker of the broker's own.
    pub control: bool,
    /// What a batch may measure, before compression.
    pub batch_bytes_max: usize,
}

impl Default for BuilderOptions {
    fn default() -> Self {
        Self {
            compression: Compression::None,
            compression_level: None,
            base_timestamp: None,
            base_offset: Offset::UNASSIGNED,
            leader_epoch: LeaderEpoch::new(-1),
            transactional: false,
            control: false,
            batch_bytes_max: BATCH_BYTES_MOST,
        }
    }
}

/// A record could not be added; the builder is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The batch would be over its limit: build it, then append again.
    #[error("the batch is full: with the record it would have {bytes} bytes, over the limit of {limit}")]
    Full {
        /// What it would measure.
        bytes: usize,
        /// `batch_bytes_max`.
        limit: usize,
    },
    /// Even alone in a batch the record would be over the limit.
    #[error(
        "the record is too large: alone in a batch it would have {bytes} bytes, over the limit of {limit}"
    )]
    RecordTooLarge {
        /// What a batch of it alone would measure.
        bytes: usize,
        /// `batch_bytes_max`.
        limit: usize,
    },
    /// An offset delta that was given is not above the one before it.
    #[error("the offset delta {delta} does not rise")]
    OffsetDelta {
        /// What was given.
        delta: u32,
    },
    /// The timestamp is too far from the base timestamp for their difference to be a number.
    #[error("the timestamp {0} is out of range")]
    Timestamp(Timestamp),
}

/// A batch could not be built; the builder is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no record in it.
    #[error("a batch needs at least one record")]
    Empty,
    /// The compression failed.
    #[error("{compression} can't compress the records: {source}")]
    Compress {
        /// Which.
        compression: Compression,
        /// Why.
        source: std::io::Error,
    },
}

/// Encodes records into batches, one after the other. Allocates per batch, not per record.
///
/// ```
/// use tidemill_protocol::{Timestamp, record_batch::*};
///
/// let mut builder = BatchBuilder::new(BuilderOptions { compression: Compression::Lz4, ..Default::default() });
/// builder.append(Timestamp::new(1_000), Some(b"user-7"), Some(b"{}"), [Header::new("trace", b"1f")])?;
/// builder.append(Timestamp::new(1_001), None, Some(b"{}"), [])?;
/// let batch = RecordBatch::decode(builder.build()?, &BatchLimits::default())?;
/// assert_eq!(batch.header().record_count, 2);
/// for record in &batch.records(&BatchLimits::default())? {
///     assert_eq!(record?.value, Some(&b"{}"[..]));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    options: BuilderOptions,
    /// Room for the header, then the records as they are before compression. Empty before the first record.
    buffer: BytesMut,
    /// What compression writes to.
    compressed: Vec<u8>,
    /// Bytes of the last batch: how much room to make for the next.
    last_bytes: usize,
    count: u32,
    /// The next record's offset delta, unless it is given.
    next_delta: u32,
    last_delta_least: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    append_time: Option<Timestamp>,
    producer: ProducerFields,
}

impl BatchBuilder {
    /// A builder with nothing in it.
    #[must_use]
    pub fn new(options: BuilderOptions) -> Self {
        Self {
            options,
            buffer: BytesMut::new(),
            compressed: Vec::new(),
            last_bytes: 0,
            count: 0,
            next_delta: 0,
            last_delta_least: 0,
            base_timestamp: 0,
            max_timestamp: i64::MIN,
            append_time: None,
            producer: ProducerFields::NONE,
        }
    }

    /// A builder for a batch that takes the place of another: same offsets, base timestamp, producer and flags. Give
    /// each record its offset delta ([`append_at`](Self::append_at)); those not given are gaps.
    #[must_use]
    pub fn replacing(header: &BatchHeader, compression: Compression) -> Self {
        let mut builder = Self::new(BuilderOptions {
            compression,
            base_timestamp: Some(header.base_timestamp),
            base_offset: header.base_offset,
            leader_epoch: header.leader_epoch,
            transactional: header.attributes.transactional,
            control: header.attributes.control,
            ..BuilderOptions::default()
        });
        builder.producer = ProducerFields::of(header);
        builder.last_delta_least = header.last_offset_delta.unsigned_abs();
        if header.attributes.timestamp_type == TimestampType::LogAppendTime {
            builder.append_time = Some(header.max_timestamp);
        }
        builder
    }

    /// Adds a record behind the others.
    #[inline]
    pub fn append<'h, H>(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
    ) -> Result<(), AppendError>
    where
        H: IntoIterator<Item = Header<'h>, IntoIter: ExactSizeIterator + Clone>,
    {
        self.put(self.next_delta, timestamp, key, value, &EncodeEach(headers.into_iter()))
    }

    /// Adds a record at an offset of its own, above the one before it.
    #[inline]
    pub fn append_at<'h, H>(
        &mut self,
        offset_delta: u32,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
    ) -> Result<(), AppendError>
    where
        H: IntoIterator<Item = Header<'h>, IntoIter: ExactSizeIterator + Clone>,
    {
        if offset_delta < self.next_delta || i32::try_from(offset_delta).is_err() {
            return Err(AppendError::OffsetDelta { delta: offset_delta });
        }
        self.put(offset_delta, timestamp, key, value, &EncodeEach(headers.into_iter()))
    }

    /// As [`append`](Self::append), with headers that are encoded already.
    #[inline]
    pub fn append_encoded(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: HeadersView<'_>,
    ) -> Result<(), AppendError> {
        self.put(self.next_delta, timestamp, key, value, &headers)
    }

    /// As [`append_at`](Self::append_at), with headers that are encoded already.
    #[inline]
    pub fn append_encoded_at(
        &mut self,
        offset_delta: u32,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: HeadersView<'_>,
    ) -> Result<(), AppendError> {
        if offset_delta < self.next_delta || i32::try_from(offset_delta).is_err() {
            return Err(AppendError::OffsetDelta { delta: offset_delta });
        }
        self.put(offset_delta, timestamp, key, value, &headers)
    }

    #[inline]
    fn put(
        &mut self,
        delta: u32,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &impl EncodeHeaders,
    ) -> Result<(), AppendError> {
        let time = timestamp.get();
        let base = if self.count == 0 {
            self.options.base_timestamp.map_or(time, Timestamp::get)
        } else {
            self.base_timestamp
        };
        let timestamp_delta = time.checked_sub(base).ok_or(AppendError::Timestamp(timestamp))?;

        let key_bytes = key.unwrap_or_default();
        let value_bytes = value.unwrap_or_default();
        // Lengths of slices are at most isize::MAX; sums of three are checked below by the limit.
        let key_length = key.map_or(-1, |key| key.len() as i64);
        let value_length = value.map_or(-1, |value| value.len() as i64);
        let fixed = 1
            + encoded_len(timestamp_delta)
            + encoded_len(i64::from(delta))
            + encoded_len(key_length)
            + encoded_len(value_length);
        let payload = key_bytes.len().saturating_add(value_bytes.len()).saturating_add(headers.encoded_len());
        let length = payload.saturating_add(fixed);
        let with_length = length.saturating_add(VARINT_BYTES_MAX);
        let limit = self.options.batch_bytes_max.min(BATCH_BYTES_MOST);
        let bytes = self.buffer.len().max(HEADER_BYTES).saturating_add(with_length);
        if bytes > limit || self.count == i32::MAX.cast_unsigned() {
            return Err(self.too_large(bytes, with_length, limit));
        }

        if self.count == 0 {
            self.start(base, with_length);
        }
        self.buffer.reserve(with_length + SPARE_BYTES);
        let mut scratch = RecordHead::new();
        scratch.varint(length as i64);
        scratch.byte(0);
        scratch.varint(timestamp_delta);
        scratch.varint(i64::from(delta));
        scratch.varint(key_length);
        scratch.append_to(&mut self.buffer);
        self.buffer.extend_from_slice(key_bytes);
        let mut scratch = OneVarint::new();
        scratch.varint(value_length);
        scratch.append_to(&mut self.buffer);
        self.buffer.extend_from_slice(value_bytes);
        headers.encode(&mut self.buffer);

        self.count += 1;
        self.next_delta = delta + 1;
        self.max_timestamp = self.max_timestamp.max(time);
        Ok(())
    }

    #[cold]
    fn too_large(&self, bytes: usize, record: usize, limit: usize) -> AppendError {
        let alone = record.saturating_add(HEADER_BYTES);
        if alone > limit {
            AppendError::RecordTooLarge { bytes: alone, limit }
        } else {
            AppendError::Full { bytes, limit }
        }
    }

    /// Makes room: for as much as the last batch took, and an eighth more.
    #[cold]
    fn start(&mut self, base_timestamp: i64, record: usize) {
        self.base_timestamp = base_timestamp;
        let room = (self.last_bytes + self.last_bytes / 8).max(HEADER_BYTES + record) + SPARE_BYTES;
        self.buffer.clear();
        self.buffer.reserve(room);
        self.buffer.resize(HEADER_BYTES, 0);
    }

    /// Who sends the batch that is being built, and with which sequence it begins.
    pub const fn set_producer(&mut self, id: ProducerId, epoch: ProducerEpoch, base_sequence: Sequence) {
        self.producer = ProducerFields { id, epoch, base_sequence };
    }

    /// Records so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no record yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch as it stands, before compression: no less than what it will have.
    #[must_use]
    pub fn size_estimate(&self) -> usize {
        self.buffer.len().max(HEADER_BYTES)
    }

    /// Ends the batch and begins the next, without a producer.
    pub fn build(&mut self) -> Result<Bytes, BuildError> {
        self.build_batch().map(RecordBatch::into_bytes)
    }

    /// As [`build`](Self::build), with the header as it was written.
    pub fn build_batch(&mut self) -> Result<RecordBatch, BuildError> {
        if self.count == 0 {
            return Err(BuildError::Empty);
        }
        let compression = self.compress()?;
        let mut header = self.header(compression);
        self.last_bytes = self.buffer.len();
        let bytes = if compression == Compression::None {
            header.seal(&mut self.buffer);
            self.buffer.split().freeze()
        } else {
            header.seal(&mut self.compressed);
            // To its exact size; both buffers stay for the next batch.
            Bytes::copy_from_slice(&self.compressed)
        };
        self.clear();
        Ok(RecordBatch::made(bytes, header))
    }

    /// Forgets the records, and the producer.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.count = 0;
        self.next_delta = 0;
        self.last_delta_least = 0;
        self.max_timestamp = i64::MIN;
        self.producer = ProducerFields::NONE;
    }

    /// Fills `compressed`; answers `None` where that is no smaller than the records are.
    fn compress(&mut self) -> Result<Compression, BuildError> {
        let compression = self.options.compression;
        if compression == Compression::None {
            return Ok(compression);
        }
        let (placeholder, records) = self.buffer.split_at_checked(HEADER_BYTES).unwrap_or_default();
        self.compressed.clear();
        self.compressed.extend_from_slice(placeholder);
        compression::compress(compression, self.options.compression_level, records, &mut self.compressed)
            .map_err(|source| BuildError::Compress { compression, source })?;
        Ok(if self.compressed.len() < self.buffer.len() { compression } else { Compression::None })
    }

    fn header(&self, compression: Compression) -> BatchHeader {
        let last_delta = (self.next_delta.saturating_sub(1)).max(self.last_delta_least);
        BatchHeader {
            base_offset: self.options.base_offset,
            batch_length: 0,
            leader_epoch: self.options.leader_epoch,
            crc: 0,
            attributes: Attributes {
                compression,
                timestamp_type: match self.append_time {
                    None => TimestampType::CreateTime,
                    Some(_) => TimestampType::LogAppendTime,
                },
                transactional: self.options.transactional,
                control: self.options.control,
            },
            last_offset_delta: last_delta.cast_signed(),
            base_timestamp: Timestamp::new(self.base_timestamp),
            max_timestamp: self.append_time.unwrap_or(Timestamp::new(self.max_timestamp)),
            producer_id: self.producer.id,
            producer_epoch: self.producer.epoch,
            base_sequence: self.producer.base_sequence,
            record_count: self.count.cast_signed(),
        }
    }
}

/// Headers, from wherever they are.
trait EncodeHeaders {
    fn encoded_len(&self) -> usize;
    fn encode(&self, to: &mut BytesMut);
}

impl EncodeHeaders for HeadersView<'_> {
    #[inline]
    fn encoded_len(&self) -> usize {
        self.as_bytes().len()
    }

    #[inline]
    fn encode(&self, to: &mut BytesMut) {
        to.extend_from_slice(self.as_bytes());
    }
}

struct EncodeEach<I>(I);

impl<'h, I: Iterator<Item = Header<'h>> + ExactSizeIterator + Clone> EncodeHeaders for EncodeEach<I> {
    #[inline]
    fn encoded_len(&self) -> usize {
        let count = self.0.len();
        if count == 0 {
            return 1;
        }
        self.0.clone().fold(encoded_len(count as i64), |sum, header| {
            let value = header.value.map_or(0, <[u8]>::len);
            let lengths = encoded_len(header.key.len() as i64) + encoded_len(nullable_len(header.value));
            sum.saturating_add(header.key.len()).saturating_add(value).saturating_add(lengths)
        })
    }

    #[inline]
    fn encode(&self, to: &mut BytesMut) {
        let count = self.0.len();
        if count == 0 {
            to.extend_from_slice(&[0]);
            return;
        }
        let mut scratch = OneVarint::new();
        scratch.varint(count as i64);
        scratch.append_to(to);
        for header in self.0.clone() {
            let mut scratch = OneVarint::new();
            scratch.varint(header.key.len() as i64);
            scratch.append_to(to);
            to.extend_from_slice(header.key.as_bytes());
            let mut scratch = OneVarint::new();
            scratch.varint(nullable_len(header.value));
            scratch.append_to(to);
            to.extend_from_slice(header.value.unwrap_or_default());
        }
    }
}

fn nullable_len(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}
