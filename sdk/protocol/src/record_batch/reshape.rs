//! Batches made of batches: some of the records (a filter), or each record to its partition (a partitioner).
//!
//! Records are copied as they are encoded. Both are linear in the bytes, and allocate per batch made.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::varint::{OneVarint, Reader, encoded_len};
use super::{
    BatchError, BatchHeader, Compression, HEADER_BYTES, ProducerFields, RecordBatch, RecordProblem, Records,
    TimestampType, compression,
};
use crate::{LeaderEpoch, Offset, PartitionId, Timestamp};

/// A batch could not be made of another.
#[derive(Debug, thiserror::Error)]
pub enum ReshapeError {
    /// The batch itself is malformed.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The bitmap has not one bit for each record, rounded up to whole bytes.
    #[error("a bitmap for {records} records has {expected} bytes, not {actual}")]
    Bitmap {
        /// Records in the batch.
        records: usize,
        /// Bytes that it must have.
        expected: usize,
        /// Bytes that it has.
        actual: usize,
    },
    /// The list of partitions has not one number for each record.
    #[error("{actual} partition numbers for {records} records")]
    Placements {
        /// Records in the batch.
        records: usize,
        /// Numbers given.
        actual: usize,
    },
    /// A partition number is not below the topic's partition count.
    #[error("record {ordinal} is placed in partition {partition}, and there are {count}")]
    Partition {
        /// The record.
        ordinal: usize,
        /// Its partition number.
        partition: u32,
        /// Partitions of the topic.
        count: u32,
    },
    /// The compression failed.
    #[error("{compression} can't compress the records: {source}")]
    Compress {
        /// Which.
        compression: Compression,
        /// Why.
        source: std::io::Error,
    },
}

impl Records {
    /// The batch with only those records whose bit is set (record `i` is bit `i % 8` of byte `i / 8`); `None` where
    /// none is. Offsets, timestamps, producer and flags stay; so does the last offset delta, so that a reader knows
    /// how far the batch reaches. Where nothing was removed and the compression is the same, it is the same batch.
    pub fn filter(&self, kept: &[u8], compression: Compression) -> Result<Option<RecordBatch>, ReshapeError> {
        let (records, actual) = (self.len(), kept.len());
        let expected = records.div_ceil(8);
        if actual != expected {
            return Err(ReshapeError::Bitmap { records, expected, actual });
        }
        let mut runs: Vec<Range<usize>> = Vec::new();
        let (mut count, mut bytes) = (0_usize, 0);
        let mut walk = Walk::new(self);
        for byte in kept {
            for bit in 0..8_u32.min((records as u32).saturating_sub(walk.ordinal)) {
                let record = walk.next()?;
                if byte >> bit & 1 == 0 {
                    continue;
                }
                count += 1;
                bytes += record.len();
                match runs.last_mut() {
                    Some(run) if run.end == record.start => run.end = record.end,
                    _ => runs.push(record),
                }
            }
        }
        walk.finish()?;
        let header = self.header();
        if count == 0 {
            return Ok(None);
        }
        if count == records && compression == header.attributes.compression {
            return Ok(Some(self.batch().clone()));
        }
        let mut batch = BytesMut::with_capacity(HEADER_BYTES + bytes);
        batch.resize(HEADER_BYTES, 0);
        for run in runs {
            batch.extend_from_slice(self.data().get(run).unwrap_or_default());
        }
        // At most as many as there were.
        let header = BatchHeader { record_count: count as i32, ..*header };
        seal(batch, header, compression).map(Some)
    }

    /// The same batch in another compression; uncompressed where that is no larger.
    pub fn recompressed(&self, compression: Compression) -> Result<RecordBatch, ReshapeError> {
        if compression == self.header().attributes.compression {
            return Ok(self.batch().clone());
        }
        let mut batch = BytesMut::with_capacity(HEADER_BYTES + self.data().len());
        batch.resize(HEADER_BYTES, 0);
        batch.extend_from_slice(self.data());
        seal(batch, *self.header(), compression)
    }

    /// The records of each partition as a batch of their own, by rising partition number; partitions without a
    /// record are left out. `partitions` has the number of each record, all below `partition_count`. Offsets begin
    /// at 0 and have no gaps; timestamps and flags stay; `producer` says, for a partition and its number of records,
    /// who sends them.
    pub fn split(
        &self,
        partitions: &[u32],
        partition_count: u32,
        compression: Compression,
        mut producer: impl FnMut(PartitionId, u32) -> ProducerFields,
    ) -> Result<Vec<(PartitionId, RecordBatch)>, ReshapeError> {
        let mut parts = self.measure_parts(partitions, partition_count)?;
        for part in &mut parts.list {
            part.batch.reserve(HEADER_BYTES + part.bytes + size_of::<OneVarint>());
            part.batch.resize(HEADER_BYTES, 0);
        }
        let mut walk = Walk::new(self);
        for partition in partitions {
            let ordinal = walk.ordinal;
            let record = walk.next()?;
            let bytes = self.data().get(record).unwrap_or_default();
            if let Some(part) = parts.of(*partition) {
                part.push(bytes).map_err(|problem| BatchError::Record { ordinal, problem })?;
            }
        }
        parts.list.sort_unstable_by_key(|part| part.partition);
        let header = self.header();
        let batches = parts.list.into_iter().map(|part| {
            let partition = PartitionId::new(part.partition);
            let mut header = BatchHeader {
                base_offset: Offset::UNASSIGNED,
                leader_epoch: LeaderEpoch::new(-1),
                last_offset_delta: part.count.cast_signed() - 1,
                record_count: part.count.cast_signed(),
                max_timestamp: match header.attributes.timestamp_type {
                    TimestampType::CreateTime => {
                        Timestamp::new(header.base_timestamp.get().saturating_add(part.timestamp_delta_max))
                    }
                    TimestampType::LogAppendTime => header.max_timestamp,
                },
                ..*header
            };
            producer(partition, part.count).set(&mut header);
            Ok((partition, seal(part.batch, header, compression)?))
        });
        batches.collect()
    }

    /// Counts records and bytes of each partition, so that each batch is allocated once.
    fn measure_parts(&self, partitions: &[u32], partition_count: u32) -> Result<Parts, ReshapeError> {
        let (records, actual) = (self.len(), partitions.len());
        if records != actual {
            return Err(ReshapeError::Placements { records, actual });
        }
        let mut parts = Parts { index: vec![Parts::NONE; partition_count as usize], list: Vec::new() };
        let mut walk = Walk::new(self);
        for (ordinal, partition) in partitions.iter().copied().enumerate() {
            let bytes = walk.next()?.len();
            let Some(part) = parts.of(partition) else {
                return Err(ReshapeError::Partition { ordinal, partition, count: partition_count });
            };
            // No more than before: offset deltas only become smaller.
            part.bytes += bytes;
        }
        walk.finish()?;
        Ok(parts)
    }
}

/// Completes a batch whose records stand uncompressed behind the room for the header.
fn seal(
    mut batch: BytesMut,
    mut header: BatchHeader,
    compression: Compression,
) -> Result<RecordBatch, ReshapeError> {
    header.attributes.compression = Compression::None;
    if compression != Compression::None {
        let (placeholder, records) = batch.split_at_checked(HEADER_BYTES).unwrap_or_default();
        let mut compressed = placeholder.to_vec();
        compression::compress(compression, None, records, &mut compressed)
            .map_err(|source| ReshapeError::Compress { compression, source })?;
        if compressed.len() < batch.len() {
            header.attributes.compression = compression;
            header.seal(&mut compressed);
            compressed.shrink_to_fit();
            return Ok(RecordBatch::made(Bytes::from(compressed), header));
        }
    }
    header.seal(&mut batch);
    Ok(RecordBatch::made(batch.freeze(), header))
}

/// Finds where each record begins and ends, and looks no further.
struct Walk<'a> {
    reader: Reader<'a>,
    total: usize,
    ordinal: u32,
}

impl<'a> Walk<'a> {
    fn new(records: &'a Records) -> Self {
        Self { reader: Reader::new(records.data()), total: records.data().len(), ordinal: 0 }
    }

    #[inline]
    fn next(&mut self) -> Result<Range<usize>, BatchError> {
        let start = self.total - self.reader.rest.len();
        let ordinal = self.ordinal;
        if self.reader.record_body().is_none() {
            return Err(BatchError::Record { ordinal, problem: RecordProblem::Length });
        }
        self.ordinal += 1;
        Ok(start..self.total - self.reader.rest.len())
    }

    const fn finish(&self) -> Result<(), BatchError> {
        match self.reader.rest.len() {
            0 => Ok(()),
            bytes => Err(BatchError::BytesAfterRecords { bytes }),
        }
    }
}

/// The batches of a split under way.
struct Parts {
    /// By partition number, where in `list` its batch is.
    index: Vec<u32>,
    list: Vec<Part>,
}

struct Part {
    partition: u32,
    bytes: usize,
    count: u32,
    timestamp_delta_max: i64,
    batch: BytesMut,
}

impl Parts {
    const NONE: u32 = u32::MAX;

    /// The partition's batch, begun where there is none; `None` where there is no such partition.
    fn of(&mut self, partition: u32) -> Option<&mut Part> {
        let slot = self.index.get_mut(partition as usize)?;
        if *slot == Self::NONE {
            *slot = self.list.len() as u32;
            let batch = BytesMut::new();
            self.list.push(Part { partition, bytes: 0, count: 0, timestamp_delta_max: i64::MIN, batch });
        }
        self.list.get_mut(*slot as usize)
    }
}

impl Part {
    /// Copies a record, with the next offset delta in place of its own.
    #[inline]
    fn push(&mut self, record: &[u8]) -> Result<(), RecordProblem> {
        let body = Reader::new(record).record_body().ok_or(RecordProblem::Length)?;
        let mut fields = Reader::new(body);
        fields.byte().ok_or(RecordProblem::Field)?;
        let timestamp_delta = fields.varlong().ok_or(RecordProblem::Field)?;
        let (before, _) =
            body.split_at_checked(body.len() - fields.rest.len()).ok_or(RecordProblem::Field)?;
        fields.varint().ok_or(RecordProblem::Field)?;
        let delta = i64::from(self.count);

        let mut scratch = OneVarint::new();
        scratch.varint((before.len() + encoded_len(delta) + fields.rest.len()) as i64);
        scratch.append_to(&mut self.batch);
        self.batch.extend_from_slice(before);
        let mut scratch = OneVarint::new();
        scratch.varint(delta);
        scratch.append_to(&mut self.batch);
        self.batch.extend_from_slice(fields.rest);
        self.count += 1;
        self.timestamp_delta_max = self.timestamp_delta_max.max(timestamp_delta);
        Ok(())
    }
}
