//! Records as rehearsals take and show them.

use bytes::Bytes;
use tidemill_protocol::record_batch::{
    AppendError, BatchBuilder, BatchLimits, BuildError, BuilderOptions, Header, RecordBatch, RecordView,
    Records,
};
use tidemill_protocol::{Offset, Timestamp};

use super::RehearsalError;

/// A record by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlainRecord {
    /// The key; null and empty differ.
    pub key: Option<Bytes>,
    /// The value; null and empty differ.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970.
    pub timestamp: Timestamp,
}

impl PlainRecord {
    pub(super) fn of(records: &Records, view: &RecordView<'_>) -> Self {
        let slice = |part: &[u8]| records.slice_of(part);
        Self {
            key: view.key.map(slice),
            value: view.value.map(slice),
            headers: view
                .headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.map(slice)))
                .collect(),
            timestamp: view.timestamp,
        }
    }

    /// Of its parts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let part = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + part(value)).sum();
        part(&self.key) + part(&self.value) + headers
    }

    /// Whether all but the timestamp is the same.
    pub(super) fn same_contents(&self, other: &Self) -> bool {
        (&self.key, &self.value, &self.headers) == (&other.key, &other.value, &other.headers)
    }
}

/// Every record of a batch that was just made.
pub(super) fn records_of(batch: &Bytes) -> Result<Vec<(u32, PlainRecord)>, String> {
    let limits = BatchLimits {
        batch_bytes_max: usize::MAX,
        record_bytes_max: usize::MAX,
        decompressed_bytes_max: usize::MAX,
        ..BatchLimits::default()
    }
    .allowing_gaps();
    let batch = RecordBatch::decode(batch.clone(), &limits).map_err(|error| error.to_string())?;
    let records = batch.records(&limits).map_err(|error| error.to_string())?;
    records
        .iter()
        .map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            Ok((record.offset_delta, PlainRecord::of(&records, &record)))
        })
        .collect()
}

/// A batch of records, the first of which is number `first`.
pub(super) fn batch_of(records: &[PlainRecord], first: usize) -> Result<RecordBatch, RehearsalError> {
    let mut builder =
        BatchBuilder::new(BuilderOptions { base_offset: offset(first), ..BuilderOptions::default() });
    for (number, record) in (first..).zip(records) {
        let headers: Vec<Header<'_>> = record
            .headers
            .iter()
            .map(|(key, value)| Header { key: key.as_str(), value: value.as_deref() })
            .collect();
        builder
            .append(record.timestamp, record.key.as_deref(), record.value.as_deref(), headers)
            .map_err(|error: AppendError| refused(number, &error))?;
    }
    builder.build_batch().map_err(|error: BuildError| refused(first, &error))
}

/// Records are numbered by their offsets.
pub(super) fn offset(record: usize) -> Offset {
    Offset::ZERO.plus(record as u64)
}

fn refused(record: usize, error: &dyn std::fmt::Display) -> RehearsalError {
    RehearsalError::Record { record, reason: error.to_string() }
}
