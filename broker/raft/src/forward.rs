//! Units on their way to the shard's leader, wherever that is.
//!
//! One stream per leader, kept open, also while another one leads: units for a leader that comes back must not overtake those that are
//! still on their way to it. Units go out as they come, each with a tag, and the answers come in any order. When it breaks off, what was
//! sent has an unknown outcome, and what was not yet sent was not written. The leader notices the break in its own time: what came over
//! the next stream may be written before the last of the old one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_protocol::NodeId;
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::ReplicaLimits;
use crate::error::ProposeError;
use crate::gate::Held;
use crate::peer_network::PeerLinks;
use crate::peers::{MessageReceiver, MessageSender, PeerError, PeerStream};
use crate::pending::Pending;
use crate::rpc::{Answer, request};

/// Units that wait for the stream to be opened, or for its windows.
const QUEUED_UNITS_MAX: usize = 64;
/// What each unit is charged beside its bytes.
const UNIT_OVERHEAD_BYTES: usize = 4 << 10;
/// How long opening the stream may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);

/// How long a unit waits for room on the stream.
const RESERVE_PATIENCE: Duration = Duration::from_secs(5);

type Outcome = Result<UnitResult, ProposeError>;

/// Room for one unit on the stream to a leader. Dropped, it is given back.
pub(crate) struct Slot {
    place: mpsc::OwnedPermit<Forwarded>,
    room: OwnedSemaphorePermit,
    deadline: Duration,
}

impl Slot {
    /// Queues the unit. Its outcome is unknown where the stream breaks off behind it, or its deadline passes; where the stream had ended
    /// before, the unit is not written.
    pub(crate) fn submit(self, unit: Unit, held: Option<Held>) -> Pending {
        let expires = Instant::now() + self.deadline;
        let (outcome, answer) = Pending::until(expires);
        let reply = Reply { outcome, _room: self.room, _held: held };
        self.place.send(Forwarded { unit, expires, stands: true, reply });
        answer
    }
}

/// Sends units to whoever leads.
pub(crate) struct Forwarder {
    peers: Arc<PeerLinks>,
    room: Arc<Semaphore>,
    bytes_max: usize,
    proposal_deadline: Duration,
    /// Bounded by the shard's replicas: one that is gone closes its stream.
    links: Mutex<BTreeMap<NodeId, mpsc::Sender<Forwarded>>>,
}

struct Forwarded {
    unit: Unit,
    /// From then on it does not go out any more.
    expires: Instant,
    /// It goes out although nobody waits for its answer: it may be a part of something whose other parts went elsewhere.
    stands: bool,
    reply: Reply,
}

/// Dropped without an answer, the outcome is unknown.
struct Reply {
    outcome: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
    /// What is held for the unit.
    _held: Option<Held>,
}

impl Forwarder {
    pub(crate) fn new(peers: Arc<PeerLinks>, limits: &ReplicaLimits) -> Self {
        let bytes_max = limits.append_in_flight_bytes_max.clamp(1, u32::MAX as usize >> 3);
        let (room, links) = (Arc::new(Semaphore::new(bytes_max)), Mutex::default());
        Self { peers, room, bytes_max, proposal_deadline: limits.proposal_deadline, links }
    }

    /// Waits for room for a unit of `bytes` on the stream to `leader`; what is submitted then goes out in the order of the calls.
    pub(crate) async fn reserve(&self, leader: NodeId, bytes: usize) -> Result<Slot, ProposeError> {
        let deadline = Instant::now() + RESERVE_PATIENCE;
        let room = self.room(bytes, deadline).await?;
        match tokio::time::timeout_at(deadline, self.link_to(leader).reserve_owned()).await {
            Ok(Ok(place)) => Ok(Slot { place, room, deadline: self.proposal_deadline }),
            Ok(Err(_closed)) => Err(ProposeError::NotLeader { leader: None }),
            Err(_elapsed) => Err(ProposeError::Overloaded),
        }
    }

    /// Whether the stream to `leader` has ended, and nobody has asked for another.
    #[cfg(test)]
    pub(crate) fn has_ended(&self, leader: NodeId) -> bool {
        self.links.lock().get(&leader).is_some_and(mpsc::Sender::is_closed)
    }

    async fn room(&self, bytes: usize, deadline: Instant) -> Result<OwnedSemaphorePermit, ProposeError> {
        let bytes = bytes.saturating_add(UNIT_OVERHEAD_BYTES).min(self.bytes_max);
        let room = Arc::clone(&self.room).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        match tokio::time::timeout_at(deadline, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(ProposeError::Overloaded),
        }
    }

    /// Proposes a unit at `leader`. [`ProposeError::NotLeader`] without a hint where it can't be reached.
    pub(crate) async fn propose(&self, leader: NodeId, unit: Unit, deadline: Instant) -> Outcome {
        let room = self.room(unit.bytes(), deadline).await?;
        let (outcome, answer) = oneshot::channel();
        let reply = Reply { outcome, _room: room, _held: None };
        let forwarded = Forwarded { unit, expires: deadline, stands: false, reply };
        let outgoing = self.link_to(leader);
        match tokio::time::timeout_at(deadline, outgoing.send(forwarded)).await {
            Ok(Ok(())) => {}
            // The stream broke off just now; the unit is gone with it, unsent.
            Ok(Err(_closed)) => return Err(ProposeError::NotLeader { leader: None }),
            Err(_elapsed) => return Err(ProposeError::Overloaded),
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(ProposeError::OutcomeUnknown),
        }
    }

    /// The stream to a leader.
    fn link_to(&self, leader: NodeId) -> mpsc::Sender<Forwarded> {
        let mut links = self.links.lock();
        links.retain(|_, outgoing| !outgoing.is_closed());
        let open = links.entry(leader).or_insert_with(|| {
            let (outgoing, units) = mpsc::channel(QUEUED_UNITS_MAX);
            spawn(Arc::clone(&self.peers), leader, units);
            outgoing
        });
        open.clone()
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "one per leader; it ends when the stream breaks, or with the forwarder"
)]
fn spawn(links: Arc<PeerLinks>, leader: NodeId, units: mpsc::Receiver<Forwarded>) {
    tokio::spawn(run(links, leader, units));
}

async fn run(links: Arc<PeerLinks>, leader: NodeId, mut units: mpsc::Receiver<Forwarded>) {
    let waiting = Waiting::default();
    let ended = match links.open(leader, OPEN_PATIENCE).await {
        Ok(PeerStream { sender, receiver }) => {
            let send = send(&links, leader, sender, &mut units, &waiting);
            let receive = receive(receiver, &waiting);
            let (mut send, mut receive) = (std::pin::pin!(send), std::pin::pin!(receive));
            tokio::select! {
                biased;
                received = &mut receive => received,
                // All units are sent; their answers are still to come.
                sent = &mut send => match sent {
                    Ok(_sender) if waiting.lock().is_empty() => Ok(()),
                    Ok(_sender) => receive.await,
                    Err(error) => Err(Ended::Broken(error.to_string())),
                },
            }
        }
        Err(error) => Err(Ended::Broken(error.to_string())),
    };
    if let Err(ended) = &ended {
        tracing::debug!(%leader, ?ended, "the stream of proposals to the leader ended");
    }
    let unanswered = std::mem::take(&mut *waiting.lock());
    for reply in unanswered.into_values() {
        let error = match ended {
            // Whoever refuses answers first what it took.
            Err(Ended::Refused(_)) => ProposeError::NotLeader { leader: None },
            _ => ProposeError::OutcomeUnknown,
        };
        drop(reply.outcome.send(Err(error)));
    }
    // Never sent, so never written. Who holds a slot may still submit: it is waited for, or that unit would lie here unanswered.
    units.close();
    while let Some(unsent) = units.recv().await {
        drop(unsent.reply.outcome.send(Err(ProposeError::NotLeader { leader: None })));
    }
}

#[derive(Debug)]
enum Ended {
    Refused(#[expect(dead_code, reason = "for the log")] String),
    Broken(#[expect(dead_code, reason = "for the log")] String),
}

type Waiting = Mutex<BTreeMap<u64, Reply>>;

async fn send(
    links: &PeerLinks,
    leader: NodeId,
    mut sender: Box<dyn MessageSender>,
    units: &mut mpsc::Receiver<Forwarded>,
    waiting: &Waiting,
) -> Result<Box<dyn MessageSender>, PeerError> {
    let address = links.address(leader);
    let mut tag = 0;
    while let Some(Forwarded { unit, expires, stands, reply }) = units.recv().await {
        tag += 1;
        if reply.outcome.is_closed() && !stands {
            // Nobody waits any more.
            continue;
        }
        if expires <= Instant::now() {
            // Never sent, so never written; as a leader does with what is in its queue for so long.
            drop(reply.outcome.send(Err(ProposeError::Overloaded)));
            continue;
        }
        let (head, body) = request::propose(&address, tag, unit);
        waiting.lock().insert(tag, reply);
        sender.send(head, &body).await?;
    }
    sender.finish().await?;
    Ok(sender)
}

async fn receive(mut receiver: Box<dyn MessageReceiver>, waiting: &Waiting) -> Result<(), Ended> {
    loop {
        let message = match receiver.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(error) => return Err(Ended::Broken(error.to_string())),
        };
        match Answer::decode(&message).map_err(|error| Ended::Broken(error.to_string()))? {
            Answer::Proposed { tag, outcome } => {
                let reply = waiting.lock().remove(&tag);
                let reply =
                    reply.ok_or_else(|| Ended::Broken(format!("nothing was asked under tag {tag}")))?;
                drop(reply.outcome.send(outcome));
            }
            Answer::Refused(reason) => return Err(Ended::Refused(reason)),
            other => return Err(Ended::Broken(format!("it answered what was not asked: {other:?}"))),
        }
    }
}
