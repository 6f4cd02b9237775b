//! The last checkpoint, held as it is.

use std::sync::Arc;

use tidemill_log::segment::PartitionEnds;
use tidemill_protocol::TopicPartition;

use super::Shard;
use crate::partition_log::PartitionLog;
use crate::snapshot::{Snapshot, SnapshotError};
use crate::state::{ShardHeader, read_ends, read_header};
use crate::store::BaseRows;

/// The rows of a checkpoint, and the partitions whose files it names.
pub(crate) struct PinnedCheckpoint {
    pub(crate) header: ShardHeader,
    pub(crate) rows: BaseRows,
    pub(crate) segments: Vec<(TopicPartition, PartitionEnds, Option<Arc<PartitionLog>>)>,
}

impl Shard {
    /// Pins the last checkpoint as a snapshot. Its files are not deleted, and the state file keeps its version, until
    /// the snapshot is dropped. Reads all rows once, and no records. Blocking.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        let inner = &*self.inner;
        // No checkpoint meanwhile: it would delete what is not pinned yet.
        let recorded = inner.recorded.lock();
        let rows = inner.store.rows()?.ok_or(SnapshotError::Nothing)?;
        let damaged = |error: crate::state::ReadStateError| SnapshotError::Damaged(error.to_string());
        let header = read_header(&rows).map_err(damaged)?;
        let ends = read_ends(&rows).map_err(damaged)?;
        let find = |id: &TopicPartition| {
            // One that was deleted since the checkpoint still has its files.
            inner.log(*id).or_else(|| inner.deleted_logs.lock().iter().find(|log| log.id() == *id).cloned())
        };
        let segments = ends.into_iter().map(|(id, ends)| (id, ends, find(&id))).collect();
        let snapshot = Snapshot::new(PinnedCheckpoint { header, rows, segments });
        drop(recorded);
        snapshot
    }
}
