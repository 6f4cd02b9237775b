//! The way to the other replicas of a group, as bytes: the seam behind which brokers are.
//!
//! Whoever runs replicas brings a [`PeerDialer`], and hands what other brokers open to
//! [`Replica::serve_peer`](crate::Replica::serve_peer). A stream carries whole messages in order, in both directions; what it is for, its
//! first message says. So tests and the simulation put their own network here, and this room knows none.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;
use tidemill_protocol::{NodeId, ShardId};

/// Opens streams to other brokers.
pub trait PeerDialer: Send + Sync + 'static {
    /// A new stream to the replica `to` of a shard. Fails soon where the broker can't be reached, and does not wait for it to
    /// come back: whoever asks tries again.
    fn open(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>>;
}

/// Both directions of a stream between two replicas of a shard.
pub struct PeerStream {
    /// What goes to the peer.
    pub sender: Box<dyn MessageSender>,
    /// What the peer sends.
    pub receiver: Box<dyn MessageReceiver>,
}

/// Sends messages. Dropped before [`Self::finish`], the stream is broken off: the peer sees an error.
pub trait MessageSender: Send + Sync + 'static {
    /// Sends one message; waits while the peer's windows are full. The pieces of the body are sent one behind the other, uncopied.
    fn send<'a>(&'a mut self, head: Bytes, body: &'a [Bytes]) -> BoxFuture<'a, Result<(), PeerError>>;

    /// Ends this direction: what was sent arrives, then the end.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), PeerError>>;
}

/// Receives messages, in the order in which they were sent.
pub trait MessageReceiver: Send + Sync + 'static {
    /// The next message; `None` where the peer ended its direction between two messages. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<PeerMessage>, PeerError>>;
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    /// Small; this room's own encoding.
    pub head: Bytes,
    /// Entries, or a part of a snapshot.
    pub body: Bytes,
}

/// Why a peer was not reached, or a stream broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no connection to the broker just now.
    #[error("broker {} can't be reached: {reason}", .node.broker())]
    Unreachable {
        /// Whom it was about.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The stream or its connection broke off: what was sent may or may not have arrived.
    #[error("the stream broke off: {0}")]
    Broken(String),
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerStream").finish_non_exhaustive()
    }
}
