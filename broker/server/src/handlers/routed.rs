//! Routed produce: the broker places each record.
//!
//! A batch becomes one unit in every shard that holds partitions of the topic, empty ones included, so that each shard
//! sees a gapless sequence per producer and topic and can tell a retry from a new batch. One acknowledgement says that
//! all of them are committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use tidemill_controller::TopicRecord;
use tidemill_hosting::{Partitioner, Placement};
use tidemill_net::{FrameReader, FrameWriter};
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    Acks, Error, Rejection, RoutedAck, RoutedAcks, RoutedBatch, RoutedOpen, RoutedOpened, RoutedPlacement,
};
use tidemill_protocol::record_batch::{ProducerFields, RecordBatch};
use tidemill_protocol::{DeploymentId, ErrorCode, PartitionId, ProducerEpoch, ProducerId, ShardId, TopicId};
use tidemill_raft::{Pending, ProposeError, Replica};
use tidemill_shard::{RoutedAppend, Unit, UnitResult};

use crate::connection::{ClientName, Opened, read_error};
use crate::context::{Context, unknown_topic};
use crate::errors;
use crate::handlers::acks::{self, AckQueue};
use crate::plans;
use crate::refusals;
use crate::view::ViewReader;

/// Serves a routed produce stream until it ends.
pub(crate) async fn serve(context: Arc<Context>, client: ClientName, opened: Opened, open: RoutedOpen) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let routing = match Routing::open(&context, &open) {
        Ok(routing) => routing,
        Err(error) => {
            let refusal = RoutedOpened { error: Some(error), ..RoutedOpened::default() };
            let _ = writer.send(&refusal, &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    let answer = RoutedOpened {
        error: None,
        partitioner_epoch: routing.topic.partitioner.epoch,
        partition_count: routing.topic.partition_count(),
    };
    if writer.send(&answer, &[]).await.is_err() {
        return;
    }
    routing.run(reader, writer, &client).await;
}

struct Routing {
    context: Arc<Context>,
    view: ViewReader,
    topic: Arc<TopicRecord>,
    producer: ProducerId,
    epoch: ProducerEpoch,
    acknowledged: bool,
    /// Opened partitioners by the epoch of their binding; a retry may need an old one.
    partitioners: BTreeMap<u32, Partitioner>,
}

impl Routing {
    fn open(context: &Arc<Context>, open: &RoutedOpen) -> Result<Self, Error> {
        let id = TopicId::from_slice(&open.topic_id)
            .ok_or_else(|| Error::new(ErrorCode::BadMessage, "a topic id has 16 bytes"))?;
        let view = context.view.clone();
        let topic = view.now().topic(id).cloned().ok_or_else(|| unknown_topic(&id.to_string()))?;
        let epoch = i16::try_from(open.producer_epoch)
            .map_err(|_| Error::new(ErrorCode::BadMessage, "a producer epoch is a 16-bit number"))?;
        Ok(Self {
            context: Arc::clone(context),
            view,
            topic,
            producer: ProducerId::new(open.producer_id),
            epoch: ProducerEpoch::new(epoch),
            acknowledged: Acks::try_from(open.acks).unwrap_or(Acks::Quorum) == Acks::Quorum,
            partitioners: BTreeMap::new(),
        })
    }

    async fn run(mut self, mut reader: FrameReader, writer: FrameWriter, client: &ClientName) {
        let (answers, queue) = AckQueue::new(self.context.config.limits.produce_in_flight_max);
        let written = tokio::spawn(acks::write(queue, writer, |acks| RoutedAcks { acks }));
        let mut expected = 0;
        loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    let error = read_error(&error);
                    tracing::debug!(client = %client.0, topic = %self.topic.name, %error, "a routed stream broke off");
                    reader.stop(error.code);
                    break;
                }
            };
            let header = frame.message::<RoutedBatch>().ok().filter(|header| header.request_id == expected);
            let Some(header) = header else {
                reader.stop(ErrorCode::BadMessage.code());
                break;
            };
            expected += 1;
            let answer = match self.submit(&header, frame).await {
                Ok(submitted) => submitted.acknowledge(header.request_id).boxed(),
                Err(error) => {
                    refusals::batch(&self.topic.name, &error);
                    std::future::ready(refused(header.request_id, error)).boxed()
                }
            };
            if self.acknowledged {
                if !answers.push(answer).await {
                    break;
                }
            } else {
                // Proposed already: nobody wants to hear how it ends.
                drop(answer);
            }
        }
        drop(answers);
        let _ = written.await;
    }

    async fn submit(&mut self, header: &RoutedBatch, frame: RawFrame) -> Result<Submitted, Error> {
        metrics::counter!("tidemill_routed_batches_total").increment(1);
        self.context.room_to_write()?;
        self.follow_topic()?;
        let limits = self.context.batch_limits(self.topic.config.batch_bytes_max);
        let batch = RecordBatch::decode(frame.payload, &limits).map_err(|error| errors::batch(&error))?;
        if batch.header().attributes.control || batch.header().attributes.transactional {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "a client does not send control batches, and this release has no transactions",
            ));
        }
        batch.validate_records(&limits).map_err(|error| errors::batch(&error))?;
        if batch.header().producer_id != self.producer && batch.header().has_producer() {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "the batch has another producer id than its stream",
            ));
        }
        if self.topic.produce_filter.is_some() {
            // Better refused than let past the filter.
            return Err(Error::new(
                ErrorCode::InvalidDeployment,
                format!(
                    "topic '{}' has a produce filter, which routed produce does not pass yet; name partitions instead",
                    self.topic.name
                ),
            ));
        }
        if header.partition_count != self.topic.partition_count() {
            return Err(partitioner_changed(&self.topic));
        }
        let placement = self.place(header, &batch).await?;
        if !placement.rejections.is_empty() {
            let rejections = placement
                .rejections
                .into_iter()
                .map(|(ordinal, reason)| Rejection { ordinal, reason })
                .collect();
            // Logged as empty everywhere: it takes up its sequence, so that the batches behind it stand.
            let pending = self.propose(header.topic_sequence, BTreeMap::new()).await?;
            return Ok(Submitted { pending, rejections });
        }
        let compression = batch.header().attributes.compression;
        let split = batch
            .records(&limits)
            .map_err(|error| errors::batch(&error))?
            // The topic sequence deduplicates; the parts carry no producer of their own.
            .split(&placement.partitions, self.topic.partition_count(), compression, |_, _| {
                ProducerFields::NONE
            })
            .map_err(|error| errors::reshape(&error))?;
        let mut by_shard: BTreeMap<ShardId, Vec<(PartitionId, Bytes)>> = BTreeMap::new();
        for (partition, batch) in split {
            let shard = self
                .topic
                .shard_of(partition)
                .ok_or_else(|| Error::new(ErrorCode::Internal, "a record was placed outside the topic"))?;
            by_shard.entry(shard).or_default().push((partition, batch.into_bytes()));
        }
        let pending = self.propose(header.topic_sequence, by_shard).await?;
        Ok(Submitted { pending, rejections: Vec::new() })
    }

    /// Proposes a unit to every shard that holds partitions of the topic.
    async fn propose(
        &self,
        topic_sequence: u64,
        mut by_shard: BTreeMap<ShardId, Vec<(PartitionId, Bytes)>>,
    ) -> Result<Vec<Pending>, Error> {
        let mut shards = self.topic.shards.clone();
        shards.sort_unstable();
        shards.dedup();
        let mut permits = Vec::with_capacity(shards.len());
        for shard in shards {
            let replica: &Replica = self
                .context
                .shards
                .replica(shard)
                .ok_or_else(|| errors::propose(&ProposeError::NotLeader { leader: None }))?;
            let unit = Unit::RoutedAppend(RoutedAppend {
                topic: self.topic.id,
                producer: self.producer,
                epoch: self.epoch,
                topic_sequence,
                batches: by_shard.remove(&shard).unwrap_or_default(),
            });
            let permit = replica.reserve(unit.bytes()).await.map_err(|error| errors::propose(&error))?;
            permits.push((permit, unit));
        }
        // Room is there in every shard: from here on nothing waits, so all of them get the batch or none.
        Ok(permits.into_iter().map(|(permit, unit)| permit.submit(unit)).collect())
    }

    async fn place(&mut self, header: &RoutedBatch, batch: &RecordBatch) -> Result<Placement, Error> {
        let bound = self
            .topic
            .partitioner_at(header.partitioner_epoch)
            .ok_or_else(|| partitioner_changed(&self.topic))?;
        let partitioner = self.partitioner(header.partitioner_epoch, bound).await?;
        let now = batch.header().max_timestamp;
        partitioner
            .place(batch, self.topic.partition_count(), header.topic_sequence, now)
            .await
            .map_err(|failure| errors::call(&failure))
    }

    async fn partitioner(&mut self, epoch: u32, bound: Option<DeploymentId>) -> Result<Partitioner, Error> {
        if let Some(partitioner) = self.partitioners.get(&epoch) {
            return Ok(partitioner.clone());
        }
        let view = self.view.now();
        let partitioner = match bound {
            None => Partitioner::by_key(),
            Some(id) => {
                let record = view.deployment(id).ok_or_else(|| partitioner_changed(&self.topic))?;
                let plan = plans::plugin(&view, record);
                self.context.hosting.partitioner(&plan).await.map_err(|error| errors::open_plugin(&error))?
            }
        };
        self.partitioners.insert(epoch, partitioner.clone());
        Ok(partitioner)
    }

    fn follow_topic(&mut self) -> Result<(), Error> {
        let view = self.view.now();
        let topic = view.topic(self.topic.id).ok_or_else(|| {
            Error::new(ErrorCode::UnknownTopic, format!("topic '{}' was deleted", self.topic.name))
        })?;
        if topic.version != self.topic.version {
            self.topic = Arc::clone(topic);
            let topic = &self.topic;
            self.partitioners.retain(|epoch, _| topic.partitioner_at(*epoch).is_some());
        }
        Ok(())
    }
}

fn partitioner_changed(topic: &TopicRecord) -> Error {
    Error::new(
        ErrorCode::PartitionerChanged,
        format!(
            "the partitioner that placed this batch first is no longer known to topic '{}': \
             a retry could place it elsewhere; read back whether it was written",
            topic.name
        ),
    )
}

/// A batch on its way in one or more shards.
struct Submitted {
    pending: Vec<Pending>,
    rejections: Vec<Rejection>,
}

impl Submitted {
    async fn acknowledge(self, request_id: u64) -> RoutedAck {
        let mut placements = Vec::new();
        let mut duplicate = true;
        // Every one is waited for: an error of one must not hide that another is still under way.
        let mut failure = None;
        for pending in self.pending {
            match pending.await {
                Ok(UnitResult::RoutedAppended { placements: placed, duplicate: again }) => {
                    duplicate &= again;
                    placements.extend(placed.into_iter().map(|(partition, base, count)| RoutedPlacement {
                        partition: partition.get(),
                        base_offset: base.get(),
                        record_count: count,
                    }));
                }
                Ok(other) => failure = failure.or_else(|| Some(errors::unit(&other))),
                // Another shard may have it: only a retry of the very same batch finds out.
                Err(ProposeError::OutcomeUnknown) => {
                    failure = Some(errors::propose(&ProposeError::OutcomeUnknown))
                }
                Err(error) => failure = failure.or_else(|| Some(errors::propose(&error))),
            }
        }
        match failure {
            Some(error) => refused(request_id, error),
            None if !self.rejections.is_empty() => refused(request_id, errors::rejected(self.rejections)),
            None => {
                placements.sort_by_key(|placement| placement.partition);
                RoutedAck { request_id, placements, duplicate, error: None }
            }
        }
    }
}

fn refused(request_id: u64, error: Error) -> RoutedAck {
    RoutedAck { request_id, error: Some(error), ..RoutedAck::default() }
}
