use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why there is no broker to test.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The binary was not built.
    #[error("there is no broker to start at {}; build it with: cargo build --package tidemill-cli", .0.display())]
    NoBinary(PathBuf),
    /// A directory or file beside the broker.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended instead of serving.
    #[error("the broker ended with {status} instead of serving; its log ends:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It said something else than where it listens.
    #[error("the broker said {line:?} where it should say where it listens")]
    BadAnnouncement {
        /// What it said.
        line: String,
    },
    /// It did nothing in time.
    #[error("the broker did not {what} within {after:?}; its log ends:\n{log}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        after: Duration,
        /// The end of its log.
        log: String,
    },
    /// It is not running.
    #[error("the broker is not running")]
    NotRunning,
}
