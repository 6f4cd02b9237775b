use bytes::Bytes;
use tidemill_protocol::record_batch::{HEADER_BYTES, ProducerFields, RecordBatch};

use super::crc_shift;

/// Where the checksum stands, and from where on it counts.
const CRC_AT: usize = 17;
const COVERED_FROM: usize = 21;
/// Producer id, epoch and base sequence.
const PRODUCER_AT: usize = 43;

/// A batch as it goes out: a header of its own before records that stay where they are.
#[derive(Debug, Clone)]
pub(super) struct StampedBatch {
    pub(super) head: Bytes,
    pub(super) records: Bytes,
}

impl StampedBatch {
    /// `batch` from `producer`. Copies only the header and does not look at the records: the checksum of the whole
    /// is the old one, less the old header's share and plus the new one's (CRC is linear).
    pub(super) fn new(batch: &RecordBatch, producer: ProducerFields) -> Self {
        let bytes = batch.bytes();
        let mut head = bytes[..HEADER_BYTES].to_vec();
        let records = bytes.slice(HEADER_BYTES..);
        let before = crc32c::crc32c(&head[COVERED_FROM..]);
        head[PRODUCER_AT..PRODUCER_AT + 8].copy_from_slice(&producer.id.get().to_be_bytes());
        head[PRODUCER_AT + 8..PRODUCER_AT + 10].copy_from_slice(&producer.epoch.get().to_be_bytes());
        head[PRODUCER_AT + 10..PRODUCER_AT + 14].copy_from_slice(&producer.base_sequence.get().to_be_bytes());
        let after = crc32c::crc32c(&head[COVERED_FROM..]);
        let crc = batch.header().crc ^ crc_shift::past(before ^ after, records.len());
        head[CRC_AT..COVERED_FROM].copy_from_slice(&crc.to_be_bytes());
        Self { head: head.into(), records }
    }

    pub(super) fn len(&self) -> usize {
        self.head.len() + self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tidemill_protocol::record_batch::{BatchBuilder, BatchLimits, BuilderOptions};
    use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence, Timestamp};

    use super::*;

    #[test]
    fn a_stamped_batch_is_as_if_built_so() {
        for length in [0, 1, 100, 70_000] {
            let mut builder = BatchBuilder::new(BuilderOptions::default());
            let value = vec![7; length];
            builder.append(Timestamp::new(5), Some(b"key"), Some(&value), []).expect("room");
            let batch = builder.build_batch().expect("one record");
            let fields = ProducerFields {
                id: ProducerId::new(0x0102_0304_0506_0708),
                epoch: ProducerEpoch::new(9),
                base_sequence: Sequence::new(77),
            };
            let stamped = StampedBatch::new(&batch, fields);
            let mut joined = BytesMut::from(&*stamped.head);
            joined.extend_from_slice(&stamped.records);
            // Checks the checksum too.
            let decoded = RecordBatch::decode(joined.freeze(), &BatchLimits::default()).expect("valid");
            assert_eq!(decoded, batch.with_producer(fields));
        }
    }
}
