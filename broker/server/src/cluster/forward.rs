//! Streams of clients that another broker has to serve: one hop to it, frame by frame, nothing decoded.
//!
//! ```text
//!   client <--- stream ---> this broker <--- stream that ForwardOpen begins ---> the leader
//! ```
//!
//! So one address is enough for a client behind NAT, and a client whose metadata is behind is served all the same. The broker at the
//! end of the hop serves the stream or refuses it; it never sends it on.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidemill_net::{FrameReader, FrameWriter, ReadError, Stream, WriteError};
use tidemill_protocol::messages::{StreamOpen, stream_open};
use tidemill_protocol::{BrokerId, ErrorCode, ShardId, TopicPartition};

use crate::connection::{self, Caller, ClientName, Hop, Opened};
use crate::context::Context;
use crate::handlers::subscribe::Places;
use crate::peers::Lane;
use crate::peers::messages::ForwardOpen;

/// The broker that a stream must go to because it leads the partition; `None` where it is served here, or refused here with a reason.
pub(crate) fn leader_elsewhere(context: &Context, kind: &stream_open::Kind) -> Option<BrokerId> {
    let stream_open::Kind::Produce(open) = kind else { return None };
    let partition = open.partition.as_ref().and_then(|partition| partition.parse())?;
    let shard = shard_of(context, partition)?;
    let leader = context.leader(shard)?.node.broker();
    (leader.get() != context.meta.broker_id).then_some(leader)
}

fn shard_of(context: &Context, partition: TopicPartition) -> Option<ShardId> {
    context.view.now().shard_of(partition)
}

/// Serves a client's stream by another broker. Where there is no way to it, the stream is reset: the client looks for the leader again.
pub(crate) async fn relay(
    context: &Context,
    caller: &Caller,
    to: BrokerId,
    kind: stream_open::Kind,
    opened: Opened,
) {
    metrics::counter!("tidemill_forwarded_streams_total").increment(1);
    let Some(peers) = &context.peers else { return connection::reset(opened, ErrorCode::NotLeader) };
    let open = caller.forward(context, &BTreeSet::new());
    let there = peers.open_for_client(to, Lane::Streams, open).await;
    let mut there = match there {
        Ok(there) => there,
        Err(error) => {
            tracing::debug!(client = %caller, %error, "a stream is not forwarded");
            return connection::reset(opened, ErrorCode::NotLeader);
        }
    };
    let first = StreamOpen { kind: Some(kind) };
    if there.writer.send(&first, std::slice::from_ref(&opened.payload)).await.is_err() {
        return connection::reset(opened, ErrorCode::NotLeader);
    }
    splice(opened.stream, there).await;
}

/// Carries frames both ways until both directions are over.
async fn splice(client: Stream, there: Stream) {
    let Stream { reader: client_reader, writer: client_writer, .. } = client;
    let Stream { reader: there_reader, writer: there_writer, .. } = there;
    tokio::join!(carry(client_reader, there_writer), carry(there_reader, client_writer));
}

/// Carries one direction: its end as an end, a break as a break, and that nobody reads any more back to the sender.
async fn carry(mut from: FrameReader, mut to: FrameWriter) {
    loop {
        let frame = match from.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                let _ = to.finish().await;
                return;
            }
            Err(error) => return to.reset(code_of(&error)),
        };
        let written = match to.feed_raw(&frame) {
            Ok(()) => to.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            let code = match error {
                WriteError::Stopped { code } => {
                    u32::try_from(code).unwrap_or(ErrorCode::OutcomeUnknown.code())
                }
                _ => ErrorCode::OutcomeUnknown.code(),
            };
            return from.stop(code);
        }
    }
}

fn code_of(error: &ReadError) -> u32 {
    match error {
        ReadError::Reset { code } => u32::try_from(*code).unwrap_or(ErrorCode::OutcomeUnknown.code()),
        ReadError::Overloaded => ErrorCode::Overloaded.code(),
        // What was under way may or may not have arrived.
        _ => ErrorCode::OutcomeUnknown.code(),
    }
}

/// Serves a stream that another broker brings for its client.
pub(crate) async fn serve_forwarded(context: Arc<Context>, by: BrokerId, open: ForwardOpen, stream: Stream) {
    let shards = open.shards.iter().filter_map(|shard| u16::try_from(*shard).ok().map(ShardId::new));
    let caller = Caller {
        client: ClientName(Arc::from(open.client)),
        connection: open.connection,
        identity: Some(open.identity).filter(|identity| !identity.is_empty()).map(Arc::from),
        hop: Hop::Forwarded { by, shards: Arc::new(shards.collect()) },
    };
    tracing::debug!(client = %caller, "another broker brings a stream of its client");
    // What the other broker has heard of the cluster its client relies on.
    context.view_reaches(open.view_version).await;
    let unpacker = context.unpacking.for_brought(by, open.connection);
    // The other broker counts them with the rest of its client's.
    let places = Places::new(context.config.limits.connection_partitions_max);
    connection::serve_stream(context, caller, unpacker, places, stream).await;
}
