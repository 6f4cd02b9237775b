use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tidemill_protocol::record_batch::{AppendError, BatchBuilder, BuilderOptions, RecordBatch};
use tidemill_protocol::{PartitionId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::completion::{Completion, Delivery, Placed};
use super::follow::Stay;
use super::shared::Shared;
use super::{DeliveryError, Record, SendError};

/// Where the batches of a lane go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Partition(PartitionId),
    /// The broker places the records.
    Routed,
}

/// One queue of batches, in order: senders fill it, its task empties it. The only lock that a record takes.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) target: Target,
    /// Hears of a batch that can't be built.
    producer: Weak<Shared>,
    state: Mutex<LaneState>,
    /// For the lane's task: there is something to look at.
    pub(super) wake: Notify,
    /// Where the stream is, while there is one. Its opening and news of brokers take this lock, no batch does.
    pub(super) stay: Mutex<Option<Stay>>,
    /// Bytes of the largest batch that topic and broker take.
    batch_limit: usize,
}

#[derive(Debug)]
struct LaneState {
    builder: BatchBuilder,
    /// The builder's.
    options: BuilderOptions,
    /// The batch that `builder` is filling.
    open: Option<OpenBatch>,
    ready: VecDeque<ReadyBatch>,
    /// Batches that have left `ready`.
    taken: u64,
    /// Of every batch that has no outcome yet, in order. One leaves when its failure is told to the producer: a flush that does not find
    /// it here finds that.
    outstanding: VecDeque<Arc<Completion>>,
    /// Of flushes that wait until the stream has come to a good end, in order.
    ends: VecDeque<End>,
    /// The open batch goes out without waiting for more.
    flush: bool,
    stopped: Option<DeliveryError>,
}

/// Where the stream is to end: what senders add behind it waits, however much it is.
#[derive(Debug)]
struct End {
    /// So many batches have been taken when it is reached.
    after: u64,
    completion: Arc<Completion>,
}

#[derive(Debug)]
struct OpenBatch {
    completion: Arc<Completion>,
    opened: Instant,
    buffered_bytes: usize,
}

/// A batch that waits for its turn on the stream.
#[derive(Debug)]
pub(super) struct ReadyBatch {
    pub(super) batch: RecordBatch,
    pub(super) completion: Arc<Completion>,
    pub(super) opened: Instant,
    /// What it counts against the producer's memory.
    pub(super) buffered_bytes: usize,
}

/// What `Lane::append` did.
pub(super) struct Appended {
    pub(super) delivery: Delivery,
    /// The record went to a batch of its own because the one before it was full.
    pub(super) rolled: bool,
}

impl Lane {
    pub(super) fn new(target: Target, producer: &Arc<Shared>) -> Self {
        let options = &producer.options;
        let options = BuilderOptions {
            compression: options.compression,
            compression_level: options.compression_level,
            batch_bytes_max: options.batch_bytes,
            ..BuilderOptions::default()
        };
        let state = LaneState {
            builder: BatchBuilder::new(options.clone()),
            options,
            open: None,
            ready: VecDeque::new(),
            taken: 0,
            outstanding: VecDeque::new(),
            ends: VecDeque::new(),
            flush: false,
            stopped: None,
        };
        Self {
            target,
            producer: Arc::downgrade(producer),
            state: Mutex::new(state),
            wake: Notify::new(),
            stay: Mutex::new(None),
            batch_limit: producer.batch_limit(),
        }
    }

    /// Adds a record to the open batch. The caller has reserved `buffered_bytes`.
    pub(super) fn append(
        &self,
        record: &Record<'_>,
        timestamp: Timestamp,
        buffered_bytes: usize,
    ) -> Result<Appended, SendError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.stopped {
            return Err(SendError::Stopped(error.clone()));
        }
        let mut rolled = false;
        match state.encode(record, timestamp) {
            Err(AppendError::Full { .. }) => {
                state.close_open(&self.producer);
                rolled = true;
                state.encode(record, timestamp)
            }
            Err(AppendError::RecordTooLarge { bytes, .. }) if bytes <= self.batch_limit => {
                // Larger than a batch is meant to be, and no larger than one may be: it goes alone.
                let alone = state.encode_alone(self.batch_limit, record, timestamp)?;
                return Ok(Appended { delivery: self.queue(state, alone, buffered_bytes), rolled: true });
            }
            Err(AppendError::RecordTooLarge { bytes, .. }) => {
                Err(AppendError::RecordTooLarge { bytes, limit: self.batch_limit })
            }
            done => done,
        }
        .map_err(not_taken)?;
        let ordinal = u32::try_from(state.builder.len() - 1).unwrap_or(u32::MAX);
        let mut is_new = false;
        let state = &mut *state;
        let open = state.open.get_or_insert_with(|| {
            is_new = true;
            let completion = Arc::<Completion>::default();
            state.outstanding.push_back(Arc::clone(&completion));
            OpenBatch { completion, opened: Instant::now(), buffered_bytes: 0 }
        });
        open.buffered_bytes += buffered_bytes;
        let delivery = Delivery::new(Arc::clone(&open.completion), ordinal);
        if is_new || rolled {
            self.wake.notify_one();
        }
        Ok(Appended { delivery, rolled })
    }

    /// Adds a batch that is built already, behind what was sent before.
    pub(super) fn push(&self, batch: RecordBatch, buffered_bytes: usize) -> Result<Delivery, SendError> {
        let state = self.state.lock();
        if let Some(error) = &state.stopped {
            return Err(SendError::Stopped(error.clone()));
        }
        Ok(self.queue(state, batch, buffered_bytes))
    }

    fn queue(
        &self,
        mut state: MutexGuard<'_, LaneState>,
        batch: RecordBatch,
        buffered_bytes: usize,
    ) -> Delivery {
        state.close_open(&self.producer);
        let completion = Arc::<Completion>::default();
        state.outstanding.push_back(Arc::clone(&completion));
        let delivery = Delivery::new(Arc::clone(&completion), 0);
        state.ready.push_back(ReadyBatch { batch, completion, opened: Instant::now(), buffered_bytes });
        drop(state);
        self.wake.notify_one();
        delivery
    }

    /// The next batch to go out: one that is complete, or the open one where it was opened at or before
    /// `opened_until`, or is to be flushed. None while an end stands before it.
    pub(super) fn take(&self, opened_until: Option<Instant>) -> Option<ReadyBatch> {
        let mut state = self.state.lock();
        if state.is_to_end() {
            return None;
        }
        if state.ready.is_empty()
            && let Some(open) = &state.open
            && (state.flush || opened_until.is_some_and(|until| open.opened <= until))
        {
            state.close_open(&self.producer);
        }
        state.pop_ready()
    }

    /// The oldest batch, to be given up where it was opened at or before `horizon`. It is not sent, so no end is in its way.
    pub(super) fn take_expired(&self, horizon: Instant) -> Option<ReadyBatch> {
        let mut state = self.state.lock();
        if state.ready.is_empty() && state.open.as_ref().is_some_and(|open| open.opened <= horizon) {
            state.close_open(&self.producer);
        }
        if state.ready.front()?.opened <= horizon { state.pop_ready() } else { None }
    }

    /// When the oldest batch that waits here was opened, and whether it waits for something else than time: it is complete, or
    /// an end stands before it.
    pub(super) fn oldest(&self) -> Option<(Instant, bool)> {
        let state = self.state.lock();
        match (state.ready.front(), &state.open) {
            (Some(ready), _) => Some((ready.opened, true)),
            (None, Some(open)) => Some((open.opened, state.flush || state.is_to_end())),
            (None, None) => None,
        }
    }

    /// Lets the open batch go at once and tells what has no outcome yet: with `ends_stream` also the end of the stream behind it.
    pub(super) fn flush(&self, ends_stream: bool) -> Vec<Arc<Completion>> {
        let mut state = self.state.lock();
        let ends_stream = ends_stream && state.stopped.is_none();
        if ends_stream {
            // What comes later belongs behind the end.
            state.close_open(&self.producer);
        }
        state.flush = state.open.is_some();
        let mut outstanding: Vec<_> = state.outstanding.iter().map(Arc::clone).collect();
        if ends_stream {
            let completion = Arc::<Completion>::default();
            let after = state.taken + state.ready.len() as u64;
            state.ends.push_back(End { after, completion: Arc::clone(&completion) });
            outstanding.push(completion);
        }
        drop(state);
        self.wake.notify_one();
        outstanding
    }

    /// Whether a flush waits for the stream's end, and everything before it was taken.
    pub(super) fn is_to_end(&self) -> bool {
        self.state.lock().is_to_end()
    }

    /// The flushes that wait for the stream's end, and for no batch that is still here. What stands behind them may go on.
    pub(super) fn take_ends(&self) -> Vec<Arc<Completion>> {
        let mut state = self.state.lock();
        let reached = state.ends.iter().take_while(|end| end.after <= state.taken).count();
        state.ends.drain(..reached).map(|end| end.completion).collect()
    }

    /// A batch has its outcome. Called in order, but for batches that a refusal overtook.
    pub(super) fn settle(
        &self,
        producer: &Shared,
        completion: &Arc<Completion>,
        buffered_bytes: usize,
        outcome: Result<Placed, DeliveryError>,
    ) {
        producer.settled(buffered_bytes, outcome.as_ref().err());
        completion.complete(outcome);
        // Last: a flush in between waits for what is complete already, and then looks for failures.
        self.forget(completion);
    }

    fn forget(&self, completion: &Arc<Completion>) {
        let mut state = self.state.lock();
        if let Some(place) = state.outstanding.iter().position(|other| Arc::ptr_eq(other, completion)) {
            state.outstanding.remove(place);
        }
    }

    /// Takes no more, for this reason, and gives up what waits.
    pub(super) fn stop(&self, error: DeliveryError) -> Vec<ReadyBatch> {
        let mut state = self.state.lock();
        state.stopped.get_or_insert(error);
        state.close_open(&self.producer);
        let given_up: Vec<_> = state.ready.drain(..).collect();
        // Every end is reached with that.
        state.taken += given_up.len() as u64;
        given_up
    }
}

fn not_taken(error: AppendError) -> SendError {
    match error {
        AppendError::RecordTooLarge { bytes, limit } | AppendError::Full { bytes, limit } => {
            SendError::TooLarge { bytes, limit }
        }
        other => SendError::Invalid(other.to_string()),
    }
}

impl LaneState {
    #[inline]
    fn encode(&mut self, record: &Record<'_>, timestamp: Timestamp) -> Result<(), AppendError> {
        self.builder.append(timestamp, record.key, record.value, record.headers.iter().copied())
    }

    /// A batch of one record, which may be as large as any batch.
    #[cold]
    fn encode_alone(
        &self,
        batch_bytes_max: usize,
        record: &Record<'_>,
        timestamp: Timestamp,
    ) -> Result<RecordBatch, SendError> {
        let options = BuilderOptions { batch_bytes_max, ..self.options.clone() };
        let mut builder = BatchBuilder::new(options);
        builder
            .append(timestamp, record.key, record.value, record.headers.iter().copied())
            .map_err(not_taken)?;
        builder.build_batch().map_err(|error| SendError::Invalid(error.to_string()))
    }

    /// Whether an end stands before whatever is here.
    fn is_to_end(&self) -> bool {
        self.ends.front().is_some_and(|end| end.after <= self.taken)
    }

    fn pop_ready(&mut self) -> Option<ReadyBatch> {
        let batch = self.ready.pop_front()?;
        self.taken += 1;
        Some(batch)
    }

    fn close_open(&mut self, producer: &Weak<Shared>) {
        self.flush = false;
        let Some(open) = self.open.take() else { return };
        match self.builder.build_batch() {
            Ok(batch) => self.ready.push_back(ReadyBatch {
                batch,
                completion: open.completion,
                opened: open.opened,
                buffered_bytes: open.buffered_bytes,
            }),
            Err(error) => {
                // The records are lost to their senders, who hear of it, as does a flush; the next batch begins clean.
                self.builder.clear();
                self.outstanding.retain(|other| !Arc::ptr_eq(other, &open.completion));
                let error = DeliveryError::Build(error.to_string());
                if let Some(producer) = producer.upgrade() {
                    producer.settled(open.buffered_bytes, Some(&error));
                }
                open.completion.complete(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use tidemill_protocol::messages::TopicConfig;
    use tidemill_protocol::{BrokerId, LeaderEpoch, ShardId, TopicId};

    use super::super::Producer;
    use super::super::options::Options;
    use super::*;
    use crate::cluster::{PartitionMetadata, TopicMetadata};

    /// In front of a sink, so that nothing but the lane is asked.
    fn producer() -> Producer {
        let partition = PartitionMetadata {
            partition: PartitionId::new(0),
            shard: ShardId::new(1),
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(0),
            replicas: Arc::default(),
        };
        let topic = TopicMetadata {
            id: TopicId::new(uuid::Uuid::nil()),
            name: "t".into(),
            partitions: vec![partition],
            config: TopicConfig::default(),
            partitioner: None,
            version: 0,
        };
        let options =
            Options { linger: Duration::from_secs(30), buffer_bytes_max: 4096, ..Options::default() };
        Producer::new(Shared::new(Arc::new(topic), options, None, None, 1 << 20))
    }

    #[tokio::test]
    async fn what_is_sent_after_a_flush_waits_behind_the_end_of_the_stream() {
        let producer = producer();
        let lane = Lane::new(Target::Partition(PartitionId::new(0)), &producer.shared);
        let send = |value: &[u8]| {
            drop(lane.append(&Record::new(value), Timestamp::new(1), 0).expect("there is room").delivery);
        };
        let taken = || lane.take(Some(Instant::now()));
        send(b"before");
        assert_eq!(lane.flush(true).len(), 2, "the batch, and the end behind it");
        send(b"after");
        assert!(!lane.is_to_end() && lane.take_ends().is_empty(), "one stands before it");
        assert!(taken().is_some(), "the batch before the end");
        assert!(lane.is_to_end() && taken().is_none());
        assert!(lane.oldest().is_some_and(|(_, waits)| waits), "for the end, and not for time");
        // Another flush meanwhile has its own end, behind what was sent before it.
        lane.flush(true);
        assert_eq!(lane.take_ends().len(), 1);
        assert!(!lane.is_to_end() && taken().is_some() && lane.is_to_end());
        assert_eq!(lane.take_ends().len(), 1);

        send(b"late");
        lane.flush(true);
        send(b"later");
        assert!(taken().is_some() && taken().is_none());
        assert!(lane.take_expired(Instant::now()).is_some(), "what is given up waits for no end");
        assert!(lane.is_to_end() && lane.oldest().is_none());
        send(b"last");
        lane.flush(true);
        assert_eq!(lane.stop(DeliveryError::Closed).len(), 1);
        assert_eq!(lane.take_ends().len(), 2, "nothing stands before any end");
    }

    /// Looks what a flush would find, at the moment that an outcome is there.
    struct Flushing {
        producer: Arc<Shared>,
        lane: Arc<Lane>,
        /// Whether it would wait for the batch, and whether it would hear of its failure.
        found: Mutex<Option<(bool, bool)>>,
    }

    impl Wake for Flushing {
        fn wake(self: Arc<Self>) {
            let waits = !self.lane.flush(false).is_empty();
            *self.found.lock() = Some((waits, self.producer.take_failure().is_some()));
        }
    }

    #[tokio::test]
    async fn a_batch_is_outstanding_until_its_failure_is_told() {
        let producer = Arc::clone(&producer().shared);
        let lane = Arc::new(Lane::new(Target::Partition(PartitionId::new(0)), &producer));
        let sent = lane.append(&Record::new(b"lost"), Timestamp::new(1), 0).expect("there is room");
        let mut delivery = pin!(sent.delivery);
        let batch = lane.take(Some(Instant::now())).expect("the batch");
        let flushing = Arc::new(Flushing {
            producer: Arc::clone(&producer),
            lane: Arc::clone(&lane),
            found: Mutex::new(None),
        });
        let waker = Waker::from(Arc::clone(&flushing));
        assert!(delivery.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        lane.settle(&producer, &batch.completion, batch.buffered_bytes, Err(DeliveryError::Lost));
        assert_eq!(*flushing.found.lock(), Some((true, true)), "it waits, and what it waited for is told");
        assert!(lane.flush(false).is_empty());
    }

    #[tokio::test]
    async fn a_batch_that_can_not_be_built_is_told_and_frees_its_memory() {
        let producer = producer();
        let value = [7; 1000];
        // Several rounds: memory that was kept would run out.
        for round in 1..=10 {
            let lost = producer.try_send(Record::new(&value)).expect("there is room");
            let also_lost = producer.try_send(Record::new(&value)).expect("there is room");
            assert!(producer.stats().buffered_bytes >= 2000);
            // As if compressing failed, which no input makes it do.
            producer.shared.lane(0).expect("a partition").state.lock().builder.clear();
            let flushed = producer.flush().await;
            assert!(matches!(flushed, Err(DeliveryError::Build(_))), "{flushed:?}");
            for delivery in [lost, also_lost] {
                assert!(matches!(delivery.await, Err(DeliveryError::Build(_))));
            }
            assert_eq!((producer.stats().buffered_bytes, producer.stats().failed_batches), (0, round));
            drop(producer.try_send(Record::new(&value)).expect("taken"));
            producer.flush().await.expect("what comes behind it is none the worse");
        }
    }
}
