//! Sending records.

mod builder;
mod completion;
mod crc_shift;
mod error;
mod follow;
mod in_flight;
mod lane;
mod lane_task;
mod leave;
mod opening;
mod options;
mod record;
mod shared;
mod stamp;
mod stream;
mod unacknowledged;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_protocol::partitioner::partition_for_key;
use tidemill_protocol::record_batch::RecordBatch;
use tidemill_protocol::{PartitionId, Timestamp};
use tokio_util::sync::DropGuard;

use self::lane::Lane;
use self::shared::Shared;

pub use builder::ProducerBuilder;
pub use completion::{Delivery, Placement, Receipt};
pub use error::{DeliveryError, ProducerError, SendError};
pub use options::Acks;
pub use record::Record;
pub use shared::ProducerStats;

use crate::cluster::TopicMetadata;

/// Sends records to one topic. Cheap to clone; every method may be called from many tasks and threads at once.
///
/// Records are gathered into batches per partition. A batch goes out when it is full, when it is as old as the
/// linger, or at once where the partition has nothing under way. Dropping the last clone gives up what was not
/// sent: [`flush`](Self::flush) or [`close`](Self::close) first.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    /// Ends the lanes' tasks with the last handle.
    _alive: Arc<DropGuard>,
}

impl Producer {
    fn new(shared: Shared) -> Self {
        let alive = Arc::new(shared.stopped.clone().drop_guard());
        Self { shared: Arc::new(shared), _alive: alive }
    }

    /// Takes a record and answers with its [`Delivery`]. Waits only while the producer's memory is full; the
    /// delivery timeout bounds that.
    ///
    /// # Errors
    /// The record was not taken: too large, no such partition, or the producer has stopped.
    #[inline]
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, SendError> {
        match self.try_send(record) {
            Err(SendError::Full { .. }) => self.send_when_free(|| self.try_send(record)).await,
            done => done,
        }
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    /// As for [`send`](Self::send), and [`SendError::Full`].
    #[inline]
    pub fn try_send(&self, record: Record<'_>) -> Result<Delivery, SendError> {
        let buffered_bytes = record.buffered_bytes();
        let (index, is_sticky) = self.place(&record)?;
        let lane = self.lane(index)?;
        self.reserve(buffered_bytes)?;
        let timestamp = record.timestamp.unwrap_or_else(now);
        match lane.append(&record, timestamp, buffered_bytes) {
            Ok(appended) => {
                if appended.rolled && is_sticky {
                    self.shared.rotate(lane.target);
                }
                self.shared.stats.sent(1);
                Ok(appended.delivery)
            }
            Err(error) => {
                self.shared.release(buffered_bytes);
                Err(error)
            }
        }
    }

    /// Takes a record whose outcome only [`flush`](Self::flush) will tell.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    #[inline]
    pub async fn send_and_forget(&self, record: Record<'_>) -> Result<(), SendError> {
        self.send(record).await.map(drop)
    }

    /// Takes a batch that is built already, behind what was sent to its partition before. The delivery is that of
    /// its first record. `partition` is `None` for a routed producer, and only there.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub async fn send_batch(
        &self,
        partition: impl Into<Option<PartitionId>>,
        batch: RecordBatch,
    ) -> Result<Delivery, SendError> {
        let partition = partition.into();
        match self.try_send_batch(partition, &batch) {
            Err(SendError::Full { .. }) => {
                self.send_when_free(|| self.try_send_batch(partition, &batch)).await
            }
            done => done,
        }
    }

    fn try_send_batch(
        &self,
        partition: Option<PartitionId>,
        batch: &RecordBatch,
    ) -> Result<Delivery, SendError> {
        let bytes = batch.bytes().len();
        let limit = self.shared.batch_limit();
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let index = match (self.shared.options.routed, partition) {
            (true, None) => 0,
            (true, Some(_)) => return Err(SendError::Routed),
            (false, Some(partition)) => partition.get(),
            (false, None) => self.shared.sticky(),
        };
        let lane = self.lane(index)?;
        self.reserve(bytes)?;
        let delivery = lane.push(batch.clone(), bytes).inspect_err(|_| self.shared.release(bytes))?;
        self.shared.stats.sent(batch.header().record_count().into());
        Ok(delivery)
    }

    /// Sends what waits without lingering, and waits until everything sent before has its outcome.
    ///
    /// With [`Acks::None`] it also ends the streams and waits until the broker has dealt with what came over them: a refusal
    /// that no acknowledgement tells of fails the flush.
    ///
    /// # Errors
    /// The first failure of any record since the last flush, those whose [`Delivery`] was dropped included. With
    /// [`Acks::None`], [`DeliveryError::Unacknowledged`] or [`DeliveryError::Lost`] for records whose delivery said
    /// [`Receipt::Sent`].
    pub async fn flush(&self) -> Result<(), DeliveryError> {
        let ends_streams = self.shared.options.acks == Acks::None;
        let outstanding: Vec<_> =
            self.shared.started_lanes().flat_map(|lane| lane.flush(ends_streams)).collect();
        for completion in outstanding {
            // The failure is remembered below, and belongs to whoever holds the delivery.
            let _ = Delivery::new(completion, 0).await;
        }
        self.shared.take_failure().map_or(Ok(()), Err)
    }

    /// [`flush`](Self::flush), and stops: every clone refuses records from then on.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush).
    pub async fn close(self) -> Result<(), DeliveryError> {
        let flushed = self.flush().await;
        self.shared.close();
        flushed
    }

    /// The topic, as it was when the producer was built.
    #[must_use]
    pub fn topic(&self) -> &TopicMetadata {
        &self.shared.topic
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> ProducerStats {
        self.shared.stats()
    }

    /// Which lane a record goes to, and whether that was for want of a key.
    #[inline]
    fn place(&self, record: &Record<'_>) -> Result<(u32, bool), SendError> {
        let count = self.shared.topic.partition_count();
        match (self.shared.options.routed, record.partition, record.key) {
            (true, None, _) => Ok((0, false)),
            (true, Some(_), _) => Err(SendError::Routed),
            (false, Some(partition), _) => Ok((partition.get(), false)),
            (false, None, Some(key)) => Ok((partition_for_key(key, count).get(), false)),
            (false, None, None) => Ok((self.shared.sticky(), true)),
        }
    }

    #[inline]
    fn lane(&self, index: u32) -> Result<&Arc<Lane>, SendError> {
        if self.shared.is_closed() {
            return Err(SendError::Stopped(DeliveryError::Closed));
        }
        self.shared.lane(index).ok_or_else(|| SendError::NoPartition {
            partition: index,
            count: self.shared.topic.partition_count(),
        })
    }

    #[inline]
    fn reserve(&self, bytes: usize) -> Result<(), SendError> {
        if self.shared.reserve(bytes) {
            return Ok(());
        }
        let limit = self.shared.options.buffer_bytes_max;
        Err(if bytes > limit { SendError::TooLarge { bytes, limit } } else { SendError::Full { limit } })
    }

    #[cold]
    async fn send_when_free<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, SendError>,
    ) -> Result<T, SendError> {
        loop {
            let mut freed = std::pin::pin!(self.shared.freed());
            // Registered before the attempt: memory that is freed in between is not missed.
            freed.as_mut().enable();
            match attempt() {
                Err(SendError::Full { .. }) => {}
                done => return done,
            }
            tokio::select! {
                () = freed => {}
                () = self.shared.stopped.cancelled() => return Err(SendError::Stopped(DeliveryError::Closed)),
            }
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
