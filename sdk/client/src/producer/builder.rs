use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::messages::TopicConfig;
use tidemill_protocol::record_batch::Compression;
use tidemill_protocol::{BrokerId, LeaderEpoch, PartitionId, ShardId, TopicId};

use super::lane_task::new_identity;
use super::options::{Acks, Options};
use super::shared::Shared;
use super::{Producer, ProducerError};
use crate::cluster::{Cluster, PartitionMetadata, TopicMetadata};

/// The largest batch that a sink takes: what a broker would by default.
const SINK_BATCH_BYTES_MAX: usize = 8 << 20;

/// Brokers forget no producer that wrote within the last ten minutes by the log's time.
const DELIVERY_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// How a [`Producer`] sends. Made by [`Client::producer`](crate::Client::producer).
#[derive(Debug)]
#[must_use = "nothing happens before build"]
pub struct ProducerBuilder {
    cluster: Arc<Cluster>,
    topic: String,
    options: Options,
}

impl ProducerBuilder {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: String) -> Self {
        Self { cluster, topic, options: Options::default() }
    }

    /// How long a batch may wait to become full while another is under way. By default 5 ms.
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.options.linger = linger;
        self
    }

    /// Whether a batch goes out at once, however small, where its partition has nothing under way. By default yes:
    /// a single record does not wait, and under load batches fill while others are on their way. Without it every
    /// batch waits until it is full or has lingered.
    pub const fn eager(mut self, eager: bool) -> Self {
        self.options.eager = eager;
        self
    }

    /// Bytes of a full batch, before compression. By default 256 KiB; never more than the topic or broker allows. A record larger
    /// than that goes in a batch of its own, as far as these allow one.
    pub const fn batch_bytes(mut self, bytes: usize) -> Self {
        self.options.batch_bytes = bytes;
        self
    }

    /// How batches are compressed, where that makes them smaller. By default not at all.
    pub const fn compression(mut self, compression: Compression) -> Self {
        self.options.compression = compression;
        self
    }

    /// For gzip 0 to 9, for zstd its own levels. By default the format's own.
    pub const fn compression_level(mut self, level: i32) -> Self {
        self.options.compression_level = Some(level);
        self
    }

    /// When a record counts as stored. By default [`Acks::Quorum`].
    pub const fn acks(mut self, acks: Acks) -> Self {
        self.options.acks = acks;
        self
    }

    /// Whether the broker drops what arrives twice, so that a record sent again after a broken connection is there
    /// once. By default yes.
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.options.idempotent = idempotent;
        self
    }

    /// Lets the broker choose each record's partition, with the topic's partitioner if it has one. By default the
    /// client does: by key as Kafka's default has it, else one partition per batch.
    pub const fn routed(mut self) -> Self {
        self.options.routed = true;
        self
    }

    /// Memory for records that wait to be sent or acknowledged. By default 32 MiB: enough for several batches under way to
    /// many partitions, and no more than what processors cache.
    pub const fn buffer_bytes_max(mut self, bytes: usize) -> Self {
        self.options.buffer_bytes_max = bytes;
        self
    }

    /// How long after it was sent a record may stay unacknowledged before it fails. By default 60 s; at most 10 minutes, for as long
    /// as a broker remembers every producer.
    pub const fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.options.delivery_timeout = timeout;
        self
    }

    /// Batches of one partition that may be on their way at once, within what the broker allows. By default 64.
    pub const fn in_flight_max(mut self, batches: usize) -> Self {
        self.options.in_flight_max = batches;
        self
    }

    /// Looks the topic up, gets a producer id, and is ready to send.
    ///
    /// # Errors
    /// No such topic, no connection, or settings that contradict each other.
    pub async fn build(mut self) -> Result<Producer, ProducerError> {
        check(&self.options)?;
        let (topic, in_use) = self.cluster.topic_in_use(&self.topic).await?;
        let connection = self.cluster.connection(None).await.map_err(crate::RequestError::from)?;
        let of_topic = topic.config.batch_bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
        let allowed = of_topic.map_or(connection.limits.batch_bytes_max, |of_topic| {
            of_topic.min(connection.limits.batch_bytes_max)
        });
        self.options.batch_bytes = self.options.batch_bytes.min(allowed);
        // Without acknowledgements nothing is sent twice.
        self.options.idempotent &= self.options.acks != Acks::None;
        let identity = if self.options.idempotent { Some(new_identity(&self.cluster).await?) } else { None };
        Ok(Producer::new(Shared::new(topic, self.options, identity, Some(in_use), allowed)))
    }

    /// The same producer in front of a sink: batches are made, numbered and checksummed as always, then acknowledged
    /// at once and dropped. For measuring what the client itself costs; no broker is asked, and the sink has
    /// `partitions` partitions. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn build_sink(mut self, partitions: u32) -> Result<Producer, ProducerError> {
        check(&self.options)?;
        let partition = |number| PartitionMetadata {
            partition: PartitionId::new(number),
            shard: ShardId::new(1),
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(0),
            replicas: Arc::default(),
        };
        let topic = TopicMetadata {
            id: TopicId::new(uuid::Uuid::nil()),
            name: self.topic.as_str().into(),
            partitions: (0..partitions.max(1)).map(partition).collect(),
            config: TopicConfig::default(),
            partitioner: None,
            version: 0,
        };
        self.options.batch_bytes = self.options.batch_bytes.min(SINK_BATCH_BYTES_MAX);
        Ok(Producer::new(Shared::new(Arc::new(topic), self.options, None, None, SINK_BATCH_BYTES_MAX)))
    }
}

fn check(options: &Options) -> Result<(), ProducerError> {
    /// Below this a batch has no room for a record worth sending.
    const BATCH_BYTES_MIN: usize = 256;
    let wrong = |what: String| Err(ProducerError::Settings(what));
    if options.batch_bytes < BATCH_BYTES_MIN {
        return wrong(format!(
            "batch_bytes is {}, and must be at least {BATCH_BYTES_MIN}",
            options.batch_bytes
        ));
    }
    if options.in_flight_max == 0 {
        return wrong("in_flight_max is 0: nothing could be sent".to_owned());
    }
    if options.idempotent && options.delivery_timeout > DELIVERY_TIMEOUT_MAX {
        return wrong(format!(
            "delivery_timeout is {:?}, and may be {DELIVERY_TIMEOUT_MAX:?}: after that a broker may have forgotten who sent a batch",
            options.delivery_timeout
        ));
    }
    if options.delivery_timeout <= options.linger {
        return wrong(format!(
            "delivery_timeout ({:?}) must be longer than linger ({:?})",
            options.delivery_timeout, options.linger
        ));
    }
    Ok(())
}
