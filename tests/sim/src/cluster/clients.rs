//! Those who write and read: idempotent producers and plain ones at any broker, and readers that ask first how current a broker is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tidemill_controller::TopicConfig;
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{
    PartitionId, ProducerEpoch, ProducerId, Sequence, ShardId, Timestamp, TopicId, TopicPartition,
};
use tidemill_shard::{AdoptTopic, Unit, UnitError, UnitResult};

use super::world::{Running, World};
use crate::ledger::{Ledger, Violation};
use crate::trace::Trace;

/// Partitions of a shard.
pub(crate) const PARTITIONS: u32 = 2;
pub(super) const PAUSE_MS: std::ops::Range<u64> = 0..250;
const RECORD_BYTES_MAX: usize = 5 << 10;
/// One time in so many a client asks whichever broker.
const STRANGER_ONE_IN: u32 = 8;
/// How long a client waits for one broker.
const PATIENCE: Duration = Duration::from_secs(5);

/// A shard's only topic.
pub(crate) fn topic_of(shard: ShardId) -> TopicId {
    let byte = u8::try_from(shard.get()).unwrap_or(u8::MAX);
    TopicId::from_slice(&[byte.wrapping_add(100); 16]).unwrap_or_else(|| unreachable!("16 bytes are an id"))
}

/// What a client needs.
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) shard: ShardId,
    pub(crate) rng: StdRng,
    pub(crate) trace: Trace,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) world: World,
}

impl Client {
    /// Writes batch after batch until all is to end; what was begun is brought to its end.
    pub(crate) async fn produce(mut self, producer: i64) {
        self.write(self.shard, &Unit::AdoptTopic(self.topic())).await;
        let partition = self.partition();
        let mut sequence = 0;
        while !self.world.is_ending() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let batch = self.batch(Some(producer), sequence);
            let sent = self.ledger.lock().send(&batch);
            let unit = Unit::Append { partition, batch, leader_epoch: None };
            match self.write(self.shard, &unit).await {
                Some(UnitResult::Appended { base_offset, .. }) => {
                    self.ledger.lock().acknowledge(partition, base_offset, sent);
                }
                Some(other) => {
                    let told = format!("{} was told {other:?} of batch {sequence}", self.name);
                    return self.world.broken(Violation::Cluster(told));
                }
                None => return,
            }
            sequence += 1;
        }
    }

    /// Writes batches that no broker can tell from others, each once: one whose fate nobody knows is not sent again.
    pub(crate) async fn produce_plainly(mut self) {
        let mut number = 0;
        while !self.world.is_ending() && self.world.violation().is_none() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let partition = self.partition();
            let batch = self.batch(None, number);
            number += 1;
            let sent = self.ledger.lock().send(&batch);
            let unit = Unit::Append { partition, batch, leader_epoch: None };
            if let Some(UnitResult::Appended { base_offset, .. }) = self.try_write(self.shard, &unit).await {
                self.ledger.lock().acknowledge(partition, base_offset, sent);
            }
        }
    }

    fn partition(&mut self) -> TopicPartition {
        TopicPartition::new(topic_of(self.shard), PartitionId::new(self.rng.random_range(0..PARTITIONS)))
    }

    /// Asks brokers until one answers; `None` where the simulation is over.
    pub(super) async fn write(&mut self, shard: ShardId, unit: &Unit) -> Option<UnitResult> {
        loop {
            if self.world.violation().is_some() {
                return None;
            }
            // Not written, or nobody knows: the same again.
            if let Some(result) = self.try_write(shard, unit).await {
                return Some(result);
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(10..150))).await;
        }
    }

    /// Mostly one that keeps the shard; now and then any, which may know of no leader.
    pub(super) fn somebody(&mut self, shard: ShardId) -> Option<Running> {
        if self.rng.random_ratio(1, STRANGER_ONE_IN) {
            return self.world.any(&mut self.rng);
        }
        self.world.any_keeper(shard, &mut self.rng)
    }

    /// Asks one broker; `None` where it does not say that it is done.
    async fn try_write(&mut self, shard: ShardId, unit: &Unit) -> Option<UnitResult> {
        let at = self.somebody(shard)?;
        let replica = at.replicas.get(&shard).cloned()?;
        let asked = at.until_it_ends(replica.propose_anywhere(unit.clone()));
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        drop(replica);
        self.trace.note(format_args!("{} at {}: {answer:?}", self.name, at.broker));
        match answer {
            Ok(Some(Ok(UnitResult::Refused(UnitError::NotAdopted(_))))) => None,
            Ok(Some(Ok(result))) => Some(result),
            _ => None,
        }
    }

    /// Looks again and again whether a broker that says that it is current is.
    pub(crate) async fn read(mut self) {
        while !self.world.is_ending() && self.world.violation().is_none() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let partition = self.partition();
            let Some(at) = self.world.any(&mut self.rng) else { continue };
            let Some(replica) = at.replicas.get(&self.shard).cloned() else { continue };
            let Some(acknowledged) = self.ledger.lock().acknowledged_end(partition) else { continue };
            let asked = at.until_it_ends(replica.read_barrier());
            if !matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Some(Ok(())))) {
                continue;
            }
            let end = replica.shard().partition(partition).map(|view| view.high_watermark);
            self.trace.note(format_args!("{} at {}: {partition} ends at {end:?}", self.name, at.broker));
            if end.is_none_or(|end| end < acknowledged) {
                let told = format!(
                    "{} was shown {end:?} as the end of {partition} by {}, and {acknowledged} had been acknowledged before",
                    self.name, at.broker
                );
                self.world.broken(Violation::Cluster(told));
            }
        }
    }

    pub(super) fn topic(&self) -> AdoptTopic {
        AdoptTopic {
            topic: topic_of(self.shard),
            version: 1,
            name: "events".to_owned(),
            config: TopicConfig { segment_bytes: 48 << 10, ..TopicConfig::default() },
            partitions: (0..PARTITIONS).map(PartitionId::new).collect(),
            deleted: false,
        }
    }

    /// A batch of one record that no other is like.
    pub(super) fn batch(&mut self, producer: Option<i64>, sequence: i32) -> Bytes {
        let mut value = format!("{} {sequence} ", self.name).into_bytes();
        let bytes = self.rng.random_range(0..RECORD_BYTES_MAX);
        value.extend((0..bytes).map(|_| self.rng.random::<u8>()));
        let producer = producer.map(|producer| (ProducerId::new(producer), Sequence::new(sequence)));
        batch_of(&value, producer)
    }
}

/// A batch of one record.
pub(super) fn batch_of(value: &[u8], producer: Option<(ProducerId, Sequence)>) -> Bytes {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    if let Some((producer, sequence)) = producer {
        builder.set_producer(producer, ProducerEpoch::new(0), sequence);
    }
    let appended = builder.append(Timestamp::new(1_000), None, Some(value), []);
    assert!(appended.is_ok(), "a record of a few KiB fits a batch: {appended:?}");
    builder.build().unwrap_or_else(|error| unreachable!("a batch of one record can be built: {error}"))
}
