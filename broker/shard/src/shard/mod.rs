//! The shard as the rest of the broker holds it.

mod apply;
mod checkpoint;
mod close;
mod config;
mod marked;
mod open;
mod pin;
mod poison;
mod readers;
mod repair;
mod task_readers;
mod write_behind;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};
use tidemill_log::segment::SegmentFiles;
use tidemill_protocol::TopicPartition;

use crate::partition_log::{LogFiles, PartitionLog};
use crate::state::State;
use crate::store::StateFile;
use crate::watched::Watched;

pub use apply::AppliedState;
pub use checkpoint::{CheckpointDone, CheckpointError};
pub use close::ClosedShard;
pub use config::ShardConfig;
pub use marked::MarkedState;
pub(crate) use open::STATE_FILE;
pub use open::ShardOpenError;
pub(crate) use pin::{OwnSegments, PinnedCheckpoint};
pub use poison::ShardStopped;
pub use readers::{AdoptedDeployment, AdoptedTopic, RoutedAttempt};
pub use repair::{NoCopy, SegmentRepair, SegmentRepairError};
pub use task_readers::{OutboxItem, StateEntry, StatePage, TaskView};

use checkpoint::Recorded;
use marked::Marked;
use poison::Poison;
use write_behind::{WriteBehind, Writer};

/// One shard: clones share it. The last clone to go stops what moves its batches to segments.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
    moving: Arc<write_behind::Moving>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("shard", &self.inner.config.shard).finish_non_exhaustive()
    }
}

/// What the shard's clones and its worker share.
///
/// Locks, in the order in which they may nest: `recorded`, `writer`, `state`, `marked`, `logs`, one partition's log. Only the
/// first two are ever held across I/O, and apply takes neither.
struct Inner {
    config: ShardConfig,
    files: Arc<SegmentFiles>,
    log_files: LogFiles,
    store: StateFile,
    state: RwLock<State>,
    logs: RwLock<HashMap<TopicPartition, Arc<PartitionLog>>>,
    /// Partitions that are gone, until a checkpoint no longer names their files.
    deleted_logs: Mutex<Vec<Arc<PartitionLog>>>,
    write_behind: WriteBehind,
    /// Files are on the disk that no reader gets to any more: they go with a checkpoint.
    lets_go: AtomicBool,
    /// Held by whoever moves batches to segments.
    writer: Mutex<Writer>,
    /// Held by the checkpoint that is under way.
    recorded: Mutex<Recorded>,
    /// A state that is to be hashed.
    marked: Mutex<Marked>,
    bytes_since_checkpoint: AtomicU64,
    changes: Watched<u64>,
    /// Where the next look at the outboxes begins, so that all get their turn.
    outbox_turn: AtomicU64,
    poison: Poison,
}

impl Shard {
    pub(crate) fn config(&self) -> &ShardConfig {
        &self.inner.config
    }

    pub(crate) fn files(&self) -> &Arc<SegmentFiles> {
        &self.inner.files
    }
}

impl Inner {
    fn log(&self, id: TopicPartition) -> Option<Arc<PartitionLog>> {
        self.logs.read().get(&id).cloned()
    }

    /// Tells who follows topics, deployments, tasks or the shard's health.
    fn note_change(&self) {
        self.changes.modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests;
