//! Appends to one peer: sent as they come, while the answers to earlier ones are read.
//!
//! ```text
//!   openraft -> input -> pump: [a learner's turn] [room in the window] -> sender ------> peer
//!   openraft <- answers <- [checked against the window] <- receiver <-'
//! ```
//! Both halves are polled by whoever reads the answers; there is no task here.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::errors::RPCError;
use openraft::network::RPCTypes;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::catch_up::CatchUp;
use crate::peer_network::{CallError, PeerNetwork, nonsense, rpc_error, unreachable_peer};
use crate::peers::{MessageReceiver, MessageSender, PeerError, PeerMessage, PeerStream};
use crate::rpc::{Address, Answer, request};
use crate::types::{LogId, TypeConfig, Vote};
use crate::window::Window;

/// How long a peer may take to answer an append. Longer than any disk stalls: to send everything once more would only
/// add to its load. Whether it is alive heartbeats tell, on a stream of their own.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// What was sent and is not answered yet.
struct Sent {
    vote: Vote,
    previous: Option<LogId>,
    last: Option<LogId>,
    at: Instant,
}

type Pump = BoxFuture<'static, Result<Box<dyn MessageSender>, PeerError>>;
type Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// One session of appends.
pub(crate) struct AppendStream<'s> {
    network: &'s mut PeerNetwork,
    window: Arc<Window<Sent>>,
    pump: Option<Pump>,
    /// Back from the pump when the input has ended.
    sender: Option<Box<dyn MessageSender>>,
    receiver: Option<Box<dyn MessageReceiver>>,
    look: Interval,
}

enum Step {
    Answer(Result<Option<PeerMessage>, PeerError>),
    Pumped(Result<Box<dyn MessageSender>, PeerError>),
    Look,
}

impl<'s> AppendStream<'s> {
    pub(crate) fn begin<S>(network: &'s mut PeerNetwork, stream: PeerStream, input: S) -> Self
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let window = Window::new(network.links.append_in_flight_bytes_max);
        let address = network.links.address(network.target);
        let catch_up = network.catch_up.clone();
        let pump = pump((address, catch_up), stream.sender, input, Arc::clone(&window));
        let every = ANSWER_PATIENCE / 4;
        let mut look = tokio::time::interval_at(Instant::now() + every, every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let receiver = Some(stream.receiver);
        Self { network, window, pump: Some(Box::pin(pump)), sender: None, receiver, look }
    }

    /// The answers in the order of the requests. Ends with the input, or after an error.
    pub(crate) fn answers(self) -> impl Stream<Item = Item> + Send + 's {
        stream::unfold(self, |mut session| async move { Some((session.next().await?, session)) })
    }

    async fn next(&mut self) -> Option<Item> {
        loop {
            let receiver = self.receiver.as_mut()?;
            let step = match &mut self.pump {
                Some(pump) => tokio::select! {
                    biased;
                    answer = receiver.next() => Step::Answer(answer),
                    pumped = pump => Step::Pumped(pumped),
                    _ = self.look.tick() => Step::Look,
                },
                None if self.window.is_empty() => {
                    self.keep();
                    return None;
                }
                None => tokio::select! {
                    biased;
                    answer = receiver.next() => Step::Answer(answer),
                    _ = self.look.tick() => Step::Look,
                },
            };
            let failed = match step {
                Step::Pumped(Ok(sender)) => {
                    (self.pump, self.sender) = (None, Some(sender));
                    continue;
                }
                Step::Look if !self.is_late() => continue,
                Step::Look => CallError::Late { node: self.network.target, patience: ANSWER_PATIENCE },
                Step::Answer(Ok(Some(message))) => match self.answered(&message) {
                    Ok(answer) => return Some(answer),
                    Err(error) => error,
                },
                Step::Answer(Ok(None)) => PeerError::Broken("the peer ended it".to_owned()).into(),
                Step::Pumped(Err(error)) | Step::Answer(Err(error)) => error.into(),
            };
            self.receiver = None;
            let node = self.network.links.address(self.network.target).from;
            return Some(Err(rpc_error(RPCTypes::AppendEntries, node, failed)));
        }
    }

    /// The session ended in order: the next one, such as the next heartbeat, goes on with the stream.
    fn keep(&mut self) {
        if let (Some(sender), Some(receiver)) = (self.sender.take(), self.receiver.take()) {
            *self.network.kept.get_mut() = Some(PeerStream { sender, receiver });
        }
    }

    fn is_late(&self) -> bool {
        self.window.oldest(|sent| sent.at.elapsed() > ANSWER_PATIENCE).unwrap_or(false)
    }

    /// Takes the answer to the oldest request, if it can be that.
    fn answered(&mut self, message: &PeerMessage) -> Result<Item, CallError> {
        let peer = self.network.target;
        let answer = Answer::decode(message).map_err(|error| nonsense(peer, &error))?;
        if let Answer::Refused(reason) = answer {
            return Err(CallError::Refused { node: peer, reason });
        }
        let impossible = |answer: &Answer| CallError::Nonsense { node: peer, what: format!("{answer:?}") };
        let sent = self.window.answered().ok_or_else(|| impossible(&answer))?;
        let links = &self.network.links;
        match answer {
            Answer::Appended(upto) if upto <= sent.last => {
                if let Some(upto) = upto {
                    links.acknowledged(peer, sent.vote, upto);
                }
                Ok(Ok(Ok(upto)))
            }
            Answer::Conflict(missing) if sent.previous == Some(missing) => {
                self.receiver = None;
                if links.has_lost(peer, sent.vote, &missing) {
                    let reason =
                        format!("node {peer} has lost what it acknowledged, and gets nothing any more");
                    return Ok(Err(RPCError::Unreachable(unreachable_peer(reason))));
                }
                Ok(Ok(Err(StreamAppendError::Conflict(missing))))
            }
            Answer::HigherVote(vote) => {
                self.receiver = None;
                Ok(Ok(Err(StreamAppendError::HigherVote(vote))))
            }
            other => Err(impossible(&other)),
        }
    }
}

async fn pump<S>(
    (address, catch_up): (Address, CatchUp),
    mut sender: Box<dyn MessageSender>,
    mut input: S,
    window: Arc<Window<Sent>>,
) -> Result<Box<dyn MessageSender>, PeerError>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
{
    while let Some(append) = input.next().await {
        let ((head, body), bytes) = request::append(&address, &append);
        catch_up.admit(&append, bytes).await;
        let previous = append.prev_log_id;
        let last = append.entries.last().map(|entry| entry.log_id).or(previous);
        let vote = append.vote;
        drop(append);
        // It may be answered from when it goes out on, not from when it began to wait for room.
        window.admit(|| Sent { vote, previous, last, at: Instant::now() }, bytes).await;
        sender.send(head, &body).await?;
    }
    Ok(sender)
}
