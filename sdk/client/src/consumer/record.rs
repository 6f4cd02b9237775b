use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::record_batch::{BatchLimits, HeadersView, RecordBatch};
use tidemill_protocol::{Offset, PartitionId, Timestamp, TopicPartition};

use super::ConsumeError;
use super::state::Stay;

/// What a broker's batches may measure here: as much as one frame, and no more memory than this when decompressed.
pub(super) const BATCH_LIMITS: BatchLimits = BatchLimits {
    batch_bytes_max: 64 << 20,
    record_bytes_max: 64 << 20,
    decompressed_bytes_max: 256 << 20,
    records_max: 16 << 20,
    allow_gaps: true,
};

/// A record that was read. Key, value and headers are slices of the batch that they came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// Its topic's name.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset there.
    pub offset: Offset,
    /// The producer's time, or the broker's where the topic has it so.
    pub timestamp: Timestamp,
    /// Null and empty differ.
    pub key: Option<Bytes>,
    /// Null and empty differ.
    pub value: Option<Bytes>,
    /// Its headers, encoded.
    headers: Bytes,
}

impl ConsumerRecord {
    /// The headers, in order.
    #[must_use]
    pub fn headers(&self) -> HeadersView<'_> {
        // Checked when the record was read.
        HeadersView::parse(&self.headers).unwrap_or(HeadersView::EMPTY)
    }
}

/// Whole record batches of one partition, as the broker sent them: checksums verified, records not looked at.
#[derive(Debug, Clone)]
pub struct FetchedBatch {
    /// The topic's name.
    pub topic: Arc<str>,
    /// Of which partition.
    pub partition: TopicPartition,
    /// Records from here on belong to it; the first batch may begin earlier.
    pub from: Offset,
    /// Records from here on do not belong to it; the last batch may end later.
    pub until: Offset,
    /// Where the partition ended when the broker sent this.
    pub high_watermark: Offset,
    pub(super) batches: Vec<RecordBatch>,
    pub(super) bytes: usize,
    pub(super) incarnation: u64,
    pub(super) generation: u64,
    pub(super) next: Offset,
}

impl FetchedBatch {
    pub(super) const fn stay(&self) -> Stay {
        Stay { partition: self.partition, incarnation: self.incarnation, generation: self.generation }
    }

    /// The batches. Mind [`from`](Self::from) and [`until`](Self::until).
    #[must_use]
    pub fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// Bytes of all batches as they came.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The records, decompressed.
    ///
    /// # Errors
    /// A batch whose checksum fits and whose records do not.
    pub fn records(&self) -> Result<Vec<ConsumerRecord>, ConsumeError> {
        let counts = self.batches.iter().map(|batch| batch.header().record_count());
        // What a header claims is believed only as far as the bytes could hold.
        let room = counts.fold(0_usize, |sum, count| sum.saturating_add(count as usize)).min(self.bytes);
        let mut records = Vec::with_capacity(room);
        for batch in &self.batches {
            self.decode_into(batch, &mut records).map_err(|error| ConsumeError::Corrupt {
                partition: self.partition,
                offset: batch.header().base_offset,
                reason: error.to_string(),
            })?;
        }
        Ok(records)
    }

    fn decode_into(
        &self,
        batch: &RecordBatch,
        into: &mut Vec<ConsumerRecord>,
    ) -> Result<(), tidemill_protocol::record_batch::BatchError> {
        // A transaction's marker is for the broker.
        if batch.header().attributes.control {
            return Ok(());
        }
        let records = batch.records(&BATCH_LIMITS)?;
        for record in &records {
            let record = record?;
            if record.offset < self.from || record.offset >= self.until {
                continue;
            }
            let headers = match record.headers.len() {
                0 => Bytes::new(),
                _ => records.slice_of(record.headers.as_bytes()),
            };
            into.push(ConsumerRecord {
                topic: Arc::clone(&self.topic),
                partition: self.partition.partition,
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key.map(|key| records.slice_of(key)),
                value: record.value.map(|value| records.slice_of(value)),
                headers,
            });
        }
        Ok(())
    }
}
