//! A network between replicas: takes simulated time, can be cut in either direction, and loses who is killed.
//!
//! It stands where the transport between brokers stands ([`PeerDialer`]), and behaves as that does: within a stream
//! messages arrive whole and in order; while a way is cut they wait, as what is sent again and again would; and where that
//! lasts too long the stream breaks off at both ends, so that nobody knows what arrived.
//!
//! ```text
//!   A --dialer(A).open(B)--> | sender ... message, when it arrives ... receiver | --> B's accept(A, shard, stream)
//!                                  bounded: WINDOW_MESSAGES in flight
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{MessageReceiver, MessageSender, PeerDialer, PeerError, PeerMessage, PeerStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::trace::Trace;

/// Messages on their way in one direction of a stream; who sends more waits.
const WINDOW_MESSAGES: usize = 64;
/// How long a stream waits for a way that is cut until it breaks off.
const BROKEN_AFTER: Duration = Duration::from_secs(2);
const LATENCY_MS: std::ops::Range<u64> = 1..6;
/// One message in so many is late.
const LATE_ONE_IN: u32 = 100;
const LATE_MS: std::ops::Range<u64> = 20..400;
/// What a message says in a trace of its body and head.
const DIGEST_CHARACTERS: usize = 16;

/// What a broker does with a stream that a replica of another one opened to it: who, for which shard.
pub type Accept = Arc<dyn Fn(NodeId, ShardId, PeerStream) + Send + Sync>;

/// A simulated network. Clones share it.
#[derive(Clone)]
pub struct SimNetwork(Arc<Inner>);

struct Inner {
    trace: Trace,
    state: Mutex<State>,
    /// Counts changes of what is cut and who listens.
    changes: watch::Sender<u64>,
}

struct State {
    rng: StdRng,
    /// Who listens, under which number: a broker that comes back has another.
    brokers: BTreeMap<BrokerId, (u64, Accept)>,
    next_number: u64,
    /// Ways that are cut, from and to, and since when.
    cut: BTreeMap<(BrokerId, BrokerId), Instant>,
    /// Brokers that stand still: what goes to and from them waits, however long.
    paused: BTreeSet<BrokerId>,
    /// How often a broker's streams were broken off.
    breaks: BTreeMap<BrokerId, u64>,
    late_one_in: u32,
}

impl SimNetwork {
    /// A network on which nobody listens yet.
    #[must_use]
    pub fn new(seed: u64, trace: &Trace) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let state = State {
            rng,
            brokers: BTreeMap::new(),
            next_number: 0,
            cut: BTreeMap::new(),
            paused: BTreeSet::new(),
            breaks: BTreeMap::new(),
            late_one_in: LATE_ONE_IN,
        };
        let changes = watch::Sender::new(0);
        Self(Arc::new(Inner { trace: trace.clone(), state: Mutex::new(state), changes }))
    }

    /// Lets a broker be reached. Streams of an earlier life of it break off.
    pub fn listen(&self, broker: BrokerId, accept: Accept) {
        {
            let mut state = self.0.state.lock();
            let number = state.next_number;
            state.next_number += 1;
            state.brokers.insert(broker, (number, accept));
        }
        self.changed(format_args!("{broker} listens"));
    }

    /// The broker is gone: its streams break off.
    pub fn remove(&self, broker: BrokerId) {
        self.0.state.lock().brokers.remove(&broker);
        self.changed(format_args!("{broker} is gone"));
    }

    /// The way by which `node` reaches the others, as long as its broker listens as it does now.
    #[must_use]
    pub fn dialer(&self, node: NodeId) -> Arc<dyn PeerDialer> {
        let number = self.0.state.lock().number(node.broker());
        Arc::new(SimDialer { network: self.clone(), node, number })
    }

    /// Stops a broker from sending and hearing, or lets it go on; nothing breaks off.
    pub fn pause(&self, broker: BrokerId, paused: bool) {
        {
            let mut state = self.0.state.lock();
            if paused {
                state.paused.insert(broker)
            } else {
                state.paused.remove(&broker)
            };
        }
        self.changed(format_args!("{broker} {}", if paused { "stands still" } else { "goes on" }));
    }

    /// Breaks off a broker's streams; new ones can be opened.
    pub fn break_streams(&self, broker: BrokerId) {
        *self.0.state.lock().breaks.entry(broker).or_default() += 1;
        self.changed(format_args!("the streams of {broker} break off"));
    }

    /// From now on one message in so many is late.
    pub fn set_late_one_in(&self, messages: Option<u32>) {
        self.0.state.lock().late_one_in = messages.unwrap_or(LATE_ONE_IN).max(1);
        self.0.trace.note(format_args!("network: one message in {messages:?} is late"));
    }

    /// From now on nothing from the one arrives at the other. The way back is another.
    pub fn cut(&self, from: BrokerId, to: BrokerId) {
        self.0.state.lock().cut.entry((from, to)).or_insert_with(Instant::now);
        self.changed(format_args!("cut from {from} to {to}"));
    }

    /// Mends all that is cut.
    pub fn heal(&self) {
        self.0.state.lock().cut.clear();
        self.changed(format_args!("healed"));
    }

    fn changed(&self, what: fmt::Arguments<'_>) {
        self.0.trace.note(format_args!("network: {what}"));
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn open(&self, dialer: &SimDialer, to: NodeId, shard: ShardId) -> Result<PeerStream, PeerError> {
        let unreachable = |reason: &str| PeerError::Unreachable { node: to, reason: reason.to_owned() };
        let state = self.0.state.lock();
        let (there, from) = (to.broker(), dialer.node);
        let accept = state.brokers.get(&there).map(|(_, accept)| Arc::clone(accept));
        let accept = accept.ok_or_else(|| unreachable("nobody listens"))?;
        let here = from.broker();
        if state.cut.contains_key(&(here, there)) || state.cut.contains_key(&(there, here)) {
            return Err(unreachable("it does not answer"));
        }
        let number = dialer.number.filter(|number| state.number(here) == Some(*number));
        number.ok_or_else(|| unreachable("this broker is gone"))?;
        let ends = Ends { from: state.end(here), to: state.end(there) };
        drop(state);
        let (there, arrives_there) = self.direction(ends, false);
        let (back, arrives_back) = self.direction(ends, true);
        accept(from, shard, PeerStream { sender: Box::new(back), receiver: Box::new(arrives_there) });
        Ok(PeerStream { sender: Box::new(there), receiver: Box::new(arrives_back) })
    }

    fn direction(&self, ends: Ends, back: bool) -> (SimSender, SimReceiver) {
        let (sender, receiver) = mpsc::channel(WINDOW_MESSAGES);
        let way = |_| Way { network: self.clone(), ends, back, changes: self.0.changes.subscribe() };
        let sending = SimSender { way: way(()), sender: Some(sender), arrives: Instant::now() };
        (sending, SimReceiver { way: way(()), receiver, next: None })
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").finish_non_exhaustive()
    }
}

impl State {
    fn number(&self, broker: BrokerId) -> Option<u64> {
        self.brokers.get(&broker).map(|(number, _)| *number)
    }

    fn end(&self, broker: BrokerId) -> End {
        let breaks = self.breaks.get(&broker).copied().unwrap_or(0);
        End { broker, number: self.number(broker), breaks }
    }
}

struct SimDialer {
    network: SimNetwork,
    node: NodeId,
    /// Under which its broker listened.
    number: Option<u64>,
}

impl PeerDialer for SimDialer {
    fn open(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
        let dialer = Self { network: self.network.clone(), node: self.node, number: self.number };
        Box::pin(async move {
            let round_trip = 2 * dialer.network.latency();
            tokio::time::sleep(round_trip).await;
            dialer.network.going_on(dialer.node.broker(), to.broker()).await;
            dialer.network.open(&dialer, to, shard)
        })
    }
}

impl SimNetwork {
    fn latency(&self) -> Duration {
        let state = &mut *self.0.state.lock();
        let rng = &mut state.rng;
        let late = if rng.random_ratio(1, state.late_one_in) { rng.random_range(LATE_MS) } else { 0 };
        Duration::from_millis(rng.random_range(LATENCY_MS) + late)
    }

    /// Waits while one of the two stands still.
    async fn going_on(&self, here: BrokerId, there: BrokerId) {
        let mut changes = self.0.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let paused = {
                let state = self.0.state.lock();
                state.paused.contains(&here) || state.paused.contains(&there)
            };
            if !paused {
                return;
            }
            // The network outlives whoever waits for it.
            drop(changes.changed().await);
        }
    }
}

/// A broker, which life of it (the number under which it listened), and how often its streams had been broken off.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End {
    broker: BrokerId,
    number: Option<u64>,
    breaks: u64,
}

#[derive(Clone, Copy)]
struct Ends {
    from: End,
    to: End,
}

/// One direction of a stream.
struct Way {
    network: SimNetwork,
    ends: Ends,
    back: bool,
    changes: watch::Receiver<u64>,
}

/// How a way is.
enum Condition {
    Open,
    CutSince(Instant),
    Paused,
    /// One of the two is gone.
    Gone,
}

impl Way {
    /// From whom to whom this direction goes.
    fn brokers(&self) -> (BrokerId, BrokerId) {
        let (from, to) = (self.ends.from.broker, self.ends.to.broker);
        if self.back { (to, from) } else { (from, to) }
    }

    fn condition(&self) -> Condition {
        let state = self.network.0.state.lock();
        if [self.ends.from, self.ends.to].into_iter().any(|end| state.end(end.broker) != end) {
            return Condition::Gone;
        }
        let (from, to) = self.brokers();
        if state.paused.contains(&from) || state.paused.contains(&to) {
            return Condition::Paused;
        }
        // What is not acknowledged is sent again: a way needs its way back.
        let cuts = [state.cut.get(&(from, to)), state.cut.get(&(to, from))];
        cuts.into_iter().flatten().min().map_or(Condition::Open, |since| Condition::CutSince(*since))
    }

    /// Waits until the way is open; an error once it has broken off.
    async fn open(&mut self) -> Result<(), PeerError> {
        loop {
            self.changes.mark_unchanged();
            match self.condition() {
                Condition::Open => return Ok(()),
                Condition::Gone => return Err(broken()),
                // The network outlives its ways.
                Condition::Paused => drop(self.changes.changed().await),
                Condition::CutSince(since) => {
                    let changed = tokio::time::timeout_at(since + BROKEN_AFTER, self.changes.changed());
                    if changed.await.is_err() {
                        return Err(broken());
                    }
                }
            }
        }
    }

    /// Resolves once it has broken off.
    async fn broken(&mut self) -> PeerError {
        loop {
            if let Err(error) = self.open().await {
                return error;
            }
            // The network outlives its ways.
            drop(self.changes.changed().await);
        }
    }
}

fn broken() -> PeerError {
    PeerError::Broken("the network lost it".to_owned())
}

struct SimSender {
    way: Way,
    /// Gone once finished.
    sender: Option<mpsc::Sender<InFlight>>,
    /// When the last message arrives: the next ones do not overtake it.
    arrives: Instant,
}

struct InFlight {
    /// `None` is the end of the direction.
    message: Option<PeerMessage>,
    arrives: Instant,
}

impl SimSender {
    async fn put(&mut self, message: Option<PeerMessage>) -> Result<(), PeerError> {
        if matches!(self.way.condition(), Condition::Gone) {
            return Err(broken());
        }
        self.arrives = self.arrives.max(Instant::now() + self.way.network.latency());
        let Some(sender) = &self.sender else { return Err(broken()) };
        let in_flight = InFlight { message, arrives: self.arrives };
        tokio::select! {
            biased;
            error = self.way.broken() => Err(error),
            sent = sender.send(in_flight) => sent.map_err(|_| broken()),
        }
    }
}

impl MessageSender for SimSender {
    fn send<'a>(&'a mut self, head: Bytes, body: &'a [Bytes]) -> BoxFuture<'a, Result<(), PeerError>> {
        let mut joined = BytesMut::with_capacity(body.iter().map(Bytes::len).sum());
        body.iter().for_each(|piece| joined.extend_from_slice(piece));
        let message = PeerMessage { head, body: joined.freeze() };
        Box::pin(self.put(Some(message)))
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), PeerError>> {
        Box::pin(async move {
            self.put(None).await?;
            self.sender = None;
            Ok(())
        })
    }
}

struct SimReceiver {
    way: Way,
    receiver: mpsc::Receiver<InFlight>,
    /// Taken, and still on its way.
    next: Option<InFlight>,
}

impl SimReceiver {
    async fn arrival(&mut self) -> Result<Option<PeerMessage>, PeerError> {
        if self.next.is_none() {
            let received = tokio::select! {
                biased;
                error = self.way.broken() => return Err(error),
                received = self.receiver.recv() => received,
            };
            // Dropped without an end.
            self.next = Some(received.ok_or_else(broken)?);
        }
        if let Some(arrives) = self.next.as_ref().map(|next| next.arrives) {
            tokio::time::sleep_until(arrives).await;
        }
        self.way.open().await?;
        let message = self.next.take().and_then(|next| next.message);
        if let Some(message) = &message {
            self.note(message);
        }
        Ok(message)
    }

    fn note(&self, message: &PeerMessage) {
        let (from, to) = self.way.brokers();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&message.head).update(&message.body);
        let digest = &hasher.finalize().to_hex()[..DIGEST_CHARACTERS];
        let (head, body) = (message.head.len(), message.body.len());
        self.way.network.0.trace.note(format_args!("{from} -> {to} {head}+{body} {digest}"));
    }
}

impl MessageReceiver for SimReceiver {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<PeerMessage>, PeerError>> {
        Box::pin(self.arrival())
    }
}

#[cfg(test)]
mod tests;
