//! Kafka's record batch, format 2 (KIP-98), byte for byte: what producers send, the log stores and consumers get.
//!
//! ```text
//!   0        8       12       16  17      21          23            27
//!  +--------+--------+--------+---+-------+-----------+-------------+---------------+
//!  | base   | length | leader | 2 | CRC   | attri-    | last offset | base          |
//!  | offset |        | epoch  |   | -32C  | butes     | delta       | timestamp     |
//!  |   i64  |   i32  |   i32  |i8 |  u32  |   u16     |     i32     |     i64       |
//!  +--------+--------+--------+---+-------+-----------+-------------+---------------+
//!   35              43            51         53              57             61
//!  +---------------+-------------+----------+---------------+--------------+---------
//!  | max timestamp | producer id | producer | base sequence | record count | records
//!  |      i64      |     i64     | epoch i16|      i32      |     i32      |  ...
//!  +---------------+-------------+----------+---------------+--------------+---------
//!
//!  attributes   bits 0-2 compression, 3 log append time, 4 transactional, 5 control, the others 0
//!  length       counts what follows it;  CRC covers what follows it, from the attributes on
//! ```
//!
//! All big-endian. Base offset and leader epoch stand before the CRC's range: a broker sets them without touching
//! the rest. The records section is compressed as a whole. Inside it, each record (numbers are zigzag varints):
//!
//! ```text
//!  +--------+------------+-----------+--------+---------+-----+-------+---------+
//!  | length | attributes | timestamp | offset | key     | key | value | value   |
//!  | of the | i8 = 0     | delta     | delta  | length  |     | length|         |
//!  | rest   |            |           |        | -1 null |     | -1 nul|         |
//!  +--------+------------+-----------+--------+---------+-----+-------+---------+
//!  | header | key length | key UTF-8 | value length | value |   ... per header
//!  | count  |            |           | -1 null      |       |
//!  +--------+------------+-----------+--------------+-------+
//! ```
//!
//! [`RecordBatch::decode`] checks the whole without walking the records; [`RecordBatch::validate_records`] walks
//! them; [`BatchBuilder`] makes batches; [`Records::filter`] and [`Records::split`] make batches of batches.

use bytes::{Buf, Bytes, BytesMut};

use crate::{LeaderEpoch, Offset, Timestamp};

mod builder;
mod compression;
mod error;
mod framing;
mod header;
mod limits;
mod record;
mod reshape;
mod varint;

pub use builder::{AppendError, BatchBuilder, BuildError, BuilderOptions};
pub use error::{BatchError, RecordProblem};
pub use header::{
    Attributes, BatchHeader, Compression, ProducerFields, TimestampType, UnknownCompressionName,
    stored_prefix,
};
pub use limits::BatchLimits;
pub use record::{Header, HeaderIter, HeadersView, RecordIter, RecordMark, RecordView, Records};
pub use reshape::ReshapeError;

/// Bytes before the records.
pub const HEADER_BYTES: usize = 61;
/// Base offset 8, length 4, leader epoch 4: what stands before the CRC's range, and what the log writes itself.
pub const FIXED_PREFIX_BYTES: usize = 16;

/// A whole batch, its lengths and checksum verified. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
    header: BatchHeader,
}

impl RecordBatch {
    /// Exactly one batch: its format, lengths, checksum, attributes and counts. Does not look at the records.
    pub fn decode(bytes: Bytes, limits: &BatchLimits) -> Result<Self, BatchError> {
        let length = measure(&bytes, limits)?;
        if length < bytes.len() {
            return Err(BatchError::TrailingBytes { bytes: bytes.len() - length });
        }
        Self::verified(bytes, limits)
    }

    /// The first of several batches that stand one after the other, cut off the front of `bytes`; `None` at their
    /// end. After an error `bytes` is as it was.
    pub fn split_first(bytes: &mut Bytes, limits: &BatchLimits) -> Result<Option<Self>, BatchError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let length = measure(bytes, limits)?;
        let batch = Self::verified(bytes.slice(..length), limits)?;
        bytes.advance(length);
        Ok(Some(batch))
    }

    /// Exactly one batch whose bytes something else vouches for (a log's own checksum, this process): as
    /// [`decode`](Self::decode) without the checksum.
    pub fn decode_trusted(bytes: Bytes, limits: &BatchLimits) -> Result<Self, BatchError> {
        let length = measure(&bytes, limits)?;
        if length < bytes.len() {
            return Err(BatchError::TrailingBytes { bytes: bytes.len() - length });
        }
        let header = BatchHeader::parse(&bytes, limits)?;
        Ok(Self { bytes, header })
    }

    fn verified(bytes: Bytes, limits: &BatchLimits) -> Result<Self, BatchError> {
        // Before anything that the checksum covers is believed.
        let stored =
            bytes.get(17..).and_then(|rest| rest.first_chunk()).map_or(0, |crc| u32::from_be_bytes(*crc));
        let computed = header::covered_crc(&bytes);
        if stored != computed {
            return Err(BatchError::Checksum { stored, computed });
        }
        let header = BatchHeader::parse(&bytes, limits)?;
        Ok(Self { bytes, header })
    }

    /// A batch that this crate just made: the header is sealed.
    fn made(bytes: Bytes, header: BatchHeader) -> Self {
        debug_assert_eq!(header.batch_bytes(), bytes.len());
        Self { bytes, header }
    }

    /// The fixed part.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole batch.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The bytes behind the first [`FIXED_PREFIX_BYTES`]: what a log stores untouched, with a [`stored_prefix`] of
    /// its own before them.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.bytes.slice(FIXED_PREFIX_BYTES..)
    }

    /// Walks every record: lengths, offsets rising (without gaps unless the limits allow them), timestamps, headers,
    /// nothing left over. Allocates nothing but what decompression takes.
    pub fn validate_records(&self, limits: &BatchLimits) -> Result<(), BatchError> {
        self.records(limits)?.validate()
    }

    /// How many bytes the records have decompressed, at the most, as far as their framing says so: `None` where nothing but
    /// decompressing tells, as with gzip and zstd of unknown size. Decompresses nothing.
    #[must_use]
    pub fn decompressed_bytes_at_most(&self) -> Option<usize> {
        let section = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        let most = framing::Framing::of(self.header.attributes.compression, section).at_most?;
        Some(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// The records section, decompressed: a slice of the batch where there is no compression.
    pub fn decompressed(&self, limits: &BatchLimits) -> Result<Bytes, BatchError> {
        let section = self.bytes.slice(HEADER_BYTES..);
        compression::decompress(self.header.attributes.compression, &section, limits.decompressed_bytes_max)
    }

    /// The records, decompressed and not yet checked: iterate, or [`validate`](Records::validate) first.
    pub fn records(&self, limits: &BatchLimits) -> Result<Records, BatchError> {
        Ok(Records::new(self.clone(), self.decompressed(limits)?, limits))
    }

    /// The same batch at its place in a partition. Copies the batch only where its bytes are shared.
    #[must_use]
    pub fn placed_at(self, base_offset: Offset, epoch: LeaderEpoch) -> Self {
        let mut header = self.header;
        header.base_offset = base_offset;
        header.leader_epoch = epoch;
        self.rewrite(header, false)
    }

    /// The same batch with the broker's time instead of the producer's. Computes a new checksum.
    #[must_use]
    pub fn with_log_append_time(self, at: Timestamp) -> Self {
        let mut header = self.header;
        header.attributes.timestamp_type = TimestampType::LogAppendTime;
        header.max_timestamp = at;
        self.rewrite(header, true)
    }

    /// The same batch from another producer, or from none. Computes a new checksum.
    #[must_use]
    pub fn with_producer(self, producer: ProducerFields) -> Self {
        let mut header = self.header;
        producer.set(&mut header);
        self.rewrite(header, true)
    }

    fn rewrite(self, mut header: BatchHeader, covered_by_crc: bool) -> Self {
        let mut bytes = self.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
        if covered_by_crc {
            header.seal(&mut bytes);
        } else if let Some(fixed) = bytes.first_chunk_mut() {
            header.write(fixed);
        }
        Self::made(bytes.freeze(), header)
    }
}

/// Bytes of the batch at the start of `bytes`, all of which are there.
fn measure(bytes: &[u8], limits: &BatchLimits) -> Result<usize, BatchError> {
    let needed = header::announced_bytes(bytes, limits)?;
    let actual = bytes.len();
    if needed > actual { Err(BatchError::Truncated { needed, actual }) } else { Ok(needed) }
}

#[cfg(test)]
mod tests;
