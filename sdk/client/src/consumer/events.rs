//! What the broker says on a subscription stream. Nothing of it is believed unchecked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{
    SubscribeData, SubscribeEvent, SubscribeFailed, SubscribeProgress, SubscribeStarted, subscribe_event,
};
use tidemill_protocol::record_batch::RecordBatch;
use tidemill_protocol::{BrokerId, ErrorCode, Offset, TopicPartition};
use tokio::time::Instant;

use super::record::BATCH_LIMITS;
use super::session::{Session, SessionEnd, Told, View};
use super::state::{Counters, Event, PartitionState, Stay, StopAtEnd};
use super::{ConsumeError, FetchedBatch, OutOfRange};
use crate::backoff::Backoff;
use crate::cluster::is_of_this_broker;
use crate::transport::decode;
use crate::{Position, ServerError};

/// A partition whose answers are damaged this often in a row ends with an error.
const CORRUPTIONS_MAX: u32 = 3;
/// A partition leaves brokers that do not give it out no more often than this.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

impl Session {
    pub(super) async fn take(
        &mut self,
        frame: &RawFrame,
        view: &mut View,
        backoff: &mut Backoff,
    ) -> Result<(), SessionEnd> {
        let event: SubscribeEvent = decode(frame).map_err(|error| SessionEnd::Retry(error.to_string()))?;
        match event.kind {
            Some(subscribe_event::Kind::Started(started)) => {
                self.shared.cluster.is_well();
                self.started(&started, view)
            }
            Some(subscribe_event::Kind::Data(data)) => {
                self.data(&data, &frame.payload, view)?;
                backoff.reset();
                self.shared.cluster.is_well();
                Ok(())
            }
            Some(subscribe_event::Kind::Progress(progress)) => self.progress(&progress, view),
            Some(subscribe_event::Kind::Failed(failed)) => {
                self.failed(failed, view, backoff);
                Ok(())
            }
            // Of a later release.
            None => Ok(()),
        }
    }

    fn started(&self, event: &SubscribeStarted, view: &View) -> Result<(), SessionEnd> {
        let Some((partition, told)) = view.find(event.id) else { return Ok(()) };
        let offset = offset(event.offset)?;
        if event.generation != told.wire_generation {
            return Ok(());
        }
        if let Position::Offset(asked) = told.asked
            && asked != offset
        {
            return Err(SessionEnd::Retry(format!("asked for offset {asked}, the broker began at {offset}")));
        }
        self.shared.with_partition(partition, |state| {
            if !told.is_of(state) {
                return;
            }
            let high_watermark = Offset::new(event.high_watermark);
            state.resume = Position::Offset(offset);
            state.next.get_or_insert(offset);
            state.reaches(high_watermark.max(offset));
            if told.exact_end {
                state.stop_at.get_or_insert(high_watermark);
            }
        });
        self.ask_for_end(partition);
        self.shared.nudge();
        Ok(())
    }

    /// The broker is asked next where the log ends, where that is what decides.
    fn ask_for_end(&self, partition: TopicPartition) {
        let stop_at_end = self.shared.settings.stop_at_end;
        if stop_at_end == StopAtEnd::OnceReached
            && self.shared.with_partition(partition, |state| state.needs_end(stop_at_end)) == Some(true)
        {
            self.touch(partition);
        }
    }

    fn data(&self, event: &SubscribeData, payload: &Bytes, view: &mut View) -> Result<(), SessionEnd> {
        let bytes = payload.len() as u64;
        Counters::add(&self.shared.counters.received_bytes, bytes);
        Counters::add(&self.shared.counters.scanned_bytes, event.bytes_scanned);
        let Some(partition) = view.ids.get(&event.id).copied() else { return Ok(()) };
        let Some(told) = view.told.get_mut(&partition) else { return Ok(()) };
        if bytes > 0 && told.credit <= 0 {
            return Err(SessionEnd::Retry("the broker sends more than it may".to_owned()));
        }
        told.credit = told.credit.saturating_sub_unsigned(bytes);
        let next = offset(event.next_offset)?;
        let told = &*told;

        let expected = self.shared.with_partition(partition, |state| {
            if !told.is_here(state) {
                // It is read elsewhere now, and has other credit there.
                return None;
            }
            let is_stale = event.generation != told.wire_generation || !told.is_of(state);
            let resume = match state.resume {
                Position::Offset(resume) if !is_stale => Some(resume),
                _ => None,
            };
            if resume.is_none() {
                state.owe(bytes);
            }
            resume
        });
        // Removed meanwhile, or from before a seek, or from before the broker said where it begins.
        let Some(Some(from)) = expected else {
            self.touch(partition);
            return Ok(());
        };
        match verify(payload, from, next) {
            Ok(batches) => {
                self.queue(partition, told, event, batches, from, next, payload.len());
                self.ask_for_end(partition);
                Ok(())
            }
            Err(reason) => self.damaged(told.stay(partition), from, reason),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one frame")]
    fn queue(
        &self,
        partition: TopicPartition,
        told: &Told,
        event: &SubscribeData,
        batches: Vec<RecordBatch>,
        from: Offset,
        next: Offset,
        bytes: usize,
    ) {
        let high_watermark = Offset::new(event.high_watermark);
        let waker = self.shared.with(|all| {
            let state = all.partitions.get_mut(&partition).filter(|state| told.is_of(state))?;
            state.resume = Position::Offset(next);
            state.reaches(high_watermark.max(next));
            state.corruptions = 0;
            state.queued_bytes += bytes as u64;
            state.queued_frames += 1;
            let batch = FetchedBatch {
                topic: Arc::clone(&state.topic),
                partition,
                from,
                until: state.stop_at.map_or(next, |stop_at| next.min(stop_at)),
                high_watermark: state.high_watermark.unwrap_or(high_watermark),
                batches,
                bytes,
                incarnation: state.incarnation,
                generation: told.generation,
                next,
            };
            all.queue.push_back(Event::Data(batch));
            all.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The same range is asked for again, a few times.
    fn damaged(&self, stay: Stay, offset: Offset, reason: String) -> Result<(), SessionEnd> {
        let partition = stay.partition;
        let is_hopeless = self.shared.with_partition(partition, |state| {
            state.corruptions += 1;
            state.corruptions >= CORRUPTIONS_MAX
        });
        if is_hopeless == Some(true) {
            let error = ConsumeError::Corrupt { partition, offset, reason: reason.clone() };
            self.shared.fail(stay, error);
        }
        Err(SessionEnd::Retry(reason))
    }

    fn progress(&self, event: &SubscribeProgress, view: &View) -> Result<(), SessionEnd> {
        Counters::add(&self.shared.counters.scanned_bytes, event.bytes_scanned);
        let Some((partition, told)) = view.find(event.id) else { return Ok(()) };
        let next = offset(event.next_offset)?;
        if event.generation != told.wire_generation {
            return Ok(());
        }
        self.shared.with_partition(partition, |state| {
            // Before the start was told there is nothing to move; backwards never.
            let is_ahead = matches!(state.resume, Position::Offset(resume) if next >= resume);
            if told.is_of(state) && is_ahead {
                state.resume = Position::Offset(next);
                state.reaches(Offset::new(event.high_watermark).max(next));
                state.progress = Some(next);
                state.settle_progress();
            }
        });
        self.ask_for_end(partition);
        self.shared.nudge();
        Ok(())
    }

    /// The broker ended a partition: again later, elsewhere, or an error for the consumer.
    fn failed(&self, event: SubscribeFailed, view: &mut View, backoff: &mut Backoff) {
        let Some(partition) = view.ids.remove(&event.id) else { return };
        let Some(told) = view.told.remove(&partition) else { return };
        let error = ServerError::from(event.error.unwrap_or_default());
        let standing =
            self.shared.with_partition(partition, |state| (told.is_here(state), told.is_of(state)));
        match standing {
            Some((true, true)) if event.generation == told.wire_generation => {}
            // It was sought in meanwhile: what is said of the position before that says nothing of this one.
            Some((true, _)) => return self.touch(partition),
            _ => return,
        }
        if error.is(ErrorCode::OffsetOutOfRange)
            && let Some(leader) = self.better_informed(partition)
        {
            tracing::debug!(%partition, %leader, %error, "asking the leader");
            self.shared.send_to(partition, leader);
            return;
        }
        if error.retriable && error.is(ErrorCode::StorageFailed) && self.leaves(partition) {
            tracing::debug!(%partition, broker = %self.broker, %error, "asking another replica");
            return;
        }
        if is_of_this_broker(&error) || self.is_behind(partition, &error) {
            tracing::debug!(%partition, broker = %self.broker, %error, "is refused here");
            self.shared.cluster.wants_news();
            view.again_later(partition, backoff);
            return;
        }
        let is_out_of_range = error.is(ErrorCode::OffsetOutOfRange);
        let fallback = match self.shared.settings.out_of_range {
            OutOfRange::Fail => None,
            OutOfRange::Earliest => Some(Position::Earliest),
            OutOfRange::Latest => Some(Position::Latest),
        };
        if is_out_of_range && let Some(fallback) = fallback {
            tracing::warn!(%partition, ?fallback, "the position is out of range");
            self.shared.with_partition(partition, |state| {
                if !told.is_of(state) {
                    return;
                }
                state.resume = fallback;
                // What is still queued is handed out; then it goes on where the broker says.
                if state.queued_frames == 0 {
                    state.next = None;
                }
            });
        } else if !error.retriable {
            let position = describe(told.asked);
            let error = match is_out_of_range {
                true => ConsumeError::OutOfRange { partition, position, error },
                false => ConsumeError::Partition { partition, error },
            };
            return self.shared.fail(told.stay(partition), error);
        }
        view.again_later(partition, backoff);
    }

    /// Whether a partition is read at another replica from now on, because this broker does not give it out. Not again soon: where
    /// no replica does, it would go round among them without a pause.
    pub(super) fn leaves(&self, partition: TopicPartition) -> bool {
        let now = Instant::now();
        let may_leave = self.shared.with_partition(partition, |state| {
            let may_leave = state.left_at.is_none_or(|at| now >= at + LEAVE_PAUSE);
            if may_leave {
                state.left_at = Some(now);
            }
            may_leave
        });
        if may_leave != Some(true) {
            return false;
        }
        self.shared.settle([partition], Some(self.broker));
        self.shared.with_partition(partition, |state| state.place != Some(self.broker)) == Some(true)
    }

    /// The leader, where this is another broker: one that has perhaps not got so far as what it refuses.
    fn better_informed(&self, partition: TopicPartition) -> Option<BrokerId> {
        let cluster = &self.shared.cluster;
        let topic = self.shared.with_partition(partition, |state| Arc::clone(&state.topic))?;
        let leader = cluster.lead(&topic, partition.topic, partition.partition)?.leader?;
        // Where there is nobody else to ask it is believed.
        (leader != self.broker && cluster.known().is_well(leader)).then_some(leader)
    }

    /// Whether the broker has not heard of a topic yet that this client knows.
    fn is_behind(&self, partition: TopicPartition, error: &ServerError) -> bool {
        let is_unknown =
            matches!(error.error_code(), Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition));
        let topic = self.shared.with_partition(partition, |state| Arc::clone(&state.topic));
        is_unknown && topic.is_some_and(|topic| self.shared.cluster.knows(&topic, partition.topic))
    }
}

fn describe(position: Position) -> String {
    match position {
        Position::Offset(offset) => offset.to_string(),
        Position::Earliest => "earliest".to_owned(),
        Position::Latest => "latest".to_owned(),
        Position::Time(time) => format!("time {time}"),
    }
}

/// Takes a payload apart into batches that lie between `from` and `next`, in order.
fn verify(payload: &Bytes, from: Offset, next: Offset) -> Result<Vec<RecordBatch>, String> {
    if next < from {
        return Err(format!("the broker goes back from offset {from} to {next}"));
    }
    let mut rest = payload.clone();
    let mut batches: Vec<RecordBatch> = Vec::new();
    loop {
        let batch = match RecordBatch::split_first(&mut rest, &BATCH_LIMITS) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(batches),
            Err(error) => return Err(error.to_string()),
        };
        let header = batch.header();
        let after = batches.last().map_or(Offset::ZERO, |last| last.header().next_offset());
        if header.base_offset < after || header.next_offset() > next {
            return Err(format!("a batch at offset {} is out of order", header.base_offset));
        }
        batches.push(batch);
    }
}

fn offset(wire: i64) -> Result<Offset, SessionEnd> {
    if wire < 0 {
        Err(SessionEnd::Retry(format!("the broker speaks of offset {wire}")))
    } else {
        Ok(Offset::new(wire))
    }
}

impl Told {
    /// Whether what was told is still what the consumer wants.
    const fn is_of(&self, state: &PartitionState) -> bool {
        self.generation == state.generation && self.is_here(state)
    }

    /// Whether the partition is still read at this broker, and was not removed and added again.
    const fn is_here(&self, state: &PartitionState) -> bool {
        self.incarnation == state.incarnation && self.tenure == state.tenure
    }

    const fn stay(&self, partition: TopicPartition) -> Stay {
        Stay { partition, incarnation: self.incarnation, generation: self.generation }
    }
}

impl View {
    fn find(&self, id: u32) -> Option<(TopicPartition, &Told)> {
        let partition = *self.ids.get(&id)?;
        Some((partition, self.told.get(&partition)?))
    }

    /// Partitions that are refused together wait together: a hundred of them are one reason to wait longer, not a hundred.
    fn again_later(&mut self, partition: TopicPartition, backoff: &mut Backoff) {
        let now = Instant::now();
        let same = self.again.last().map(|(at, _)| *at).filter(|at| *at > now);
        let at = same.unwrap_or_else(|| now + backoff.pause());
        self.again.push((at, partition));
    }
}
