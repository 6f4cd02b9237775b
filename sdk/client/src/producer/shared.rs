use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tidemill_protocol::PartitionId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::DeliveryError;
use super::follow::follow;
use super::in_flight::Identity;
use super::lane::{Lane, Target};
use super::lane_task::{LaneTask, run_sink};
use super::options::Options;
use crate::backoff::random_number;
use crate::cluster::{Cluster, TopicInUse, TopicMetadata};

/// What all handles of a producer and all its lanes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) topic: Arc<TopicMetadata>,
    pub(super) options: Options,
    pub(super) identity: Option<Identity>,
    /// By partition; routed produce has one.
    lanes: Vec<OnceLock<Arc<Lane>>>,
    /// Where records without a key go, until a batch is full.
    sticky: AtomicU32,
    buffered_bytes: AtomicUsize,
    /// Memory became free.
    freed: Notify,
    /// The producer was closed or dropped, or its client closed.
    pub(super) stopped: CancellationToken,
    /// The producer was closed, for a look at each record.
    closed: AtomicBool,
    /// The first failure since the last flush.
    failed: Mutex<Option<DeliveryError>>,
    pub(super) stats: Counters,
    /// `None`: a sink.
    cluster: Option<Arc<Cluster>>,
    /// The topic's changes come as long as the lanes live.
    _in_use: Option<TopicInUse>,
    /// Set when the task that follows the partitions' leaders has begun.
    following: OnceLock<()>,
    /// Bytes of the largest batch that topic and broker take.
    batch_limit: usize,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    records: AtomicU64,
    batches: AtomicU64,
    failed: AtomicU64,
    resent: AtomicU64,
    broken: AtomicU64,
}

/// What a producer has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProducerStats {
    /// Records taken, those of batches sent as a whole included.
    pub records: u64,
    /// Batches that have their outcome.
    pub batches: u64,
    /// Of these, those that failed.
    pub failed_batches: u64,
    /// Batches that were sent again, counted each time.
    pub resent_batches: u64,
    /// Streams without acknowledgements that the broker or the network ended: each may have taken records with it whose
    /// delivery had said [`Receipt::Sent`](crate::Receipt::Sent).
    pub broken_streams: u64,
    /// Bytes that wait to be acknowledged now.
    pub buffered_bytes: usize,
}

impl Counters {
    pub(super) fn sent(&self, records: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn resent(&self) {
        self.resent.fetch_add(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Must be called inside a tokio runtime, which will run the lanes. A sink uses no topic.
    pub(super) fn new(
        topic: Arc<TopicMetadata>,
        options: Options,
        identity: Option<Identity>,
        in_use: Option<TopicInUse>,
        batch_limit: usize,
    ) -> Self {
        let cluster = in_use.as_ref().map(|in_use| Arc::clone(in_use.cluster()));
        let lanes = if options.routed { 1 } else { topic.partitions.len() };
        Self {
            lanes: (0..lanes).map(|_| OnceLock::new()).collect(),
            sticky: AtomicU32::new(random_number() % topic.partition_count().max(1)),
            topic,
            options,
            identity,
            buffered_bytes: AtomicUsize::new(0),
            freed: Notify::new(),
            stopped: cluster.as_ref().map(|cluster| cluster.closed.child_token()).unwrap_or_default(),
            closed: AtomicBool::new(false),
            failed: Mutex::new(None),
            stats: Counters::default(),
            cluster,
            _in_use: in_use,
            following: OnceLock::new(),
            batch_limit,
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// The lane of a partition, whose task begins with its first record. `None` where there is no such partition.
    #[inline]
    pub(super) fn lane(self: &Arc<Self>, index: u32) -> Option<&Arc<Lane>> {
        let slot = self.lanes.get(usize::try_from(index).ok()?)?;
        Some(slot.get_or_init(|| self.start_lane(index)))
    }

    #[cold]
    fn start_lane(self: &Arc<Self>, index: u32) -> Arc<Lane> {
        let target =
            if self.options.routed { Target::Routed } else { Target::Partition(PartitionId::new(index)) };
        let lane = Arc::new(Lane::new(target, self));
        match &self.cluster {
            Some(cluster) => {
                self.following.get_or_init(|| {
                    let follow = follow(Arc::downgrade(self), Arc::clone(cluster), self.stopped.clone());
                    drop(self.runtime.spawn(follow));
                });
                let task = LaneTask::new(Arc::clone(self), Arc::clone(cluster), Arc::clone(&lane));
                self.runtime.spawn(task.run());
            }
            None => {
                self.runtime.spawn(run_sink(Arc::clone(self), Arc::clone(&lane)));
            }
        }
        lane
    }

    pub(super) fn started_lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.iter().filter_map(OnceLock::get)
    }

    #[inline]
    pub(super) fn sticky(&self) -> u32 {
        self.sticky.load(Ordering::Relaxed)
    }

    /// A batch of `target` is closed: records without a key go elsewhere from now on (KIP-480).
    pub(super) fn rotate(&self, target: Target) {
        let Target::Partition(partition) = target else { return };
        let next = (partition.get() + 1) % self.topic.partition_count().max(1);
        // Where another batch was closed meanwhile, the choice is made already.
        let _ = self.sticky.compare_exchange(partition.get(), next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Takes memory for a record; `false` where there is none left. Something larger than all of it never fits.
    #[inline]
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        let limit = self.options.buffer_bytes_max;
        let grow = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        self.buffered_bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, grow).is_ok()
    }

    /// Takes no more records, and ends the lanes' tasks.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.stopped.cancel();
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn release(&self, bytes: usize) {
        self.buffered_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.freed.notify_waiters();
    }

    pub(super) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// A batch has its outcome: counts it and frees its memory.
    pub(super) fn settled(&self, buffered_bytes: usize, error: Option<&DeliveryError>) {
        if let Some(error) = error {
            self.stats.failed.fetch_add(1, Ordering::Relaxed);
            self.failed.lock().get_or_insert_with(|| error.clone());
        }
        // Last: whoever looks in between must not take a failure for a success.
        self.stats.batches.fetch_add(1, Ordering::Release);
        self.release(buffered_bytes);
    }

    /// What was handed over without acknowledgements came to grief: the next flush says so.
    pub(super) fn broken(&self, error: DeliveryError) {
        self.stats.broken.fetch_add(1, Ordering::Relaxed);
        self.failed.lock().get_or_insert(error);
    }

    pub(super) const fn batch_limit(&self) -> usize {
        self.batch_limit
    }

    pub(super) fn take_failure(&self) -> Option<DeliveryError> {
        self.failed.lock().take()
    }

    pub(super) fn stats(&self) -> ProducerStats {
        ProducerStats {
            records: self.stats.records.load(Ordering::Relaxed),
            // Before those that failed: they are among them.
            batches: self.stats.batches.load(Ordering::Acquire),
            failed_batches: self.stats.failed.load(Ordering::Relaxed),
            resent_batches: self.stats.resent.load(Ordering::Relaxed),
            broken_streams: self.stats.broken.load(Ordering::Relaxed),
            buffered_bytes: self.buffered_bytes.load(Ordering::Relaxed),
        }
    }
}
