//! What several rows do with a broker.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_client::{PartitionId, Producer, Record};

use crate::Outcome;

/// Records between two looks at the clock.
const RECORDS_PER_LOOK: u32 = 64;
/// Different values that are sent in turn, so that no processor cache holds the source of a copy.
const VALUES: usize = 1 << 14;

/// Bytes that no compression and no accident makes smaller.
pub(crate) fn noise(bytes: usize) -> Bytes {
    let mut noise = vec![0; bytes];
    rand::fill(&mut noise[..]);
    noise.into()
}

/// Values of `bytes` each, one after the other.
pub(crate) struct Values {
    noise: Bytes,
    bytes: usize,
    count: usize,
    next: usize,
}

impl Values {
    pub(crate) fn new(bytes: usize) -> Self {
        let count = VALUES.min((64 << 20) / bytes.max(1)).max(1);
        Self { noise: noise(bytes * count), bytes, count, next: 0 }
    }

    pub(crate) fn next(&mut self) -> &[u8] {
        let at = self.next * self.bytes;
        self.next = (self.next + 1) % self.count;
        &self.noise[at..at + self.bytes]
    }
}

/// What was sent and acknowledged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Produced {
    pub(crate) records: u64,
    /// Of the records' values.
    pub(crate) bytes: u64,
    /// Until the last was acknowledged.
    pub(crate) taken: Duration,
    /// Mean bytes of values in a batch.
    pub(crate) batch_bytes: f64,
}

impl Produced {
    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.taken.as_secs_f64()
    }

    pub(crate) fn records_per_second(&self) -> f64 {
        self.records as f64 / self.taken.as_secs_f64()
    }
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Passed(Duration),
    Bytes(u64),
}

/// Sends values of `value_bytes` one by one, record after record to one partition after another, and waits until all are acknowledged.
pub(crate) async fn produce(producer: &Producer, value_bytes: usize, until: Until) -> Outcome<Produced> {
    let mut values = Values::new(value_bytes);
    let partitions = producer.topic().partition_count().max(1);
    let before = producer.stats();
    let begun = Instant::now();
    let (mut records, mut partition) = (0_u64, 0);
    loop {
        let done = match until {
            Until::Passed(leg) => begun.elapsed() >= leg,
            Until::Bytes(bytes) => records * value_bytes as u64 >= bytes,
        };
        if done {
            break;
        }
        for _ in 0..RECORDS_PER_LOOK {
            let record = Record::new(values.next()).partition(PartitionId::new(partition));
            producer.send_and_forget(record).await?;
            partition = if partition + 1 == partitions { 0 } else { partition + 1 };
        }
        records += u64::from(RECORDS_PER_LOOK);
    }
    producer.flush().await?;
    let taken = begun.elapsed();
    let batches = producer.stats().batches - before.batches;
    let bytes = records * value_bytes as u64;
    Ok(Produced { records, bytes, taken, batch_bytes: bytes as f64 / batches.max(1) as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_and_come_again() {
        let mut values = Values::new(1 << 20);
        let first = values.next().to_vec();
        assert_ne!(first, values.next());
        for _ in 2..values.count {
            values.next();
        }
        assert_eq!(first, values.next(), "after the last comes the first");
    }
}
