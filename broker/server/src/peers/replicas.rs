//! Streams between replicas: the raft room's messages on QUIC streams.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tidemill_net::{FrameReader, FrameWriter, Stream};
use tidemill_protocol::{ErrorCode, NodeId, ShardId};
use tidemill_raft::{MessageReceiver, MessageSender, PeerDialer, PeerError, PeerMessage, PeerStream};

use super::Peers;
use super::messages::{Purpose, RaftOpen};
use crate::cluster::Lives;

/// Opens streams to the other replicas of this broker's shards.
pub(crate) struct ReplicaDialer {
    pub(crate) peers: Peers,
    pub(crate) lives: Arc<Lives>,
}

impl PeerDialer for ReplicaDialer {
    fn open(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
        open(self.peers.clone(), self.lives.node(shard), to, shard)
    }
}

/// Opens streams to replicas of shards of which this broker has none.
pub(crate) struct RemoteDialer {
    pub(crate) peers: Peers,
    /// This broker, as no replica is called that lives here.
    pub(crate) from: NodeId,
}

impl PeerDialer for RemoteDialer {
    fn open(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
        open(self.peers.clone(), self.from, to, shard)
    }
}

fn open(
    peers: Peers,
    from: NodeId,
    to: NodeId,
    shard: ShardId,
) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
    async move {
        let open = RaftOpen { shard: u32::from(shard.get()), from: from.get(), to: to.get() };
        let opened = peers.open(to.broker(), Purpose::Raft(open)).await;
        opened.map(stream).map_err(|error| PeerError::Unreachable { node: to, reason: error.reason })
    }
    .boxed()
}

/// A QUIC stream as the raft room wants it.
pub(super) fn stream(stream: Stream) -> PeerStream {
    let Stream { reader, writer, .. } = stream;
    PeerStream {
        sender: Box::new(Sender { writer, finished: false }),
        receiver: Box::new(Receiver { reader }),
    }
}

struct Sender {
    writer: FrameWriter,
    finished: bool,
}

impl MessageSender for Sender {
    fn send<'a>(&'a mut self, head: Bytes, body: &'a [Bytes]) -> BoxFuture<'a, Result<(), PeerError>> {
        async move { self.writer.send(&head, body).await.map_err(broken) }.boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), PeerError>> {
        async move {
            self.writer.finish().await.map_err(broken)?;
            self.finished = true;
            Ok(())
        }
        .boxed()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            // Dropped alone it would look like an end in order.
            self.writer.reset(ErrorCode::OutcomeUnknown.code());
        }
    }
}

struct Receiver {
    reader: FrameReader,
}

impl MessageReceiver for Receiver {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<PeerMessage>, PeerError>> {
        async move {
            let Some(frame) = self.reader.next().await.map_err(broken)? else { return Ok(None) };
            let head = frame.message::<Bytes>().map_err(broken)?;
            Ok(Some(PeerMessage { head, body: frame.payload }))
        }
        .boxed()
    }
}

fn broken(error: impl std::fmt::Display) -> PeerError {
    PeerError::Broken(error.to_string())
}
