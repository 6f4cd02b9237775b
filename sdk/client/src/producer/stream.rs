//! One produce stream: opened, fed, and its acknowledgements taken.

use std::sync::Arc;

use futures::FutureExt;
use tidemill_protocol::messages::{self, ProduceAcks, ProduceBatch, RoutedAcks, RoutedBatch};
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ErrorCode, Offset, PartitionId, Timestamp};
use tokio::time::Instant;

use super::completion::{Placed, Placement};
use super::follow::{Stay, Staying, look};
use super::lane::Target;
use super::lane_task::{Alarm, LaneTask, StreamEnd};
use super::opening::{DOUBT_AFTER, StreamOpening};
use super::{Acks, DeliveryError};
use crate::ServerError;
use crate::backoff::Backoff;
use crate::cluster::{BrokerConnection, Lead, is_of_this_broker};
use crate::error::server_error;
use crate::transport::{ReadError, Wire, WriteError, decode};

/// Bytes handed to the stream at once; further batches wait in their queue, where they can still grow.
const QUEUED_BYTES_MAX: usize = 512 << 10;
/// Opened in vain for want of the producer's id so often, one after the other, before that is believed.
const UNKNOWN_OPENS_MAX: u32 = 8;

/// A stream that the broker has agreed to.
pub(super) struct Open {
    pub(super) wire: Wire,
    pub(super) connection: Arc<BrokerConnection>,
    window_bytes: usize,
    in_flight_max: usize,
    pub(super) next_request_id: u64,
    /// Partitioner epoch and partition count, in routed produce.
    route: Option<(u32, u32)>,
    /// Frames of answers so far.
    pub(super) answers: u64,
    /// When to look whether there were any since, and how many there were.
    doubt: Option<(Instant, u64)>,
}

/// One answer, of either kind of stream.
pub(super) struct Ack {
    request_id: u64,
    error: Option<messages::Error>,
    placed: Placed,
}

impl LaneTask {
    /// Opens a stream, sends again what is in flight, then whatever comes, until the stream ends.
    pub(super) async fn stream(&mut self, backoff: &mut Backoff) -> StreamEnd {
        if self.draining_is_done() {
            return StreamEnd::Renumber;
        }
        let mut open = match self.open().await {
            Ok(open) => open,
            Err(end) => return end,
        };
        for batch in &mut self.in_flight {
            batch.request_id = None;
        }
        let leave = self.shared.stopped.child_token();
        let stay = Stay::new(open.connection.broker, self.tried, leave.clone());
        let _staying = Staying::begin(&self.lane, stay);
        // What was heard while the stream was being opened nobody has told the lane.
        look(&self.shared, &self.cluster.known(), &self.lane);
        // Registered once for the whole stream rather than with each batch: a producer may have a thousand of these.
        let lane = Arc::clone(&self.lane);
        let mut leaves = std::pin::pin!(leave.cancelled());
        let mut woken = std::pin::pin!(lane.wake.notified());
        let mut alarm = Alarm::default();
        loop {
            if let Err(error) = self.feed_and_write(&mut open) {
                return self.broke(&open, error.reset_code(), error.to_string());
            }
            if self.is_to_end(&open) {
                let patience = self.cluster.answer_timeout();
                return self.finish(open, patience).await;
            }
            let is_writing = open.wire.writer.has_queued();
            let takes_new = self.takes_new(&open);
            alarm.set(self.next_timer(&mut open, takes_new));
            let Wire { reader, writer } = &mut open.wire;
            tokio::select! {
                biased;
                () = &mut leaves => return self.leave(open).await,
                frame = reader.next() => {
                    let acks = match frame {
                        Ok(Some(frame)) => self.decode_acks(&frame),
                        Ok(None) => {
                            return self.broke(&open, None, "the broker ended the stream".to_owned());
                        }
                        Err(error) => {
                            return self.broke(&open, error.reset_code(), error.to_string());
                        }
                    };
                    match acks {
                        Ok(acks) => {
                            if let Some(end) = self.take_acks(&open, acks) {
                                open.wire.writer.reset();
                                self.note_loss(&open, None);
                                return end;
                            }
                            open.answers += 1;
                            backoff.reset();
                            self.cluster.is_well();
                        }
                        Err(error) => {
                            open.wire.writer.reset();
                            self.note_loss(&open, None);
                            return StreamEnd::Retry(error.to_string());
                        }
                    }
                }
                written = writer.flush(), if is_writing => {
                    if let Err(error) = written {
                        return self.broke(&open, error.reset_code(), error.to_string());
                    }
                    if self.shared.options.acks == Acks::None {
                        self.all_sent();
                    }
                }
                () = &mut woken, if takes_new => woken.set(lane.wake.notified()),
                () = alarm.rings() => {
                    self.expire();
                    open.look();
                }
            }
            if self.draining_is_done() {
                return StreamEnd::Renumber;
            }
        }
    }

    fn draining_is_done(&self) -> bool {
        // A gap needs a new identity only when something follows; with nothing in flight the next batch would.
        self.draining && self.in_flight.iter().all(|batch| batch.refused)
    }

    /// What is known of the partition's leader.
    fn lead(&self) -> Option<Lead> {
        match self.lane.target {
            Target::Partition(partition) => {
                self.cluster.lead(&self.shared.topic.name, self.shared.topic.id, partition)
            }
            Target::Routed => None,
        }
    }

    async fn open(&mut self) -> Result<Open, StreamEnd> {
        self.generation += 1;
        self.tried = self.lead();
        let cluster = Arc::clone(&self.cluster);
        let opening = StreamOpening {
            topic: Arc::clone(&self.shared.topic),
            target: self.lane.target,
            lead: self.tried,
            fields: self.numbering.identity.map_or(ProducerFields::NONE, |identity| identity.fields),
            generation: self.generation,
            acks: self.shared.options.acks,
        };
        let patience = self.cluster.answer_timeout();
        let opened = tokio::time::timeout(patience, async move { opening.run(&cluster).await });
        let opened = self.patiently(opened).await?;
        match opened.unwrap_or_else(|_| Err("the broker did not answer in time".to_owned())) {
            Ok(Ok((wire, route, connection))) => Ok(self.opened(wire, route, connection)),
            Ok(Err(error)) => Err(self.not_opened(error)),
            Err(reason) => {
                self.cluster.wants_news();
                Err(StreamEnd::Retry(reason))
            }
        }
    }

    fn opened(&mut self, wire: Wire, route: Option<(u32, u32)>, connection: Arc<BrokerConnection>) -> Open {
        self.unknown_opens = 0;
        let limits = &connection.limits;
        Open {
            wire,
            window_bytes: limits.produce_window_bytes,
            in_flight_max: limits.produce_in_flight_max.min(self.shared.options.in_flight_max).max(1),
            next_request_id: 0,
            route,
            connection,
            answers: 0,
            doubt: None,
        }
    }

    fn not_opened(&mut self, error: ServerError) -> StreamEnd {
        let code = error.error_code();
        match code {
            Some(ErrorCode::ProducerFenced) => return StreamEnd::Fatal(DeliveryError::Fenced),
            Some(ErrorCode::UnknownProducer) if self.numbering.identity.is_some() => {
                // The cluster gave the id out: most likely this broker has not heard of that yet.
                self.unknown_opens += 1;
                if self.unknown_opens >= UNKNOWN_OPENS_MAX {
                    self.unknown_opens = 0;
                    self.forgotten(&error);
                    return StreamEnd::Renumber;
                }
            }
            // As it has perhaps not heard of the topic. Where the topic is gone the metadata will say so.
            Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition)
                if self.cluster.knows(&self.shared.topic.name, self.shared.topic.id) =>
            {
                self.cluster.wants_news();
            }
            _ if !error.retriable => return StreamEnd::Fatal(DeliveryError::Refused(error)),
            _ => {}
        }
        if is_of_this_broker(&error) {
            self.cluster.wants_news();
        }
        StreamEnd::Retry(error.to_string())
    }

    /// Queues what may go out now, and hands over what quinn takes at once: mostly all of it.
    fn feed_and_write(&mut self, open: &mut Open) -> Result<(), WriteError> {
        loop {
            self.feed(open)?;
            if !open.wire.writer.has_queued() {
                return Ok(());
            }
            // Where it takes no more, whoever waits next asks again, with a waker of its own.
            let Some(written) = open.wire.writer.flush().now_or_never() else { return Ok(()) };
            written?;
            if self.shared.options.acks == Acks::None {
                self.all_sent();
            }
        }
    }

    /// Queues what may go out now: first what must be sent again, then new batches.
    fn feed(&mut self, open: &mut Open) -> Result<(), WriteError> {
        while open.wire.writer.queued_bytes() < QUEUED_BYTES_MAX {
            let unsent = self.in_flight.iter().position(|batch| batch.request_id.is_none() && !batch.refused);
            let index = match unsent {
                Some(index) => index,
                None if !self.takes_new(open) => return Ok(()),
                None => {
                    let Some(ready) = self.lane.take(self.ripe()) else { return Ok(()) };
                    self.shared.rotate(self.lane.target);
                    self.admit(ready);
                    self.in_flight.len() - 1
                }
            };
            let Some(length) = self.in_flight.get(index).map(|batch| batch.stamped.len()) else {
                return Ok(());
            };
            if !self.has_room(open, length) {
                return Ok(());
            }
            self.write(open, index)?;
        }
        Ok(())
    }

    /// Open batches that were opened until then go out: those that have lingered, and where nothing is in flight all.
    fn ripe(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.shared.options.eager && self.in_flight.is_empty() {
            Some(now)
        } else {
            now.checked_sub(self.shared.options.linger)
        }
    }

    /// Whether a batch from the queue could be sent now. Not while one that was taken waits for room: only an answer makes that.
    fn takes_new(&self, open: &Open) -> bool {
        let waits = self.in_flight.iter().any(|batch| batch.request_id.is_none() && !batch.refused);
        !self.draining
            && !waits
            && open.wire.writer.queued_bytes() < QUEUED_BYTES_MAX
            && self.has_room(open, 0)
    }

    /// Whether `bytes` more may be on the way. One batch always may.
    fn has_room(&self, open: &Open, bytes: usize) -> bool {
        let unanswered = self.in_flight.iter().filter(|batch| !batch.refused && batch.request_id.is_some());
        let (count, sum) =
            unanswered.fold((0, bytes), |(count, sum), batch| (count + 1, sum + batch.stamped.len()));
        count == 0 || (count < open.in_flight_max && sum <= open.window_bytes)
    }

    fn write(&mut self, open: &mut Open, index: usize) -> Result<(), WriteError> {
        let Some(batch) = self.in_flight.get_mut(index) else { return Ok(()) };
        let request_id = open.next_request_id;
        let payload = [batch.stamped.head.clone(), batch.stamped.records.clone()];
        open.wire.writer.set_priority(open.connection.order.next(batch.stamped.len()));
        match open.route {
            None => open.wire.writer.feed(&ProduceBatch { request_id }, &payload)?,
            Some(route) => {
                let (partitioner_epoch, partition_count) = *batch.route.get_or_insert(route);
                let header = RoutedBatch {
                    request_id,
                    topic_sequence: batch.number,
                    partitioner_epoch,
                    partition_count,
                };
                open.wire.writer.feed(&header, &payload)?;
            }
        }
        open.next_request_id += 1;
        batch.request_id = Some(request_id);
        batch.attempts += 1;
        if batch.attempts > 1 {
            self.shared.stats.resent();
        }
        Ok(())
    }

    fn next_timer(&self, open: &mut Open, takes_new: bool) -> Option<Instant> {
        let lingered = match self.lane.oldest() {
            // A complete batch that has no room waits for an answer, not for time.
            Some((opened, false)) if takes_new => Some(opened + self.shared.options.linger),
            _ => None,
        };
        if self.in_flight.is_empty() {
            open.doubt = None;
        } else if open.doubt.is_none() {
            open.doubt = Some((Instant::now() + DOUBT_AFTER, open.answers));
        }
        let doubted = open.doubt.map(|(due, _)| due);
        [lingered, self.next_deadline(), doubted].into_iter().flatten().min()
    }

    pub(super) fn decode_acks(
        &self,
        frame: &tidemill_protocol::frame::RawFrame,
    ) -> Result<Vec<Ack>, ReadError> {
        Ok(match self.lane.target {
            Target::Partition(partition) => {
                let acks = decode::<ProduceAcks>(frame)?.acks;
                acks.into_iter().map(|ack| stored_ack(partition, ack)).collect()
            }
            Target::Routed => decode::<RoutedAcks>(frame)?.acks.into_iter().map(routed_ack).collect(),
        })
    }

    /// Answers come in the order of the batches; those to batches that were given up meanwhile are passed over.
    pub(super) fn take_acks(&mut self, open: &Open, acks: Vec<Ack>) -> Option<StreamEnd> {
        for ack in acks {
            let expected =
                self.in_flight.iter().position(|batch| !batch.refused && batch.request_id.is_some());
            let awaited = expected.and_then(|index| self.in_flight.get(index)?.request_id);
            if ack.request_id >= open.next_request_id
                || awaited.is_some_and(|awaited| ack.request_id > awaited)
            {
                return Some(StreamEnd::Retry(format!(
                    "the broker acknowledged batch {} out of turn",
                    ack.request_id
                )));
            }
            let (Some(index), true) = (expected, awaited == Some(ack.request_id)) else { continue };
            match server_error(ack.error) {
                Ok(()) => self.stored(index, ack.placed),
                Err(error) => {
                    if let Some(end) = self.refused(index, error, ack.placed) {
                        return Some(end);
                    }
                }
            }
        }
        None
    }

    /// With `Acks::None`: handed over is all there is to know.
    pub(super) fn all_sent(&mut self) {
        self.cluster.is_well();
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.request_id.is_some()) {
            self.settle(&batch.completion, batch.buffered_bytes, Ok(Placed::Sent));
        }
    }
}

impl Open {
    /// Where nothing was answered for a while, the broker should show that it lives.
    fn look(&mut self) {
        if let Some((_, answers)) = self.doubt.take_if(|(due, _)| *due <= Instant::now())
            && answers == self.answers
        {
            self.connection.doubt();
        }
    }
}

fn stored_ack(partition: PartitionId, ack: messages::ProduceAck) -> Ack {
    let log_append_time = (ack.log_append_time >= 0).then(|| Timestamp::new(ack.log_append_time));
    // -1 where the topic's filter left nothing of the batch; of one that was refused nobody looks.
    let placed = match ack.base_offset {
        ..0 => Placed::LeftOut { partition },
        base_offset => Placed::At { partition, base_offset: Offset::new(base_offset), log_append_time },
    };
    Ack { request_id: ack.request_id, error: ack.error, placed }
}

fn routed_ack(ack: messages::RoutedAck) -> Ack {
    let placements = ack
        .placements
        .into_iter()
        .map(|placement| Placement {
            partition: PartitionId::new(placement.partition),
            base_offset: Offset::new(placement.base_offset),
            record_count: placement.record_count,
        })
        .collect();
    Ack { request_id: ack.request_id, error: ack.error, placed: Placed::Routed { placements } }
}
