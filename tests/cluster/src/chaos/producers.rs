use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemill_client::{Client, Compression, Delivery, DeliveryError, PartitionId, Producer, Receipt, Record};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::findings::ViolationKind;
use super::history::{Fate, RecordId};
use super::load::{Topic, make};
use crate::Outcome;

/// How often a producer sends its share of the rate.
const TICKS_PER_SECOND: u32 = 50;
/// Deliveries that nobody has looked at yet.
const PENDING_MAX: usize = 20_000;
/// Longer than the broker is ever away.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// One producer under fire.
pub(super) struct Producing {
    pub(super) client: Client,
    pub(super) seed: u64,
    pub(super) topic: Topic,
    /// Its number among those of the topic.
    pub(super) number: u32,
    pub(super) rate: u32,
    pub(super) records_max: u32,
    pub(super) stopped: watch::Receiver<bool>,
    /// Over all producers.
    pub(super) acknowledged: Arc<AtomicU64>,
}

/// What became of what a producer sent.
#[derive(Debug, Default)]
pub(super) struct Produced {
    pub(super) fates: Vec<Fate>,
    pub(super) problems: Vec<(ViolationKind, String)>,
    pub(super) resent_batches: u64,
}

impl Producing {
    /// Sends until it is told to stop, and waits for all outcomes.
    pub(super) async fn run(mut self) -> Outcome<Produced> {
        // Each compresses in its own way.
        const COMPRESSIONS: [Compression; 5] =
            [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy, Compression::Gzip];
        let kind =
            (self.number as usize + if self.topic == Topic::Routed { 3 } else { 0 }) % COMPRESSIONS.len();
        let builder = self.client.producer(self.topic.name());
        let builder = if self.topic == Topic::Routed { builder.routed() } else { builder };
        let producer = builder
            .compression(COMPRESSIONS[kind])
            .batch_bytes(32 << 10)
            .buffer_bytes_max(8 << 20)
            .delivery_timeout(DELIVERY_TIMEOUT)
            .build()
            .await?;
        let (pending, outcomes) = mpsc::channel(PENDING_MAX);
        let collecting =
            tokio::spawn(collect(self.topic, self.number, outcomes, Arc::clone(&self.acknowledged)));
        let sending = self.send(&producer, &pending).await;
        // Failures are the deliveries' to tell.
        let _ = producer.flush().await;
        drop(pending);
        let mut produced = collecting.await?;
        produced.resent_batches = producer.stats().resent_batches;
        if let Err(error) = sending {
            produced
                .problems
                .push((ViolationKind::Stopped, format!("producer {} stopped: {error}", self.number)));
        }
        Ok(produced)
    }

    async fn send(&mut self, producer: &Producer, pending: &mpsc::Sender<Delivery>) -> Outcome<()> {
        let mut ticks = interval(Duration::from_secs(1) / TICKS_PER_SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        while sequence < self.records_max && !*self.stopped.borrow() {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = self.stopped.changed() => {
                    changed?;
                    continue;
                }
            }
            for _ in 0..(self.rate / TICKS_PER_SECOND).max(1) {
                let id = RecordId { producer: self.number, sequence };
                let made = make(self.seed, self.topic, id);
                let record = Record::new(&made.value).key(&made.key);
                let record = match self.topic {
                    Topic::Direct => record.partition(PartitionId::new(made.partition)),
                    Topic::Routed => record,
                };
                pending.send(producer.send(record).await?).await?;
                sequence += 1;
            }
        }
        Ok(())
    }
}

async fn collect(
    topic: Topic,
    number: u32,
    mut outcomes: mpsc::Receiver<Delivery>,
    acknowledged: Arc<AtomicU64>,
) -> Produced {
    let mut produced = Produced::default();
    while let Some(delivery) = outcomes.recv().await {
        let sequence = produced.fates.len();
        let (fate, problem) = match delivery.await {
            Ok(Receipt::Stored { partition, offset, .. }) => {
                (Fate::Acknowledged { at: Some((partition.get(), offset.get())) }, None)
            }
            Ok(Receipt::Routed { .. } | Receipt::LeftOut { .. } | Receipt::Sent) => {
                (Fate::Acknowledged { at: None }, None)
            }
            Err(error @ DeliveryError::TimedOut { .. }) => {
                (Fate::Unknown, Some((ViolationKind::Stopped, error)))
            }
            Err(error) => (Fate::Unknown, Some((ViolationKind::Refused, error))),
        };
        produced.fates.push(fate);
        match problem {
            None => _ = acknowledged.fetch_add(1, Ordering::Relaxed),
            Some((kind, error)) => {
                let what = format!("record {sequence} of producer {number} to {}: {error}", topic.name());
                produced.problems.push((kind, what));
            }
        }
    }
    produced
}
