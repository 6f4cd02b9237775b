use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tidemill_protocol::{ErrorCode, messages};

/// A record that a plugin refused, by its place in the batch that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Place in the batch, from 0.
    pub ordinal: u32,
    /// In the plugin's words.
    pub reason: String,
}

/// What a broker answered instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message} ({})", self.name())]
pub struct ServerError {
    /// Stable number; docs/errors.md lists them.
    pub code: u32,
    /// What happened and what to do, for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// The records, where the code is `RECORDS_REJECTED`.
    pub rejections: Vec<Rejection>,
}

impl ServerError {
    /// The code, where this release knows it.
    #[must_use]
    pub const fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.code)
    }

    /// Whether this is `code`.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.code()
    }

    /// What a bare code says, where no message came with it.
    pub(crate) fn of(code: ErrorCode) -> Self {
        Self {
            code: code.code(),
            message: code.doc().to_owned(),
            retriable: code.retriable(),
            rejections: Vec::new(),
        }
    }

    /// What is said of a topic that was there and is not any more.
    pub(crate) fn topic_deleted(name: &str) -> Self {
        let message = format!("topic '{name}' was deleted");
        Self { message, ..Self::of(ErrorCode::UnknownTopic) }
    }

    fn name(&self) -> String {
        self.error_code().map_or_else(|| format!("code {}", self.code), |code| code.name().to_owned())
    }
}

impl From<messages::Error> for ServerError {
    fn from(error: messages::Error) -> Self {
        Self {
            code: error.code,
            message: error.message,
            retriable: error.retriable,
            rejections: error
                .rejections
                .into_iter()
                .map(|rejection| Rejection { ordinal: rejection.ordinal, reason: rejection.reason })
                .collect(),
        }
    }
}

/// An error field of a message: absent or code 0 is none.
pub(crate) fn server_error(error: Option<messages::Error>) -> Result<(), ServerError> {
    match error {
        Some(error) if !error.is_none() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The configuration names no address.
    #[error("no address of a broker was given; name at least one as host:port")]
    NoAddress,
    /// An address that is no `host:port`.
    #[error("{address}: {reason}")]
    Address {
        /// As configured or advertised.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host that is not known.
    #[error("{address}: the host is not known: {reason}")]
    Lookup {
        /// As configured or advertised.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// A certificate or key file.
    #[error("{path}: {reason}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS settings do not stand together.
    #[error("the TLS settings do not stand: {0}")]
    Tls(String),
    /// The local socket could not be opened.
    #[error("could not open a UDP socket: {0}")]
    Socket(String),
    /// No broker answered in time.
    #[error("no broker answered at {address} within {after:?}")]
    TimedOut {
        /// Who was asked.
        address: String,
        /// The configured timeout.
        after: Duration,
    },
    /// The broker could not show that it is who it should be.
    #[error("the certificate of the broker at {address} is not trusted: {reason}")]
    Certificate {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// QUIC or TLS failed: another protocol, a refusal.
    #[error("could not connect to {address}: {reason}")]
    Handshake {
        /// Who was asked.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The broker takes no connections just now; it will, or it goes away.
    #[error(
        "the broker at {address} takes no connections just now: it is stopping, or has as many as it takes"
    )]
    Busy {
        /// Who was asked.
        address: String,
    },
    /// The broker said no to the hello.
    #[error("the broker at {address} refused: {error}")]
    Refused {
        /// Who was asked.
        address: String,
        /// What it said.
        error: ServerError,
    },
    /// The broker said something that this client does not understand.
    #[error("the broker at {address} does not speak this protocol: {reason}")]
    BadAnswer {
        /// Who was asked.
        address: String,
        /// What was wrong.
        reason: String,
    },
    /// [`crate::Client::close`] was called.
    #[error("the client was closed")]
    Closed,
}

impl ConnectError {
    /// Whether the same may succeed later, without anything being changed here.
    #[must_use]
    pub const fn retriable(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Handshake { .. } | Self::Busy { .. })
    }
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The broker's answer.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The deadline passed. Where the request changes something, it may or may not have.
    #[error("no answer within {after:?}{}", last.as_ref().map(|e| format!("; the last attempt said: {e}")).unwrap_or_default())]
    Deadline {
        /// The deadline.
        after: Duration,
        /// Why the last attempt failed.
        last: Option<Box<Self>>,
    },
    /// The connection broke while the request was under way: it may or may not have taken effect.
    #[error("the connection broke before the answer came, the outcome is not known: {0}")]
    OutcomeUnknown(String),
    /// The broker said something that this client does not understand.
    #[error("the broker's answer makes no sense: {0}")]
    BadAnswer(String),
}

impl RequestError {
    /// The broker's error code, where the broker answered.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::Server(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the broker answered with `code`.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code() == Some(code.code())
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn retriable(&self) -> bool {
        match self {
            Self::Server(error) => error.retriable,
            Self::Connect(error) => error.retriable(),
            Self::Deadline { .. } | Self::OutcomeUnknown(_) => true,
            Self::BadAnswer(_) => false,
        }
    }
}
