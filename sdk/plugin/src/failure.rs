//! What a plugin answers when it cannot go on, and what it will not accept.

use std::fmt;

/// The whole call failed; nothing that it did is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The same batch may succeed later: the broker tries again, then splits the batch.
    Retry(String),
    /// The same batch will never succeed: the broker splits it until the record that fails stands alone.
    Reject(String),
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry(reason.into())
    }

    /// A failure that will not pass.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(reason) => write!(f, "{reason} (may succeed later)"),
            Self::Reject(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Failure {}

/// A record that the plugin will not accept. The deployment's failure policy decides what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which record of the batch, from 0.
    pub ordinal: u32,
    /// Why, for people.
    pub reason: String,
}

/// Rejections as the broker wants them: by rising ordinal, the first reason for each.
pub(crate) fn in_order(mut rejections: Vec<Rejection>) -> Vec<Rejection> {
    rejections.sort_by_key(|rejection| rejection.ordinal);
    rejections.dedup_by_key(|rejection| rejection.ordinal);
    rejections
}
