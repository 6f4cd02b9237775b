//! A producer whose batches a broker splits over partitions of two shards: each shard gets its part of every batch, be it empty.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use tidemill_protocol::{PartitionId, ProducerEpoch, ProducerId, ShardId, TopicId, TopicPartition};
use tidemill_shard::{AdoptTopic, RoutedAppend, Unit, UnitResult};

use super::SHARDS;
use super::clients::{Client, PARTITIONS, PAUSE_MS};

/// Who keeps the topic, each [`PARTITIONS`] of it.
const KEEPERS: [ShardId; 2] = [SHARDS[1], SHARDS[2]];
const TOPIC_BYTE: u8 = 50;
const PRODUCER: ProducerId = ProducerId::new(1_000);

fn topic() -> TopicId {
    TopicId::from_slice(&[TOPIC_BYTE; 16]).unwrap_or_else(|| unreachable!("16 bytes are an id"))
}

/// The shard of a partition of the topic.
pub(super) fn keeper_of(partition: TopicPartition) -> Option<ShardId> {
    let at = usize::try_from(partition.partition.get() / PARTITIONS).ok()?;
    KEEPERS.get(at).copied().filter(|_| partition.topic == topic())
}

impl Client {
    /// Writes batch after batch, each part until its shard has answered.
    pub(crate) async fn route(mut self) {
        for (partitions, shard) in parts() {
            let adopt = AdoptTopic { topic: topic(), name: "routed".to_owned(), partitions, ..self.topic() };
            self.write(shard, &Unit::AdoptTopic(adopt)).await;
        }
        let mut sequence = 0;
        while !self.world.is_ending() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            for (partitions, shard) in parts() {
                let mut batches = Vec::new();
                for partition in partitions {
                    if self.rng.random() {
                        batches.push((partition, self.batch(None, sequence)));
                    }
                }
                if !self.write_part(shard, sequence, batches).await {
                    return;
                }
            }
            sequence += 1;
        }
    }

    /// False where the simulation is over.
    async fn write_part(
        &mut self,
        shard: ShardId,
        sequence: i32,
        batches: Vec<(PartitionId, Bytes)>,
    ) -> bool {
        let sent: Vec<_> = batches.iter().map(|(_, batch)| self.ledger.lock().send(batch)).collect();
        let partitions: Vec<_> = batches.iter().map(|(partition, _)| *partition).collect();
        let unit = Unit::RoutedAppend(RoutedAppend {
            topic: topic(),
            producer: PRODUCER,
            epoch: ProducerEpoch::new(0),
            topic_sequence: u64::from(sequence.unsigned_abs()),
            filtered: None,
            batches,
        });
        match self.write(shard, &unit).await {
            Some(UnitResult::RoutedAppended { placements, .. })
                if placements.iter().map(|(partition, ..)| partition).eq(&partitions) =>
            {
                for ((partition, offset, _), sent) in placements.into_iter().zip(sent) {
                    let partition = TopicPartition::new(topic(), partition);
                    self.ledger.lock().acknowledge(partition, offset, sent);
                }
                true
            }
            Some(other) => {
                self.was_told(&format!("{other:?} of its batch {sequence}"));
                false
            }
            None => false,
        }
    }
}

/// The topic's partitions, and who keeps them.
fn parts() -> impl Iterator<Item = (Vec<PartitionId>, ShardId)> {
    (0_u32..).zip(KEEPERS).map(|(at, shard)| {
        let first = at * PARTITIONS;
        ((first..first + PARTITIONS).map(PartitionId::new).collect(), shard)
    })
}
