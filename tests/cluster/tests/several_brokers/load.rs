//! Producers that go on whatever happens, and what must be there in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemill_client::{Client, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::reading::read_all;
use tokio::task::JoinHandle;

/// One producer per partition, each sending numbers from 0 on, one behind the other.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    producers: Vec<JoinHandle<Result<u64, String>>>,
    topic: String,
}

/// How long a record may take to be acknowledged: longer than any failover.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);
/// Between two records of a producer: what counts is that it goes on, not how much it sends.
const PAUSE: Duration = Duration::from_millis(2);

impl Load {
    pub(crate) async fn start(client: &Client, topic: &str, partitions: u32) -> Outcome<Self> {
        client.topics().create(NewTopic::new(topic, partitions)).await?;
        let (stop, paused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut producers = Vec::new();
        for partition in 0..partitions {
            let producer = client.producer(topic).delivery_timeout(DELIVERY_DEADLINE).build().await?;
            let (stop, paused) = (Arc::clone(&stop), Arc::clone(&paused));
            producers.push(tokio::spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    if paused.load(Ordering::Relaxed) {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    let value = number.to_be_bytes();
                    let record = Record::new(&value).partition(PartitionId::new(partition));
                    let sent = producer.send(record).await.map_err(|error| error.to_string())?;
                    sent.await
                        .map_err(|error| format!("record {number} of partition {partition}: {error}"))?;
                    number += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(number)
            }));
        }
        Ok(Self { stop, paused, producers, topic: topic.to_owned() })
    }

    /// Has the producers send nothing, beyond what is under way, until they are to go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Ends the load, and checks that each acknowledged record is there once, in order. Answers how many there are.
    pub(crate) async fn check(self, client: &Client) -> Outcome<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeMap::new();
        for (partition, producer) in (0..).zip(self.producers) {
            acknowledged.insert(partition, producer.await??);
        }
        let read = read_all(client, &self.topic).await?;
        for (partition, count) in &acknowledged {
            let records = read.get(partition).map(Vec::as_slice).unwrap_or_default();
            let values: Vec<u64> = records
                .iter()
                .map(|record| {
                    let value = record.value.as_deref().unwrap_or_default();
                    u64::from_be_bytes(value.try_into().expect("8 bytes were sent"))
                })
                .collect();
            assert!(
                values.iter().copied().eq(0..*count),
                "partition {partition}: {count} acknowledged, read {values:?}"
            );
            let offsets = records.iter().map(|record| record.offset.get());
            assert!(offsets.eq(0..*count as i64), "partition {partition} has gaps");
        }
        Ok(acknowledged.values().sum())
    }

    /// Whether all producers still go on; else why one does not.
    pub(crate) async fn goes_on(&mut self) -> Outcome<()> {
        match self.producers.iter_mut().find(|producer| producer.is_finished()) {
            Some(producer) => Err(format!("a producer gave up: {:?}", producer.await?).into()),
            None => Ok(()),
        }
    }
}
