//! What can go wrong when a plugin is called, and how wasmtime's errors become that.

use std::fmt;
use std::fmt::Write as _;

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::check::BadAnswer;
use crate::guest_state::GuestState;
use crate::text::cut;

/// Bytes of a reason that wasmtime gives, and of a backtrace.
const REASON_BYTES_MAX: usize = 512;
const BACKTRACE_BYTES_MAX: usize = 2048;

/// Why a call gave no answer. Nothing that the call did is to be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The plugin trapped: an incident, worth a look at the plugin's code.
    #[error("the plugin trapped: {reason}")]
    Trapped {
        /// Which trap.
        reason: String,
        /// Function names, innermost first, one per line; empty where none is known.
        backtrace: String,
    },
    /// The plugin ran for longer than its budget.
    #[error("the plugin ran for longer than {limit_ms} ms")]
    TimedOut {
        /// The budget.
        limit_ms: u64,
    },
    /// The plugin wanted more memory than it may have.
    #[error("the plugin wanted more than its {limit_bytes} bytes of memory")]
    OutOfMemory {
        /// The cap.
        limit_bytes: usize,
    },
    /// The plugin answered, but the answer is not usable.
    #[error("the plugin gave a bad answer: {0}")]
    BadAnswer(String),
    /// The plugin answered that the call failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// `init` refused the configuration, although it had accepted it when the deployment was made.
    #[error("the plugin refused its configuration: {0}")]
    InitRefused(String),
    /// The component's functions have other types than the contract says.
    #[error("the component does not fit the contract tidemill:plugin@0.1: {0}")]
    WrongInterface(String),
    /// What the broker offers the plugin failed: state could not be read, say. Not the plugin's fault.
    #[error("the broker could not serve the plugin: {0}")]
    HostFailed(String),
    /// The engine's instances are all in use. Not the plugin's fault.
    #[error("no room for another plugin instance: {0}")]
    NoCapacity(String),
    /// The instance is not usable any more, because an earlier call trapped, overran or was dropped.
    #[error("the plugin instance was given up after an earlier call")]
    Discarded,
}

/// A failure of the whole call that the plugin answered with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The same batch may succeed later.
    #[error("the plugin failed for now: {0}")]
    Retry(String),
    /// The same batch will never succeed.
    #[error("the plugin refused the batch: {0}")]
    Reject(String),
}

impl CallError {
    /// Whether the plugin's code is at fault, so that it counts as an incident of its deployment: it trapped, overran, or gave
    /// what is not usable.
    #[must_use]
    pub fn is_incident(&self) -> bool {
        match self {
            Self::Trapped { .. } | Self::TimedOut { .. } | Self::OutOfMemory { .. } => true,
            Self::BadAnswer(_) | Self::WrongInterface(_) => true,
            Self::Failed(_) | Self::InitRefused(_) => false,
            Self::HostFailed(_) | Self::NoCapacity(_) | Self::Discarded => false,
        }
    }
}

impl From<BadAnswer> for CallError {
    fn from(bad: BadAnswer) -> Self {
        Self::BadAnswer(bad.0)
    }
}

/// Raised by the epoch callback when the budget is spent.
#[derive(Debug)]
pub(crate) struct Overrun;

/// Raised by a host function that could not serve.
#[derive(Debug)]
pub(crate) struct HostFailed(pub(crate) String);

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call's time is spent")
    }
}

impl fmt::Display for HostFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Overrun {}
impl std::error::Error for HostFailed {}
impl std::error::Error for BadAnswer {}

/// What the error that ended a call means.
pub(crate) fn classify(error: &wasmtime::Error, state: &GuestState) -> CallError {
    if error.is::<Overrun>() {
        return CallError::TimedOut { limit_ms: state.budget_ms() };
    }
    if let Some(failed) = error.downcast_ref::<HostFailed>() {
        return CallError::HostFailed(failed.0.clone());
    }
    if let Some(bad) = error.downcast_ref::<BadAnswer>() {
        return CallError::BadAnswer(bad.0.clone());
    }
    if let Some(full) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return CallError::NoCapacity(full.to_string());
    }
    if error.is::<wasmtime::OutOfMemory>() {
        return CallError::NoCapacity("the broker is out of memory".to_owned());
    }
    // A guest whose growth was refused mostly traps for want of anything better to do.
    if state.memory_refused() {
        return CallError::OutOfMemory { limit_bytes: state.limits().memory_bytes_max };
    }
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return CallError::Trapped { reason: trap.to_string(), backtrace: backtrace(error) };
    }
    // Neither a trap nor ours: the values passed did not follow the canonical ABI.
    CallError::BadAnswer(reason(error))
}

/// The causes' messages, the outermost first, without the backtrace that wasmtime attaches.
pub(crate) fn reason(error: &wasmtime::Error) -> String {
    let is_backtrace = error.is::<WasmBacktrace>();
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if is_backtrace && cause.starts_with("error while executing at wasm backtrace") {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    cut(text, REASON_BYTES_MAX)
}

fn backtrace(error: &wasmtime::Error) -> String {
    let mut text = String::new();
    for frame in error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default() {
        let name =
            frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), ToOwned::to_owned);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}");
        if text.len() > BACKTRACE_BYTES_MAX {
            break;
        }
    }
    cut(text, BACKTRACE_BYTES_MAX)
}
