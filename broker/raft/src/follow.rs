//! Following a shard over the snapshots that are put in its place.

use std::sync::Arc;

use tidemill_protocol::{Offset, TopicPartition};
use tidemill_shard::Shard;
use tokio::sync::watch;

use crate::state_machine::Machine;

/// A replica's shard, for whoever keeps it: what it shows is always the one in force. Cheap to clone, and keeps no replica
/// running.
#[derive(Clone)]
pub struct ShardHandle(Arc<Machine>);

impl ShardHandle {
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        Self(machine)
    }

    /// The shard as it is now. Not to be kept: an installed snapshot replaces it.
    #[must_use]
    pub fn now(&self) -> Shard {
        self.0.shard()
    }

    /// Follows what [`Shard::changes`] counts.
    #[must_use]
    pub fn changes(&self) -> ShardChanges {
        ShardChanges { changes: self.now().changes(), shard: self.clone() }
    }

    /// Follows a partition's high watermark; `None` where the partition is not here.
    #[must_use]
    pub fn watch(&self, partition: TopicPartition) -> Option<HighWatermark> {
        let watched = self.now().watch(partition)?;
        Some(HighWatermark { shard: self.clone(), partition, watched })
    }
}

impl std::fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ShardHandle").field(&self.now()).finish()
    }
}

/// Waits for changes of a shard, whichever is in force.
#[derive(Debug)]
pub struct ShardChanges {
    shard: ShardHandle,
    changes: watch::Receiver<u64>,
}

impl ShardChanges {
    /// Returns after a change, or after another shard took the place of the one that was followed.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // What the new one has may differ in anything.
            self.changes = self.shard.now().changes();
        }
    }
}

/// A partition's high watermark, in whichever shard is in force.
#[derive(Debug, Clone)]
pub struct HighWatermark {
    shard: ShardHandle,
    partition: TopicPartition,
    watched: watch::Receiver<Offset>,
}

impl HighWatermark {
    /// The high watermark as it was last seen; of a shard that is in force no longer until [`Self::follow`].
    #[must_use]
    pub fn get(&self) -> Offset {
        *self.watched.borrow()
    }

    /// Turns to the shard in force; `false` where the partition is gone.
    pub fn follow(&mut self) -> bool {
        if self.watched.has_changed().is_ok() {
            return true;
        }
        match self.shard.now().watch(self.partition) {
            Some(watched) => {
                self.watched = watched;
                true
            }
            None => false,
        }
    }

    /// Waits until there is something at `offset`; `false` where the partition is gone.
    pub async fn reaches(&mut self, offset: Offset) -> bool {
        // Each turn is another shard's.
        while self.watched.wait_for(|high_watermark| *high_watermark > offset).await.is_err() {
            if !self.follow() {
                return false;
            }
        }
        true
    }
}
