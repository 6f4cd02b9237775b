//! Produce streams: one partition, batches pipelined, acknowledgements in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use tidemill_partition::leader_epoch;
use tidemill_protocol::messages::{
    Error, ProduceAck, ProduceAcks, ProduceBatch, ProduceOpen, ProduceOpened, Rejection,
};
use tidemill_protocol::record_batch::{BatchHeader, RecordBatch};
use tidemill_protocol::{ErrorCode, LeaderEpoch, NodeId, ProducerId, ShardId, TopicPartition};
use tidemill_raft::{Pending, Replica};
use tidemill_shard::{Unit, UnitResult};

use crate::admission::{Admitted, Unanswered};
use crate::context::Context;
use crate::errors;
use crate::generations::Target;
use crate::handlers::intake::{Intake, ProduceStream, Producer};
use crate::handlers::produce_filter::Passed;
use crate::handlers::topics;
use crate::unpacking::{Unpacked, Unpacker};

/// A produce stream.
pub(crate) struct Producing {
    intake: Intake,
    shard: ShardId,
    /// The replica that the stream was opened to, see [`Self::replica`].
    node: NodeId,
    partition: TopicPartition,
    /// When the stream was opened.
    leader_epoch: LeaderEpoch,
    /// Under another one nothing of the stream is appended. The client knew it; or it is an idempotent producer's, whose older streams
    /// this broker has fenced off, and another leader has not: when the lead comes back here, that one may have taken a newer stream.
    pinned: Option<LeaderEpoch>,
}

impl ProduceStream for Producing {
    const KIND: &str = "produce";
    type Open = ProduceOpen;
    type Opened = ProduceOpened;
    type Header = ProduceBatch;
    type Submitted = AnswerState;
    type Answer = Answer;
    type Ack = ProduceAck;
    type Acks = ProduceAcks;

    async fn open(context: &Arc<Context>, unpacker: Unpacker, open: &ProduceOpen) -> Result<Self, Error> {
        let partition = topics::partition(open.partition.as_ref())?;
        let (topic, replica) = context.find_fresh(partition).await?;
        let role = replica.watch().borrow().clone();
        // One that has stopped says so of each batch, with the reason.
        if !role.is_leader() && role.stopped().is_none() {
            return Err(errors::led_elsewhere(replica.shard_id()));
        }
        let (shard, node) = (replica.shard_id(), replica.node());
        let leader_epoch = leader_epoch(replica.status().term);
        // What comes now may take its time.
        drop(replica);
        let known = known_epoch(open.leader_epoch, leader_epoch)?;
        let pinned = known.or_else(|| (open.producer_id != ProducerId::NONE.get()).then_some(leader_epoch));
        let producer = Producer {
            id: open.producer_id,
            epoch: open.producer_epoch,
            generation: open.generation,
            acks: open.acks,
        };
        let intake = Intake::open(context, unpacker, topic, Target::Partition(partition), producer).await?;
        Ok(Self { intake, shard, node, partition, leader_epoch, pinned })
    }

    fn opened(&self) -> ProduceOpened {
        ProduceOpened { error: None, leader_epoch: self.leader_epoch.get() }
    }

    fn not_opened(error: Error) -> ProduceOpened {
        ProduceOpened { error: Some(error), leader_epoch: -1 }
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn request_id(header: &ProduceBatch) -> u64 {
        header.request_id
    }

    async fn submit(&mut self, _header: &ProduceBatch, payload: Bytes) -> Result<AnswerState, Error> {
        metrics::counter!("tidemill_produce_batches_total").increment(1);
        metrics::counter!("tidemill_produce_bytes_total").increment(payload.len() as u64);
        let intake = &mut self.intake;
        intake.context.room_for_records(&[self.shard])?;
        intake.follow_topic().await?;
        let batch = intake.check(payload, false)?;
        let records = intake.unpack(&batch).await?;
        let Some((unit, verdict)) = self.filtered(batch, records).await? else {
            return Ok(AnswerState::LeftOut);
        };
        let intake = &self.intake;
        let Admitted { room, unanswered } = intake.context.admit(unit.bytes()).await?;
        let permit = self.replica()?.reserve(unit.bytes()).await.map_err(|error| errors::propose(&error))?;
        // The client may be gone before the unit is written: its room goes with it.
        let pending = intake.turn.propose(|| permit.submit_held(unit, Box::new(room)))?;
        Ok(AnswerState::Pending { pending, verdict, _unanswered: unanswered })
    }

    fn answer(request_id: u64, submitted: Result<AnswerState, Error>) -> Answer {
        Answer { request_id, state: submitted.unwrap_or_else(|error| AnswerState::Refused(Box::new(error))) }
    }

    fn join(acks: Vec<ProduceAck>) -> ProduceAcks {
        ProduceAcks { acks }
    }
}

impl Producing {
    /// The replica that the stream was opened to, for as long as it is here. It is looked up each time, or a stream on which nothing comes would
    /// keep open what the shard's next replica is to open.
    fn replica(&self) -> Result<Replica, Error> {
        let here = self.intake.context.shards.replica(self.shard).filter(|here| here.node() == self.node);
        here.ok_or_else(|| errors::led_elsewhere(self.shard))
    }

    /// What is to be logged of a batch after the topic's filter, and what is said of it; `None`: nothing.
    async fn filtered(
        &self,
        batch: RecordBatch,
        records: Unpacked,
    ) -> Result<Option<(Unit, Verdict)>, Error> {
        let (number, now) = (self.partition.partition.get(), self.replica()?.shard().log_time());
        let passed = self.intake.filter.pass(&records, number, now).await?;
        let append =
            |batch: Bytes| Unit::Append { partition: self.partition, batch, leader_epoch: self.pinned };
        Ok(Some(match passed {
            Passed::All => (append(batch.into_bytes()), Verdict::Store),
            Passed::Some(kept) => (append(self.packed(&batch, records, kept).await?), Verdict::Store),
            // Without a producer nothing counts the batches: there is no place to keep.
            Passed::Nothing if !batch.header().has_producer() => return Ok(None),
            Passed::Refused(rejections) if !batch.header().has_producer() => {
                return Err(errors::rejected(rejections));
            }
            // A refusal is logged too: it takes up its sequence numbers, so that the batches pipelined behind it stand.
            Passed::Nothing => (self.refuse(batch.header()), Verdict::LeaveOut),
            Passed::Refused(rejections) => (self.refuse(batch.header()), Verdict::Refuse(rejections)),
        }))
    }

    /// What a filter left of a batch, compressed as that was.
    async fn packed(
        &self,
        batch: &RecordBatch,
        records: Unpacked,
        kept: RecordBatch,
    ) -> Result<Bytes, Error> {
        let compression = batch.header().attributes.compression;
        let kept = self.intake.unpacker.repack(records, kept, compression).await?;
        self.intake.filter.within_limits(kept.into_bytes())
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
pub(crate) struct Answer {
    request_id: u64,
    state: AnswerState,
}

pub(crate) enum AnswerState {
    Refused(Box<Error>),
    /// The filter left nothing, and there is nothing to log.
    LeftOut,
    Pending {
        pending: Pending,
        verdict: Verdict,
        _unanswered: Unanswered,
    },
}

/// What the topic's filter said of a batch that was proposed.
pub(crate) enum Verdict {
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
