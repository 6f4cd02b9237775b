use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::messages::{PayloadChunk, Reply, Request, StreamOpen, reply, request, stream_open};
use tidemill_protocol::{BrokerId, ErrorCode};

use super::connection::BrokerConnection;
use super::pool::Cluster;
use crate::error::server_error;
use crate::transport::{ReadError, Wire, WriteError};
use crate::{ConnectError, RequestError, ServerError};

/// Bytes of payload in one frame of an upload.
const CHUNK_BYTES: usize = 1 << 20;
/// After this an answer takes long enough to look whether the broker lives.
const DOUBT_AFTER: Duration = Duration::from_millis(300);

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Twice is as good as once.
    Freely,
    /// Only where it certainly had no effect.
    IfUntouched,
}

impl Cluster {
    /// Sends a request and waits for its answer, within the configured deadline, over as many attempts as fit.
    pub(crate) async fn call(
        self: &Arc<Self>,
        body: request::Body,
        repeat: Repeat,
    ) -> Result<reply::Body, RequestError> {
        self.call_with(body, Bytes::new(), repeat, self.config.request_timeout).await
    }

    /// As [`Self::call`], with a payload that follows the request and a deadline of its own.
    pub(crate) async fn call_with(
        self: &Arc<Self>,
        body: request::Body,
        payload: Bytes,
        repeat: Repeat,
        timeout: Duration,
    ) -> Result<reply::Body, RequestError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut last = None;
        let attempts = async {
            let mut backoff = self.backoff();
            // Who has failed since all of them were asked, in that order: each is asked once before any is asked again.
            let mut failed: Vec<BrokerId> = Vec::new();
            loop {
                let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                let (asked, done) = match self.any(&failed).await {
                    Ok(connection) => {
                        let done = self.call_watched(&connection, &body, &payload, repeat, left).await;
                        (Some(connection.broker), done)
                    }
                    Err(error) => (None, Err(error.into())),
                };
                match done {
                    Err(error) if may_repeat(&error, repeat) => {
                        tracing::debug!(%error, "a request is sent again");
                        self.is_troubled(&error);
                        let may_go_elsewhere = asked.is_some_and(|asked| {
                            may_go_elsewhere(&error)
                                && self.known().has_well_beside(asked)
                                && !failed.contains(&asked)
                        });
                        let is_server = matches!(error, RequestError::Server(_));
                        last = Some(Box::new(error));
                        // A broker that is gone costs no pause where another has not been asked yet.
                        if is_server || !may_go_elsewhere {
                            tokio::time::sleep(backoff.pause()).await;
                        }
                        match asked {
                            Some(asked) if may_go_elsewhere => failed.push(asked),
                            _ => failed.clear(),
                        }
                    }
                    done => {
                        if done.is_ok() {
                            self.is_well();
                        }
                        return done;
                    }
                }
            }
        };
        match tokio::time::timeout_at(deadline, attempts).await {
            Ok(done) => done,
            Err(_) => Err(RequestError::Deadline { after: timeout, last }),
        }
    }

    /// One attempt, which does not wait for a broker that has gone silent where the request may be repeated elsewhere.
    async fn call_watched(
        self: &Arc<Self>,
        connection: &BrokerConnection,
        body: &request::Body,
        payload: &Bytes,
        repeat: Repeat,
        left: Duration,
    ) -> Result<reply::Body, RequestError> {
        let mut calling = std::pin::pin!(self.call_once(connection, body, payload, left));
        if let Ok(done) = tokio::time::timeout(DOUBT_AFTER, &mut calling).await {
            return done;
        }
        connection.doubt();
        tokio::select! {
            biased;
            done = calling => done,
            () = self.until_unwell(connection.broker), if repeat == Repeat::Freely => {
                Err(RequestError::OutcomeUnknown(format!("broker {} does not answer", connection.broker)))
            }
        }
    }

    /// Sends a request over this connection.
    pub(super) async fn call_once(
        &self,
        connection: &BrokerConnection,
        body: &request::Body,
        payload: &Bytes,
        left: Duration,
    ) -> Result<reply::Body, RequestError> {
        // Before the first byte is out, a failure means that nothing happened.
        let mut wire = Wire::open(&connection.quinn).await.map_err(|error| {
            let address = connection.quinn.remote_address().to_string();
            RequestError::Connect(ConnectError::Handshake { address, reason: error.to_string() })
        })?;
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = Request { deadline_ms, body: Some(body.clone()) };
        let open = StreamOpen { kind: Some(stream_open::Kind::Request(request)) };
        // The broker may answer before it has read everything, and stop reading: the answer is what counts.
        if let Err(error) = write(&mut wire, &open, payload, connection.limits.frame_bytes_max).await
            && !matches!(error, WriteError::Stopped(_))
        {
            return Err(RequestError::OutcomeUnknown(error.to_string()));
        }
        let (reply, _) = wire.reader.message::<Reply>().await.map_err(|error| match error {
            // Refused unread: certainly without effect.
            ReadError::Reset(code) if code == u64::from(ErrorCode::TooManyStreams.code()) => {
                RequestError::Server(ServerError::of(ErrorCode::TooManyStreams))
            }
            error if error.is_nonsense() => RequestError::BadAnswer(error.to_string()),
            error => RequestError::OutcomeUnknown(error.to_string()),
        })?;
        server_error(reply.error)?;
        reply.body.ok_or_else(|| RequestError::BadAnswer("neither a result nor an error".to_owned()))
    }
}

async fn write(
    wire: &mut Wire,
    open: &StreamOpen,
    payload: &Bytes,
    frame_bytes_max: usize,
) -> Result<(), WriteError> {
    // Room for the header of the first frame.
    let chunk_bytes = CHUNK_BYTES.min(frame_bytes_max / 2).max(1);
    let mut rest = payload.clone();
    let first = rest.split_to(rest.len().min(chunk_bytes));
    wire.writer.send(open, &[first]).await?;
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(chunk_bytes));
        wire.writer.send(&PayloadChunk {}, &[chunk]).await?;
    }
    wire.writer.finish().await
}

fn may_repeat(error: &RequestError, repeat: Repeat) -> bool {
    match error {
        RequestError::Connect(error) => error.retriable(),
        RequestError::OutcomeUnknown(_) => repeat == Repeat::Freely,
        RequestError::Server(error)
            if error.is(ErrorCode::OutcomeUnknown) || error.is(ErrorCode::Deadline) =>
        {
            repeat == Repeat::Freely
        }
        RequestError::Server(error) => error.retriable,
        RequestError::Deadline { .. } | RequestError::BadAnswer(_) => false,
    }
}

/// Whether another broker may do what this one did not.
fn may_go_elsewhere(error: &RequestError) -> bool {
    match error {
        RequestError::Connect(_) | RequestError::OutcomeUnknown(_) => true,
        RequestError::Server(error) => is_of_this_broker(error),
        RequestError::Deadline { .. } | RequestError::BadAnswer(_) => false,
    }
}

/// Whether a refusal is about the broker that was asked: another may say otherwise, and newer metadata may tell which.
pub(crate) fn is_of_this_broker(error: &ServerError) -> bool {
    match error.error_code() {
        Some(
            ErrorCode::NotLeader | ErrorCode::NotYetAdopted | ErrorCode::NoQuorum | ErrorCode::ShuttingDown,
        ) => true,
        // Of one replica among several; else it is all that there is.
        Some(ErrorCode::StorageFailed) => error.retriable,
        _ => false,
    }
}
