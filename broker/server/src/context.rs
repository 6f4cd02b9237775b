//! What every handler reaches: the broker's parts, shared by all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemill_hosting::Hosting;
use tidemill_log::fs::Space;
use tidemill_protocol::messages::Error;
use tidemill_protocol::record_batch::BatchLimits;
use tidemill_protocol::{ErrorCode, TopicPartition};
use tidemill_raft::Replica;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admitted, NoRoom};
use crate::attempts::Attempts;
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::data_dir::Meta;
use crate::generations::Generations;
use crate::producer_ids::ProducerIds;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};

/// The broker as its handlers see it.
pub(crate) struct Context {
    pub(crate) config: BrokerConfig,
    pub(crate) meta: Meta,
    pub(crate) view: ViewReader,
    pub(crate) shards: Shards,
    pub(crate) hosting: Hosting,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) outboxes: Arc<crate::outbox::OutboxSignals>,
    pub(crate) clock: Clock,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) generations: Arc<Generations>,
    pub(crate) disk: DiskState,
    /// The largest batch that fits a frame and a shard's log here; a topic may allow less.
    pub(crate) batch_bytes_max: usize,
    pub(crate) wal: tidemill_log::wal::Wal,
    /// Places for components that are being uploaded, checked and compiled.
    pub(crate) uploads: tokio::sync::Semaphore,
    pub(crate) metrics: metrics_exporter_prometheus::PrometheusHandle,
    /// Cancelled when the broker begins to stop.
    pub(crate) stopping: CancellationToken,
}

/// Uploads under way at once: each holds a component in memory, and a compiler's process.
const UPLOADS_MAX: usize = 4;

/// Places for uploads.
pub(crate) const fn uploads() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::const_new(UPLOADS_MAX)
}

/// Whether there is room to write, as the disk watch saw it last.
#[derive(Debug, Default)]
pub(crate) struct DiskState {
    nearly_full: AtomicBool,
    space: parking_lot::Mutex<Option<Space>>,
}

impl DiskState {
    pub(crate) fn set_nearly_full(&self, nearly_full: bool) -> bool {
        self.nearly_full.swap(nearly_full, Ordering::Relaxed)
    }

    pub(crate) fn set_space(&self, space: Space) {
        *self.space.lock() = Some(space);
    }

    /// As it was looked at last.
    pub(crate) fn space(&self) -> Option<Space> {
        *self.space.lock()
    }

    pub(crate) fn is_nearly_full(&self) -> bool {
        self.nearly_full.load(Ordering::Relaxed)
    }
}

impl Context {
    /// What a batch for a topic may be.
    pub(crate) fn batch_limits(&self, batch_bytes_max: u32) -> BatchLimits {
        let limits = &self.config.limits;
        BatchLimits {
            batch_bytes_max: usize::try_from(batch_bytes_max).unwrap_or(usize::MAX).min(self.batch_bytes_max),
            record_bytes_max: usize::try_from(limits.record_bytes_max).unwrap_or(usize::MAX),
            decompressed_bytes_max: limits.decompressed_bytes_max,
            ..BatchLimits::default()
        }
    }

    /// What stored batches are read with: nothing that was once accepted is refused.
    pub(crate) fn stored_batch_limits(&self) -> BatchLimits {
        BatchLimits {
            batch_bytes_max: usize::MAX,
            record_bytes_max: usize::MAX,
            decompressed_bytes_max: self.config.limits.decompressed_bytes_max,
            allow_gaps: true,
            ..BatchLimits::default()
        }
    }

    /// Refuses what would need room on a disk that has none.
    pub(crate) fn room_to_write(&self) -> Result<(), Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::new(ErrorCode::ShuttingDown, "the broker is shutting down; try another"));
        }
        if self.disk.is_nearly_full() {
            return Err(disk_full());
        }
        Ok(())
    }

    /// Room for a unit of `bytes` in the write-ahead log and on the disk, to be held until its answer is there.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<Admitted, Error> {
        self.shards.admission().admit(bytes).await.map_err(|no_room| match no_room {
            NoRoom::Disk => disk_full(),
            NoRoom::Log => Error::new(
                ErrorCode::Overloaded,
                "the write-ahead log is at its bound (wal.bytes_max) and waits for checkpoints; try again later",
            ),
        })
    }

    /// The topic and replica of a partition that somebody named.
    pub(crate) fn find(
        &self,
        view: &ClusterView,
        partition: TopicPartition,
    ) -> Result<(Arc<tidemill_controller::TopicRecord>, Replica), Error> {
        let topic = view.topic(partition.topic).ok_or_else(|| unknown_topic(&partition.topic.to_string()))?;
        let shard = topic.shard_of(partition.partition).ok_or_else(|| {
            Error::new(
                ErrorCode::UnknownPartition,
                format!(
                    "topic '{}' has no partition {}: it has {}, counted from 0",
                    topic.name,
                    partition.partition,
                    topic.partition_count()
                ),
            )
        })?;
        let replica = self.shards.replica(shard).ok_or_else(|| {
            Error::new(
                ErrorCode::NotLeader,
                format!("shard {shard} is not on this broker; refresh the metadata"),
            )
        })?;
        Ok((Arc::clone(topic), replica.clone()))
    }

    /// A request's deadline.
    pub(crate) fn deadline(&self, asked_ms: u32) -> Duration {
        const REQUEST_DEADLINE_MAX: Duration = Duration::from_secs(600);
        let ms = if asked_ms == 0 { self.config.limits.request_deadline_ms } else { asked_ms };
        Duration::from_millis(u64::from(ms)).min(REQUEST_DEADLINE_MAX)
    }
}

fn disk_full() -> Error {
    Error::new(
        ErrorCode::DiskFull,
        "the broker's disk is nearly full: produce is refused until retention or an operator frees space",
    )
}

pub(crate) fn unknown_topic(name: &str) -> Error {
    Error::new(
        ErrorCode::UnknownTopic,
        format!("there is no topic '{name}'; `tidemill topic list` shows the topics"),
    )
}
