use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::frame::FrameError;

/// Why a connection is gone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectionLost {
    /// The peer closed it, with an application code (0: nothing wrong) and a reason.
    #[error("the peer closed the connection (code {code}): {reason}")]
    ClosedByPeer {
        /// Of the application's; see docs/errors.md.
        code: u64,
        /// For people.
        reason: String,
    },
    /// This side closed it.
    #[error("the connection was closed here")]
    ClosedHere,
    /// Nothing heard for the idle timeout.
    #[error("the peer has been silent for too long")]
    TimedOut,
    /// Anything else that QUIC or TLS found.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl ConnectionLost {
    /// Whether both sides ended it on purpose and without complaint.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(self, Self::ClosedHere | Self::ClosedByPeer { code: 0, .. })
    }
}

impl From<quinn::ConnectionError> for ConnectionLost {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                code: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            quinn::ConnectionError::LocallyClosed => Self::ClosedHere,
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Why no further frame can be read from a stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The peer gave the stream up: whatever was under way on it has an unknown outcome.
    #[error("the peer reset the stream ({})", named(*code))]
    Reset {
        /// Of the application's; see docs/errors.md.
        code: u64,
    },
    /// What came is no frame: a length beyond a limit or one that lies, or the stream ended inside.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// There is no memory left for frames on their way in, of this connection or of all. The same may succeed later.
    #[error(
        "too many bytes of frames are on their way in; send fewer at once, or raise limits.receiving_bytes_max"
    )]
    Overloaded,
    /// A frame was begun and not completed in time.
    #[error("a frame was not complete {seconds} s after its first byte: {received} bytes came")]
    TooSlow {
        /// Bytes of it, its lengths included.
        received: usize,
        /// How long it may take.
        seconds: u64,
    },
    /// The whole connection is gone.
    #[error(transparent)]
    Connection(#[from] ConnectionLost),
    /// The stream was stopped on this side.
    #[error("the stream was closed here")]
    Closed,
}

/// A code as docs/errors.md has it.
fn named(code: u64) -> String {
    let known = u32::try_from(code).ok().and_then(ErrorCode::from_code);
    known.map_or_else(|| format!("code {code}"), |code| code.name().to_owned())
}

impl From<quinn::ReadError> for ReadError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset { code: code.into_inner() },
            quinn::ReadError::ConnectionLost(lost) => Self::Connection(lost.into()),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

/// Why a frame cannot be written to a stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// The peer reads no more from this stream.
    #[error("the peer stopped the stream (code {code})")]
    Stopped {
        /// Of the application's; see docs/errors.md.
        code: u64,
    },
    /// Header and payload do not fit a frame.
    #[error("a frame of {length} bytes is beyond what the format can say")]
    TooLarge {
        /// Header and payload together.
        length: usize,
    },
    /// The whole connection is gone.
    #[error(transparent)]
    Connection(#[from] ConnectionLost),
    /// The stream was finished or reset on this side.
    #[error("the stream was closed here")]
    Closed,
}

impl From<quinn::WriteError> for WriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped { code: code.into_inner() },
            quinn::WriteError::ConnectionLost(lost) => Self::Connection(lost.into()),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

/// Why the TLS set-up does not stand.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A certificate or key file.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is there and is not what it should be.
    #[error("{path}: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// rustls refuses the combination of certificate, key and authorities.
    #[error("the TLS configuration does not stand: {0}")]
    Config(String),
    /// A certificate could not be made.
    #[error("could not make a certificate for {subject}: {reason}")]
    Issue {
        /// For whom.
        subject: String,
        /// What was wrong.
        reason: String,
    },
}

/// Why a listener could not start.
#[derive(Debug, Error)]
pub enum BindError {
    /// The address is taken, not ours, or not allowed.
    #[error("could not listen on UDP {address}: {source}")]
    Socket {
        /// As asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A number that QUIC cannot express.
    #[error("the limit {name} = {value} is out of QUIC's range")]
    Limit {
        /// Field of [`crate::NetLimits`].
        name: &'static str,
        /// As configured.
        value: u64,
    },
    /// Certificates, keys, authorities.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl BindError {
    /// Whether another address may do: how one is chosen, whoever started the listener says.
    #[must_use]
    pub const fn concerns_address(&self) -> bool {
        matches!(self, Self::Socket { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_names_its_code() {
        let reset = |code| ReadError::Reset { code }.to_string();
        assert_eq!(reset(620), "the peer reset the stream (OUTCOME_UNKNOWN)");
        assert_eq!(reset(0), "the peer reset the stream (code 0)");
        assert_eq!(reset(u64::MAX), format!("the peer reset the stream (code {})", u64::MAX));
    }
}
