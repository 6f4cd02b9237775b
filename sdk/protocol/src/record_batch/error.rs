//! What can be wrong with a record batch.

use super::Compression;
use crate::ErrorCode;

/// A record batch that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than a batch's header has, or than its length says.
    #[error("a record batch is cut off: {needed} bytes are needed, {actual} are there")]
    Truncated {
        /// Bytes that the batch has by its own length, or its header's.
        needed: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// More bytes than the batch's length says.
    #[error("{bytes} bytes follow the record batch where nothing may")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// The length field is less than a header's.
    #[error("the length of a record batch is {length}, less than that of an empty one")]
    Length {
        /// The field.
        length: i32,
    },
    /// Larger than the limit.
    #[error("a record batch of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes of the batch, as announced.
        bytes: usize,
        /// `batch_bytes_max`.
        limit: usize,
    },
    /// Another format than 2.
    #[error("record batch format {0} is not supported; send format (magic) 2")]
    Magic(i8),
    /// The bytes are not those that were sent.
    #[error("the checksum of a record batch is {stored:08x}, its bytes have {computed:08x}")]
    Checksum {
        /// What the batch says.
        stored: u32,
        /// What its bytes have.
        computed: u32,
    },
    /// A compression that does not exist.
    #[error("compression {0} is not known; use none, gzip, snappy, lz4 or zstd")]
    UnknownCompression(u8),
    /// Attribute bits that have no meaning here.
    #[error("a record batch has reserved attribute bits set: {0:#06x}")]
    ReservedAttributes(u16),
    /// Count and last offset delta contradict each other.
    #[error("a record batch of {count} records can't have the last offset delta {last_offset_delta}")]
    Count {
        /// `record_count`.
        count: i32,
        /// `last_offset_delta`.
        last_offset_delta: i32,
    },
    /// More records than the limit.
    #[error("a record batch of {count} records is over the limit of {limit}")]
    TooManyRecords {
        /// `record_count`.
        count: u32,
        /// `records_max`.
        limit: u32,
    },
    /// The base offset is below -1, or the last offset would be over the largest.
    #[error("the base offset {0} of a record batch is out of range")]
    BaseOffset(i64),
    /// The compressed bytes are not what they should be.
    #[error("{compression} can't decompress the records: {reason}")]
    Decompress {
        /// The batch's compression.
        compression: Compression,
        /// What its decoder says.
        reason: String,
    },
    /// The records would take more memory than the limit; found before they did.
    #[error("the records of a batch decompress to more than the limit of {limit} bytes")]
    DecompressedTooLarge {
        /// `decompressed_bytes_max`.
        limit: usize,
    },
    /// A record is larger than the limit.
    #[error("record {ordinal} of the batch has {bytes} bytes, over the limit of {limit}")]
    RecordTooLarge {
        /// Number of the record in its batch, from 0.
        ordinal: u32,
        /// Its bytes.
        bytes: usize,
        /// `record_bytes_max`.
        limit: usize,
    },
    /// A record is not as it should be.
    #[error("record {ordinal} of the batch is malformed: {problem}")]
    Record {
        /// Number of the record in its batch, from 0.
        ordinal: u32,
        /// What is wrong.
        problem: RecordProblem,
    },
    /// Bytes are left behind the last record.
    #[error("{bytes} bytes follow the last record of the batch")]
    BytesAfterRecords {
        /// How many.
        bytes: usize,
    },
    /// The header's largest timestamp is not that of the records.
    #[error("the largest timestamp of a record batch is given as {stored}, its records have {actual}")]
    MaxTimestamp {
        /// What the header says.
        stored: i64,
        /// What the records have.
        actual: i64,
    },
}

/// What is wrong with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// Its length is missing, negative or reaches behind the batch.
    #[error("its length is wrong")]
    Length,
    /// A field is cut off by the record's length, or a number in it is too long.
    #[error("a field does not fit into it")]
    Field,
    /// Its attributes are not 0.
    #[error("its attributes are {0:#04x}, and none exist")]
    Attributes(u8),
    /// Its offset does not rise by one, or is behind the last of the batch.
    #[error("its offset delta is {0}, out of order")]
    OffsetDelta(i32),
    /// Its timestamp is beyond what a number holds.
    #[error("its timestamp is out of range")]
    Timestamp,
    /// A header is cut off, has no key, or the key is not UTF-8.
    #[error("its headers are malformed")]
    Headers,
    /// Bytes are left behind its last field.
    #[error("bytes follow its last field")]
    TrailingBytes,
}

impl BatchError {
    /// The code that the sender of such a batch gets.
    #[must_use]
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::Length { .. }
            | Self::Checksum { .. } => ErrorCode::CorruptBatch,
            Self::TooLarge { .. } | Self::TooManyRecords { .. } | Self::DecompressedTooLarge { .. } => {
                ErrorCode::BatchTooLarge
            }
            Self::RecordTooLarge { .. } => ErrorCode::RecordTooLarge,
            Self::UnknownCompression(_) => ErrorCode::UnsupportedCompression,
            Self::Magic(_)
            | Self::ReservedAttributes(_)
            | Self::Count { .. }
            | Self::BaseOffset(_)
            | Self::Decompress { .. }
            | Self::Record { .. }
            | Self::BytesAfterRecords { .. }
            | Self::MaxTimestamp { .. } => ErrorCode::InvalidBatch,
        }
    }
}
