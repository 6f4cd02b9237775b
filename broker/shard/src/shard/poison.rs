//! The end of a shard on this broker: a write or a sync failed, and what is on the disk is not known any more; or its state is not
//! the group's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The shard stopped: nothing more is applied or recorded until the broker starts again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the shard stopped: {reason}")]
pub struct ShardStopped {
    /// What failed, and what to do.
    pub reason: Arc<str>,
}

/// Why nothing is applied or written any more, if that is so.
#[derive(Default)]
pub(super) struct Poison {
    reason: OnceLock<Arc<str>>,
    /// Another shard takes this one's place: no failure, but as final.
    closed: AtomicBool,
}

impl Poison {
    /// Stops the shard for good; the first reason stands. Says whether this was it.
    pub(super) fn set(&self, reason: &str) -> bool {
        self.reason.set(reason.into()).is_ok()
    }

    pub(super) fn reason(&self) -> Option<Arc<str>> {
        self.reason.get().cloned()
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn check(&self) -> Result<(), ShardStopped> {
        match self.reason() {
            Some(reason) => Err(ShardStopped { reason }),
            None if self.is_closed() => Err(ShardStopped { reason: Arc::from("a snapshot takes its place") }),
            None => Ok(()),
        }
    }
}
