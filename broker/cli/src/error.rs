//! What went wrong, and the exit code that says which kind it was.

use tidemill_client::{
    ConnectError, ConsumeError, ConsumerError, DeliveryError, ErrorCode, ProducerError, RequestError,
    SendError, ServerError,
};

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command's arguments or input.
    #[error("{0}")]
    Usage(String),
    /// No connection.
    #[error("{}", no_connection(error, context.as_deref(), *is_alone))]
    Connect {
        /// Why.
        error: ConnectError,
        /// The saved context that said how to reach the broker, where one did.
        context: Option<String>,
        /// Whether one address alone was named: there may be no broker yet.
        is_alone: bool,
    },
    /// A broker that was there answers no more.
    #[error("{0}")]
    Away(String),
    /// The broker refused, or the client knows what the broker would say.
    #[error("{message}")]
    Refused {
        /// What happened and what to do.
        message: String,
        /// As docs/errors.md has it, where there is one that this release knows.
        code: Option<ErrorCode>,
    },
    /// What was asked for is not there, as the broker's answer shows.
    #[error("{0}")]
    NotThere(String),
    /// A check that was asked for failed, such as a plugin's test.
    #[error("{0}")]
    Failed(String),
    /// A plugin answered otherwise the second time.
    #[error("{0}")]
    Differs(String),
    /// There was no result in time: those who could decide may be away.
    #[error("{0}")]
    Undecided(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What to do where brokers may be missing. Who is away is not always who was named: the one that answers may be another than the one that
/// has what is asked for.
pub(crate) const AWAY_ADVICE: &str =
    "If a broker is away (`tidemill cluster status` shows which), start it; or wait longer with --timeout";

impl CliError {
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self::Usage(reason.into())
    }

    pub(crate) fn other(reason: impl Into<String>) -> Self {
        Self::Other(reason.into())
    }

    /// As the broker would have refused it.
    pub(crate) fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), code: Some(code) }
    }

    /// The same error, said otherwise.
    pub(crate) fn worded(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Usage(reason) => Self::Usage(words(reason)),
            Self::Refused { message, code } => Self::Refused { message: words(message), code },
            Self::NotThere(reason) => Self::NotThere(words(reason)),
            Self::Failed(reason) => Self::Failed(words(reason)),
            Self::Differs(reason) => Self::Differs(words(reason)),
            Self::Undecided(reason) => Self::Undecided(words(reason)),
            Self::Other(reason) => Self::Other(words(reason)),
            Self::Away(reason) => Self::Away(words(reason)),
            connect @ Self::Connect { .. } => connect,
        }
    }

    /// What happened, and what to do where more brokers would help.
    pub(crate) fn with_advice(&self) -> String {
        match self {
            Self::Undecided(_) => format!("{self}. {AWAY_ADVICE}"),
            Self::Refused { code: Some(code), .. } if lacks_brokers(*code) => {
                format!("{self}. {AWAY_ADVICE}")
            }
            _ => self.to_string(),
        }
    }

    /// 1: anything; 2: arguments or input; 3: no connection; 4: what was asked for is not there; 5: a check failed; 6: two
    /// runs of a plugin differ.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            // Nobody was asked yet: what was named does not stand.
            Self::Connect {
                error: ConnectError::Address { .. } | ConnectError::File { .. } | ConnectError::Tls(_),
                ..
            } => 2,
            Self::Connect { .. } | Self::Away(_) => 3,
            Self::NotThere(_)
            | Self::Refused {
                code:
                    Some(
                        ErrorCode::UnknownTopic
                        | ErrorCode::UnknownPartition
                        | ErrorCode::UnknownGroup
                        | ErrorCode::UnknownPlugin
                        | ErrorCode::UnknownDeployment
                        | ErrorCode::UnknownBroker,
                    ),
                ..
            } => 4,
            Self::Failed(_) => 5,
            Self::Differs(_) => 6,
            Self::Refused { .. } | Self::Undecided(_) | Self::Other(_) => 1,
        }
    }
}

/// Whether a code means that nobody leads, or leads without a majority.
const fn lacks_brokers(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotLeader | ErrorCode::NoQuorum)
}

/// Why there is no connection, what to do, and who said where to.
fn no_connection(error: &ConnectError, context: Option<&str>, is_alone: bool) -> String {
    let may_be_first = is_alone && context.is_none();
    let advice = advice(error, may_be_first).map(|advice| format!(". {advice}")).unwrap_or_default();
    let of_context = |name: &str| format!("; context '{name}' is in use: `tidemill context list`");
    let context = context.map(of_context).unwrap_or_default();
    format!("{error}{advice}{context}")
}

/// Whether an address is one of this machine alone.
fn is_loopback(address: &str) -> bool {
    ["127.", "localhost:", "[::1]:"].iter().any(|begins| address.starts_with(begins))
}

/// What to do where there is no connection.
fn advice(error: &ConnectError, may_be_first: bool) -> Option<&'static str> {
    Some(match error {
        // Beside other brokers `tidemill dev` would be a cluster of its own.
        ConnectError::TimedOut { address, .. } if may_be_first && is_loopback(address) => {
            "Does a broker run there? If not, start it, a first one with `tidemill dev`; or name another address \
             with --address"
        }
        ConnectError::TimedOut { .. } => {
            "Does a broker run there? If not, start it again; or name another address with --address"
        }
        ConnectError::NoAddress => "Name one with --address",
        ConnectError::Address { .. } => "Name a broker as HOST:PORT with --address",
        ConnectError::Lookup { .. } => "Look at the host's name, or name another address with --address",
        ConnectError::Certificate { .. } => {
            "Name the authority that signed it with --ca, and the host as the certificate has it with --address; \
             a broker whose data directory was made anew has a new tls/ca.pem"
        }
        // The broker's own words say what it wants.
        ConnectError::Refused { .. } => return None,
        ConnectError::File { .. } | ConnectError::Tls(_) => {
            "Look at --ca, --certificate and --certificate-key"
        }
        ConnectError::Busy { .. } => {
            "Try again when it is back, or wait for it with --timeout; or name another address with --address"
        }
        ConnectError::Handshake { .. } | ConnectError::BadAnswer { .. } => {
            "Look whether a Tidemill broker of this release listens there for clients"
        }
        ConnectError::Socket(_) | ConnectError::Closed => "Try again",
    })
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        Self::Connect { error, context: None, is_alone: false }
    }
}

/// With the words of an error around the broker's own.
fn refused(error: &impl std::fmt::Display, server: &ServerError) -> CliError {
    CliError::Refused { message: error.to_string(), code: server.error_code() }
}

impl From<ServerError> for CliError {
    fn from(error: ServerError) -> Self {
        refused(&error, &error)
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Server(server) => server.into(),
            RequestError::Connect(connect) => connect.into(),
            RequestError::Deadline { last: Some(last), .. }
                if matches!(*last, RequestError::Connect(_) | RequestError::OutcomeUnknown(_)) =>
            {
                Self::Away(format!("{last}; no answer in time. {AWAY_ADVICE}"))
            }
            RequestError::Deadline { last: Some(ref last), .. }
                if matches!(&**last, RequestError::Server(server)
                    if server.error_code().is_some_and(lacks_brokers)) =>
            {
                Self::Undecided(error.to_string())
            }
            other => Self::other(other.to_string()),
        }
    }
}

impl From<ProducerError> for CliError {
    fn from(error: ProducerError) -> Self {
        match error {
            ProducerError::Request(request) => request.into(),
            ProducerError::Settings(_) => Self::usage(error.to_string()),
        }
    }
}

impl From<SendError> for CliError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NoPartition { .. } => Self::refused(ErrorCode::UnknownPartition, error.to_string()),
            SendError::Stopped(delivery) => delivery.into(),
            // About the record itself: whoever wrote it can change it.
            SendError::TooLarge { .. } | SendError::Routed | SendError::Invalid(_) => {
                Self::usage(error.to_string())
            }
            SendError::Full { .. } => Self::other(error.to_string()),
        }
    }
}

impl From<DeliveryError> for CliError {
    fn from(error: DeliveryError) -> Self {
        match &error {
            DeliveryError::Refused(server)
            | DeliveryError::PartlyStored { error: server, .. }
            | DeliveryError::Unacknowledged(server) => refused(&error, server),
            DeliveryError::Lost => Self::Away(error.to_string()),
            DeliveryError::TimedOut { .. } => Self::Undecided(error.to_string()),
            other => Self::other(other.to_string()),
        }
    }
}

impl From<ConsumerError> for CliError {
    fn from(error: ConsumerError) -> Self {
        match error {
            ConsumerError::Request(request) => request.into(),
            ConsumerError::NoPartition { .. } => {
                Self::refused(ErrorCode::UnknownPartition, error.to_string())
            }
            ConsumerError::NoTopic | ConsumerError::Window { .. } => Self::usage(error.to_string()),
        }
    }
}

impl From<ConsumeError> for CliError {
    fn from(error: ConsumeError) -> Self {
        match &error {
            ConsumeError::Refused(server)
            | ConsumeError::Partition { error: server, .. }
            | ConsumeError::OutOfRange { error: server, .. } => refused(&error, server),
            ConsumeError::Corrupt { .. } | ConsumeError::Closed => Self::other(error.to_string()),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        Self::Other(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: ErrorCode) -> ServerError {
        ServerError { code: code.code(), message: "no".to_owned(), retriable: false, rejections: Vec::new() }
    }

    #[test]
    fn the_code_survives_every_way_to_hear_of_it() {
        let unknown = || RequestError::Server(server(ErrorCode::UnknownTopic));
        let refused = || server(ErrorCode::UnknownPlugin);
        for error in [
            CliError::from(unknown()),
            ProducerError::Request(unknown()).into(),
            ConsumerError::Request(unknown()).into(),
            ConsumeError::Refused(refused()).into(),
            DeliveryError::Refused(refused()).into(),
            SendError::NoPartition { partition: 9, count: 3 }.into(),
            SendError::Stopped(DeliveryError::Refused(refused())).into(),
            server(ErrorCode::UnknownBroker).into(),
            ConsumerError::NoPartition { topic: "t".into(), partition: 9, count: 3 }.into(),
        ] {
            assert_eq!(error.exit_code(), 4, "{error}");
        }
        let lost = || RequestError::Connect(ConnectError::NoAddress);
        assert_eq!(CliError::from(ProducerError::Request(lost())).exit_code(), 3);
        assert_eq!(CliError::from(ProducerError::Settings("x".into())).exit_code(), 2);
        assert_eq!(CliError::from(server(ErrorCode::DiskFull)).exit_code(), 1);
        let file = ConnectError::File { path: "ca.pem".into(), reason: "it is not there".to_owned() };
        assert_eq!(CliError::from(file).exit_code(), 2);
        let said = CliError::from(unknown()).worded(|words| format!("line 3: {words}"));
        assert!(said.exit_code() == 4 && said.to_string().starts_with("line 3: no"), "{said}");
    }

    #[test]
    fn where_brokers_may_be_missing_one_hears_what_to_do() {
        let after = std::time::Duration::from_secs(30);
        let deadline =
            |code| RequestError::Deadline { after, last: Some(Box::new(RequestError::Server(server(code)))) };
        let lost = DeliveryError::TimedOut { after, sent: true, last: None };
        for error in [
            CliError::from(server(ErrorCode::NoQuorum)),
            server(ErrorCode::NotLeader).into(),
            deadline(ErrorCode::NotLeader).into(),
            DeliveryError::Refused(server(ErrorCode::NoQuorum)).into(),
            lost.into(),
        ] {
            // Behind whatever a command says in addition.
            let error = error.worded(|words| format!("{words}; 1 of the 2 records is stored"));
            let said = error.with_advice();
            assert!(said.ends_with(&format!("is stored. {AWAY_ADVICE}")), "{said}");
            assert_eq!(error.exit_code(), 1, "{said}");
        }
        let slow = CliError::from(deadline(ErrorCode::Overloaded));
        assert_eq!(slow.with_advice(), slow.to_string());
        let full = CliError::from(server(ErrorCode::DiskFull));
        assert_eq!(full.with_advice(), full.to_string());
    }

    #[test]
    fn what_keeps_a_command_from_the_broker_is_told_with_a_way_out() {
        let address = || "log9:9630".to_owned();
        let lookup = ConnectError::Lookup { address: address(), reason: "no such name".to_owned() };
        let context = Some("prod".to_owned());
        let said = CliError::Connect { error: lookup, context, is_alone: true };
        assert_eq!(
            said.to_string(),
            "log9:9630: the host is not known: no such name. Look at the host's name, or name another address \
             with --address; context 'prod' is in use: `tidemill context list`"
        );
        assert_eq!(said.exit_code(), 3);
        let silent = |is_alone| CliError::Connect {
            error: ConnectError::TimedOut {
                address: "127.0.0.1:9630".to_owned(),
                after: std::time::Duration::from_secs(5),
            },
            context: None,
            is_alone,
        };
        assert!(silent(true).to_string().contains("tidemill dev"), "{}", silent(true));
        assert!(
            silent(false).to_string().contains("within 5s. Does a broker run there?"),
            "{}",
            silent(false)
        );
        assert!(!silent(false).to_string().contains("tidemill dev"), "one of several");
        let form = ConnectError::Address { address: "log9:x".to_owned(), reason: "no".to_owned() };
        let said = CliError::from(form);
        assert!(said.exit_code() == 2 && said.to_string().contains("HOST:PORT"), "{said}");
        let busy = CliError::from(ConnectError::Busy { address: address() });
        assert!(busy.exit_code() == 3 && busy.to_string().contains("stopping"), "{busy}");
        assert!(busy.to_string().contains("Try again when it is back"), "{busy}");
        // What the broker said is not said again.
        let refused = ConnectError::Refused { address: address(), error: server(ErrorCode::Unauthenticated) };
        let said = CliError::from(refused);
        assert!(said.exit_code() == 3 && said.to_string().ends_with("no (UNAUTHENTICATED)"), "{said}");
        let untrusted = ConnectError::Certificate { address: address(), reason: "BadSignature".to_owned() };
        assert!(CliError::from(untrusted).to_string().contains("new tls/ca.pem"));
    }
}
