//! Produce streams: one partition, batches pipelined, acknowledgements in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use tidemill_controller::TopicRecord;
use tidemill_hosting::{Filter, Kept};
use tidemill_net::{FrameReader, FrameWriter};
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    Acks, Error, ProduceAck, ProduceAcks, ProduceBatch, ProduceOpen, ProduceOpened, Rejection,
};
use tidemill_protocol::record_batch::{BatchHeader, BatchLimits, RecordBatch};
use tidemill_protocol::{ErrorCode, ProducerId, TopicPartition};
use tidemill_raft::{Pending, Replica};
use tidemill_shard::{Unit, UnitResult};

use crate::connection::{ClientName, Opened, read_error};
use crate::context::Context;
use crate::errors;
use crate::handlers::acks::{self, AckQueue};
use crate::plans;
use crate::refusals;
use crate::view::ViewReader;

/// Serves a produce stream until it ends.
pub(crate) async fn serve(context: Arc<Context>, client: ClientName, opened: Opened, open: ProduceOpen) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let producing = match Producing::open(&context, &open).await {
        Ok(producing) => producing,
        Err(error) => {
            let _ = writer.send(&ProduceOpened { error: Some(error), leader_epoch: -1 }, &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    let epoch = i32::try_from(producing.replica.status().term.get()).unwrap_or(i32::MAX);
    if writer.send(&ProduceOpened { error: None, leader_epoch: epoch }, &[]).await.is_err() {
        return;
    }
    producing.run(reader, writer, &client).await;
}

struct Producing {
    context: Arc<Context>,
    view: ViewReader,
    replica: Replica,
    partition: TopicPartition,
    topic: Arc<TopicRecord>,
    limits: BatchLimits,
    producer: ProducerId,
    acknowledged: bool,
    filter: Option<ProduceFilter>,
}

/// The filter that the topic's producers pass, of one version of the topic.
struct ProduceFilter {
    filter: Filter,
    drop_rejected: bool,
}

impl Producing {
    async fn open(context: &Arc<Context>, open: &ProduceOpen) -> Result<Self, Error> {
        let partition = open
            .partition
            .as_ref()
            .and_then(tidemill_protocol::messages::TopicPartitionRef::parse)
            .ok_or_else(|| Error::new(ErrorCode::BadMessage, "a topic id has 16 bytes"))?;
        let view = context.view.clone();
        let (topic, replica) = context.find(&view.now(), partition)?;
        let limits = context.batch_limits(topic.config.batch_bytes_max);
        let acknowledged = Acks::try_from(open.acks).unwrap_or(Acks::Quorum) == Acks::Quorum;
        let mut producing = Self {
            context: Arc::clone(context),
            view,
            replica,
            partition,
            topic,
            limits,
            producer: ProducerId::new(open.producer_id),
            acknowledged,
            filter: None,
        };
        producing.open_filter().await?;
        Ok(producing)
    }

    async fn open_filter(&mut self) -> Result<(), Error> {
        let view = self.view.now();
        let deployment = self.topic.produce_filter.and_then(|id| view.deployment(id));
        self.filter = match deployment {
            None => None,
            Some(record) => {
                let plan = plans::plugin(&view, record);
                let filter =
                    self.context.hosting.filter(&plan).await.map_err(|error| errors::open_plugin(&error))?;
                Some(ProduceFilter { filter, drop_rejected: record.spec.drop_rejected })
            }
        };
        Ok(())
    }

    async fn run(mut self, mut reader: FrameReader, writer: FrameWriter, client: &ClientName) {
        let (answers, queue) = AckQueue::new(self.context.config.limits.produce_in_flight_max);
        let written = tokio::spawn(acks::write(queue, writer, |acks| ProduceAcks { acks }));
        let mut expected = 0;
        loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    let error = read_error(&error);
                    tracing::debug!(client = %client.0, partition = %self.partition, %error, "a produce stream broke off");
                    reader.stop(error.code);
                    break;
                }
            };
            let Ok(header) = frame.message::<ProduceBatch>() else {
                reader.stop(ErrorCode::BadMessage.code());
                break;
            };
            if header.request_id != expected {
                tracing::debug!(client = %client.0, "request ids of a produce stream rise by one");
                reader.stop(ErrorCode::BadMessage.code());
                break;
            }
            expected += 1;
            let answer = self.take(header.request_id, frame).await;
            if self.acknowledged && !answers.push(answer).await {
                break;
            }
        }
        // The queue's end lets the writer finish what is under way.
        drop(answers);
        let _ = written.await;
    }

    /// Takes one batch in: checked, filtered, handed to the shard in the order of the stream.
    async fn take(&mut self, request_id: u64, frame: RawFrame) -> Answer {
        metrics::counter!("tidemill_produce_batches_total").increment(1);
        metrics::counter!("tidemill_produce_bytes_total").increment(frame.payload.len() as u64);
        match self.submit(frame.payload).await {
            Ok(submitted) => Answer { request_id, state: submitted },
            Err(error) => {
                refusals::batch(&self.topic.name, &error);
                Answer { request_id, state: AnswerState::Refused(Box::new(error)) }
            }
        }
    }

    async fn submit(&mut self, payload: Bytes) -> Result<AnswerState, Error> {
        self.context.room_to_write()?;
        self.follow_topic().await?;
        let batch = RecordBatch::decode(payload, &self.limits).map_err(|error| errors::batch(&error))?;
        let header = batch.header();
        if header.attributes.control || header.attributes.transactional {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "a client does not send control batches, and this release has no transactions",
            ));
        }
        if header.producer_id != self.producer {
            return Err(Error::new(
                ErrorCode::InvalidBatch,
                "the batch has another producer id than its stream",
            ));
        }
        batch.validate_records(&self.limits).map_err(|error| errors::batch(&error))?;
        let (unit, rejections) = self.filtered(batch).await?;
        let permit = self.replica.reserve(unit.bytes()).await.map_err(|error| errors::propose(&error))?;
        let pending = permit.submit(unit);
        Ok(AnswerState::Pending { pending, rejections })
    }

    /// The unit to propose, and what the topic's filter refused of the batch.
    ///
    /// A refusal is logged too: it takes up its sequence numbers, so that the batches pipelined behind it stand.
    async fn filtered(&self, batch: RecordBatch) -> Result<(Unit, Vec<Rejection>), Error> {
        let append = |batch: Bytes| Unit::Append { partition: self.partition, batch, leader_epoch: None };
        let Some(ProduceFilter { filter, drop_rejected }) = &self.filter else {
            return Ok((append(batch.bytes().clone()), Vec::new()));
        };
        let place = tidemill_hosting::BatchPlace { topic: 0, partition: self.partition.partition.get() };
        let outcome = filter
            .apply(&batch, place, (self.context.clock)(), tidemill_hosting::Lane::Produce)
            .await
            .map_err(|failure| errors::call(&failure))?;
        let refused = |rejections: Vec<(u32, String)>| {
            let rejections =
                rejections.into_iter().map(|(ordinal, reason)| Rejection { ordinal, reason }).collect();
            Ok((self.refuse(batch.header()), rejections))
        };
        match outcome.kept {
            _ if !outcome.rejections.is_empty() && !drop_rejected => refused(outcome.rejections),
            Kept::All => Ok((append(batch.bytes().clone()), Vec::new())),
            Kept::Some(kept) => Ok((append(kept), Vec::new())),
            // Nothing is left to append, and nobody objected: the batch counts as written.
            Kept::None => Ok((self.refuse(batch.header()), Vec::new())),
        }
    }

    fn refuse(&self, header: &BatchHeader) -> Unit {
        Unit::Refuse {
            partition: self.partition,
            producer: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            // Offsets that a filter left out count: the producer's sequences run over them.
            record_count: header.last_offset_delta.unsigned_abs().saturating_add(1),
        }
    }

    /// Notices that the topic was altered or deleted, or its filter exchanged.
    async fn follow_topic(&mut self) -> Result<(), Error> {
        let view = self.view.now();
        let topic = view.topic(self.partition.topic).ok_or_else(|| {
            Error::new(ErrorCode::UnknownTopic, format!("topic '{}' was deleted", self.topic.name))
        })?;
        if topic.version == self.topic.version {
            return Ok(());
        }
        let filter_changed = topic.produce_filter != self.topic.produce_filter;
        self.topic = Arc::clone(topic);
        self.limits = self.context.batch_limits(self.topic.config.batch_bytes_max);
        if filter_changed {
            self.open_filter().await?;
        }
        Ok(())
    }
}

/// One acknowledgement on its way.
struct Answer {
    request_id: u64,
    state: AnswerState,
}

enum AnswerState {
    Refused(Box<Error>),
    Pending { pending: Pending, rejections: Vec<Rejection> },
}

impl Future for Answer {
    type Output = ProduceAck;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<ProduceAck> {
        let request_id = self.request_id;
        let failed = |error: Error| ProduceAck {
            request_id,
            base_offset: -1,
            log_append_time: -1,
            error: Some(error),
            ..ProduceAck::default()
        };
        let ack = match &mut self.state {
            AnswerState::Refused(error) => failed((**error).clone()),
            AnswerState::Pending { pending, rejections } => match ready!(Pin::new(pending).poll(context)) {
                Err(error) => failed(errors::propose(&error)),
                Ok(UnitResult::Appended { .. } | UnitResult::BatchRefused { .. })
                    if !rejections.is_empty() =>
                {
                    let rejections = std::mem::take(rejections);
                    failed(errors::rejected(rejections))
                }
                Ok(UnitResult::Appended { base_offset, log_append_time, log_start, duplicate }) => {
                    ProduceAck {
                        request_id,
                        base_offset: base_offset.get(),
                        log_append_time: log_append_time.map_or(-1, |time| time.get()),
                        log_start_offset: log_start.get(),
                        duplicate,
                        error: None,
                    }
                }
                Ok(UnitResult::BatchRefused { duplicate }) => ProduceAck {
                    request_id,
                    base_offset: -1,
                    log_append_time: -1,
                    duplicate,
                    ..ProduceAck::default()
                },
                Ok(other) => failed(errors::unit(&other)),
            },
        };
        Poll::Ready(ack)
    }
}
