//! Reading records.

mod builder;
mod error;
mod events;
mod guide;
mod record;
mod session;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tidemill_protocol::{Offset, PartitionId, TopicPartition};

use self::builder::Window;
use self::state::{Event, PartitionState, Shared};

pub use builder::{ConsumerBuilder, OutOfRange, Start};
pub use error::{ConsumeError, ConsumerError};
pub use record::{ConsumerRecord, FetchedBatch};

use crate::{Client, Commit, Position, RequestError};

/// Reads partitions of topics: a stream of records, in order within each partition.
///
/// The broker pushes as much as the consumer's window allows. A connection that breaks is made again; reading goes
/// on behind the last record, without gap or duplicate. An error concerns one partition unless it says otherwise:
/// the others go on. The stream ends (`None`) only when nothing more can come.
///
/// Dropping the consumer ends its subscriptions.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    window: Window,
    current: Option<InHand>,
    records: u64,
}

/// What is left of the batch that was taken last.
#[derive(Debug)]
struct InHand {
    /// Theirs, by the topic's id: one that was made anew has the name of the one before.
    partition: TopicPartition,
    records: VecDeque<ConsumerRecord>,
}

/// Where a consumer is in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPosition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The next offset to hand out; not known before the broker said what the start means.
    pub next: Option<Offset>,
    /// Where the partition ended when the broker last said so.
    pub high_watermark: Option<Offset>,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether it ended with an error.
    pub failed: bool,
}

/// What a consumer has read so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerStats {
    /// Records handed out one by one.
    pub records: u64,
    /// Bytes of record batches received.
    pub received_bytes: u64,
    /// Bytes of record batches that the brokers read for it, before any filter.
    pub scanned_bytes: u64,
    /// Subscriptions that broke and were made again.
    pub reconnects: u64,
}

impl Consumer {
    fn new(shared: Arc<Shared>, window: Window) -> Self {
        Self { shared, window, current: None, records: 0 }
    }

    /// The next record; `None` when nothing more can come.
    pub async fn next(&mut self) -> Option<Result<ConsumerRecord, ConsumeError>> {
        std::future::poll_fn(|cx| self.poll_record(cx)).await
    }

    /// The next batches of some partition, as the broker sent them: for whoever forwards or counts them. Not to be
    /// mixed with [`next`](Self::next): records of a batch that was begun there are passed over.
    pub async fn next_batch(&mut self) -> Option<Result<FetchedBatch, ConsumeError>> {
        self.current = None;
        std::future::poll_fn(|cx| self.poll_batch(cx)).await
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumerRecord, ConsumeError>>> {
        loop {
            if let Some(record) = self.current.as_mut().and_then(|current| current.records.pop_front()) {
                self.records += 1;
                return Poll::Ready(Some(Ok(record)));
            }
            let batch = match std::task::ready!(self.poll_batch(cx)) {
                Some(Ok(batch)) => batch,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            match batch.records() {
                Ok(records) => {
                    self.current = Some(InHand { partition: batch.partition, records: records.into() });
                }
                Err(error) => {
                    let partition = batch.partition;
                    self.shared.with(|all| {
                        all.forget_queued(partition);
                        if let Some(state) = all.partitions.get_mut(&partition) {
                            (state.failing, state.failed) = (true, true);
                            // Nobody got these records: a position that is committed now is before them.
                            state.next = Some(batch.from);
                        }
                    });
                    self.touch(partition);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<FetchedBatch, ConsumeError>>> {
        loop {
            let mut touched = None;
            let polled = self.shared.with(|state| match state.queue.pop_front() {
                Some(Event::Failed(stay, error)) => {
                    let current = state.partitions.get_mut(&stay.partition).filter(|now| stay.is_of(now))?;
                    current.failed = true;
                    Some(Poll::Ready(Some(Err(error))))
                }
                // Whoever has all that it wanted misses nothing.
                Some(Event::Ended(ConsumeError::Closed)) if state.is_over() => Some(Poll::Ready(None)),
                Some(Event::Ended(error)) => Some(Poll::Ready(Some(Err(error)))),
                Some(Event::Data(batch)) => {
                    let current = state.partitions.get_mut(&batch.partition)?;
                    if !batch.stay().is_of(current) {
                        return None;
                    }
                    let bytes = batch.bytes as u64;
                    current.queued_bytes = current.queued_bytes.saturating_sub(bytes);
                    current.queued_frames = current.queued_frames.saturating_sub(1);
                    current.owe(bytes);
                    // What is behind the end that is wanted is not handed out, and no position goes past it.
                    let was_over = current.is_over();
                    if !was_over {
                        current.has_come(batch.next);
                        current.settle_progress();
                    }
                    if current.should_return_credit() || current.is_over() {
                        touched = Some((batch.partition, current.place));
                    }
                    (!was_over).then_some(Poll::Ready(Some(Ok(batch))))
                }
                None if state.ended || state.is_over() => Some(Poll::Ready(None)),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Some(Poll::Pending)
                }
            });
            if let Some((partition, place)) = touched {
                self.shared.touch(partition, place);
            }
            // Of a partition that is no longer wanted: the next one.
            if let Some(polled) = polled {
                return polled;
            }
        }
    }

    /// Stops the flow of a partition. What has arrived is still handed out.
    pub fn pause(&self, partition: TopicPartition) {
        self.change(partition, |state| state.paused = true);
    }

    /// Lets a paused partition flow again.
    pub fn resume(&self, partition: TopicPartition) {
        self.change(partition, |state| state.paused = false);
    }

    /// Goes on elsewhere in a partition, also in one that ended with an error.
    pub fn seek(&mut self, partition: TopicPartition, position: Position) {
        self.drop_current(partition);
        self.shared.with(|state| state.forget_queued(partition));
        self.change(partition, |state| state.seek(position));
        // Perhaps it had ended with just that, and no news will come of it.
        self.shared.end_if_gone(partition);
    }

    /// Reads a further partition. One that is read already goes on at `start`.
    ///
    /// # Errors
    /// No such topic or partition, no room in the window, or no answer.
    pub async fn add(
        &mut self,
        topic: &str,
        partition: PartitionId,
        start: impl Into<Start>,
    ) -> Result<TopicPartition, ConsumerError> {
        let start = start.into();
        let (metadata, in_use) = self.shared.cluster.topic_in_use(topic).await?;
        if metadata.partition(partition).is_none() {
            return Err(ConsumerError::NoPartition {
                topic: topic.to_owned(),
                partition: partition.get(),
                count: metadata.partition_count(),
            });
        }
        let key = TopicPartition::new(metadata.id, partition);
        let committed = match &start {
            Start::Committed { group, .. } => {
                self.client().groups().positions(group).await?.get(&key).copied()
            }
            _ => None,
        };
        let position = builder::position(&start, committed);
        self.remove(key);
        self.shared.with(|state| {
            let windows: Vec<u64> = state.partitions.values().map(|state| state.window_bytes).collect();
            let share = builder::share_beside(self.window, windows.into_iter())?;
            let incarnation = state.next_incarnation;
            state.next_incarnation += 1;
            let floor = committed.unwrap_or(Offset::ZERO);
            let new = PartitionState::new(Arc::new(in_use), position, floor, incarnation, share);
            state.partitions.insert(key, new);
            Ok::<_, ConsumerError>(())
        })?;
        self.shared.settle([key], None);
        Ok(key)
    }

    /// Reads a partition no more.
    pub fn remove(&mut self, partition: TopicPartition) {
        self.drop_current(partition);
        let place = self.shared.with(|state| {
            state.forget_queued(partition);
            state.partitions.remove(&partition).and_then(|state| state.place)
        });
        self.shared.touch(partition, place);
    }

    /// Where the consumer is: behind the last record that it handed out.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<TopicPartition, PartitionPosition> {
        let mut positions: BTreeMap<TopicPartition, PartitionPosition> = self.shared.with(|state| {
            let position = |state: &PartitionState| PartitionPosition {
                topic: Arc::clone(&state.topic),
                next: state.next,
                high_watermark: state.high_watermark,
                paused: state.paused,
                failed: state.failed,
            };
            state.partitions.iter().map(|(partition, state)| (*partition, position(state))).collect()
        });
        // Of the batch that was taken last, some records may be left.
        if let Some(InHand { partition, records }) = &self.current
            && let Some(record) = records.front()
            && let Some(position) = positions.get_mut(partition)
        {
            position.next = Some(record.offset);
        }
        positions
    }

    /// Whether every partition has been read to where it ended when the broker last said so.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        // An error that is queued is still to be told.
        let is_at_end = |state: &PartitionState| state.failed || (!state.failing && state.is_at_end());
        self.current.as_ref().is_none_or(|current| current.records.is_empty())
            && self.shared.with(|state| {
                let is_told = !state.queue.iter().any(|event| matches!(event, Event::Ended(_)));
                is_told && state.partitions.values().all(is_at_end)
            })
    }

    /// Remembers, under a group's name, where the consumer is.
    ///
    /// # Errors
    /// The broker refused a position, or no answer.
    pub async fn commit(&self, group: &str) -> Result<(), RequestError> {
        let positions = self.positions().into_iter();
        let commits: Vec<_> = positions
            .filter_map(|(partition, position)| Some(Commit::new(partition, position.next?)))
            .collect();
        self.client().groups().commit(group, &commits).await
    }

    /// What was read so far.
    #[must_use]
    pub fn stats(&self) -> ConsumerStats {
        let counters = &self.shared.counters;
        ConsumerStats {
            records: self.records,
            received_bytes: counters.received_bytes.load(Ordering::Relaxed),
            scanned_bytes: counters.scanned_bytes.load(Ordering::Relaxed),
            reconnects: counters.reconnects.load(Ordering::Relaxed),
        }
    }

    fn client(&self) -> Client {
        Client { cluster: Arc::clone(&self.shared.cluster) }
    }

    fn change(&self, partition: TopicPartition, change: impl FnOnce(&mut PartitionState)) {
        let place = self.shared.with_partition(partition, |state| {
            change(state);
            state.place
        });
        self.shared.touch(partition, place.flatten());
    }

    fn touch(&self, partition: TopicPartition) {
        self.change(partition, |_| {});
    }

    fn drop_current(&mut self, partition: TopicPartition) {
        self.current.take_if(|current| current.partition == partition);
    }
}

impl futures::Stream for Consumer {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(cx)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.stopped.cancel();
    }
}
