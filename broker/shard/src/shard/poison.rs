//! The end of a shard on this broker: a write or a sync failed, and what is on the disk is not known any more.

use std::sync::{Arc, OnceLock};

/// The shard stopped: nothing more is applied or recorded until the broker starts again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the shard stopped: {reason}")]
pub struct ShardStopped {
    /// What failed, and what to do.
    pub reason: Arc<str>,
}

#[derive(Default)]
pub(super) struct Poison(OnceLock<Arc<str>>);

impl Poison {
    /// Stops the shard for good; the first reason stands. Says whether this was it.
    pub(super) fn set(&self, reason: &str) -> bool {
        self.0.set(reason.into()).is_ok()
    }

    pub(super) fn reason(&self) -> Option<Arc<str>> {
        self.0.get().cloned()
    }

    pub(super) fn check(&self) -> Result<(), ShardStopped> {
        self.reason().map_or(Ok(()), |reason| Err(ShardStopped { reason }))
    }
}
