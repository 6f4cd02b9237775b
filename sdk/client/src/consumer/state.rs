use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use tidemill_protocol::messages::FilterSpec;
use tidemill_protocol::{BrokerId, Offset, TopicPartition};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::session::Session;
use super::{ConsumeError, FetchedBatch, OutOfRange};
use crate::Position;
use crate::cluster::{Cluster, TopicInUse};

/// What a consumer, and its sessions with the brokers, share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cluster: Arc<Cluster>,
    pub(super) settings: Settings,
    state: Mutex<State>,
    sessions: Mutex<HashMap<BrokerId, Arc<Inbox>>>,
    pub(super) stopped: CancellationToken,
    pub(super) counters: Counters,
    pub(super) runtime: tokio::runtime::Handle,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) filter: Option<FilterSpec>,
    pub(super) out_of_range: OutOfRange,
    pub(super) stop_at_end: StopAtEnd,
    /// Where to read, if there is a replica.
    pub(super) rack: Option<String>,
}

/// Whether each partition ends where the log does, and when the broker is asked where that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopAtEnd {
    /// It never ends.
    Never,
    /// Asked when reading begins.
    FromTheBeginning,
    /// Asked when everything has come that was known to be there.
    OnceReached,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received_bytes: AtomicU64,
    pub(super) scanned_bytes: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// What the consumer wants, and what has come. The sessions bring the brokers in line with it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) partitions: BTreeMap<TopicPartition, PartitionState>,
    /// Bounded by the partitions' windows.
    pub(super) queue: VecDeque<Event>,
    pub(super) waker: Option<Waker>,
    /// Nothing more can come: the subscription was refused, or the client closed. The error that says so is queued, or was handed out.
    pub(super) ended: bool,
    pub(super) next_incarnation: u64,
}

impl State {
    /// Drops what is queued of a partition, its error too. Its bytes are the caller's to account for.
    pub(super) fn forget_queued(&mut self, partition: TopicPartition) {
        self.queue.retain(|event| match event {
            Event::Data(batch) => batch.partition != partition,
            Event::Failed(failed, _) => failed.partition != partition,
            Event::Ended(_) => true,
        });
    }

    /// A partition ends with an error, unless it was sought in meanwhile. In one step with its error: in between it would be taken for
    /// one that was read to its end.
    pub(super) fn fail(&mut self, stay: Stay, error: ConsumeError) {
        let of = self.partitions.get_mut(&stay.partition);
        if let Some(partition) = of.filter(|partition| stay.is_of(partition) && !partition.failing) {
            partition.failing = true;
            self.queue.push_back(Event::Failed(stay, error));
        }
    }

    /// Whether every partition was read to where it ends, or its error was handed out.
    pub(super) fn is_over(&self) -> bool {
        self.partitions.values().all(PartitionState::is_over)
    }
}

/// What the consumer hands out next, in this order.
#[derive(Debug)]
pub(super) enum Event {
    Data(FetchedBatch),
    /// One partition ends: behind what came of it before.
    Failed(Stay, ConsumeError),
    /// The whole consumer does.
    Ended(ConsumeError),
}

/// A partition as it is read until it is sought in, or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stay {
    pub(super) partition: TopicPartition,
    pub(super) incarnation: u64,
    pub(super) generation: u64,
}

impl Stay {
    pub(super) const fn is_of(&self, state: &PartitionState) -> bool {
        self.incarnation == state.incarnation && self.generation == state.generation
    }
}

#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) topic: Arc<str>,
    /// As long as there is something to be heard of the topic.
    pub(super) in_use: Option<Arc<TopicInUse>>,
    /// The broker that it is read at; `None` while nobody is known to have it.
    pub(super) place: Option<BrokerId>,
    /// Rises with each change of place: what a place says after that is not heard any more.
    pub(super) tenure: u64,
    /// Since when another place would be better, though this one serves.
    pub(super) astray_since: Option<Instant>,
    /// When it last left a broker that did not give its records out.
    pub(super) left_at: Option<Instant>,
    /// Tells a partition that was removed and added again from what it was.
    pub(super) incarnation: u64,
    /// Rises with each seek, so that what comes from before it is known.
    pub(super) generation: u64,
    /// Where a new subscription goes on: behind what was queued last.
    pub(super) resume: Position,
    /// The next offset to hand out; not known before the broker said what the position means.
    pub(super) next: Option<Offset>,
    pub(super) paused: bool,
    pub(super) high_watermark: Option<Offset>,
    /// How far it reaches at least, by all that was seen of it. A replica that is behind that waits instead of going back.
    pub(super) floor: Offset,
    pub(super) stop_at: Option<Offset>,
    /// Ended by an error, which waits behind what is queued.
    pub(super) failing: bool,
    /// Ended by an error that was handed out.
    pub(super) failed: bool,
    /// Bytes that the broker may send without being told more.
    pub(super) window_bytes: u64,
    /// Bytes in the queue.
    pub(super) queued_bytes: u64,
    pub(super) queued_frames: usize,
    /// Bytes handed out for which the broker has no new credit yet.
    pub(super) owed_bytes: u64,
    /// Where the position goes once the queue has nothing more of this partition.
    pub(super) progress: Option<Offset>,
    /// Damaged answers in a row.
    pub(super) corruptions: u32,
}

impl PartitionState {
    pub(super) fn new(
        in_use: Arc<TopicInUse>,
        start: Position,
        floor: Offset,
        incarnation: u64,
        window_bytes: u64,
    ) -> Self {
        Self {
            topic: Arc::clone(in_use.name()),
            in_use: Some(in_use),
            place: None,
            tenure: 0,
            astray_since: None,
            left_at: None,
            incarnation,
            generation: 0,
            resume: start,
            next: match start {
                Position::Offset(offset) => Some(offset),
                _ => None,
            },
            paused: false,
            high_watermark: None,
            floor,
            stop_at: None,
            failing: false,
            failed: false,
            window_bytes,
            queued_bytes: 0,
            queued_frames: 0,
            owed_bytes: 0,
            progress: None,
            corruptions: 0,
        }
    }

    /// As it is read now.
    pub(super) const fn stay(&self, partition: TopicPartition) -> Stay {
        Stay { partition, incarnation: self.incarnation, generation: self.generation }
    }

    /// A broker told how far it has the partition. What was seen before stands: a replica may be behind.
    pub(super) fn reaches(&mut self, high_watermark: Offset) {
        self.high_watermark = self.high_watermark.max(Some(high_watermark));
        self.floor = self.floor.max(high_watermark);
    }

    /// Whether enough was handed out to tell the broker.
    pub(super) const fn should_return_credit(&self) -> bool {
        /// Part of the window that is gathered before the broker is told.
        const SHARE: u64 = 8;
        self.owed_bytes > 0 && self.owed_bytes >= self.window_bytes / SHARE
    }

    /// Whether the broker is to say now where the log ends: it decides whether more is to come.
    pub(super) fn needs_end(&self, stop: StopAtEnd) -> bool {
        let is_due = match stop {
            StopAtEnd::Never => false,
            StopAtEnd::FromTheBeginning => true,
            StopAtEnd::OnceReached => self.has_come_to_end(),
        };
        is_due && self.stop_at.is_none()
    }

    /// Whether all has come that the brokers told of so far, though it may not be handed out yet.
    fn has_come_to_end(&self) -> bool {
        match (self.resume, self.high_watermark) {
            (Position::Offset(resume), Some(end)) => resume >= end,
            _ => false,
        }
    }

    /// Whether everything has come that is wanted, though it may not be handed out yet.
    pub(super) fn has_all(&self) -> bool {
        match (self.resume, self.stop_at) {
            (Position::Offset(resume), Some(stop_at)) => resume >= stop_at,
            _ => false,
        }
    }

    /// The brokers are asked for nothing more, though not all that came may be handed out yet.
    pub(super) fn is_left_alone(&self) -> bool {
        self.failing || self.is_over()
    }

    /// Nothing more is to be handed out.
    pub(super) fn is_over(&self) -> bool {
        self.failed || self.stop_at.is_some_and(|stop_at| self.next.is_some_and(|next| next >= stop_at))
    }

    /// A frame left the queue, or never entered it.
    pub(super) const fn owe(&mut self, bytes: u64) {
        self.owed_bytes += bytes;
    }

    /// Goes on elsewhere; what was queued is not wanted any more.
    pub(super) fn seek(&mut self, position: Position) {
        self.generation += 1;
        self.owed_bytes += std::mem::take(&mut self.queued_bytes);
        self.queued_frames = 0;
        self.resume = position;
        self.next = match position {
            Position::Offset(offset) => Some(offset),
            _ => None,
        };
        self.progress = None;
        self.stop_at = None;
        self.failing = false;
        self.failed = false;
        self.corruptions = 0;
    }

    /// Nothing is queued any more: progress that came behind the data counts.
    pub(super) fn settle_progress(&mut self) {
        if self.queued_frames == 0
            && let Some(progress) = self.progress.take()
        {
            self.has_come(progress);
        }
    }

    /// Everything below `next` was handed out, as far as it is wanted.
    pub(super) fn has_come(&mut self, next: Offset) {
        let wanted = self.stop_at.map_or(next, |stop_at| next.min(stop_at));
        self.next = self.next.max(Some(wanted));
    }

    /// The end for now has been reached.
    pub(super) fn is_at_end(&self) -> bool {
        match (self.next, self.high_watermark) {
            (Some(next), Some(end)) => next >= end,
            _ => false,
        }
    }
}

/// Which partitions a session should look at.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    dirty: Mutex<BTreeSet<TopicPartition>>,
    pub(super) wake: Notify,
}

impl Inbox {
    pub(super) fn take(&self) -> BTreeSet<TopicPartition> {
        std::mem::take(&mut *self.dirty.lock())
    }

    pub(super) fn put(&self, partition: TopicPartition) {
        self.dirty.lock().insert(partition);
        self.wake.notify_one();
    }
}

impl Shared {
    pub(super) fn new(cluster: Arc<Cluster>, settings: Settings) -> Self {
        let stopped = cluster.closed.child_token();
        Self {
            cluster,
            settings,
            state: Mutex::default(),
            sessions: Mutex::default(),
            stopped,
            counters: Counters::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Looks at the state, or changes it. Not to be nested.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock())
    }

    /// Changes a partition that is still wanted.
    pub(super) fn with_partition<T>(
        &self,
        partition: TopicPartition,
        change: impl FnOnce(&mut PartitionState) -> T,
    ) -> Option<T> {
        self.with(|state| state.partitions.get_mut(&partition).map(change))
    }

    /// As [`State::fail`], and the consumer hears of it.
    pub(super) fn fail(&self, stay: Stay, error: ConsumeError) {
        self.with(|state| state.fail(stay, error));
        self.nudge();
    }

    /// Nothing more can come, for a reason that is told once.
    pub(super) fn end(&self, error: ConsumeError) {
        self.with(|state| {
            if !std::mem::replace(&mut state.ended, true) {
                state.queue.push_back(Event::Ended(error));
            }
        });
        self.nudge();
    }

    /// Wakes the consumer, which looks whether all is over.
    pub(super) fn nudge(&self) {
        if let Some(waker) = self.with(|state| state.waker.take()) {
            waker.wake();
        }
    }

    /// Tells the session with the partition's place to look at it; begins the session where there is none.
    pub(super) fn touch(self: &Arc<Self>, partition: TopicPartition, place: Option<BrokerId>) {
        let Some(broker) = place else { return };
        let mut is_new = false;
        let inbox = Arc::clone(self.sessions.lock().entry(broker).or_insert_with(|| {
            is_new = true;
            Arc::default()
        }));
        inbox.put(partition);
        if is_new {
            let session = Session::new(Arc::clone(self), broker, inbox);
            self.runtime.spawn(session.run());
        }
    }
}
