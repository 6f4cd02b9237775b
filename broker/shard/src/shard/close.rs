//! The end of a shard whose place a snapshot takes.
//!
//! ```text
//!  close                                   no apply, no checkpoint, no write behind from here on
//!    |  staging is put in its place, and opened          readers go on in memory and on the files they know
//!  give_way                                whoever follows it turns to the new shard
//! ```

use std::sync::Arc;

use super::Shard;
use super::poison::ShardStopped;

/// A shard that writes nothing any more. Dropped before [`Self::give_way`], it has stopped for good: what was to take its place
/// could not be put there.
pub struct ClosedShard {
    shard: Shard,
    gave_way: bool,
}

impl Shard {
    /// Ends all that changes the shard or its files: applying, writing behind, checkpoints. What is under way of these ends first.
    /// Reads go on. Blocking.
    ///
    /// # Errors
    /// The shard has stopped, now or before: what its files hold is not known.
    pub fn close(&self) -> Result<ClosedShard, ShardStopped> {
        let inner = &*self.inner;
        inner.poison.close();
        self.moving.end();
        // Whoever holds one of these began before, and whoever takes it later looks first.
        drop(inner.recorded.lock());
        drop(inner.writer.lock());
        drop(inner.state.write());
        inner.write_behind.give_up();
        match inner.poison.reason() {
            Some(reason) => Err(ShardStopped { reason }),
            None => Ok(ClosedShard { shard: self.clone(), gave_way: false }),
        }
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl ClosedShard {
    /// The shard, to read.
    #[must_use]
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Tells whoever follows this shard to turn to the one that has taken its place, and lets its files go. To be called when that one is
    /// what they find.
    pub fn give_way(mut self, to: &Shard) {
        self.gave_way = true;
        let inner = &*self.shard.inner;
        inner.changes.end();
        let mut logs: Vec<_> = inner.logs.read().values().cloned().collect();
        // In an order that is the same everywhere: each wakes others.
        logs.sort_unstable_by_key(|log| log.id());
        for log in logs {
            log.give_way(to.partition(log.id()).map(|view| view.log_start));
        }
    }
}

impl Drop for ClosedShard {
    fn drop(&mut self) {
        if !self.gave_way {
            self.shard.inner.stop("a snapshot could not be put in its place; restart the broker");
        }
    }
}

impl std::fmt::Debug for ClosedShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClosedShard").field(&self.shard).finish()
    }
}
