//! Sending records to the deployment's targets. Consumers only.

use std::fmt;

use crate::context::Target;
use crate::failure::Failure;
use crate::host;
use crate::output::Output;

/// Why records were not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmitError {
    /// The deployment has fewer targets.
    NoSuchTarget,
    /// A call may emit only so much: answer with fewer records processed, or fail with [`Failure::Retry`] to get smaller batches.
    OverBudget,
    /// The records do not make sense.
    Malformed(String),
}

/// Sends records to a target; they become visible when this call's progress is committed.
pub fn send(target: Target, output: &Output) -> Result<(), EmitError> {
    host::emit(target.0, output)
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchTarget => f.write_str("the deployment has no such target"),
            Self::OverBudget => f.write_str("the outputs are over the budget of one call"),
            Self::Malformed(reason) => write!(f, "the outputs are malformed: {reason}"),
        }
    }
}

impl std::error::Error for EmitError {}

impl From<EmitError> for Failure {
    fn from(error: EmitError) -> Self {
        match error {
            EmitError::OverBudget => Self::retry(error.to_string()),
            _ => Self::reject(error.to_string()),
        }
    }
}
