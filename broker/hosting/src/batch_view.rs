//! A record batch as a plugin reads it: one buffer, and an index of 32 bytes per record.
//!
//! Where the plugin asks for values, the buffer is the batch's own records section: nothing is copied here. Where it
//! asks for keys or headers only, these are copied out, so that values never reach the guest.

use bytes::{BufMut, Bytes, BytesMut};
use tidemill_protocol::record_batch::{BatchError, Records};
use tidemill_wasm::{Batch, Fields, INDEX_ENTRY_BYTES, LENGTH_ABSENT, LENGTH_NULL};

use crate::plan::BatchPlace;

/// One batch's records as a plugin that asks for `fields` reads them.
///
/// # Errors
/// A record that does not read.
pub fn view_of(records: &Records, fields: Fields, place: BatchPlace, now: i64) -> Result<Batch, BatchError> {
    let mut least = i64::MAX;
    let mut copied = 0;
    for record in records {
        let record = record?;
        least = least.min(record.timestamp.get());
        copied += if fields.key { record.key.map_or(0, <[u8]>::len) } else { 0 };
        copied += if fields.headers { record.headers.as_bytes().len() } else { 0 };
    }
    let base_timestamp = if least == i64::MAX { 0 } else { least };
    let mut index = Index::new(records.len());
    let data = if fields.value {
        for record in records {
            let record = record?;
            index.part(fields.key, record.key, |part| records.offset_of(part));
            index.part(true, record.value, |part| records.offset_of(part));
            index.part(fields.headers, Some(record.headers.as_bytes()), |part| records.offset_of(part));
            index.position(record.offset_delta, record.timestamp.get(), base_timestamp);
        }
        records.data().clone()
    } else {
        let mut data = BytesMut::with_capacity(copied);
        for record in records {
            let record = record?;
            index.part(fields.key, record.key, |part| append(&mut data, part));
            index.part(false, record.value, |_| None);
            index.part(fields.headers, Some(record.headers.as_bytes()), |part| append(&mut data, part));
            index.position(record.offset_delta, record.timestamp.get(), base_timestamp);
        }
        data.freeze()
    };
    Ok(Batch {
        topic: place.topic,
        partition: place.partition,
        base_offset: records.header().base_offset.get(),
        base_timestamp,
        now,
        data,
        index: index.bytes.freeze(),
    })
}

fn append(data: &mut BytesMut, part: &[u8]) -> Option<usize> {
    let at = data.len();
    data.extend_from_slice(part);
    Some(at)
}

/// Entries of 8 little-endian words: key, value, headers (offset and length each), offset delta, timestamp delta.
pub(crate) struct Index {
    pub(crate) bytes: BytesMut,
}

impl Index {
    pub(crate) fn new(records: usize) -> Self {
        Self { bytes: BytesMut::with_capacity(records * INDEX_ENTRY_BYTES) }
    }

    /// One part: not asked for, null, or at the offset that `place` says. A batch is far below 4 GiB.
    #[inline]
    pub(crate) fn part(
        &mut self,
        asked: bool,
        part: Option<&[u8]>,
        place: impl FnOnce(&[u8]) -> Option<usize>,
    ) {
        let (offset, length) = match (asked, part) {
            (false, _) => (0, LENGTH_ABSENT),
            (true, None) => (0, LENGTH_NULL),
            (true, Some(part)) => match place(part).and_then(|at| u32::try_from(at).ok()) {
                Some(offset) => (offset, part.len() as u32),
                None => (0, LENGTH_NULL),
            },
        };
        self.bytes.put_u32_le(offset);
        self.bytes.put_u32_le(length);
    }

    #[inline]
    pub(crate) fn position(&mut self, offset_delta: u32, timestamp: i64, base_timestamp: i64) {
        let later = timestamp.saturating_sub(base_timestamp);
        self.bytes.put_u32_le(offset_delta);
        self.bytes.put_u32_le(u32::try_from(later).unwrap_or(u32::MAX));
    }

    pub(crate) fn freeze(self) -> Bytes {
        self.bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Timestamp;
    use tidemill_protocol::record_batch::{
        BatchBuilder, BatchLimits, BuilderOptions, Compression, Header, RecordBatch,
    };

    use super::*;

    fn records(compression: Compression) -> Records {
        let mut builder = BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() });
        let headers = [Header::new("source", b"web")];
        builder.append(Timestamp::new(1_000), Some(b"k0"), Some(b"value zero"), headers).expect("fits");
        builder.append(Timestamp::new(990), None, Some(b""), []).expect("fits");
        builder.append(Timestamp::new(1_500), Some("k\u{fc}".as_bytes()), None, []).expect("fits");
        let limits = BatchLimits::default();
        let batch = RecordBatch::decode(builder.build().expect("builds"), &limits).expect("decodes");
        batch.records(&limits).expect("reads")
    }

    /// The part of a record in a view: `Err` not asked for, `Ok(None)` null.
    fn part(batch: &Batch, record: usize, part: usize) -> Result<Option<&[u8]>, ()> {
        let word = |at: usize| {
            let at = record * INDEX_ENTRY_BYTES + at * 4;
            u32::from_le_bytes(batch.index[at..at + 4].try_into().expect("a word"))
        };
        match (word(part * 2) as usize, word(part * 2 + 1)) {
            (_, LENGTH_ABSENT) => Err(()),
            (_, LENGTH_NULL) => Ok(None),
            (offset, length) => Ok(Some(&batch.data[offset..offset + length as usize])),
        }
    }

    #[test]
    fn every_selection_of_fields_reads_the_same_records() {
        let place = BatchPlace { topic: 2, partition: 7 };
        for compression in [Compression::None, Compression::Lz4] {
            let records = records(compression);
            for bits in 0..8 {
                let fields = Fields { key: bits & 1 != 0, value: bits & 2 != 0, headers: bits & 4 != 0 };
                let view = view_of(&records, fields, place, 99).expect("a view");
                assert_eq!((view.topic, view.partition, view.now, view.records()), (2, 7, 99, 3));
                assert_eq!(view.base_timestamp, 990);
                for (ordinal, record) in records.iter().enumerate() {
                    let record = record.expect("reads");
                    let expect = |asked: bool, part| if asked { Ok(part) } else { Err(()) };
                    assert_eq!(part(&view, ordinal, 0), expect(fields.key, record.key));
                    assert_eq!(part(&view, ordinal, 1), expect(fields.value, record.value));
                    let headers = Some(record.headers.as_bytes());
                    assert_eq!(part(&view, ordinal, 2), expect(fields.headers, headers));
                }
                if !fields.value {
                    assert!(!view.data.windows(5).any(|window| window == b"value"), "values stay outside");
                }
            }
        }
    }
}
