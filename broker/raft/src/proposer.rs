//! From units to entries: coalescing, ordering, back-pressure, deadlines.
//!
//! ```text
//!   reserve -> Permit -> submit -> [ queue ] -> entry -> openraft -> log -> apply
//!                                      ^                                     |
//!                                      '------- next entry  <----------------+-> Pending of each unit
//! ```
//!
//! There is no task here. Whoever submits a unit hands the entry to openraft if one may go out now; otherwise the
//! task that applied an earlier entry does, right after it answered that entry's units. So a lone unit crosses no
//! task that it would not cross anyway, and a busy shard makes its entries exactly as fast as they complete.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_shard::{Entry, Unit, UnitResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::Instant;

use crate::config::{Clock, ReplicaLimits};
use crate::error::ProposeError;
use crate::flight::{Flight, Outcome};
use crate::gate::Held;
use crate::pending::Pending;
use crate::telemetry::Telemetry;
use crate::types::Command;

/// Where entries go. Must not wait, and of `flight` may call only [`Flight::refused`] before it returns, or drop it.
pub(crate) trait EntrySink: Send + Sync + 'static {
    fn propose(&self, command: Command, flight: Flight);
}

/// What every unit is charged beside its own bytes, so that empty ones are bounded in number too.
const UNIT_OVERHEAD_BYTES: usize = 512;

/// Turns units into entries. Shared by the replica's handles, its permits and the entries in flight.
pub(crate) struct Proposer {
    limits: ReplicaLimits,
    /// See [`ReplicaConfig`](crate::ReplicaConfig).
    unit_bytes_elsewhere: Arc<AtomicUsize>,
    clock: Clock,
    /// Room for units, in bytes.
    room: Arc<Semaphore>,
    queue: Mutex<Queue>,
    in_flight: InFlight,
    /// No majority answers: nothing is taken. Set while the queue is locked.
    cut_off: AtomicBool,
    sink: Box<dyn EntrySink>,
    telemetry: Telemetry,
}

#[derive(Default)]
struct Queue {
    units: VecDeque<Waiting>,
    bytes: usize,
    /// Entries in flight, oldest first; those that are answered linger until the ones before them are.
    flights: VecDeque<Arc<Outcome>>,
    stopped: Option<ProposeError>,
}

struct Waiting {
    unit: Unit,
    bytes: usize,
    charged: usize,
    expires: Instant,
    reply: oneshot::Sender<Result<UnitResult, ProposeError>>,
    /// Let go when the unit has landed, whoever waits for its answer.
    held: Option<Held>,
}

/// Counted outside of the queue's lock: an entry may end while that is held.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    fn add(&self, bytes: usize) {
        self.entries.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        self.entries.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Proposer {
    pub(crate) fn new(
        limits: ReplicaLimits,
        unit_bytes_elsewhere: Arc<AtomicUsize>,
        clock: Clock,
        telemetry: Telemetry,
        sink: Box<dyn EntrySink>,
    ) -> Arc<Self> {
        let room = limits.pending_bytes_max.clamp(1, u32::MAX as usize);
        Arc::new(Self {
            limits,
            unit_bytes_elsewhere,
            clock,
            room: Arc::new(Semaphore::new(room)),
            queue: Mutex::new(Queue::default()),
            in_flight: InFlight::default(),
            cut_off: AtomicBool::new(false),
            sink,
            telemetry,
        })
    }

    /// The largest unit that every broker's log takes.
    fn unit_bytes_max(&self) -> usize {
        self.limits.unit_bytes_max.min(self.unit_bytes_elsewhere.load(Ordering::Relaxed))
    }

    /// The size up to which units are gathered.
    fn entry_bytes_max(&self) -> usize {
        self.limits.entry_bytes_max.min(self.unit_bytes_max())
    }

    /// Waits for room for a unit of `bytes`.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Permit, ProposeError> {
        let bytes_max = self.unit_bytes_max();
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        if self.is_cut_off() {
            return Err(ProposeError::NoQuorum);
        }
        let charged = bytes.saturating_add(UNIT_OVERHEAD_BYTES).min(self.limits.pending_bytes_max);
        let count = u32::try_from(charged).unwrap_or(u32::MAX);
        let room = match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(room) => room,
            Err(TryAcquireError::Closed) => return Err(self.stopped_error()),
            Err(TryAcquireError::NoPermits) => {
                let waiting = Arc::clone(&self.room).acquire_many_owned(count);
                match tokio::time::timeout(self.limits.reserve_deadline, waiting).await {
                    Ok(Ok(room)) => room,
                    Ok(Err(_closed)) => return Err(self.stopped_error()),
                    // Since it began to wait.
                    Err(_elapsed) if self.is_cut_off() => return Err(ProposeError::NoQuorum),
                    Err(_elapsed) => return Err(self.overloaded()),
                }
            }
        };
        Ok(Permit { proposer: Arc::clone(self), room, bytes, charged: count as usize })
    }

    /// How long whoever reserves waits.
    pub(crate) fn reserve_deadline(&self) -> Duration {
        self.limits.reserve_deadline
    }

    /// What whoever waited in vain is told; counted.
    pub(crate) fn overloaded(&self) -> ProposeError {
        self.telemetry.overloaded.increment(1);
        ProposeError::Overloaded
    }

    fn submit(self: &Arc<Self>, unit: Unit, bytes: usize, charged: usize, held: Option<Held>) -> Pending {
        let (reply, pending) = Pending::new();
        let expires = Instant::now() + self.limits.proposal_deadline;
        self.telemetry.proposals.increment(1);
        // Whoever reserved less than the unit takes must not thereby get around the limit.
        let bytes = unit.bytes().max(bytes);
        let bytes_max = self.unit_bytes_max();
        let mut queue = self.queue.lock();
        let refusal = match &queue.stopped {
            Some(stopped) => Some(stopped.clone()),
            None if self.is_cut_off() => Some(ProposeError::NoQuorum),
            None => (bytes > bytes_max).then_some(ProposeError::TooLarge { bytes, bytes_max }),
        };
        if let Some(error) = refusal {
            drop(queue);
            self.room.add_permits(charged);
            drop(reply.send(Err(error)));
            return pending;
        }
        queue.units.push_back(Waiting { unit, bytes, charged, expires, reply, held });
        queue.bytes += bytes;
        self.propose_ready(&mut queue);
        pending
    }

    /// Makes as many entries as may go out now, in order.
    fn propose_ready(self: &Arc<Self>, queue: &mut Queue) {
        while queue.stopped.is_none() && self.entry_may_go(queue) {
            let (units, flight) = self.next_entry(queue);
            let command = Command::new(Entry { time: (self.clock)(), units });
            self.telemetry.entry(command.entry().units.len(), command.bytes());
            queue.flights.push_back(Arc::clone(flight.outcome()));
            self.sink.propose(command, flight);
        }
    }

    fn entry_may_go(&self, queue: &Queue) -> bool {
        if queue.units.is_empty() {
            return false;
        }
        let entries = self.in_flight.entries.load(Ordering::Acquire);
        if entries == 0 {
            return true;
        }
        let limits = &self.limits;
        let bytes = self.in_flight.bytes.load(Ordering::Acquire);
        let next = queue.bytes.min(self.entry_bytes_max());
        if entries >= limits.in_flight_entries_max || bytes.saturating_add(next) > limits.in_flight_bytes_max
        {
            return false;
        }
        entries < limits.eager_entries
            || queue.bytes >= limits.gather_bytes
            || queue.units.len() >= limits.entry_units_max
    }

    /// Takes the next entry's units off the queue.
    fn next_entry(self: &Arc<Self>, queue: &mut Queue) -> (Vec<Unit>, Flight) {
        let (mut bytes, mut charged) = (0usize, 0usize);
        let (mut units, mut replies, mut held) = (Vec::new(), Vec::new(), Vec::new());
        let mut expires = None;
        while let Some(next) = queue.units.front() {
            let full = bytes.saturating_add(next.bytes) > self.entry_bytes_max()
                || units.len() >= self.limits.entry_units_max.max(1);
            if full && !units.is_empty() {
                break;
            }
            let Some(next) = queue.units.pop_front() else { break };
            bytes += next.bytes;
            charged += next.charged;
            expires.get_or_insert(next.expires);
            units.push(next.unit);
            replies.push(next.reply);
            held.extend(next.held);
        }
        queue.bytes -= bytes;
        self.in_flight.add(bytes);
        let outcome = Outcome::new(replies, expires.unwrap_or_else(Instant::now));
        (units, Flight::new(Arc::clone(self), outcome, bytes, charged, held))
    }

    /// Called by a flight that ended, whichever way; takes no lock.
    pub(crate) fn landed(&self, bytes: usize, charged: usize, started: Instant, committed: bool) {
        self.in_flight.remove(bytes);
        self.room.add_permits(charged);
        if committed {
            // A majority has it: it answers again.
            self.cut_off.store(false, Ordering::Release);
            self.telemetry.committed(started.elapsed());
        }
    }

    /// Called after a flight was answered by openraft: the next entry may go.
    pub(crate) fn next(self: &Arc<Self>) {
        let mut queue = self.queue.lock();
        while queue.flights.front().is_some_and(|flight| flight.is_settled()) {
            queue.flights.pop_front();
        }
        self.propose_ready(&mut queue);
    }

    /// Gives up on what is past its deadline. Called now and then; see [`Self::sweep_interval`].
    pub(crate) fn sweep(self: &Arc<Self>, now: Instant) {
        let mut expired = Vec::new();
        let mut queue = self.queue.lock();
        for flight in queue.flights.iter().take_while(|flight| flight.is_late(now)) {
            if flight.abandon() {
                self.telemetry.expired.increment(1);
            }
        }
        while queue.units.front().is_some_and(|unit| unit.expires <= now) {
            let Some(unit) = queue.units.pop_front() else { break };
            queue.bytes -= unit.bytes;
            expired.push(unit);
        }
        drop(queue);
        for unit in expired {
            // It never left the queue, so it is certain that it was not written.
            self.telemetry.overloaded.increment(1);
            self.room.add_permits(unit.charged);
            drop(unit.reply.send(Err(ProposeError::Overloaded)));
        }
        self.next();
    }

    /// No majority has answered for so long that nobody is to be kept waiting: what is in flight may still be written by whoever leads
    /// next, what is queued was not, and nothing more is taken until [`Self::regain`].
    pub(crate) fn cut_off(&self) {
        let mut queue = self.queue.lock();
        self.cut_off.store(true, Ordering::Release);
        let units = std::mem::take(&mut queue.units);
        queue.bytes = 0;
        for flight in &queue.flights {
            if flight.abandon() {
                self.telemetry.expired.increment(1);
            }
        }
        drop(queue);
        for unit in units {
            self.room.add_permits(unit.charged);
            drop(unit.reply.send(Err(ProposeError::NoQuorum)));
        }
    }

    /// A majority answers, or somebody else leads, which openraft says itself.
    pub(crate) fn regain(&self) {
        self.cut_off.store(false, Ordering::Release);
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Acquire)
    }

    /// How often deadlines are looked at.
    pub(crate) fn sweep_interval(&self) -> Duration {
        (self.limits.proposal_deadline / 8).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Refuses everything from now on. What is queued was never written; what is in flight may have been. `others_vote`: another
    /// replica may go on.
    pub(crate) fn stop(&self, reason: &Arc<str>, others_vote: bool) {
        let stopped = ProposeError::Stopped { reason: Arc::clone(reason), others_vote };
        let mut queue = self.queue.lock();
        if queue.stopped.is_some() {
            return;
        }
        queue.stopped = Some(stopped.clone());
        let units = std::mem::take(&mut queue.units);
        let flights = std::mem::take(&mut queue.flights);
        queue.bytes = 0;
        drop(queue);
        self.room.close();
        for unit in units {
            drop(unit.reply.send(Err(stopped.clone())));
        }
        for flight in flights {
            flight.abandon();
        }
    }

    fn stopped_error(&self) -> ProposeError {
        let stopped = self.queue.lock().stopped.clone();
        stopped.unwrap_or_else(|| ProposeError::Stopped {
            reason: Arc::from("it is stopping"),
            others_vote: false,
        })
    }
}

/// Room for one unit. Dropped unused, it gives the room back.
#[must_use = "a permit holds room that others wait for"]
pub struct Permit {
    proposer: Arc<Proposer>,
    room: OwnedSemaphorePermit,
    bytes: usize,
    charged: usize,
}

impl Permit {
    /// Queues a unit. Units are written in the order of these calls, whoever awaits which answer first.
    pub fn submit(self, unit: Unit) -> Pending {
        self.submit_with(unit, None)
    }

    /// The same for a unit that something is held for: until it is applied or will never be, whether anybody waits for its answer or not.
    pub fn submit_held(self, unit: Unit, held: Held) -> Pending {
        self.submit_with(unit, Some(held))
    }

    pub(crate) fn submit_with(self, unit: Unit, held: Option<Held>) -> Pending {
        self.room.forget();
        self.proposer.submit(unit, self.bytes, self.charged, held)
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
