//! One client's connection: the hello, then a task per stream.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tidemill_net::{Connection, FrameReader, ReadError, Stream};
use tidemill_protocol::frame::RawFrame;
use tidemill_protocol::messages::{Error, StreamOpen, stream_open};
use tidemill_protocol::{BrokerId, ErrorCode, ShardId};
use tokio::task::JoinSet;

use crate::cluster::{leader_elsewhere, relay};
use crate::context::Context;
use crate::errors;
use crate::handlers::produce::Producing;
use crate::handlers::routed::Routing;
use crate::handlers::{control, intake, request, subscribe};
use crate::peers::messages::ForwardOpen;
use crate::refusals::{self, Refused};
use crate::unpacking::Unpacker;

/// A stream that says nothing for so long after it was opened is dropped.
const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// What a client said of itself, for logs.
#[derive(Debug, Clone)]
pub(crate) struct ClientName(pub(crate) Arc<str>);

/// Who opened a stream.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client: ClientName,
    /// Tells its connection from the others of the broker that it is connected to.
    pub(crate) connection: u64,
    /// Subject of the certificate that the client showed, to this broker or to the one that it is connected to.
    pub(crate) identity: Option<Arc<str>>,
    pub(crate) hop: Hop,
}

/// How a client's stream came to this broker.
#[derive(Debug, Clone)]
pub(crate) enum Hop {
    /// From the client itself.
    Direct,
    /// From another broker: it is served here or not at all.
    Forwarded {
        by: BrokerId,
        /// The shards whose part of an answer is wanted; none: of whatever is here.
        shards: Arc<BTreeSet<ShardId>>,
    },
}

impl Caller {
    /// What another broker is told of this caller, and which shards it is asked about.
    pub(crate) fn forward(&self, context: &Context, shards: &BTreeSet<ShardId>) -> ForwardOpen {
        ForwardOpen {
            client: self.client.0.to_string(),
            identity: self.identity.as_deref().unwrap_or_default().to_owned(),
            view_version: context.view.now().version(),
            shards: shards.iter().map(|shard| u32::from(shard.get())).collect(),
            connection: self.connection,
        }
    }
}

/// For logs.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.client.0)?;
        if let Some(identity) = &self.identity {
            write!(f, " ({identity})")?;
        }
        match &self.hop {
            Hop::Direct => Ok(()),
            Hop::Forwarded { by, .. } => write!(f, " by broker {by}"),
        }
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(context: Arc<Context>, connection: Connection) {
    let peer = connection.peer().address;
    let known = identified(&context, &connection);
    let greeted = match known {
        Ok(()) => hello(&context, &connection).await,
        Err(error) => Err(error),
    };
    match greeted {
        Ok(client) => {
            tracing::debug!(%peer, client = %client.0, "client connected");
            serve_streams(&context, &connection, &client).await;
            tracing::debug!(%peer, client = %client.0, "client gone");
        }
        Err(error) => {
            metrics::counter!("tidemill_refused_hellos_total").increment(1);
            refusals::note(Refused::Connection, &peer, &error);
            connection.close(error.code, &error.message);
        }
    }
}

/// Where certificates are asked for, one was shown. It was verified in the handshake; that there is none is told here, in words that a
/// client can show.
fn identified(context: &Context, connection: &Connection) -> Result<(), Error> {
    if context.config.client_ca.is_none() || connection.peer().identity.is_some() {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Unauthenticated,
        "this broker asks for a client certificate, and none was shown; give one with --certificate and --certificate-key",
    ))
}

/// The first stream carries the hello and stays open as the control stream.
async fn hello(context: &Arc<Context>, connection: &Connection) -> Result<ClientName, Error> {
    let bad = |reason: &str| Error::new(ErrorCode::UnexpectedStream, reason.to_owned());
    let first = tokio::time::timeout(FIRST_FRAME_DEADLINE, connection.accept_stream())
        .await
        .map_err(|_| bad("no hello came; the first stream of a connection carries it"))?;
    let stream = first.ok().flatten().ok_or_else(|| bad("the connection ended"))?;
    let (open, stream) = first_frame(stream).await?;
    match open {
        stream_open::Kind::Hello(hello) => control::start(context, connection, stream, &hello).await,
        _ => Err(bad("the first stream of a connection carries the hello")),
    }
}

async fn serve_streams(context: &Arc<Context>, connection: &Connection, client: &ClientName) {
    let streams_max = usize::try_from(context.config.limits.streams_max).unwrap_or(usize::MAX);
    let unpacker = context.unpacking.for_connection();
    let places = subscribe::Places::new(context.config.limits.connection_partitions_max);
    let identity = connection.peer().identity.as_deref().map(Arc::from);
    let number = u64::try_from(connection.stable_id()).unwrap_or(u64::MAX);
    let caller = Caller { client: client.clone(), connection: number, identity, hop: Hop::Direct };
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_stream() => match accepted {
                Ok(Some(stream)) => {
                    while let Some(ended) = streams.try_join_next() {
                        report(client, ended);
                    }
                    // The control stream is one of them.
                    if streams.len() + 1 < streams_max {
                        let (context, caller) = (Arc::clone(context), caller.clone());
                        let (unpacker, places) = (unpacker.clone(), places.clone());
                        streams.spawn(serve_stream(context, caller, unpacker, places, stream));
                    } else {
                        metrics::counter!("tidemill_refused_streams_total").increment(1);
                        let open = format!("{streams_max} streams are open on the connection (limits.streams_max)");
                        refusals::note(Refused::Stream, &client.0, &Error::new(ErrorCode::TooManyStreams, open));
                        reset(Opened { stream, payload: bytes::Bytes::new() }, ErrorCode::TooManyStreams);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(client = %client.0, %error, "connection lost");
                    break;
                }
            },
            Some(ended) = streams.join_next(), if !streams.is_empty() => report(client, ended),
        }
    }
    // What is under way on the streams sees the connection's end by itself; nobody is left to hear its answers.
    streams.shutdown().await;
}

fn report(client: &ClientName, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        metrics::counter!("tidemill_stream_panics_total").increment(1);
        tracing::error!(client = %client.0, %error, "a stream's task panicked; only that stream ended");
    }
}

/// Serves one stream of a client to its end.
pub(crate) async fn serve_stream(
    context: Arc<Context>,
    caller: Caller,
    unpacker: Unpacker,
    places: subscribe::Places,
    stream: Stream,
) {
    let (kind, stream) = match first_frame(stream).await {
        Ok(opened) => opened,
        Err(error) => return refusals::stream(&caller, &error),
    };
    if let Hop::Direct = &caller.hop
        && let Some(leader) = leader_elsewhere(&context, &kind)
    {
        return relay(&context, &caller, leader, kind, stream).await;
    }
    let client = caller.client.clone();
    match kind {
        stream_open::Kind::Produce(open) => {
            intake::serve::<Producing>(context, client, unpacker, stream, open).await;
        }
        stream_open::Kind::Routed(open) => {
            intake::serve::<Routing>(context, client, unpacker, stream, open).await;
        }
        stream_open::Kind::Subscribe(open) => {
            subscribe::serve(context, caller, unpacker, places, stream, open).await;
        }
        stream_open::Kind::Request(open) => request::serve(context, caller, stream, open).await,
        stream_open::Kind::Hello(_) => {
            let error = Error::new(ErrorCode::UnexpectedStream, "a connection has said its hello already");
            refusals::stream(&caller, &error);
            reset(stream, ErrorCode::UnexpectedStream);
        }
    }
}

/// Reads the frame that says what a stream is for. On an error the stream is reset with its code.
async fn first_frame(mut stream: Stream) -> Result<(stream_open::Kind, Opened), Error> {
    let read = match tokio::time::timeout(FIRST_FRAME_DEADLINE, stream.reader.next()).await {
        Ok(Ok(Some(frame))) => frame.message::<StreamOpen>().ok().and_then(|open| open.kind).map_or_else(
            || Err(errors::bad_message("the first frame of a stream says what the stream is for")),
            |kind| Ok((kind, frame.payload)),
        ),
        Ok(Ok(None)) => Err(Error::new(ErrorCode::UnexpectedStream, "the stream ended without a frame")),
        Ok(Err(error)) => Err(read_error(&error)),
        Err(_) => Err(Error::new(ErrorCode::Deadline, "a stream was opened, and nothing came on it")),
    };
    match read {
        Ok((kind, payload)) => Ok((kind, Opened { stream, payload })),
        Err(error) => {
            let code = error.error_code().unwrap_or(ErrorCode::BadFrame);
            reset(Opened { stream, payload: bytes::Bytes::new() }, code);
            Err(error)
        }
    }
}

/// A stream whose first frame was read, with that frame's payload.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) payload: bytes::Bytes,
}

/// Gives a stream up: whatever was under way on it has an unknown outcome for the peer.
pub(crate) fn reset(mut opened: Opened, code: ErrorCode) {
    opened.stream.reader.stop(code.code());
    opened.stream.writer.reset(code.code());
}

/// What a peer is told, and the log says, of a frame that does not read. Counted here, logged by whoever knows the peer.
pub(crate) fn read_error(error: &ReadError) -> Error {
    // A peer that resets or goes is nothing to complain of.
    if matches!(error, ReadError::Frame(_) | ReadError::TooSlow { .. }) {
        metrics::counter!("tidemill_bad_frames_total").increment(1);
    }
    errors::stream(error)
}

/// The next frame of a stream under way; `None` where the stream is over, by its end, the peer's reset, or the connection's loss.
///
/// # Errors
/// What the stream is to be reset with: bytes that are no frame, or one that does not come to its end.
pub(crate) async fn next_frame(reader: &mut FrameReader) -> Result<Option<RawFrame>, Error> {
    match reader.next().await {
        Ok(frame) => Ok(frame),
        Err(error @ (ReadError::Frame(_) | ReadError::TooSlow { .. } | ReadError::Overloaded)) => {
            Err(read_error(&error))
        }
        Err(error) => {
            tracing::debug!(%error, "a stream broke off");
            Ok(None)
        }
    }
}
