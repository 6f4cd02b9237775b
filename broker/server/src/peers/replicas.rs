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
        let peers = self.peers.clone();
        let from = self.lives.node(shard);
        async move {
            let open = RaftOpen { shard: u32::from(shard.get()), from: from.get(), to: to.get() };
            let opened = peers.open(to.broker(), Purpose::Raft(open)).await;
            opened.map(stream).map_err(|error| PeerError::Unreachable { node: to, reason: error.reason })
        }
        .boxed()
    }
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
