//! What went wrong, per operation, in words for the person who can change it.

use tidemill_protocol::record_batch::BatchError;
use tidemill_wasm::{CallError, CompileError, ConfigError, Failure, InvalidComponent, WrongKind};

/// A partitioner's or filter's call that gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailure {
    /// Of which kind.
    pub kind: CallFailureKind,
    /// What happened in which deployment.
    pub message: String,
}

/// Kinds of [`CallFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFailureKind {
    /// The plugin trapped.
    Trapped,
    /// The plugin ran for too long.
    TimedOut,
    /// The plugin wanted more memory than it may have.
    OutOfMemory,
    /// The plugin's answer is not usable.
    BadAnswer,
    /// The plugin said that the call failed.
    Failed {
        /// The same batch may succeed later.
        retry: bool,
    },
    /// The batch does not read. Not the plugin's fault.
    BadBatch,
    /// The broker could not run the plugin. Not the plugin's fault.
    Broker,
}

impl CallFailure {
    pub(crate) fn of(deployment: &str, error: &CallError) -> Self {
        Self { kind: CallFailureKind::of(error), message: format!("{deployment}: {error}") }.counted()
    }

    pub(crate) fn stopped(deployment: &str) -> Self {
        Self { kind: CallFailureKind::Broker, message: format!("{deployment}: plugins are being stopped") }
    }

    pub(crate) fn batch(deployment: &str, error: &BatchError) -> Self {
        Self {
            kind: CallFailureKind::BadBatch,
            message: format!("{deployment}: the batch does not read: {error}"),
        }
    }

    pub(crate) fn answer(deployment: &str, reason: impl std::fmt::Display) -> Self {
        let message = format!("{deployment}: the plugin gave a bad answer: {reason}");
        Self { kind: CallFailureKind::BadAnswer, message }.counted()
    }

    /// Deployments count for themselves; this is over all of them, and for what belongs to none.
    fn counted(self) -> Self {
        metrics::counter!("tidemill_plugin_failures_total", "kind" => self.kind.name()).increment(1);
        self
    }
}

impl CallFailureKind {
    fn of(error: &CallError) -> Self {
        match error {
            CallError::Trapped { .. } => Self::Trapped,
            CallError::TimedOut { .. } => Self::TimedOut,
            CallError::OutOfMemory { .. } => Self::OutOfMemory,
            CallError::BadAnswer(_) | CallError::WrongInterface(_) => Self::BadAnswer,
            CallError::Failed(Failure::Retry(_)) => Self::Failed { retry: true },
            CallError::Failed(Failure::Reject(_)) | CallError::InitRefused(_) => {
                Self::Failed { retry: false }
            }
            CallError::HostFailed(_) | CallError::NoCapacity(_) | CallError::Discarded => Self::Broker,
        }
    }

    /// Stable: metrics, and what tasks say, go by it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Trapped => "trapped",
            Self::TimedOut => "timed-out",
            Self::OutOfMemory => "out-of-memory",
            Self::BadAnswer => "bad-answer",
            Self::Failed { .. } => "failed",
            Self::BadBatch => "bad-batch",
            Self::Broker => "broker",
        }
    }
}

/// Why a component is not to be had from this broker's storage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// It is not there, or its bytes are not those that were stored: another copy of it helps.
    #[error("{0}")]
    Absent(String),
    /// The storage does not answer: whether the component is there is not known, and another copy would not stay.
    #[error("this broker's storage fails: {0}")]
    Storage(String),
}

impl From<std::io::Error> for ComponentError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => Self::Absent(error.to_string()),
            _ => Self::Storage(error.to_string()),
        }
    }
}

/// Why a plugin can't be opened for use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its component is not on this broker.
    #[error(
        "the component of '{deployment}' is not on this broker, or is damaged: {reason}; upload the plugin again"
    )]
    Component {
        /// The deployment.
        deployment: String,
        /// What was found.
        reason: String,
    },
    /// This broker's storage does not say whether it has the component.
    #[error("the component of '{deployment}' can't be read: this broker's storage fails: {reason}")]
    Storage {
        /// The deployment.
        deployment: String,
        /// What the storage answered.
        reason: String,
    },
    /// It does not compile any more, or does not load.
    #[error("the plugin of '{deployment}' can't be loaded: {source}")]
    Compile {
        /// The deployment.
        deployment: String,
        /// Why.
        source: CompileError,
    },
    /// It is of another world.
    #[error("'{deployment}': {source}")]
    Kind {
        /// The deployment.
        deployment: String,
        /// Which.
        source: WrongKind,
    },
    /// It refuses its configuration, or does not get as far as answering.
    #[error("'{deployment}': {source}")]
    Config {
        /// The deployment.
        deployment: String,
        /// Its words.
        source: ConfigError,
    },
}

impl OpenError {
    /// What of a plugin does not stand.
    #[must_use]
    pub fn problem(&self) -> PluginProblem {
        match self {
            Self::Component { .. } => PluginProblem::Missing,
            Self::Storage { .. } => PluginProblem::Store,
            Self::Compile { source, .. } => PluginProblem::of_known(source),
            Self::Kind { .. } => PluginProblem::WrongWorld,
            Self::Config { source: ConfigError::Refused(_), .. } => PluginProblem::Config,
            Self::Config { source: ConfigError::Call(error), .. } => PluginProblem::of_call(error),
        }
    }
}

/// What of a plugin does not stand, as whoever asked for it is to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginProblem {
    /// Its component is not here.
    Missing,
    /// It is no component.
    NotAComponent,
    /// It is of another world, or of none of ours.
    WrongWorld,
    /// It imports what a plugin may not have.
    ForbiddenImport,
    /// It is too large.
    TooLarge,
    /// It does not compile, or not within its limits.
    Compile,
    /// This broker can't compile it, or not in time, which says nothing of the plugin.
    Compiler,
    /// It refuses its configuration.
    Config,
    /// A call that it must answer gave no answer.
    Call(CallFailureKind),
    /// It can't be kept on this broker, or what is kept of it not be read.
    Store,
}

impl PluginProblem {
    fn of_compile(error: &CompileError) -> Self {
        match error {
            CompileError::Invalid(InvalidComponent::NotAComponent { .. }) => Self::NotAComponent,
            CompileError::Invalid(InvalidComponent::WrongWorld { .. }) => Self::WrongWorld,
            CompileError::Invalid(InvalidComponent::ForbiddenImport { .. }) => Self::ForbiddenImport,
            CompileError::TooLarge { .. } => Self::TooLarge,
            CompileError::Load(tidemill_wasm::LoadError::WrongInterface(_)) => Self::WrongWorld,
            CompileError::Worker(_) => Self::Compiler,
            CompileError::Failed(_) | CompileError::TimedOut { .. } | CompileError::Load(_) => Self::Compile,
        }
    }

    /// Of a component that compiled in time when it was uploaded: where it does not now, the broker is at fault.
    fn of_known(error: &CompileError) -> Self {
        match error {
            CompileError::TimedOut { .. } => Self::Compiler,
            error => Self::of_compile(error),
        }
    }

    fn of_call(error: &CallError) -> Self {
        Self::Call(CallFailureKind::of(error))
    }
}

/// Why an upload is refused.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It can't be a plugin, or does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It compiles, but does not answer `describe`.
    #[error("the plugin can't be asked what it is: {0}")]
    Describe(#[from] CallError),
    /// It can't be kept.
    #[error("the component can't be stored on the broker: {0}")]
    Store(std::io::Error),
}

impl UploadError {
    /// What of the plugin does not stand.
    #[must_use]
    pub fn problem(&self) -> PluginProblem {
        match self {
            Self::Compile(error) => PluginProblem::of_compile(error),
            Self::Describe(error) => PluginProblem::of_call(error),
            Self::Store(_) => PluginProblem::Store,
        }
    }

    /// The same of a component that was uploaded before and comes from another broker.
    #[must_use]
    pub fn problem_of_known(&self) -> PluginProblem {
        match self {
            Self::Compile(error) => PluginProblem::of_known(error),
            Self::Describe(_) | Self::Store(_) => self.problem(),
        }
    }
}

/// Why the room does not open.
#[derive(Debug, thiserror::Error)]
pub enum HostingStartError {
    /// The sandbox.
    #[error(transparent)]
    Engine(#[from] tidemill_wasm::EngineError),
    /// The artifacts' directory.
    #[error("the directory for plugins can't be used: {0}")]
    Directory(std::io::Error),
    /// The threads.
    #[error("the threads for plugins can't be started: {0}")]
    Threads(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_cannot_be_run_is_no_fault_of_the_plugin() {
        let opened = |source| OpenError::Compile { deployment: "plays".to_owned(), source }.problem();
        let worker = || CompileError::Worker("no more processes".to_owned());
        let timed_out = || CompileError::TimedOut { limit_ms: 60_000 };
        let failed = || CompileError::Failed("a type does not fit".to_owned());
        assert_eq!(opened(worker()), PluginProblem::Compiler);
        assert_eq!(opened(timed_out()), PluginProblem::Compiler, "it was in time when it was uploaded");
        assert_eq!(opened(failed()), PluginProblem::Compile);
        assert_eq!(UploadError::Compile(worker()).problem(), PluginProblem::Compiler);
        assert_eq!(
            UploadError::Compile(timed_out()).problem(),
            PluginProblem::Compile,
            "nobody has seen it in time"
        );
        assert_eq!(UploadError::Compile(timed_out()).problem_of_known(), PluginProblem::Compiler);
        assert_eq!(UploadError::Compile(failed()).problem_of_known(), PluginProblem::Compile);
    }
}
