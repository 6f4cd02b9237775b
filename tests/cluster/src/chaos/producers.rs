use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tidemill_client::{Client, Compression, Delivery, DeliveryError, PartitionId, Producer, Receipt, Record};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::failovers::Failovers;
use super::findings::ViolationKind;
use super::history::{Fate, RecordId};
use super::load::{DIRECT_PARTITIONS, Topic, make};
use super::recording::Recording;
use crate::Outcome;

/// How often a producer sends its share of the rate.
const TICKS_PER_SECOND: u32 = 50;
/// Deliveries that nobody has looked at yet.
const PENDING_MAX: usize = 20_000;
/// Longer than a majority of the brokers is ever away.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// How it goes, for whoever looks on.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Records acknowledged, over all producers.
    pub(super) acknowledged: AtomicU64,
    /// Of these, those of the topic `direct`, by partition.
    of_direct: [AtomicU64; DIRECT_PARTITIONS as usize],
    /// Producers that still send.
    pub(super) sending: AtomicU32,
    /// How long leaders are missed.
    pub(super) failovers: Failovers,
}

impl Watch {
    /// Records acknowledged of the topic `direct`, by partition.
    pub(super) fn of_direct(&self) -> [u64; DIRECT_PARTITIONS as usize] {
        std::array::from_fn(|partition| self.of_direct[partition].load(Ordering::Relaxed))
    }
}

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
    pub(super) watch: Arc<Watch>,
    pub(super) recording: Recording,
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
        let collecting = tokio::spawn(collect(self.topic, self.number, outcomes));
        self.recording.producer(self.topic, self.number);
        self.watch.sending.fetch_add(1, Ordering::Relaxed);
        let sending = self.send(&producer, &pending).await;
        self.watch.sending.fetch_sub(1, Ordering::Relaxed);
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

    async fn send(&mut self, producer: &Producer, pending: &mpsc::Sender<JoinHandle<Told>>) -> Outcome<()> {
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
                let (record, partition) = match self.topic {
                    Topic::Direct | Topic::Trimmed => {
                        (record.partition(PartitionId::new(made.partition)), Some(made.partition))
                    }
                    Topic::Routed => (record, None),
                };
                self.recording.send(self.topic, id, partition);
                let sent = Instant::now();
                let delivery = producer.send(record).await?;
                let (watch, recording) = (Arc::clone(&self.watch), self.recording.clone());
                // A task each, so that one partition's records are heard of while another's wait.
                let told = tokio::spawn(outcome(watch, recording, self.topic, id, sent, delivery));
                if pending.send(told).await.is_err() {
                    return Err("nobody collects the outcomes".into());
                }
                sequence += 1;
            }
        }
        Ok(())
    }
}

/// What became of one record, and what is wrong with that.
type Told = (Fate, Option<(ViolationKind, String)>);

async fn outcome(
    watch: Arc<Watch>,
    recording: Recording,
    topic: Topic,
    id: RecordId,
    sent: Instant,
    delivery: Delivery,
) -> Told {
    let problem = |kind, error: DeliveryError| {
        (Fate::Unknown, Some((kind, format!("{id} to {}: {error}", topic.name()))))
    };
    match delivery.await {
        Ok(Receipt::Stored { partition, offset, .. }) => {
            let at = (partition.get(), offset.get());
            recording.sent(topic, id, Some(at));
            watch.acknowledged.fetch_add(1, Ordering::Relaxed);
            if topic == Topic::Direct {
                watch.failovers.acknowledged(at.0, sent);
                if let Some(count) = watch.of_direct.get(at.0 as usize) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            (Fate::Acknowledged { at: Some(at) }, None)
        }
        Ok(Receipt::Routed { .. } | Receipt::LeftOut { .. } | Receipt::Sent) => {
            recording.sent(topic, id, None);
            watch.acknowledged.fetch_add(1, Ordering::Relaxed);
            (Fate::Acknowledged { at: None }, None)
        }
        Err(error @ DeliveryError::TimedOut { .. }) => {
            recording.unknown(topic, id);
            problem(ViolationKind::Stopped, error)
        }
        Err(error) => {
            match &error {
                DeliveryError::Refused(_) => recording.failed(topic, id),
                _ => recording.unknown(topic, id),
            }
            problem(ViolationKind::Refused, error)
        }
    }
}

/// Gathers outcomes in the order in which records were sent.
async fn collect(topic: Topic, number: u32, mut outcomes: mpsc::Receiver<JoinHandle<Told>>) -> Produced {
    let mut produced = Produced::default();
    while let Some(told) = outcomes.recv().await {
        let (fate, problem) = told.await.unwrap_or_else(|error| {
            let what = format!("producer {number} to {}: {error}", topic.name());
            (Fate::Unknown, Some((ViolationKind::Stopped, what)))
        });
        produced.fates.push(fate);
        produced.problems.extend(problem);
    }
    produced
}
