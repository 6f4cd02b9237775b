//! Following a shard over the snapshots that are put in its place, for as long as its replica is there.

use std::sync::{Arc, Weak};

use tidemill_protocol::{Offset, TopicPartition};
use tidemill_shard::Shard;
use tokio::sync::watch;

use crate::state_machine::Machine;

/// A replica's shard, for whoever keeps it: what it shows is always the one in force. Cheap to clone. It keeps no replica running, and nothing
/// open of one that has ended: whoever waits for a client, be it for days, is not in the way of the shard's next replica.
#[derive(Clone)]
pub struct ShardHandle(Weak<Machine>);

impl ShardHandle {
    pub(crate) fn new(machine: &Arc<Machine>) -> Self {
        Self(Arc::downgrade(machine))
    }

    /// The shard as it is now; `None` once its replica has ended. Not to be kept: an installed snapshot replaces it.
    #[must_use]
    pub fn now(&self) -> Option<Shard> {
        self.0.upgrade().map(|machine| machine.shard())
    }

    /// Returns once the replica has ended.
    pub async fn ended(&self) {
        // Each turn is another shard's.
        while let Some(mut changes) = self.now().map(|shard| shard.changes()) {
            while changes.changed().await.is_ok() {}
        }
    }

    /// Follows a partition's high watermark; `None` where the partition is not here, or the replica has ended.
    #[must_use]
    pub fn watch(&self, partition: TopicPartition) -> Option<HighWatermark> {
        let watched = self.now()?.watch(partition)?;
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
    pub(crate) fn of(machine: &Arc<Machine>) -> Self {
        Self { changes: machine.shard().changes(), shard: ShardHandle::new(machine) }
    }

    /// Returns after a change, or after another shard took the place of the one that was followed. Once the replica has ended nothing changes
    /// any more.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            match self.shard.now() {
                // What the new one has may differ in anything.
                Some(shard) => self.changes = shard.changes(),
                None => std::future::pending().await,
            }
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

    /// Turns to the shard in force; `false` where the partition is gone. Once the replica has ended it stays with what was seen last.
    pub fn follow(&mut self) -> bool {
        if self.watched.has_changed().is_ok() {
            return true;
        }
        let Some(shard) = self.shard.now() else { return true };
        match shard.watch(self.partition) {
            Some(watched) => {
                self.watched = watched;
                true
            }
            None => false,
        }
    }

    /// Waits until there is something at `offset`; `false` where the partition is gone. Where the replica has ended nothing comes any more: see
    /// [`ShardHandle::ended`].
    pub async fn reaches(&mut self, offset: Offset) -> bool {
        // Each turn is another shard's.
        while self.watched.wait_for(|high_watermark| *high_watermark > offset).await.is_err() {
            if self.shard.now().is_none() {
                std::future::pending::<()>().await;
            }
            if !self.follow() {
                return false;
            }
        }
        true
    }
}
