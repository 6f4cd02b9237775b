//! Reading topics as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_client::{Client, Consumer, ConsumerRecord, Start};
use tokio::time::timeout;

use crate::Outcome;

/// Records of each partition, in order.
pub type ByPartition = BTreeMap<u32, Vec<ConsumerRecord>>;

/// No topic of a test takes longer to read.
const READ_DEADLINE: Duration = Duration::from_secs(120);

/// Everything that a topic has now.
///
/// # Errors
/// It can't be read.
pub async fn read_all(client: &Client, topic: &str) -> Outcome<ByPartition> {
    let consumer = client.consumer().topic(topic).from(Start::Earliest).stop_at_end().build().await?;
    drain(consumer).await
}

/// Everything that a consumer hands out until it ends, which it must.
///
/// # Errors
/// It can't be read, or does not end.
pub async fn drain(mut consumer: Consumer) -> Outcome<ByPartition> {
    let reading = async {
        let mut records = ByPartition::new();
        while let Some(record) = consumer.next().await {
            let record = record?;
            records.entry(record.partition.get()).or_default().push(record);
        }
        Ok(records)
    };
    timeout(READ_DEADLINE, reading).await.map_err(|_| "a topic was not read to its end in time")?
}

/// How many records there are.
#[must_use]
pub fn count(records: &ByPartition) -> usize {
    records.values().map(Vec::len).sum()
}

/// A digest of everything that can be told of records, in their order.
#[must_use]
pub fn digest<'a>(records: impl IntoIterator<Item = &'a ConsumerRecord>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: Option<&[u8]>| {
        // With lengths, so that no two different records give the same bytes.
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        hasher.update(&length.to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    for record in records {
        part(Some(record.topic.as_bytes()));
        part(Some(&record.partition.get().to_le_bytes()));
        part(Some(&record.offset.get().to_le_bytes()));
        part(Some(&record.timestamp.get().to_le_bytes()));
        part(record.key.as_deref());
        part(record.value.as_deref());
        for header in record.headers() {
            part(Some(header.key.as_bytes()));
            part(header.value);
        }
    }
    hasher.finalize()
}
