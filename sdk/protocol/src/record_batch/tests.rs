use proptest::prelude::*;

use super::*;
use crate::{ErrorCode, PartitionId, ProducerEpoch, ProducerId, Sequence};

mod hostile;
mod interop;
mod reshape;
mod round_trip;

/// A record that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    delta: u32,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Owned {
    fn headers(&self) -> Vec<Header<'_>> {
        self.headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect()
    }
}

impl From<RecordView<'_>> for Owned {
    fn from(view: RecordView<'_>) -> Self {
        Self {
            delta: view.offset_delta,
            timestamp: view.timestamp.get(),
            key: view.key.map(<[u8]>::to_vec),
            value: view.value.map(<[u8]>::to_vec),
            headers: view
                .headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect(),
        }
    }
}

fn limits() -> BatchLimits {
    BatchLimits::default()
}

fn builder(compression: Compression) -> BatchBuilder {
    BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() })
}

fn build(records: &[Owned], compression: Compression) -> RecordBatch {
    let mut builder = builder(compression);
    for record in records {
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        builder.append(Timestamp::new(record.timestamp), key, value, record.headers()).unwrap();
    }
    builder.build_batch().unwrap()
}

fn read(batch: &RecordBatch) -> Vec<Owned> {
    let records = batch.records(&limits().allowing_gaps()).unwrap();
    records.iter().map(|record| record.unwrap().into()).collect()
}

/// A batch that compresses, with what real records have: JSON, Unicode, null and empty keys, headers.
fn sample(count: u32) -> Vec<Owned> {
    let record = |ordinal: u32| Owned {
        delta: ordinal,
        timestamp: 1_700_000_000_000 + i64::from(ordinal % 7) * 13 - i64::from(ordinal % 3),
        key: match ordinal % 4 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(format!("user-{}", ordinal % 10).into_bytes()),
        },
        value: match ordinal % 11 {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(format!("{{\"song\":\"Über den Wolken {ordinal}\",\"device\":\"電話\"}}").into_bytes()),
        },
        headers: match ordinal % 5 {
            0 => vec![("trace".to_owned(), Some(vec![1, 2, 3])), ("märz".to_owned(), None)],
            1 => vec![(String::new(), Some(Vec::new()))],
            _ => Vec::new(),
        },
    };
    (0..count).map(record).collect()
}

fn owned() -> impl Strategy<Value = Owned> {
    let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
    let headers = prop::collection::vec((".{0,12}", bytes()), 0..4);
    (-1_000_000_i64..1_000_000, bytes(), bytes(), headers).prop_map(|(timestamp, key, value, headers)| {
        Owned { delta: 0, timestamp: 1_700_000_000_000 + timestamp, key, value, headers }
    })
}

fn batch_of_owned() -> impl Strategy<Value = Vec<Owned>> {
    prop::collection::vec(owned(), 1..60).prop_map(|mut records| {
        for (record, delta) in records.iter_mut().zip(0..) {
            record.delta = delta;
        }
        records
    })
}

fn compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(&Compression::ALL[..])
}
