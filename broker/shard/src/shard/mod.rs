//! The shard as the rest of the broker holds it.

mod apply;
mod checkpoint;
mod config;
mod open;
mod pin;
mod poison;
mod readers;
mod task_readers;
mod write_behind;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};
use tidemill_log::segment::SegmentFiles;
use tidemill_protocol::TopicPartition;
use tokio::sync::watch;

use crate::partition_log::{LogFiles, PartitionLog};
use crate::state::State;
use crate::store::StateFile;

pub use apply::AppliedState;
pub use checkpoint::{CheckpointDone, CheckpointError};
pub use config::ShardConfig;
pub(crate) use open::STATE_FILE;
pub use open::ShardOpenError;
pub(crate) use pin::PinnedCheckpoint;
pub use poison::ShardStopped;
pub use readers::{AdoptedDeployment, AdoptedTopic, RoutedAttempt};
pub use task_readers::{OutboxItem, StateEntry, StatePage, TaskView};

use checkpoint::Recorded;
use poison::Poison;
use write_behind::{WriteBehind, Writer};

/// One shard: clones share it. The last clone to go stops its background thread.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
    _thread: Arc<write_behind::Thread>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("shard", &self.inner.config.shard).finish_non_exhaustive()
    }
}

/// What the shard's clones and its thread share.
///
/// Locks, in the order in which they may nest: `recorded`, `writer`, `state`, `logs`, one partition's log. Only the
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
    bytes_since_checkpoint: AtomicU64,
    changes: watch::Sender<u64>,
    /// Where the next look at the outboxes begins, so that all get their turn.
    outbox_turn: AtomicU64,
    poison: Poison,
}

impl Inner {
    fn log(&self, id: TopicPartition) -> Option<Arc<PartitionLog>> {
        self.logs.read().get(&id).cloned()
    }

    /// Tells who follows topics, deployments, tasks or the shard's health.
    fn note_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests;
