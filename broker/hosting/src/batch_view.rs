//! A record batch as a plugin reads it: one buffer, and an index of 32 bytes per record.
//!
//! Where the plugin asks for values, the buffer is the batch's own records section: nothing is copied here. Where it
//! asks for keys or headers only, these are copied out, so that values never reach the guest.

use bytes::{Bytes, BytesMut};
use tidemill_protocol::record_batch::{BatchError, Records};
use tidemill_wasm::{Batch, Fields, INDEX_ENTRY_BYTES, LENGTH_ABSENT, LENGTH_NULL};

use crate::plan::BatchPlace;

/// One batch's records as a plugin that asks for `fields` reads them.
///
/// # Errors
/// A record that does not read; more bytes of records than an index reaches.
pub fn view_of(records: &Records, fields: Fields, place: BatchPlace, now: i64) -> Result<Batch, BatchError> {
    if records.data().len() > INDEX_REACH_BYTES {
        return Err(BatchError::DecompressedTooLarge { limit: INDEX_REACH_BYTES });
    }
    let mut index = Index::new(records.len());
    let data = if fields.value {
        for record in records {
            let record = record?;
            let parts = [
                part(fields.key, record.key, |part| records.offset_of(part)),
                part(true, record.value, |part| records.offset_of(part)),
                part(fields.headers, Some(record.headers.as_bytes()), |part| records.offset_of(part)),
            ];
            index.push(parts, record.offset_delta, record.timestamp.get());
        }
        records.data().clone()
    } else {
        let mut data = BytesMut::new();
        for record in records {
            let record = record?;
            let parts = [
                part(fields.key, record.key, |part| append(&mut data, part)),
                part(false, record.value, |_| None),
                part(fields.headers, Some(record.headers.as_bytes()), |part| append(&mut data, part)),
            ];
            index.push(parts, record.offset_delta, record.timestamp.get());
        }
        data.freeze()
    };
    if index.is_out_of_order() {
        index.set_timestamps(records.iter().flatten().map(|record| record.timestamp.get()));
    }
    let (base_timestamp, index) = index.finish();
    Ok(Batch {
        topic: place.topic,
        partition: place.partition,
        base_offset: records.header().base_offset.get(),
        base_timestamp,
        now,
        data,
        index,
    })
}

fn append(data: &mut BytesMut, part: &[u8]) -> Option<usize> {
    let at = data.len();
    data.extend_from_slice(part);
    Some(at)
}

/// Offset and length of one part of a record.
pub(crate) type PartWords = [u32; 2];

/// Bytes of records that an index can point into.
const INDEX_REACH_BYTES: usize = u32::MAX as usize;

/// One part: not asked for, null, or at the offset that `place` says.
///
/// # Panics
/// `place` does not know the part, or puts it where no index reaches. Whoever makes a view has seen to it that neither can be: to
/// tell a plugin that the part is null would be worse.
#[inline]
pub(crate) fn part(
    asked: bool,
    part: Option<&[u8]>,
    place: impl FnOnce(&[u8]) -> Option<usize>,
) -> PartWords {
    match (asked, part) {
        (false, _) => [0, LENGTH_ABSENT],
        (true, None) => [0, LENGTH_NULL],
        (true, Some(part)) => {
            let at = place(part).and_then(|at| u32::try_from(at).ok());
            [at.expect("a part lies in its view, within an index's reach"), part.len() as u32]
        }
    }
}

/// Entries of 8 little-endian words: key, value, headers (offset and length each), offset delta, timestamp delta.
///
/// The base timestamp is the first record's. Records are walked once, and a batch whose first record is not its
/// oldest is the exception: see [`Index::set_timestamps`].
pub(crate) struct Index {
    bytes: BytesMut,
    base_timestamp: Option<i64>,
    least_timestamp: i64,
}

impl Index {
    pub(crate) fn new(records: usize) -> Self {
        Self {
            bytes: BytesMut::with_capacity(records * INDEX_ENTRY_BYTES),
            base_timestamp: None,
            least_timestamp: i64::MAX,
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, parts: [PartWords; 3], offset_delta: u32, timestamp: i64) {
        let base = *self.base_timestamp.get_or_insert(timestamp);
        self.least_timestamp = self.least_timestamp.min(timestamp);
        let [key, value, headers] = parts;
        let words = [
            key[0],
            key[1],
            value[0],
            value[1],
            headers[0],
            headers[1],
            offset_delta,
            delta(timestamp, base),
        ];
        let mut entry = [0; INDEX_ENTRY_BYTES];
        for (bytes, word) in entry.as_chunks_mut::<WORD_BYTES>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        self.bytes.extend_from_slice(&entry);
    }

    /// Whether a record is older than the first.
    pub(crate) fn is_out_of_order(&self) -> bool {
        self.base_timestamp.is_some_and(|base| self.least_timestamp < base)
    }

    /// Makes the least timestamp the base. `timestamps` are those of the records, again.
    pub(crate) fn set_timestamps(&mut self, timestamps: impl Iterator<Item = i64>) {
        let base = self.least_timestamp;
        self.base_timestamp = Some(base);
        for (entry, timestamp) in self.bytes.chunks_exact_mut(INDEX_ENTRY_BYTES).zip(timestamps) {
            if let Some(word) = entry.last_chunk_mut::<WORD_BYTES>() {
                *word = delta(timestamp, base).to_le_bytes();
            }
        }
    }

    /// The base timestamp, 0 where there is no record, and the entries.
    pub(crate) fn finish(self) -> (i64, Bytes) {
        (self.base_timestamp.unwrap_or(0), self.bytes.freeze())
    }
}

const WORD_BYTES: usize = size_of::<u32>();

fn delta(timestamp: i64, base: i64) -> u32 {
    u32::try_from(timestamp.saturating_sub(base).max(0)).unwrap_or(u32::MAX)
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

    fn word(batch: &Batch, record: usize, at: usize) -> u32 {
        let at = record * INDEX_ENTRY_BYTES + at * WORD_BYTES;
        u32::from_le_bytes(batch.index[at..at + WORD_BYTES].try_into().expect("a word"))
    }

    /// The part of a record in a view: `Err` not asked for, `Ok(None)` null.
    fn part(batch: &Batch, record: usize, part: usize) -> Result<Option<&[u8]>, ()> {
        match (word(batch, record, part * 2) as usize, word(batch, record, part * 2 + 1)) {
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
                assert_eq!([0, 1, 2].map(|record| word(&view, record, 7)), [10, 0, 510]);
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
