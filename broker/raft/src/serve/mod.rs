//! What other replicas open to this one.
//!
//! A stream's first message says what it is for, and everything on it is for one purpose. Who sends what is not for this
//! replica, what can't be read, or what it can't rightly send, gets a reason, and its stream ends: nothing that a peer sends
//! ends the broker, and what it sends ahead is bounded by a [`Window`](crate::window::Window).

mod append;
mod propose;

use std::time::Duration;

use futures::future::BoxFuture;
use openraft::ReadPolicy;
use openraft::raft::TransferLeaderError;
use tidemill_protocol::{LogIndex, NodeId};

use crate::error::ReadError;
use crate::peers::{MessageSender, PeerError, PeerMessage, PeerStream};
use crate::replica::{Inner, Replica};
use crate::rpc::{Answer, Asked, Request, TransferRefused};
use crate::snapshot;
use crate::types::{Payload, RaftLogEntry};
use crate::unbroken::Unbroken;

/// How long a stream may be open before it says what it is for.
const FIRST_MESSAGE_PATIENCE: Duration = Duration::from_secs(10);

impl Replica {
    /// Serves a stream that the replica `from` opened to this one, until it ends, breaks, or this replica stops. Who the
    /// peer is, is the caller's to know: by its certificate, not by what it says.
    pub fn serve_peer(&self, from: NodeId, stream: PeerStream) -> BoxFuture<'_, ()> {
        // Boxed for the same reason as in `Self::start`.
        Box::pin(async move {
            let mut role = self.watch();
            let stopped = async { drop(role.wait_for(|role| role.stopped().is_some()).await) };
            tokio::select! {
                biased;
                served = serve(self, from, stream) => if let Err(error) = served {
                    tracing::debug!(shard = %self.shard_id(), %from, %error, "a peer's stream broke off");
                },
                () = stopped => {}
            }
        })
    }
}

async fn serve(replica: &Replica, from: NodeId, stream: PeerStream) -> Result<(), PeerError> {
    let PeerStream { sender, mut receiver } = stream;
    let first = match tokio::time::timeout(FIRST_MESSAGE_PATIENCE, receiver.next()).await {
        Ok(Ok(Some(message))) => message,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_elapsed) => return refuse(sender, "it said nothing for too long".to_owned()).await,
    };
    let inner = replica.inner();
    let request = match asked(inner, from, &first) {
        Ok(request) => request,
        Err(reason) => {
            tracing::warn!(shard = %inner.shard, %from, reason, "refused a peer's stream");
            return refuse(sender, reason).await;
        }
    };
    let answer = match request {
        Request::Append { append, bytes } => {
            return append::serve(inner, from, (append, bytes), sender, receiver).await;
        }
        Request::Propose { tag, unit } => {
            return propose::serve(replica, from, (tag, *unit), sender, receiver).await;
        }
        Request::Snapshot { rest } => {
            let first = PeerMessage { head: rest, body: first.body };
            let stream = PeerStream { sender, receiver };
            let received = snapshot::receive(&inner.machine, &inner.raft, from, first, stream).await;
            if let Err(error) = received {
                tracing::warn!(shard = %inner.shard, %from, %error, "a snapshot was not received");
            }
            return Ok(());
        }
        Request::Vote(vote) => {
            let voted = Unbroken::new(&inner.raft, |raft| async move { raft.vote(vote).await });
            voted.await.map(Answer::Voted).map_err(|error| error.to_string())
        }
        Request::PreVote(vote) => {
            let voted = Unbroken::new(&inner.raft, |raft| async move { raft.pre_vote(vote).await });
            voted.await.map(Answer::Voted).map_err(|error| error.to_string())
        }
        Request::TakeTheLead(request) => {
            let done = inner.raft.handle_transfer_leader(request).await;
            done.map(|done| Answer::TakeTheLead(done.map_err(refused_lead)))
                .map_err(|error| error.to_string())
        }
        Request::ReadIndex => Ok(Answer::ReadIndex(read_index(inner).await)),
    };
    send(sender, answer.unwrap_or_else(Answer::Refused)).await
}

/// Reads a request, and checks that it is for this replica, and from who sent it.
fn asked(inner: &Inner, from: NodeId, message: &PeerMessage) -> Result<Request, String> {
    let Asked { address, request } = Asked::decode(message).map_err(|error| error.to_string())?;
    if address.shard != inner.shard {
        return Err(format!("it is for shard {}, and this is shard {}", address.shard, inner.shard));
    }
    if address.to != inner.node {
        return Err(format!("it is for node {}, and this is node {}", address.to, inner.node));
    }
    let spoken_for = request.speaks_for().unwrap_or(address.from);
    match [address.from, spoken_for].into_iter().find(|claimed| *claimed != from) {
        Some(claimed) => Err(format!("it says that it is from node {claimed}, and came from node {from}")),
        None => fits(&request, inner.machine.wal().entry_bytes_max()).map(|()| request),
    }
}

/// An entry that this broker's log can't take would end the replica: its leader is told instead, and keeps it until the log can.
fn fits(request: &Request, bytes_max: usize) -> Result<(), String> {
    let Request::Append { append, .. } = request else { return Ok(()) };
    let bytes = |entry: &RaftLogEntry| match &entry.payload {
        Payload::Normal(command) => command.bytes(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    match append.entries.iter().find(|entry| bytes(entry) > bytes_max) {
        None => Ok(()),
        Some(entry) => Err(format!(
            "entry {} has {} bytes, and the write-ahead log here takes {bytes_max}: set wal.segment_bytes as it is at the other brokers, \
             and start again",
            entry.log_id.index,
            bytes(entry)
        )),
    }
}

fn refused_lead(error: TransferLeaderError<crate::types::TypeConfig>) -> TransferRefused {
    match error {
        TransferLeaderError::VoteChanged { actual, .. } => TransferRefused::OtherVote(actual),
        TransferLeaderError::LogNotFlushed { actual, .. } => TransferRefused::NotThatFar(actual),
    }
}

/// Up to where a replica must have applied the log so that it shows all that was acknowledged before.
async fn read_index(inner: &Inner) -> Result<LogIndex, ReadError> {
    let read =
        Unbroken::new(&inner.raft, |raft| async move { raft.get_read_log_id(ReadPolicy::ReadIndex).await });
    match tokio::time::timeout(inner.limits.reserve_deadline, read).await {
        Ok(Ok((read, _applied))) => Ok(LogIndex::new(read.index())),
        Ok(Err(error)) => Err(inner.read_error(error)),
        Err(_elapsed) => Err(ReadError::NoQuorum),
    }
}

async fn refuse(sender: Box<dyn MessageSender>, reason: String) -> Result<(), PeerError> {
    send(sender, Answer::Refused(reason)).await
}

/// The only answer, or the last.
async fn send(mut sender: Box<dyn MessageSender>, answer: Answer) -> Result<(), PeerError> {
    let (head, body) = answer.encode();
    sender.send(head, &body).await?;
    sender.finish().await
}
