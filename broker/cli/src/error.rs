//! What went wrong, and the exit code that says which kind it was.

use tidemill_client::{ConnectError, ErrorCode, RequestError};

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command's arguments or input.
    #[error("{0}")]
    Usage(String),
    /// No connection.
    #[error(
        "{0}; is a broker running there? `tidemill dev` starts one, `tidemill context list` shows saved connections"
    )]
    Connect(#[from] ConnectError),
    /// The broker refused.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// A check that was asked for failed, such as a plugin's test.
    #[error("{0}")]
    Failed(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self::Usage(reason.into())
    }

    pub(crate) fn other(reason: impl Into<String>) -> Self {
        Self::Other(reason.into())
    }

    /// 1: anything; 2: arguments or input; 3: no connection; 4: what was asked for is not there; 5: a check failed.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Connect(_) => 3,
            Self::Request(error) => match error.code().and_then(ErrorCode::from_code) {
                Some(
                    ErrorCode::UnknownTopic
                    | ErrorCode::UnknownPartition
                    | ErrorCode::UnknownGroup
                    | ErrorCode::UnknownPlugin
                    | ErrorCode::UnknownDeployment,
                ) => 4,
                _ => 1,
            },
            Self::Failed(_) => 5,
            Self::Other(_) => 1,
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
