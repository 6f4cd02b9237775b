//! A steady load on one partition, record by record, with the fate of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_client::{Client, Delivery, DeliveryError, PartitionId, Producer, Record, SendError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Outcome;
use crate::stats::Latencies;
use crate::work::noise;

const RECORD_BYTES: usize = 1 << 10;
/// Between two records: 1,000 per second.
const PERIOD: Duration = Duration::from_millis(1);
/// For one more acknowledgement: longer than a producer waits for any.
const GRACE: Duration = Duration::from_secs(90);

/// A record that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// When the call began that sent it.
    pub(crate) sent: Instant,
    pub(crate) at: Instant,
}

/// Sends to partition 0 from a thread that nothing holds up. Ends when it is dropped.
pub(crate) struct Steady {
    stopping: Arc<AtomicBool>,
    fates: mpsc::UnboundedReceiver<Result<Acknowledged, DeliveryError>>,
    /// The last handle gives up what is not acknowledged: that must not be the thread's.
    _producer: Producer,
}

impl Steady {
    /// Begins; with the producer's settings as they ship.
    pub(crate) async fn start(client: &Client, topic: &str) -> Outcome<Self> {
        let producer = client.producer(topic).build().await?;
        let value = noise(RECORD_BYTES);
        // The first opens the stream.
        producer.send(Record::new(&value).partition(PartitionId::new(0))).await?.await?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (sent, deliveries) = mpsc::unbounded_channel();
        let (told, fates) = mpsc::unbounded_channel();
        let (stop, sender) = (Arc::clone(&stopping), producer.clone());
        std::thread::spawn(move || send(&sender, &value, &stop, &sent));
        tokio::spawn(follow(deliveries, told));
        Ok(Self { stopping, fates, _producer: producer })
    }

    /// What became of the next record, in the order in which they were sent.
    pub(crate) async fn next(&mut self) -> Outcome<Result<Acknowledged, DeliveryError>> {
        let fate =
            timeout(GRACE, self.fates.recv()).await.map_err(|_| "no record was acknowledged in time")?;
        fate.ok_or_else(|| "the load has ended by itself".into())
    }

    /// Stops sending, waits for the last acknowledgement, and answers all that nobody has asked for yet.
    pub(crate) async fn finish(mut self) -> Outcome<Vec<Acknowledged>> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(fate) =
            timeout(GRACE, self.fates.recv()).await.map_err(|_| "no record was acknowledged in time")?
        {
            all.push(fate?);
        }
        Ok(all)
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn send(
    producer: &Producer,
    value: &Bytes,
    stopping: &AtomicBool,
    sent: &mpsc::UnboundedSender<(Instant, Delivery)>,
) {
    let mut due = Instant::now();
    while !stopping.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        match producer.try_send(Record::new(value).partition(PartitionId::new(0))) {
            Ok(delivery) => {
                if sent.send((now, delivery)).is_err() {
                    return;
                }
            }
            // Half a minute of records waits: it is bad enough without more of them.
            Err(SendError::Full { .. }) => {}
            Err(_) => return,
        }
        due += PERIOD;
    }
}

/// Records of one partition are acknowledged in turn, so each is waited for in its turn.
async fn follow(
    mut deliveries: mpsc::UnboundedReceiver<(Instant, Delivery)>,
    told: mpsc::UnboundedSender<Result<Acknowledged, DeliveryError>>,
) {
    while let Some((sent, delivery)) = deliveries.recv().await {
        let fate = delivery.await.map(|_| Acknowledged { sent, at: Instant::now() });
        if told.send(fate).is_err() {
            return;
        }
    }
}

/// How long those took that were sent within a time.
pub(crate) fn latencies(all: &[Acknowledged], from: Instant, until: Instant) -> Outcome<Latencies> {
    let mut latencies = Latencies::new()?;
    for record in all.iter().filter(|record| record.sent >= from && record.sent < until) {
        latencies.record(record.at - record.sent);
    }
    match latencies.count() {
        0 => Err("nothing was sent meanwhile".into()),
        _ => Ok(latencies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_of_what_was_sent_within_the_time() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let took = |sent, ms| Acknowledged { sent: at(sent), at: at(sent + ms) };
        // Acknowledged after the time, and sent within it: it counts.
        let all = [took(0, 900), took(10, 1), took(19, 3), took(20, 900)];
        let within = latencies(&all, at(10), at(20)).expect("some");
        assert_eq!(within.count(), 2);
        assert!(within.at(1.0) < 3_100.0, "{}", within.at(1.0));
        latencies(&all, at(30), at(40)).expect_err("nothing");
    }
}
