//! Records inside a batch, read where they lie.

use bytes::Bytes;

use super::varint::Reader;
use super::{BatchError, BatchHeader, BatchLimits, RecordBatch, RecordProblem, TimestampType};
use crate::{Offset, Timestamp};

/// The records of one batch, decompressed.
#[derive(Debug, Clone)]
pub struct Records {
    pub(super) batch: RecordBatch,
    pub(super) data: Bytes,
    record_bytes_max: usize,
    allow_gaps: bool,
}

impl Records {
    pub(super) const fn new(batch: RecordBatch, data: Bytes, limits: &BatchLimits) -> Self {
        Self { batch, data, record_bytes_max: limits.record_bytes_max, allow_gaps: limits.allow_gaps }
    }

    /// The batch that they are from.
    #[must_use]
    pub const fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// The header of the batch that they are from.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        self.batch.header()
    }

    /// The records section: what the slices of every [`RecordView`] point into.
    #[must_use]
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// Where in [`data`](Self::data) a part of a record begins that a view of these records gave out; `None` for
    /// other slices.
    #[must_use]
    pub fn offset_of(&self, part: &[u8]) -> Option<usize> {
        let at = part.as_ptr().addr().checked_sub(self.data.as_ptr().addr())?;
        (at + part.len() <= self.data.len()).then_some(at)
    }

    /// Owns a part of a record without copying it: `part` must be a slice that a view of these records gave out.
    #[must_use]
    pub fn slice_of(&self, part: &[u8]) -> Bytes {
        match self.offset_of(part) {
            Some(at) => self.data.slice(at..at + part.len()),
            None => Bytes::copy_from_slice(part),
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.header().record_count() as usize
    }

    /// Whether there is none: all were removed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records in order. The first error is the last item; an iteration without one has seen all records and
    /// nothing behind them.
    #[must_use]
    pub fn iter(&self) -> RecordIter<'_> {
        self.iter_from(RecordMark { left: self.data.len(), ordinal: 0, last_delta: -1 })
    }

    /// The records behind a place that an iteration over these records had come to.
    #[must_use]
    pub fn iter_from(&self, mark: RecordMark) -> RecordIter<'_> {
        let header = self.header();
        let done = self.data.len().saturating_sub(mark.left);
        RecordIter {
            reader: Reader::new(self.data.get(done..).unwrap_or_default()),
            ordinal: mark.ordinal,
            count: header.record_count(),
            last_delta: mark.last_delta,
            delta_max: header.last_offset_delta,
            base_offset: header.base_offset.get(),
            base_timestamp: header.base_timestamp.get(),
            append_time: match header.attributes.timestamp_type {
                TimestampType::CreateTime => None,
                TimestampType::LogAppendTime => Some(header.max_timestamp),
            },
            record_bytes_max: self.record_bytes_max,
            allow_gaps: self.allow_gaps,
            done: false,
        }
    }

    /// Walks every record, and checks the header's largest timestamp against theirs: equal, or where records may be
    /// missing at least as large.
    pub fn validate(&self) -> Result<(), BatchError> {
        let mut actual = i64::MIN;
        for record in self {
            actual = actual.max(record?.timestamp.get());
        }
        let stored = self.header().max_timestamp.get();
        let fits = if self.allow_gaps { actual <= stored } else { actual == stored };
        if fits { Ok(()) } else { Err(BatchError::MaxTimestamp { stored, actual }) }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<RecordView<'a>, BatchError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One record, as slices of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Number of the record in its batch, from 0.
    pub ordinal: u32,
    /// Offset less the batch's base offset; the ordinal, unless records were removed.
    pub offset_delta: u32,
    /// Offset in the partition. Means nothing where the batch's base offset is not assigned.
    pub offset: Offset,
    /// Timestamp less the batch's base timestamp.
    pub timestamp_delta: i64,
    /// The producer's timestamp, or the broker's where the topic has it so.
    pub timestamp: Timestamp,
    /// The key; null and empty differ.
    pub key: Option<&'a [u8]>,
    /// The value; null and empty differ.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: HeadersView<'a>,
}

/// Iterates over the records of a batch.
#[derive(Debug, Clone)]
pub struct RecordIter<'a> {
    reader: Reader<'a>,
    ordinal: u32,
    count: u32,
    last_delta: i32,
    delta_max: i32,
    base_offset: i64,
    base_timestamp: i64,
    append_time: Option<Timestamp>,
    record_bytes_max: usize,
    allow_gaps: bool,
    done: bool,
}

/// A place between two records of a batch: see [`Records::iter_from`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMark {
    /// Bytes behind it.
    left: usize,
    ordinal: u32,
    last_delta: i32,
}

impl<'a> RecordIter<'a> {
    /// Where it has come to.
    #[must_use]
    pub const fn mark(&self) -> RecordMark {
        RecordMark { left: self.reader.rest.len(), ordinal: self.ordinal, last_delta: self.last_delta }
    }

    #[inline]
    fn record(&mut self) -> Result<RecordView<'a>, RecordProblem> {
        let body = self.reader.record_body().ok_or(RecordProblem::Length)?;
        let mut fields = Reader::new(body);
        let attributes = fields.byte().ok_or(RecordProblem::Field)?;
        if attributes != 0 {
            return Err(RecordProblem::Attributes(attributes));
        }
        let timestamp_delta = fields.varlong().ok_or(RecordProblem::Field)?;
        let delta = fields.varint().ok_or(RecordProblem::Field)?;
        let in_order = if self.allow_gaps {
            delta > self.last_delta && delta <= self.delta_max
        } else {
            delta.cast_unsigned() == self.ordinal
        };
        if !in_order {
            return Err(RecordProblem::OffsetDelta(delta));
        }
        let key = fields.nullable().ok_or(RecordProblem::Field)?;
        let value = fields.nullable().ok_or(RecordProblem::Field)?;
        // No headers is by far the most common; its byte is the record's own, so that `offset_of` finds it.
        let headers = if fields.rest == [0] {
            HeadersView { bytes: fields.rest, count: 0 }
        } else {
            HeadersView::parse_prefix(&mut fields)?
        };
        let timestamp = match self.append_time {
            Some(at) => at,
            None => Timestamp::new(
                self.base_timestamp.checked_add(timestamp_delta).ok_or(RecordProblem::Timestamp)?,
            ),
        };
        self.last_delta = delta;
        Ok(RecordView {
            ordinal: self.ordinal,
            offset_delta: delta.cast_unsigned(),
            // The header's check left room for the last.
            offset: Offset::new(self.base_offset.wrapping_add(i64::from(delta))),
            timestamp_delta,
            timestamp,
            key,
            value,
            headers,
        })
    }

    #[cold]
    fn fail(&mut self, error: BatchError) -> BatchError {
        self.done = true;
        error
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let before = self.reader.rest.len();
        if self.ordinal == self.count {
            self.done = true;
            return (before > 0).then_some(Err(BatchError::BytesAfterRecords { bytes: before }));
        }
        let ordinal = self.ordinal;
        match self.record() {
            Ok(record) => {
                let bytes = before - self.reader.rest.len();
                if bytes > self.record_bytes_max {
                    let limit = self.record_bytes_max;
                    return Some(Err(self.fail(BatchError::RecordTooLarge { ordinal, bytes, limit })));
                }
                self.ordinal += 1;
                Some(Ok(record))
            }
            Err(problem) => Some(Err(self.fail(BatchError::Record { ordinal, problem }))),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Any of them may be the error that ends it; and one may follow the last.
        (0, Some((self.count - self.ordinal) as usize + 1))
    }
}

impl std::iter::FusedIterator for RecordIter<'_> {}

/// One header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header<'a> {
    /// Its name. Names may repeat.
    pub key: &'a str,
    /// Its value; null and empty differ.
    pub value: Option<&'a [u8]>,
}

impl<'a> Header<'a> {
    /// A header with a value.
    #[must_use]
    pub const fn new(key: &'a str, value: &'a [u8]) -> Self {
        Self { key, value: Some(value) }
    }
}

/// The headers of a record in their encoded form, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadersView<'a> {
    bytes: &'a [u8],
    count: u32,
}

impl<'a> HeadersView<'a> {
    /// No headers.
    pub const EMPTY: HeadersView<'static> = HeadersView { bytes: &[0], count: 0 };

    /// Checks headers in their encoded form: a count, then key and value of each with their lengths. Nothing may
    /// follow them.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordProblem> {
        Self::parse_prefix(&mut Reader::new(bytes))
    }

    fn parse_prefix(reader: &mut Reader<'a>) -> Result<Self, RecordProblem> {
        let bytes = reader.rest;
        let count =
            reader.varint().and_then(|count| u32::try_from(count).ok()).ok_or(RecordProblem::Headers)?;
        for _ in 0..count {
            reader.header().ok_or(RecordProblem::Headers)?;
        }
        if reader.rest.is_empty() { Ok(Self { bytes, count }) } else { Err(RecordProblem::TrailingBytes) }
    }

    /// The encoded form, the count included: one zero byte where there are none.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order.
    #[must_use]
    pub fn iter(&self) -> HeaderIter<'a> {
        let mut reader = Reader::new(self.bytes);
        // The count.
        let _ = reader.varint();
        HeaderIter { reader, left: self.count }
    }

    /// The value of the first header with this key; a null value is `Some(None)`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Option<&'a [u8]>> {
        self.iter().find(|header| header.key == key).map(|header| header.value)
    }
}

impl<'a> IntoIterator for HeadersView<'a> {
    type Item = Header<'a>;
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Iterates over the headers of a record.
#[derive(Debug, Clone)]
pub struct HeaderIter<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // Checked when the view was made.
        self.reader.header()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for HeaderIter<'_> {}

impl<'a> Reader<'a> {
    /// The next record without its length.
    #[inline]
    pub(super) fn record_body(&mut self) -> Option<&'a [u8]> {
        let length = self.varint()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// Bytes behind their length, where -1 is null.
    #[inline]
    fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint()? {
            -1 => Some(None),
            length => self.take(usize::try_from(length).ok()?).map(Some),
        }
    }

    fn header(&mut self) -> Option<Header<'a>> {
        let key = std::str::from_utf8(self.nullable()??).ok()?;
        Some(Header { key, value: self.nullable()? })
    }
}
