//! Produce streams: one partition, batches pipelined, acknowledgements in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use tidemill_controller::TopicRecord;
use tidemill_net::{FrameReader, FrameWriter};
use tidemill_partition::leader_epoch;
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    Acks, Error, ProduceAck, ProduceAcks, ProduceBatch, ProduceOpen, ProduceOpened, Rejection,
};
use tidemill_protocol::record_batch::{BatchHeader, BatchLimits, RecordBatch};
use tidemill_protocol::{ErrorCode, LeaderEpoch, ProducerEpoch, ProducerId, TopicPartition};
use tidemill_raft::{Pending, Replica};
use tidemill_shard::{Unit, UnitResult};

use crate::admission::Admitted;
use crate::connection::{ClientName, Opened, bad_message};
use crate::context::Context;
use crate::errors;
use crate::generations::{Target, Turn};
use crate::handlers::acks::{self, AckQueue};
use crate::handlers::produce_filter::{Passed, ProduceFilter};
use crate::refusals;
use crate::view::ViewReader;

/// Serves a produce stream until it ends.
pub(crate) async fn serve(context: Arc<Context>, client: ClientName, opened: Opened, open: ProduceOpen) {
    let Opened { stream, .. } = opened;
    let (reader, mut writer) = (stream.reader, stream.writer);
    let producing = match Producing::open(&context, &open).await {
        Ok(producing) => producing,
        Err(error) => {
            refusals::opening(&client.0, &error);
            let _ = writer.send(&ProduceOpened { error: Some(error), leader_epoch: -1 }, &[]).await;
            let _ = writer.finish().await;
            return;
        }
    };
    let opened = ProduceOpened { error: None, leader_epoch: producing.leader_epoch.get() };
    if writer.send(&opened, &[]).await.is_err() {
        return;
    }
    producing.run(reader, writer, &client).await;
}

struct Producing {
    context: Arc<Context>,
    view: ViewReader,
    replica: Replica,
    partition: TopicPartition,
    /// When the stream was opened.
    leader_epoch: LeaderEpoch,
    /// The client knew that one: under another nothing of its stream is appended.
    pinned: Option<LeaderEpoch>,
    topic: Arc<TopicRecord>,
    limits: BatchLimits,
    producer: ProducerId,
    acknowledged: bool,
    filter: ProduceFilter,
    turn: Turn,
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
        let epoch_now = leader_epoch(replica.status().term);
        let pinned = known_epoch(open.leader_epoch, epoch_now)?;
        let limits = context.batch_limits(topic.config.batch_bytes_max);
        let acknowledged = Acks::try_from(open.acks).unwrap_or(Acks::Quorum) == Acks::Quorum;
        let filter = ProduceFilter::open(context, &topic, topic.produce_filter).await?;
        let producer = ProducerId::new(open.producer_id);
        let epoch = i16::try_from(open.producer_epoch)
            .map_err(|_| Error::new(ErrorCode::BadMessage, "a producer epoch is a 16-bit number"))?;
        context.producer_ids.check(producer).await?;
        // The last thing that can fail: an older stream of this producer is over with it.
        let order = (ProducerEpoch::new(epoch), open.generation);
        let turn = context.generations.enter(producer, Target::Partition(partition), order)?;
        Ok(Self {
            context: Arc::clone(context),
            view,
            replica,
            partition,
            leader_epoch: epoch_now,
            pinned,
            topic,
            limits,
            producer,
            acknowledged,
            filter,
            turn,
        })
    }

    async fn run(mut self, mut reader: FrameReader, writer: FrameWriter, client: &ClientName) {
        let limits = &self.context.config.limits;
        let (answers, queue) = AckQueue::new(limits.produce_in_flight_max, limits.produce_window_bytes);
        let topic = Arc::clone(&self.topic);
        let writing = acks::answer(self.acknowledged, queue, writer, topic, |acks| ProduceAcks { acks });
        let reading = async {
            let read = self.read(&mut reader, &answers).await;
            acks::no_more(client, read, reader, answers)
        };
        acks::serve(reading, writing).await;
    }

    /// Takes batches until the stream ends, or must be reset for the reason given.
    async fn read(&mut self, reader: &mut FrameReader, answers: &AckQueue<Answer>) -> Result<(), Error> {
        let mut expected = 0;
        while let Some(frame) = answers.next_frame(reader).await? {
            let header: ProduceBatch =
                frame.message().map_err(|_| bad_message("what comes on a produce stream are batches"))?;
            if header.request_id != expected {
                return Err(bad_message("request ids of a produce stream rise by one, from 0"));
            }
            expected += 1;
            let room = answers.room(frame.payload.len()).await;
            let answer = self.take(header.request_id, frame).await;
            reader.done();
            // Where nothing is acknowledged, nothing behind a refused batch is taken.
            let last = !self.acknowledged && matches!(answer.state, AnswerState::Refused(_));
            if !answers.push(answer, room).await || last {
                break;
            }
        }
        Ok(())
    }

    /// Takes one batch in: checked, filtered, handed to the shard in the order of the stream.
    async fn take(&mut self, request_id: u64, frame: RawFrame) -> Answer {
        metrics::counter!("tidemill_produce_batches_total").increment(1);
        metrics::counter!("tidemill_produce_bytes_total").increment(frame.payload.len() as u64);
        let submitted = self.submit(frame.payload).await;
        Answer { request_id, state: submitted.unwrap_or_else(|error| AnswerState::Refused(Box::new(error))) }
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
        let number = self.partition.partition.get();
        let passed = self.filter.pass(&batch, number, self.replica.shard().log_time()).await?;
        let append =
            |batch: Bytes| Unit::Append { partition: self.partition, batch, leader_epoch: self.pinned };
        let (unit, verdict) = match passed {
            Passed::All => (append(batch.bytes().clone()), Verdict::Store),
            Passed::Some(kept) => (append(kept), Verdict::Store),
            // Without a producer nothing counts the batches: there is no place to keep.
            Passed::Nothing if !batch.header().has_producer() => return Ok(AnswerState::LeftOut),
            Passed::Refused(rejections) if !batch.header().has_producer() => {
                return Err(errors::rejected(rejections));
            }
            // A refusal is logged too: it takes up its sequence numbers, so that the batches pipelined behind it stand.
            Passed::Nothing => (self.refuse(batch.header()), Verdict::LeaveOut),
            Passed::Refused(rejections) => (self.refuse(batch.header()), Verdict::Refuse(rejections)),
        };
        let admitted = self.context.admit(unit.bytes()).await?;
        let permit = self.replica.reserve(unit.bytes()).await.map_err(|error| errors::propose(&error))?;
        let pending = self.turn.propose(|| permit.submit(unit))?;
        Ok(AnswerState::Pending { pending, verdict, _admitted: admitted })
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
        // Opened before anything is taken over: no batch gets past a filter that can't be opened.
        self.filter = ProduceFilter::open(&self.context, topic, topic.produce_filter).await?;
        self.topic = Arc::clone(topic);
        self.limits = self.context.batch_limits(self.topic.config.batch_bytes_max);
        Ok(())
    }
}

/// The epoch that the client knows the leader by, where it knows one: it must be the leader's own.
fn known_epoch(known: i32, now: LeaderEpoch) -> Result<Option<LeaderEpoch>, Error> {
    match known {
        ..0 => Ok(None),
        _ if known == now.get() => Ok(Some(now)),
        _ => {
            let whose = if known < now.get() { "the client's is older" } else { "the client's is newer" };
            Err(Error::new(
                ErrorCode::NotLeader,
                format!(
                    "this broker leads the partition in epoch {now}, not {known}: {whose}; refresh the metadata"
                ),
            ))
        }
    }
}

/// One acknowledgement on its way.
struct Answer {
    request_id: u64,
    state: AnswerState,
}

enum AnswerState {
    Refused(Box<Error>),
    /// The filter left nothing, and there is nothing to log.
    LeftOut,
    Pending {
        pending: Pending,
        verdict: Verdict,
        _admitted: Admitted,
    },
}

/// What the topic's filter said of a batch that was proposed.
enum Verdict {
    Store,
    LeaveOut,
    Refuse(Vec<Rejection>),
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
        let left_out = |duplicate| ProduceAck {
            request_id,
            base_offset: -1,
            log_append_time: -1,
            duplicate,
            ..ProduceAck::default()
        };
        let ack = match &mut self.state {
            AnswerState::Refused(error) => failed((**error).clone()),
            AnswerState::LeftOut => left_out(false),
            AnswerState::Pending { pending, verdict, .. } => match ready!(Pin::new(pending).poll(context)) {
                Err(error) => failed(errors::propose(&error)),
                // Whatever the filter says now: an attempt before it was deployed stands.
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
                Ok(UnitResult::BatchRefused { duplicate }) => match verdict {
                    Verdict::LeaveOut => left_out(duplicate),
                    Verdict::Refuse(rejections) => failed(errors::rejected(std::mem::take(rejections))),
                    Verdict::Store => failed(errors::refused_before()),
                },
                Ok(other) => failed(errors::unit(&other)),
            },
        };
        Poll::Ready(ack)
    }
}
