//! Records to read.
//!
//! A batch crosses into the plugin as two buffers. Each row of the index is 8 little-endian u32:
//!
//! ```text
//!   0           4           8            12            16              20              24            28
//!   key offset  key length  value offset value length  headers offset  headers length  offset delta  timestamp delta
//! ```
//!
//! Offsets point into the data; length 0xffffffff is null, 0xfffffffe is a part that the plugin did not ask for.

use crate::fields::Fields;
use crate::headers::Headers;

pub(crate) const ROW_BYTES: usize = 32;
pub(crate) const NULL: u32 = 0xffff_ffff;
pub(crate) const NOT_ASKED: u32 = 0xffff_fffe;

/// What the broker hands over: see [`Batch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchParts {
    /// Counts in [`Context::topics`](crate::Context::topics).
    pub topic: u32,
    /// The partition read.
    pub partition: u32,
    /// Offset of the first record; -1 where none is assigned yet.
    pub base_offset: i64,
    /// Least timestamp, milliseconds since 1970.
    pub base_timestamp: i64,
    /// The log's time of this call.
    pub now: i64,
    /// Keys, values and headers.
    pub data: Vec<u8>,
    /// A row per record.
    pub index: Vec<u8>,
}

/// Consecutive records of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    parts: BatchParts,
}

impl Batch {
    /// A batch of what the broker handed over. Rows are checked when they are read.
    pub fn new(parts: BatchParts) -> Self {
        assert!(
            parts.index.len().is_multiple_of(ROW_BYTES),
            "the index of a batch has rows of {ROW_BYTES} bytes"
        );
        Self { parts }
    }

    /// Which topic, counted in [`Context::topics`](crate::Context::topics).
    pub fn topic(&self) -> u32 {
        self.parts.topic
    }

    /// Which partition; `u32::MAX` where the records have none yet: in a partitioner, and in a produce filter before one.
    pub fn partition(&self) -> u32 {
        self.parts.partition
    }

    /// Offset of the first record; none where the records are not stored yet.
    pub fn base_offset(&self) -> Option<i64> {
        (self.parts.base_offset >= 0).then_some(self.parts.base_offset)
    }

    /// The log's time of this call in milliseconds since 1970: the same on every replay.
    pub fn now(&self) -> i64 {
        self.parts.now
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.parts.index.len() / ROW_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.index.is_empty()
    }

    /// Bytes of keys, values and headers.
    pub fn data_bytes(&self) -> usize {
        self.parts.data.len()
    }

    /// The record at a place in the batch.
    pub fn get(&self, ordinal: u32) -> Option<Record<'_>> {
        let row = self.parts.index.as_chunks::<ROW_BYTES>().0.get(ordinal as usize)?;
        Some(Record { parts: &self.parts, row, ordinal })
    }

    /// The records in order.
    pub fn iter(&self) -> Records<'_> {
        Records { parts: &self.parts, rows: self.parts.index.as_chunks::<ROW_BYTES>().0.iter(), ordinal: 0 }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn parts(&self) -> &BatchParts {
        &self.parts
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = Record<'a>;
    type IntoIter = Records<'a>;

    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

/// The records of a [`Batch`], in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    parts: &'a BatchParts,
    rows: std::slice::Iter<'a, [u8; ROW_BYTES]>,
    ordinal: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        let row = self.rows.next()?;
        let ordinal = self.ordinal;
        self.ordinal += 1;
        Some(Record { parts: self.parts, row, ordinal })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}

/// A view of one record: nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    parts: &'a BatchParts,
    row: &'a [u8; ROW_BYTES],
    ordinal: u32,
}

impl<'a> Record<'a> {
    /// The key; none is null.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.part(0, "KEY")
    }

    /// The value; none is null (a tombstone).
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.part(2, "VALUE")
    }

    /// The value as text. None where it is null or not UTF-8.
    #[inline]
    pub fn value_str(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value()?).ok()
    }

    /// The headers in order.
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.part(4, "HEADERS").unwrap_or_default())
    }

    /// The value of the first header of this name; none where there is no such header or its value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|header| header.name == name.as_bytes())?.value
    }

    /// The offset; none where the record is not stored yet.
    #[inline]
    pub fn offset(&self) -> Option<i64> {
        (self.parts.base_offset >= 0).then(|| self.parts.base_offset + i64::from(self.column(6)))
    }

    /// Milliseconds since 1970, as the producer or the log set it.
    #[inline]
    pub fn timestamp(&self) -> i64 {
        self.parts.base_timestamp.wrapping_add(i64::from(self.column(7)))
    }

    /// Its place in the batch, from 0.
    #[inline]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Which parts are there.
    pub fn fields(&self) -> Fields {
        [(1, Fields::KEY), (3, Fields::VALUE), (5, Fields::HEADERS)]
            .into_iter()
            .filter(|(column, _)| self.column(*column) != NOT_ASKED)
            .fold(Fields::NONE, |all, (_, field)| all | field)
    }

    /// The value decoded from JSON.
    #[cfg(feature = "serde")]
    pub fn decode_json<T: serde::Deserialize<'a>>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.value().unwrap_or(b"null"))
    }

    /// The encoded headers as they are: a count, then names and values.
    pub(crate) fn header_bytes(&self) -> &'a [u8] {
        self.part(4, "HEADERS").unwrap_or_default()
    }

    #[inline]
    fn part(&self, column: usize, field: &'static str) -> Option<&'a [u8]> {
        let length = self.column(column + 1);
        if length >= NOT_ASKED {
            return absent(length, field);
        }
        let data = self.parts.data.as_slice();
        let part = data.get(self.column(column) as usize..).and_then(|rest| rest.get(..length as usize));
        Some(part.expect("the index of the batch points outside its data"))
    }

    #[inline]
    fn column(&self, column: usize) -> u32 {
        let columns = self.row.as_chunks::<4>().0;
        u32::from_le_bytes(columns[column])
    }
}

#[cold]
fn absent(length: u32, field: &'static str) -> Option<&'static [u8]> {
    // Answering "null" would be a wrong answer that nobody notices.
    assert!(
        length == NULL,
        "this plugin did not ask for this part of the record: answer Fields::{field} from fields()"
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestRecord, batch_of};

    #[test]
    fn records_are_views_of_the_data() {
        let batch = batch_of([
            TestRecord::new("k", "v").timestamp(1_000),
            TestRecord::value("only").timestamp(1_500).header("h", Some("x")),
            TestRecord::null().timestamp(900),
        ]);
        let records: Vec<Record<'_>> = batch.iter().collect();
        assert_eq!(records[0].key(), Some(&b"k"[..]));
        assert_eq!(records[1].key(), None);
        assert_eq!(records[1].value_str(), Some("only"));
        assert_eq!(records[1].header("h"), Some(&b"x"[..]));
        assert_eq!(records[1].header("i"), None);
        assert_eq!(records[2].value(), None);
        assert_eq!(records.iter().map(Record::timestamp).collect::<Vec<_>>(), [1_000, 1_500, 900]);
        assert_eq!(records.iter().map(|r| r.offset().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(batch.get(2).unwrap().ordinal(), 2);
        assert!(batch.get(3).is_none());
        assert_eq!(batch.iter().len(), 3);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn values_are_decoded_into_types_of_the_plugins() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Play<'a> {
            song: &'a str,
            seconds: Option<u32>,
        }
        let batch = batch_of([
            TestRecord::value(r#"{"song":"s-17","seconds":4,"device":"car"}"#),
            TestRecord::value(r#"{"seconds":4}"#),
            TestRecord::value("no JSON"),
            TestRecord::tombstone("k"),
        ]);
        let record = |ordinal| batch.get(ordinal).unwrap();
        let whole: Play<'_> = record(0).decode_json().unwrap();
        assert_eq!(whole, Play { song: "s-17", seconds: Some(4) });
        assert!(record(1).decode_json::<Play<'_>>().unwrap_err().is_data(), "a field is missing");
        assert!(record(2).decode_json::<Play<'_>>().unwrap_err().is_syntax());
        // A null value is JSON's null.
        assert_eq!(record(3).decode_json::<Option<Play<'_>>>().unwrap(), None);
        assert!(record(3).decode_json::<Play<'_>>().is_err());
    }

    #[test]
    #[should_panic(expected = "answer Fields::KEY from fields()")]
    fn a_part_not_asked_for_is_not_taken_for_null() {
        let mut row = [0; ROW_BYTES];
        row[4..8].copy_from_slice(&NOT_ASKED.to_le_bytes());
        let batch = Batch::new(BatchParts { index: row.to_vec(), ..Default::default() });
        assert!(!batch.get(0).unwrap().fields().contains(Fields::KEY));
        batch.get(0).unwrap().key();
    }

    #[test]
    #[should_panic(expected = "points outside its data")]
    fn an_index_that_lies_is_caught() {
        let mut row = [0; ROW_BYTES];
        row[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        row[4..8].copy_from_slice(&7u32.to_le_bytes());
        Batch::new(BatchParts { index: row.to_vec(), data: vec![0; 16], ..Default::default() })
            .get(0)
            .unwrap()
            .key();
    }
}
