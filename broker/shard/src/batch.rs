//! The head of a record batch as apply needs it. Checksum, lengths of records and their deltas were verified by who
//! proposed the batch, and the write-ahead log's checksum guards it since; apply only reads fixed fields, by rules that
//! no broker's configuration changes.
//!
//! ```text
//!  0  base offset i64      16  magic i8 (2)          27  base timestamp i64     51  producer epoch i16
//!  8  batch length i32     17  crc u32 of what       35  max timestamp i64      53  base sequence i32
//! 12  leader epoch i32         follows it            43  producer id i64        57  record count i32
//!                          21  attributes i16                                   61  records
//!                          23  last offset delta i32
//! ```
//! All big-endian (KIP-98). The first 16 bytes are the log's to set; the body behind them is stored as it came.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidemill_partition::{AppendRequest, ProducerBatch};
use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence, Timestamp};

/// Bytes before the records.
const HEADER_BYTES: usize = 61;
/// Bytes that the log sets.
pub(crate) const PREFIX_BYTES: usize = 16;
/// Bytes that the length field does not count.
const UNCOUNTED_BYTES: usize = 12;

/// Far above any topic's limit, and far below what lengths in the log's frames can say.
const BATCH_BYTES_MAX: usize = 1 << 30;

const LENGTH_AT: usize = 8;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;

const LOG_APPEND_TIME: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;

/// Why bytes can't be appended as a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum BatchFault {
    /// Shorter than a header, or its length field says something else.
    #[error("its length field does not agree with its {0} bytes")]
    Length(usize),
    /// Not the format of this log.
    #[error("its format (magic {0}) is not 2")]
    Magic(u8),
    /// It takes no offset.
    #[error("its last offset delta is negative")]
    Offsets,
    /// A producer id without epoch or sequence, or numbers below what is possible.
    #[error("its producer id, epoch and sequence do not fit together")]
    Producer,
    /// A later release's business.
    #[error("it is transactional or a control batch")]
    Transactional,
    /// Above the topic's limit.
    #[error(
        "it has {bytes} bytes, the topic allows {limit}; lower the client's batch size, or raise batch_bytes_max"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The topic's setting.
        limit: u32,
    },
}

/// The fixed fields of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) offset_count: u32,
    pub(crate) bytes: u32,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) producer: Option<ProducerBatch>,
}

impl BatchHead {
    pub(crate) fn parse(batch: &[u8]) -> Result<Self, BatchFault> {
        let length_fault = BatchFault::Length(batch.len());
        let bytes =
            u32::try_from(batch.len()).ok().filter(|_| batch.len() <= BATCH_BYTES_MAX).ok_or(length_fault)?;
        let (Some(header), Some(length)) = (batch.first_chunk::<HEADER_BYTES>(), field_i32(batch, LENGTH_AT))
        else {
            return Err(length_fault);
        };
        if usize::try_from(length).ok().and_then(|length| length.checked_add(UNCOUNTED_BYTES))
            != Some(batch.len())
        {
            return Err(length_fault);
        }
        if header[MAGIC_AT] != 2 {
            return Err(BatchFault::Magic(header[MAGIC_AT]));
        }
        let attributes = u16::from_be_bytes([header[ATTRIBUTES_AT], header[ATTRIBUTES_AT + 1]]);
        if attributes & (TRANSACTIONAL | CONTROL) != 0 {
            return Err(BatchFault::Transactional);
        }
        let last_offset_delta =
            field_i32(header, LAST_OFFSET_DELTA_AT).and_then(|delta| u32::try_from(delta).ok());
        let offset_count =
            last_offset_delta.and_then(|delta| delta.checked_add(1)).ok_or(BatchFault::Offsets)?;
        let id = field_i64(header, PRODUCER_ID_AT);
        let epoch = i16::from_be_bytes([header[PRODUCER_EPOCH_AT], header[PRODUCER_EPOCH_AT + 1]]);
        let base_sequence = field_i32(header, BASE_SEQUENCE_AT).unwrap_or(-1);
        let producer = match id {
            -1 => None,
            0.. if epoch >= 0 && base_sequence >= 0 => Some(ProducerBatch {
                id: ProducerId::new(id),
                epoch: ProducerEpoch::new(epoch),
                base_sequence: Sequence::new(base_sequence),
            }),
            _ => return Err(BatchFault::Producer),
        };
        let max_timestamp = Timestamp::new(field_i64(header, MAX_TIMESTAMP_AT));
        Ok(Self { offset_count, bytes, max_timestamp, producer })
    }

    /// As the partition sees it; `idempotent` where the batch's own sequence counts.
    pub(crate) fn request(&self, idempotent: bool) -> AppendRequest {
        AppendRequest {
            offset_count: self.offset_count,
            bytes: self.bytes,
            max_timestamp: self.max_timestamp,
            producer: self.producer.filter(|_| idempotent),
        }
    }
}

/// The body of a batch with the log's time in place of the producer's, and a checksum to match.
pub(crate) fn with_log_append_time(batch: &[u8], now: Timestamp) -> Bytes {
    let mut body = BytesMut::from(batch.get(PREFIX_BYTES..).unwrap_or_default());
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = body.get_mut(at - PREFIX_BYTES..at - PREFIX_BYTES + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    if let Some([high, low]) = batch.get(ATTRIBUTES_AT..ATTRIBUTES_AT + 2) {
        put(ATTRIBUTES_AT, &(u16::from_be_bytes([*high, *low]) | LOG_APPEND_TIME).to_be_bytes());
    }
    put(MAX_TIMESTAMP_AT, &now.get().to_be_bytes());
    let crc = crc32c::crc32c(body.get(ATTRIBUTES_AT - PREFIX_BYTES..).unwrap_or_default());
    if let Some(field) = body.get_mut(CRC_AT - PREFIX_BYTES..CRC_AT - PREFIX_BYTES + 4) {
        field.copy_from_slice(&crc.to_be_bytes());
    }
    body.freeze()
}

/// Bytes of the batch at the front of `bytes`, by its length field; `None` where that can't be.
pub(crate) fn first_batch_bytes(bytes: &[u8]) -> Option<usize> {
    let length = usize::try_from(field_i32(bytes, LENGTH_AT)?).ok()?.checked_add(UNCOUNTED_BYTES)?;
    (length >= HEADER_BYTES && length <= bytes.len()).then_some(length)
}

fn field_i32(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|field| i32::from_be_bytes(*field))
}

fn field_i64(header: &[u8; HEADER_BYTES], at: usize) -> i64 {
    header.get(at..).and_then(|rest| rest.first_chunk()).map_or(-1, |field| i64::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::batch;

    #[test]
    fn the_fixed_fields_are_read() {
        let bytes = batch(3).producer(7, 2, 40).timestamp(1234).build();
        let head = BatchHead::parse(&bytes).unwrap();
        assert_eq!(head.offset_count, 3);
        assert_eq!(head.max_timestamp, Timestamp::new(1234));
        assert_eq!(head.bytes as usize, bytes.len());
        let producer = head.producer.unwrap();
        assert_eq!((producer.id.get(), producer.epoch.get(), producer.base_sequence.get()), (7, 2, 40));
        assert_eq!(BatchHead::parse(&batch(1).build()).unwrap().producer, None);
        assert_eq!(head.request(false).producer, None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = batch(3).producer(7, 2, 40).build().to_vec();
        let broken = |at: usize, bytes: &[u8]| {
            let mut batch = good.clone();
            batch[at..at + bytes.len()].copy_from_slice(bytes);
            BatchHead::parse(&batch).unwrap_err()
        };
        assert_eq!(BatchHead::parse(&good[..60]), Err(BatchFault::Length(60)));
        assert_eq!(broken(LENGTH_AT, &(-1_i32).to_be_bytes()), BatchFault::Length(good.len()));
        assert_eq!(broken(MAGIC_AT, &[1]), BatchFault::Magic(1));
        assert_eq!(broken(ATTRIBUTES_AT, &[0, 0x10]), BatchFault::Transactional);
        assert_eq!(broken(ATTRIBUTES_AT, &[0, 0x20]), BatchFault::Transactional);
        assert_eq!(broken(LAST_OFFSET_DELTA_AT, &(-1_i32).to_be_bytes()), BatchFault::Offsets);
        assert_eq!(broken(PRODUCER_ID_AT, &(-2_i64).to_be_bytes()), BatchFault::Producer);
        assert_eq!(broken(PRODUCER_EPOCH_AT, &(-1_i16).to_be_bytes()), BatchFault::Producer);
        assert_eq!(broken(BASE_SEQUENCE_AT, &(-1_i32).to_be_bytes()), BatchFault::Producer);
    }

    #[test]
    fn the_logs_time_replaces_the_producers() {
        let original = batch(3).timestamp(5).build();
        let body = with_log_append_time(&original, Timestamp::new(99));
        let mut stamped = original[..PREFIX_BYTES].to_vec();
        stamped.extend_from_slice(&body);
        let head = BatchHead::parse(&stamped).unwrap();
        assert_eq!(head.max_timestamp, Timestamp::new(99));
        assert_eq!(stamped[ATTRIBUTES_AT + 1] & 8, 8);
        assert_eq!(stamped[CRC_AT..CRC_AT + 4], crc32c::crc32c(&stamped[ATTRIBUTES_AT..]).to_be_bytes());
        assert_eq!(stamped[HEADER_BYTES..], original[HEADER_BYTES..]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = BatchHead::parse(&bytes);
            let _ = first_batch_bytes(&bytes);
            let _ = with_log_append_time(&bytes, Timestamp::new(0));
        }
    }
}
