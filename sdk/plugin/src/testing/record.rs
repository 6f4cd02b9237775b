//! Records and batches for tests.

use crate::batch::{Batch, BatchParts, NOT_ASKED, NULL, ROW_BYTES, Record};
use crate::fields::Fields;
use crate::headers::write_headers;

/// A record to feed to a plugin, or one that came out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestRecord {
    /// None is null.
    pub key: Option<Vec<u8>>,
    /// None is null.
    pub value: Option<Vec<u8>>,
    /// Names and values; a value of none is null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Of what came out: the place of the input record that it came from.
    pub ordinal: Option<u32>,
    /// Of what came out: the partition, if the plugin chose one.
    pub partition: Option<u32>,
}

impl TestRecord {
    /// A record with key and value.
    pub fn new(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self { key: Some(key.as_ref().to_vec()), ..Self::value(value) }
    }

    /// A record with a null key.
    pub fn value(value: impl AsRef<[u8]>) -> Self {
        Self { value: Some(value.as_ref().to_vec()), ..Self::default() }
    }

    /// A record with null key and null value.
    pub fn null() -> Self {
        Self::default()
    }

    /// A tombstone: a key with a null value.
    pub fn tombstone(key: impl AsRef<[u8]>) -> Self {
        Self { key: Some(key.as_ref().to_vec()), ..Self::default() }
    }

    /// With a header.
    pub fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.push((name.to_owned(), value.map(|value| value.as_bytes().to_vec())));
        self
    }

    /// With a timestamp.
    pub fn timestamp(mut self, timestamp: i64) -> Self {
        self.timestamp = timestamp;
        self
    }

    /// As one that came from the input record at this place.
    pub fn ordinal(mut self, ordinal: u32) -> Self {
        self.ordinal = Some(ordinal);
        self
    }

    /// As one for which the plugin chose the partition.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The key as text; a null key is `null`.
    pub fn key_text(&self) -> String {
        text(self.key.as_deref())
    }

    /// The value as text; a null value is `null`.
    pub fn value_text(&self) -> String {
        text(self.value.as_deref())
    }
}

impl From<&str> for TestRecord {
    fn from(value: &str) -> Self {
        Self::value(value)
    }
}

impl From<(&str, &str)> for TestRecord {
    fn from((key, value): (&str, &str)) -> Self {
        Self::new(key, value)
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("null".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// A batch of these records at offset 0 of partition 0 of the first topic.
pub fn batch_of<R: Into<TestRecord>>(records: impl IntoIterator<Item = R>) -> Batch {
    TestBatch::new(records).build()
}

/// A batch in the making, where more than its records matters.
#[derive(Clone, Debug, Default)]
pub struct TestBatch {
    records: Vec<TestRecord>,
    topic: u32,
    partition: u32,
    base_offset: i64,
    now: i64,
}

impl TestBatch {
    /// Of these records.
    pub fn new<R: Into<TestRecord>>(records: impl IntoIterator<Item = R>) -> Self {
        Self { records: records.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Which topic, counted in the deployment's.
    pub fn topic(mut self, topic: u32) -> Self {
        self.topic = topic;
        self
    }

    /// Which partition.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = partition;
        self
    }

    /// The offset of the first record; -1: not stored yet.
    pub fn base_offset(mut self, base_offset: i64) -> Self {
        self.base_offset = base_offset;
        self
    }

    /// The log's time.
    pub fn now(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    /// The batch as the plugin gets it.
    ///
    /// # Panics
    /// Where timestamps lie more than 49 days apart, which no batch of the broker does.
    pub fn build(&self) -> Batch {
        let base_timestamp = self.records.iter().map(|record| record.timestamp).min().unwrap_or(0);
        let (mut data, mut index) = (Vec::new(), Vec::new());
        for (offset_delta, record) in (0u32..).zip(&self.records) {
            let mut row = [0u32; ROW_BYTES / 4];
            put(&mut data, &mut row[0..2], record.key.as_deref());
            put(&mut data, &mut row[2..4], record.value.as_deref());
            let headers: Vec<_> =
                record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let mut encoded = Vec::new();
            write_headers(&mut encoded, &headers);
            put(&mut data, &mut row[4..6], Some(&encoded));
            row[6] = offset_delta;
            row[7] = u32::try_from(record.timestamp - base_timestamp)
                .expect("timestamps lie less than 49 days apart");
            index.extend(row.iter().flat_map(|column| column.to_le_bytes()));
        }
        Batch::new(BatchParts {
            topic: self.topic,
            partition: self.partition,
            base_offset: self.base_offset,
            base_timestamp,
            now: self.now,
            data,
            index,
        })
    }
}

fn put(data: &mut Vec<u8>, row: &mut [u32], part: Option<&[u8]>) {
    row[0] = if part.is_some() { data.len() as u32 } else { 0 };
    row[1] = part.map_or(NULL, |part| part.len() as u32);
    data.extend_from_slice(part.unwrap_or_default());
}

/// The batch as a plugin gets it that asked for some parts only.
pub(super) fn masked(batch: &Batch, fields: Fields) -> Batch {
    let mut parts = batch.parts().clone();
    for row in parts.index.as_chunks_mut::<ROW_BYTES>().0 {
        for (column, field) in [(0, Fields::KEY), (2, Fields::VALUE), (4, Fields::HEADERS)] {
            if !fields.contains(field) {
                row[column * 4..column * 4 + 4].fill(0);
                row[column * 4 + 4..column * 4 + 8].copy_from_slice(&NOT_ASKED.to_le_bytes());
            }
        }
    }
    Batch::new(parts)
}

impl From<&Record<'_>> for TestRecord {
    fn from(record: &Record<'_>) -> Self {
        let headers = record.headers().map(|header| {
            (String::from_utf8_lossy(header.name).into_owned(), header.value.map(<[u8]>::to_vec))
        });
        Self {
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            headers: headers.collect(),
            timestamp: record.timestamp(),
            ordinal: Some(record.ordinal()),
            partition: None,
        }
    }
}
