//! Records that a plugin makes.
//!
//! They leave as two buffers. Each row of the index is 10 little-endian u32:
//!
//! ```text
//!   0           4           8 ... 20                   24       28             32              36
//!   key offset  key length  value, headers: the same   ordinal  timestamp low  timestamp high  partition
//! ```
//!
//! Length 0xffffffff is null, of headers: none; in a filter's replacement 0xfffffffe leaves the part as it is. Ordinal 0xffffffff: of no input
//! record. Timestamp of all ones: the input record's, else now. Partition 0xffffffff: as the target topic partitions.

use crate::batch::{NOT_ASKED, NULL, Record};
use crate::headers::write_headers;

const COLUMNS: usize = 10;
/// Columns of the offsets of key, value and headers; the lengths follow them.
const PARTS: [usize; 3] = [0, 2, 4];
pub(crate) const ROW_BYTES: usize = COLUMNS * 4;
/// Column of the input record's place in its batch.
const ORDINAL: usize = 6;
const TIMESTAMP_LOW: usize = 7;
const TIMESTAMP_HIGH: usize = 8;
const PARTITION: usize = 9;
const UNSET: u32 = 0xffff_ffff;

/// Records for a target topic. Keys and values are written straight into one buffer.
///
/// ```
/// use tidemill_plugin::Output;
/// let mut output = Output::new();
/// output.record().key(b"song-1").value(br#"{"plays":7}"#).push();
/// assert_eq!(output.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub(crate) data: Vec<u8>,
    pub(crate) index: Vec<u8>,
}

impl Output {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a record that comes from no input record, such as a timer's: null key, null value, no headers, timestamp now.
    pub fn record(&mut self) -> Draft<'_> {
        let mut row = [UNSET; COLUMNS];
        for part in PARTS {
            row[part] = 0;
            row[part + 1] = NULL;
        }
        Draft { output: self, row }
    }

    /// Starts a record made of an input record, whose timestamp it takes over. Key and value are null until they are set.
    pub fn record_of(&mut self, input: &Record<'_>) -> Draft<'_> {
        let mut draft = self.record();
        draft.row[ORDINAL] = input.ordinal();
        draft
    }

    /// Adds a copy of an input record: key, value, headers, timestamp. The plugin must have asked for all of them.
    pub fn copy(&mut self, input: &Record<'_>) {
        self.record_of(input).key_of(input).value_of(input).headers_of(input).push();
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.index.len() / ROW_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of data and index.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.index.len()
    }

    /// Forgets all records and keeps the memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.index.clear();
    }

    /// The records made of the first `inputs` records of the batch, where every record came from one and in order.
    pub(crate) fn prefix(&self, inputs: u32) -> Self {
        let rows = self.index.as_chunks::<ROW_BYTES>().0;
        let rows_kept = rows.partition_point(|row| column(row, ORDINAL) < inputs);
        let data_end =
            rows[rows_kept..].iter().find_map(first_byte).map_or(self.data.len(), |byte| byte as usize);
        Self { data: self.data[..data_end].to_vec(), index: self.index[..rows_kept * ROW_BYTES].to_vec() }
    }
}

/// Where a row's own bytes begin: parts are written in the order in which they are set, each after the one before.
fn first_byte(row: &[u8; ROW_BYTES]) -> Option<u32> {
    let own = |part: &usize| column(row, part + 1) < NOT_ASKED;
    PARTS.into_iter().filter(own).map(|part| column(row, part)).min()
}

fn column(row: &[u8; ROW_BYTES], column: usize) -> u32 {
    u32::from_le_bytes(row.as_chunks::<4>().0[column])
}

/// A record being made; [`push`](Self::push) adds it.
#[must_use = "a draft is added by push()"]
#[derive(Debug)]
pub struct Draft<'o> {
    output: &'o mut Output,
    row: [u32; COLUMNS],
}

impl Draft<'_> {
    /// Sets the key.
    pub fn key(self, key: impl AsRef<[u8]>) -> Self {
        self.part(0, |data| data.extend_from_slice(key.as_ref()))
    }

    /// Sets the key to null.
    pub fn null_key(self) -> Self {
        self.null(0)
    }

    /// Sets the value.
    pub fn value(self, value: impl AsRef<[u8]>) -> Self {
        self.part(2, |data| data.extend_from_slice(value.as_ref()))
    }

    /// Sets the value to what `write` appends: no buffer in between.
    pub fn value_with(self, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        self.part(2, write)
    }

    /// Sets the value to null: a tombstone.
    pub fn null_value(self) -> Self {
        self.null(2)
    }

    /// Sets the headers; a value of none is null.
    pub fn headers(self, headers: &[(&str, Option<&[u8]>)]) -> Self {
        self.part(4, |data| write_headers(data, headers))
    }

    /// Takes the key of an input record.
    pub fn key_of(self, input: &Record<'_>) -> Self {
        match input.key() {
            Some(key) => self.key(key),
            None => self.null_key(),
        }
    }

    /// Takes the value of an input record.
    pub fn value_of(self, input: &Record<'_>) -> Self {
        match input.value() {
            Some(value) => self.value(value),
            None => self.null_value(),
        }
    }

    /// Takes the headers of an input record.
    pub fn headers_of(self, input: &Record<'_>) -> Self {
        match input.header_bytes() {
            [] | [0] => self,
            bytes => self.part(4, |data| data.extend_from_slice(bytes)),
        }
    }

    /// Sets the timestamp, milliseconds since 1970. Times before are refused by the broker; -1 reads as "not set".
    pub fn timestamp(mut self, timestamp: i64) -> Self {
        self.row[TIMESTAMP_LOW] = timestamp as u32;
        self.row[TIMESTAMP_HIGH] = (timestamp >> 32) as u32;
        self
    }

    /// Sets the partition, instead of leaving it to the target topic. Not in a filter, which moves no records.
    pub fn partition(mut self, partition: u32) -> Self {
        self.row[PARTITION] = partition;
        self
    }

    /// Adds the record.
    pub fn push(self) {
        let mut bytes = [0; ROW_BYTES];
        for (to, from) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.row) {
            *to = from.to_le_bytes();
        }
        self.output.index.extend_from_slice(&bytes);
    }

    fn part(mut self, column: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let from = self.output.data.len();
        write(&mut self.output.data);
        let length =
            self.output.data.len().checked_sub(from).expect("a value is appended, nothing is taken away");
        let small = |n: usize| {
            u32::try_from(n).ok().filter(|n| *n < NOT_ASKED).expect("an output is smaller than 4 GiB")
        };
        self.row[column] = small(from);
        self.row[column + 1] = small(length);
        self
    }

    fn null(mut self, column: usize) -> Self {
        self.row[column] = 0;
        self.row[column + 1] = NULL;
        self
    }
}

/// Other contents for the records that a filter keeps. A record that is not named is dropped.
///
/// ```
/// use tidemill_plugin::{Batch, Record, Replacement, Verdict};
/// fn apply(batch: &Batch) -> Verdict {
///     let mut kept = Replacement::new();
///     for record in batch {
///         match record.value() {
///             Some(value) => kept.replace(&record).value(value.to_ascii_uppercase()).push(),
///             None => kept.keep(&record),
///         }
///     }
///     kept.into()
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    pub(crate) output: Output,
    /// The least ordinal that may come next.
    next: u32,
}

impl Replacement {
    /// Keeps nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a record as it is.
    pub fn keep(&mut self, record: &Record<'_>) {
        self.replace(record).push();
    }

    /// Keeps a record with the parts that are set on the draft, the others as they are.
    ///
    /// # Panics
    /// Where records are not taken in the order of the batch.
    pub fn replace(&mut self, record: &Record<'_>) -> Draft<'_> {
        assert!(record.ordinal() >= self.next, "a filter keeps records in the order of the batch, each once");
        self.next = record.ordinal() + 1;
        let mut row = [UNSET; COLUMNS];
        for part in PARTS {
            row[part] = 0;
            row[part + 1] = NOT_ASKED;
        }
        row[ORDINAL] = record.ordinal();
        Draft { output: &mut self.output, row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestRecord, batch_of, emitted_records};

    #[test]
    fn what_is_drafted_is_what_the_broker_reads() {
        let batch = batch_of([
            TestRecord::new("a", "1").timestamp(5),
            TestRecord::null().timestamp(6).header("h", None),
        ]);
        let mut output = Output::new();
        output.copy(&batch.get(0).unwrap());
        output.copy(&batch.get(1).unwrap());
        output
            .record()
            .value_with(|v| v.extend(b"made"))
            .headers(&[("x", Some(b"y"))])
            .timestamp(7)
            .partition(3)
            .push();
        let records = emitted_records(&output, &batch).unwrap();
        assert_eq!(records[0], TestRecord::new("a", "1").timestamp(5).ordinal(0));
        assert_eq!(records[1], TestRecord::null().timestamp(6).header("h", None).ordinal(1));
        assert_eq!(records[2], TestRecord::value("made").header("x", Some("y")).timestamp(7).partition(3));
    }

    #[test]
    fn a_prefix_ends_between_input_records() {
        let batch = batch_of((0..5).map(|i| TestRecord::new(format!("k{i}"), format!("v{i}"))));
        let mut output = Output::new();
        for record in &batch {
            if record.ordinal() != 2 {
                output.copy(&record);
                output.record_of(&record).push();
            }
        }
        for (inputs, rows) in [(0, 0), (1, 2), (2, 4), (3, 4), (4, 6), (5, 8)] {
            let prefix = output.prefix(inputs);
            assert_eq!(prefix.len(), rows);
            assert_eq!(
                emitted_records(&prefix, &batch).unwrap(),
                emitted_records(&output, &batch).unwrap()[..rows]
            );
        }
    }

    #[test]
    #[should_panic(expected = "in the order of the batch")]
    fn a_replacement_keeps_the_order() {
        let batch = batch_of([TestRecord::value("a"), TestRecord::value("b")]);
        let mut kept = Replacement::new();
        kept.keep(&batch.get(1).unwrap());
        kept.keep(&batch.get(0).unwrap());
    }
}
