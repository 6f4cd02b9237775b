//! A network in memory: streams between replicas that are slow, break off, or can't be opened, by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_protocol::{NodeId, ShardId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::peers::{MessageReceiver, MessageSender, PeerDialer, PeerError, PeerMessage, PeerStream};
use crate::replica::Replica;

/// Messages on the way in one direction of a stream: its window.
pub(super) const WINDOW_MESSAGES: usize = 8;

#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

struct State {
    random: u64,
    /// A message takes up to that long.
    delay_max: Duration,
    /// One in so many messages breaks its stream; 0: none.
    break_one_in: u64,
    nodes: BTreeMap<NodeId, Serving>,
    /// Nodes that take everything and answer nothing, with how much they took.
    holes: BTreeMap<NodeId, Arc<AtomicU64>>,
    /// Nodes that were killed: a test may still hold their replicas, which then talk to nobody.
    dead: BTreeSet<NodeId>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    streams: Vec<(NodeId, NodeId, watch::Sender<bool>)>,
}

struct Serving {
    replica: Replica,
    tasks: JoinSet<()>,
}

impl State {
    fn random(&mut self) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn break_off(&mut self, mut which: impl FnMut(NodeId, NodeId) -> bool) {
        self.streams.retain(|(a, b, broken)| {
            let breaks = which(*a, *b);
            if breaks {
                broken.send_replace(true);
            }
            !breaks && !broken.is_closed()
        });
    }
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: seed,
            delay_max: Duration::from_millis(2),
            break_one_in: 0,
            nodes: BTreeMap::new(),
            holes: BTreeMap::new(),
            dead: BTreeSet::new(),
            cuts: BTreeSet::new(),
            streams: Vec::new(),
        })))
    }

    /// Messages take up to `delay_max`, and one in `break_one_in` breaks its stream.
    pub(super) fn is_bad(&self, delay_max: Duration, break_one_in: u64) {
        let mut state = self.0.lock();
        (state.delay_max, state.break_one_in) = (delay_max, break_one_in);
    }

    pub(super) fn dialer(&self, from: NodeId) -> Arc<dyn PeerDialer> {
        Arc::new(Dialer { network: self.clone(), from })
    }

    pub(super) fn serve(&self, replica: Replica) {
        let serving = Serving { tasks: JoinSet::new(), replica };
        let mut state = self.0.lock();
        state.dead.remove(&serving.replica.node());
        state.nodes.insert(serving.replica.node(), serving);
    }

    /// The node is gone, and everything that it did for others.
    pub(super) fn remove(&self, node: NodeId) {
        let mut state = self.0.lock();
        let gone = state.nodes.remove(&node);
        state.dead.insert(node);
        state.break_off(|a, b| a == node || b == node);
        drop(state);
        drop(gone);
    }

    pub(super) fn cut(&self, a: NodeId, b: NodeId) {
        let mut state = self.0.lock();
        state.cuts.extend([(a, b), (b, a)]);
        state.break_off(|from, to| (from, to) == (a, b) || (from, to) == (b, a));
    }

    pub(super) fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    /// A node that takes everything and answers nothing; tells how many bytes of entries it took.
    pub(super) fn swallow(&self, node: NodeId) -> Arc<AtomicU64> {
        let taken = Arc::default();
        self.0.lock().holes.insert(node, Arc::clone(&taken));
        taken
    }

    pub(super) fn open(&self, from: NodeId, to: NodeId) -> Result<PeerStream, PeerError> {
        let mut state = self.0.lock();
        let unreachable = |reason: &str| PeerError::Unreachable { node: to, reason: reason.to_owned() };
        if state.cuts.contains(&(from, to)) || state.dead.contains(&from) {
            return Err(unreachable("the cable is cut"));
        }
        let (broken, watched) = watch::channel(false);
        let (asks, asked) = self.pipe(&watched);
        let (answers, answered) = self.pipe(&watched);
        if let Some(taken) = state.holes.get(&to).cloned() {
            let mut asked = asked;
            tokio::spawn(async move {
                let _says_nothing = (answers, broken);
                while let Ok(Some(message)) = asked.next().await {
                    taken.fetch_add(message.body.len() as u64, Ordering::Relaxed);
                }
            });
            return Ok(PeerStream { sender: Box::new(asks), receiver: Box::new(answered) });
        }
        let serving = state.nodes.get_mut(&to).ok_or_else(|| unreachable("it is down"))?;
        let replica = serving.replica.clone();
        let stream = PeerStream { sender: Box::new(answers), receiver: Box::new(asked) };
        while serving.tasks.try_join_next().is_some() {}
        serving.tasks.spawn(async move { replica.serve_peer(from, stream).await });
        state.streams.push((from, to, broken));
        Ok(PeerStream { sender: Box::new(asks), receiver: Box::new(answered) })
    }

    fn pipe(&self, broken: &watch::Receiver<bool>) -> (Sender, Receiver) {
        let (queue, arriving) = mpsc::channel(WINDOW_MESSAGES);
        let sender = Sender { network: self.clone(), queue, broken: broken.clone() };
        (sender, Receiver { arriving, next: None, broken: broken.clone() })
    }
}

struct Dialer {
    network: Network,
    from: NodeId,
}

impl PeerDialer for Dialer {
    fn open(&self, to: NodeId, _shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
        let opened = self.network.open(self.from, to);
        Box::pin(async move { opened })
    }
}

/// A message and when it arrives; `None` is the end.
type Parcel = (Instant, Option<PeerMessage>);

struct Sender {
    network: Network,
    queue: mpsc::Sender<Parcel>,
    broken: watch::Receiver<bool>,
}

impl Sender {
    async fn put(&mut self, message: Option<PeerMessage>) -> Result<(), PeerError> {
        let (at, breaks) = {
            let mut state = self.network.0.lock();
            let micros = u64::try_from(state.delay_max.as_micros()).unwrap_or(0).max(1);
            let delay = Duration::from_micros(state.random() % micros);
            let breaks = state.break_one_in > 0 && state.random().is_multiple_of(state.break_one_in);
            (Instant::now() + delay, breaks)
        };
        if breaks || *self.broken.borrow() {
            self.queue = mpsc::channel(1).0;
            return Err(broken());
        }
        tokio::select! {
            sent = self.queue.send((at, message)) => sent.map_err(|_gone| broken()),
            _ = self.broken.wait_for(|broken| *broken) => Err(broken()),
        }
    }
}

fn broken() -> PeerError {
    PeerError::Broken("the network broke it".to_owned())
}

impl MessageSender for Sender {
    fn send<'a>(&'a mut self, head: Bytes, body: &'a [Bytes]) -> BoxFuture<'a, Result<(), PeerError>> {
        let message = PeerMessage { head, body: body.concat().into() };
        Box::pin(self.put(Some(message)))
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), PeerError>> {
        Box::pin(self.put(None))
    }
}

struct Receiver {
    arriving: mpsc::Receiver<Parcel>,
    next: Option<Parcel>,
    broken: watch::Receiver<bool>,
}

impl MessageReceiver for Receiver {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<PeerMessage>, PeerError>> {
        Box::pin(async move {
            let arrives = async {
                if self.next.is_none() {
                    self.next = Some(self.arriving.recv().await.ok_or_else(broken)?);
                }
                if let Some((at, _)) = &self.next {
                    tokio::time::sleep_until(*at).await;
                }
                Ok(self.next.take().and_then(|(_, message)| message))
            };
            tokio::select! {
                message = arrives => message,
                _ = self.broken.wait_for(|broken| *broken) => Err(broken()),
            }
        })
    }
}
