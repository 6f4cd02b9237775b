//! The records of one call.

use bytes::{Bytes, BytesMut};
use tidemill_protocol::record_batch::HeadersView;
use tidemill_protocol::{Offset, Timestamp, TopicPartition};
use tidemill_wasm::{Batch, Fields};

use crate::batch_view::{Index, part};

/// Records that one call gets at the most.
pub(crate) const CALL_RECORDS_MAX: usize = 1000;
/// Bytes of stored batches that are read for it.
pub(crate) const CALL_BYTES_MAX: usize = 1 << 20;
/// With records of so many bytes at hand a call gets no more of them, and does not wait for more: what it is given is the same when it
/// is tried again. A rehearsal cuts its calls here too, so that they are those of a task.
pub(crate) const ENOUGH_BYTES: usize = CALL_BYTES_MAX / 2;

/// One record of a source: slices of its batch.
#[derive(Debug, Clone)]
pub(crate) struct TaskRecord {
    pub(crate) offset: Offset,
    pub(crate) timestamp: Timestamp,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    /// Encoded, the count first.
    pub(crate) headers: Bytes,
}

impl TaskRecord {
    pub(crate) fn headers(&self) -> HeadersView<'_> {
        // Cut from a view that had parsed it.
        HeadersView::parse(&self.headers).unwrap_or(HeadersView::EMPTY)
    }

    pub(super) fn bytes(&self) -> usize {
        let part = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        part(&self.key) + part(&self.value) + self.headers.len()
    }
}

/// Records of one source, from where the task stands.
#[derive(Debug, Clone)]
pub(crate) struct SourceRecords {
    /// Counts in the plan's topics.
    pub(crate) topic: u32,
    pub(crate) source: TopicPartition,
    /// Where the task stands.
    pub(crate) position: Offset,
    /// Where it stands when all of these are done.
    pub(crate) end: Offset,
    pub(crate) records: Vec<TaskRecord>,
}

impl SourceRecords {
    /// The first `count` of them.
    pub(crate) fn first(&self, count: usize) -> &[TaskRecord] {
        self.records.get(..count).unwrap_or(&self.records)
    }

    /// Where the task stands when the first `count` are done.
    pub(crate) fn position_after(&self, count: usize) -> Offset {
        self.records.get(count).map_or(self.end, |next| next.offset)
    }

    /// The first `count` as a plugin reads them. Copies them: they are no more than [`ENOUGH_BYTES`] and one record beyond it,
    /// far below the 4 GiB that an index reaches.
    pub(crate) fn view(&self, count: usize, fields: Fields, now: Timestamp) -> Batch {
        let records = self.first(count);
        let base_offset = records.first().map_or(self.position, |record| record.offset);
        let mut data = BytesMut::new();
        let mut append = |part: &[u8]| {
            let at = data.len();
            data.extend_from_slice(part);
            Some(at)
        };
        let mut index = Index::new(records.len());
        for record in records {
            let parts = [
                part(fields.key, record.key.as_deref(), &mut append),
                part(fields.value, record.value.as_deref(), &mut append),
                part(fields.headers, Some(&record.headers), &mut append),
            ];
            let delta = u32::try_from(record.offset.since(base_offset)).unwrap_or(u32::MAX);
            index.push(parts, delta, record.timestamp.get());
        }
        if index.is_out_of_order() {
            index.set_timestamps(records.iter().map(|record| record.timestamp.get()));
        }
        let (base_timestamp, index) = index.finish();
        Batch {
            topic: self.topic,
            partition: self.source.partition.get(),
            base_offset: base_offset.get(),
            base_timestamp,
            now: now.get(),
            data: data.freeze(),
            index,
        }
    }
}
