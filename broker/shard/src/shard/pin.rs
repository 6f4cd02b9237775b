//! The last checkpoint, held as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_log::segment::{PartitionEnds, SegmentEnd, SegmentPin};
use tidemill_protocol::{Offset, TopicPartition};

use super::{Inner, Shard};
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

/// Segments of a shard as its last checkpoint recorded them, whose files stay as long as this is held. What the shard goes on to
/// write comes behind the recorded ends.
#[derive(Default)]
pub(crate) struct OwnSegments(BTreeMap<TopicPartition, (PartitionEnds, SegmentPin)>);

impl OwnSegments {
    pub(crate) fn find(&self, partition: TopicPartition, base_offset: Offset) -> Option<&SegmentEnd> {
        self.0.get(&partition)?.0.find(base_offset)
    }

    pub(crate) fn pin(&self, partition: TopicPartition) -> Option<&SegmentPin> {
        self.0.get(&partition).map(|(_, pin)| pin)
    }
}

impl Inner {
    /// A partition whose files the last checkpoint names: one that was deleted since then still has them.
    fn recorded_log(&self, id: TopicPartition) -> Option<Arc<PartitionLog>> {
        self.log(id).or_else(|| self.deleted_logs.lock().iter().find(|log| log.id() == id).cloned())
    }
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
        if inner.poison.is_closed() {
            return Err(SnapshotError::Closed);
        }
        let rows = inner.store.rows()?.ok_or(SnapshotError::Nothing)?;
        let damaged = |error: crate::state::ReadStateError| SnapshotError::Damaged(error.to_string());
        let header = read_header(&rows).map_err(damaged)?;
        let ends = read_ends(&rows).map_err(damaged)?;
        let segments = ends.into_iter().map(|(id, ends)| (id, ends, inner.recorded_log(id))).collect();
        let snapshot = Snapshot::new(PinnedCheckpoint { header, rows, segments });
        drop(recorded);
        snapshot
    }

    /// Pins those segments of `wanted` that the last checkpoint recorded, whatever they hold.
    pub(crate) fn own_segments(&self, wanted: &BTreeMap<TopicPartition, Vec<Offset>>) -> OwnSegments {
        let inner = &*self.inner;
        let _no_checkpoint = inner.recorded.lock();
        let mut own = OwnSegments::default();
        for (partition, bases) in wanted {
            let Some(log) = inner.recorded_log(*partition) else { continue };
            let Some(store) = log.opened() else { continue };
            let mut ends = log.recorded();
            ends.segments.retain(|end| !end.is_empty() && bases.binary_search(&end.base_offset).is_ok());
            if let Some(pin) = store.pin(&ends) {
                own.0.insert(*partition, (ends, pin));
            }
        }
        own
    }
}
