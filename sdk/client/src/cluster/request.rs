use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{PayloadChunk, Reply, Request, StreamOpen, reply, request, stream_open};

use super::pool::Cluster;
use crate::error::server_error;
use crate::transport::{ReadError, Wire, WriteError};
use crate::{ConnectError, RequestError, ServerError};

/// Bytes of payload in one frame of an upload.
const CHUNK_BYTES: usize = 1 << 20;

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
            loop {
                let left = deadline.saturating_duration_since(tokio::time::Instant::now());
                match self.call_once(&body, &payload, left).await {
                    Err(error) if may_repeat(&error, repeat) => {
                        tracing::debug!(%error, "a request is sent again");
                        self.is_troubled(&error);
                        last = Some(Box::new(error));
                        tokio::time::sleep(backoff.pause()).await;
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

    async fn call_once(
        self: &Arc<Self>,
        body: &request::Body,
        payload: &Bytes,
        left: Duration,
    ) -> Result<reply::Body, RequestError> {
        let connection = self.connection(None).await?;
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
