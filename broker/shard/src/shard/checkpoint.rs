//! Checkpoints, in generations: apply goes on with N+1 while N is written.
//!
//! ```text
//!  writer lock   state lock
//!   |  freeze:    | O(what changed): reference counts only         apply waits for this alone
//!   |  write tails up to the generation's ends, take the ends
//!   unlocked: sync the segments
//!             wait for the write-ahead log: flushed up to the generation's entry
//!             one durable commit of the state file: entry, objects, rows, segment ends
//!   state lock: reads go to the new version of the file
//!   delete the files that no version names any more
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemill_log::segment::{Flush, PartitionEnds, SegmentEnd, SyncError};
use tidemill_log::wal::EntryId;
use tidemill_protocol::{Offset, TopicPartition};

use super::poison::ShardStopped;
use super::write_behind::WriteError;
use super::{Inner, Shard};
use crate::keys::{key, space};
use crate::partition_log::PartitionLog;
use crate::state::{Frozen, Put, State, encode_end};
use crate::store::StoreError;

/// From so many partitions with new bytes on, one sync of the whole file system is cheaper than one per file: 9 ms
/// against 47 with 16 files of 64 KiB, 240 ms against 2,650 with 1,000 (example `sync_cost`). Below it the files' own
/// syncs do not wait for what else the file system has to write.
const SYNC_ALL_FROM: usize = 16;

/// What the last checkpoint recorded, and what it left to do.
#[derive(Default)]
pub(super) struct Recorded {
    pub(super) applied: Option<EntryId>,
    /// Partitions that are there and have files that nobody names, held by readers when they were to be deleted.
    with_leftovers: Vec<Arc<PartitionLog>>,
    /// Partitions that are gone, with such files.
    deleted: Vec<Arc<PartitionLog>>,
}

impl Recorded {
    /// After a start.
    pub(super) fn new(applied: Option<EntryId>) -> Self {
        Self { applied, ..Self::default() }
    }
}

/// What a checkpoint did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointDone {
    /// The last entry that it covers: the log before it is not needed any more. `None` before the first entry.
    pub applied: Option<EntryId>,
    /// How long apply was held up.
    pub frozen_for: std::time::Duration,
    /// Partitions whose segments were synced.
    pub synced_partitions: usize,
}

/// Why there is no new checkpoint. The shard has stopped; the checkpoint before stands.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CheckpointError {
    /// Now or before.
    #[error(transparent)]
    Stopped(#[from] ShardStopped),
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error("syncing the file system: {0}")]
    SyncAll(io::Error),
    #[error("the write-ahead log was not flushed: {0}")]
    Wal(io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was changed up to an entry, which a checkpoint writes.
pub(super) struct Generation {
    frozen: Frozen,
    changed: Vec<Changed>,
    deleted: Vec<Arc<PartitionLog>>,
}

/// A partition whose log changed in the generation.
struct Changed {
    log: Arc<PartitionLog>,
    log_end: Offset,
    first_segment: Option<Offset>,
}

impl Shard {
    /// Makes the applied state durable. Blocking, one at a time; apply goes on meanwhile.
    ///
    /// `after_flush` must return only once the write-ahead log is flushed up to the entry that it is given.
    ///
    /// # Errors
    /// The shard has stopped, now or before; the last checkpoint stands.
    pub fn checkpoint(
        &self,
        after_flush: &dyn Fn(EntryId) -> io::Result<()>,
    ) -> Result<CheckpointDone, CheckpointError> {
        let inner = &*self.inner;
        let mut recorded = inner.recorded.lock();
        inner.poison.check()?;
        let done = inner.checkpoint(&mut recorded, after_flush);
        Ok(done.map_err(|failure| {
            inner.stop(&format!(
                "its checkpoint failed: {failure}; free the disk or repair it, then restart the broker"
            ))
        })?)
    }

    /// Bytes of entries applied since the last checkpoint began: when to make the next.
    #[must_use]
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.inner.bytes_since_checkpoint.load(Ordering::Relaxed)
    }

    /// Whether there are files of records that retention or somebody let go: they leave the disk with a checkpoint.
    #[must_use]
    pub fn has_files_to_let_go(&self) -> bool {
        self.inner.lets_go.load(Ordering::Relaxed)
    }

    /// Whether partitions were deleted whose files only a checkpoint may remove.
    #[must_use]
    pub fn has_deleted_partitions(&self) -> bool {
        !self.inner.deleted_logs.lock().is_empty()
    }

    /// The entry that the last checkpoint covers.
    #[must_use]
    pub fn checkpointed(&self) -> Option<EntryId> {
        self.inner.recorded.lock().applied
    }
}

impl Inner {
    fn checkpoint(
        &self,
        recorded: &mut Recorded,
        after_flush: &dyn Fn(EntryId) -> io::Result<()>,
    ) -> Result<CheckpointDone, Failure> {
        let mut done = CheckpointDone {
            applied: recorded.applied,
            frozen_for: std::time::Duration::ZERO,
            synced_partitions: 0,
        };
        let mut writer = self.writer.lock();
        // Nothing to do is the usual case of an idle shard; but files that somebody held may be free by now.
        if self.is_recorded(recorded) && !self.has_marked_state() {
            self.delete_leftovers(recorded, Vec::new(), Vec::new());
            return Ok(done);
        }
        #[allow(clippy::disallowed_methods, reason = "measured, and nothing depends on it")]
        let started = std::time::Instant::now();
        let (Generation { frozen, changed, deleted }, is_marked) = {
            let mut state = self.state.write();
            match self.take_ended() {
                Some(marked) => (marked, true),
                None => (self.end_generation(&mut state), false),
            }
        };
        done.frozen_for = started.elapsed();
        for log in &deleted {
            let (all, unwritten) = log.clear();
            self.write_behind.remove(all, unwritten);
        }

        let mut flushes = Vec::with_capacity(changed.len());
        for partition in &changed {
            self.write_until(&mut writer, &partition.log, partition.log_end)?;
            flushes.extend(flush(partition)?.map(|flush| (&partition.log, flush)));
        }
        drop(writer);
        self.write_behind.prune(self.config.write_behind_bytes);
        done.synced_partitions = flushes.len();
        let ends = self.sync(flushes)?;
        done.applied = frozen.header.applied();
        if let Some(applied) = done.applied {
            after_flush(applied).map_err(Failure::Wal)?;
        }
        self.commit(&frozen, &ends, &deleted)?;
        let base = self.store.rows()?;
        if is_marked && let Some((applied, rows)) = done.applied.zip(base.clone()) {
            self.marked_is_written(applied, rows);
        }
        self.state.write().rows.thaw(base);
        recorded.applied = done.applied;
        self.delete_leftovers(recorded, ends, deleted);
        metrics::histogram!("tidemill_checkpoint_seconds").record(started.elapsed().as_secs_f64());
        Ok(done)
    }

    /// Ends a generation with what is applied now: apply goes on with the next.
    pub(super) fn end_generation(&self, state: &mut State) -> Generation {
        self.bytes_since_checkpoint.store(0, Ordering::Relaxed);
        self.lets_go.store(false, Ordering::Relaxed);
        let frozen = state.freeze();
        // With the state held: a partition that is deleted from here on is still one of this generation's, whose
        // state and files must agree.
        let changed = self.changed_logs(&frozen);
        Generation { frozen, changed, deleted: std::mem::take(&mut *self.deleted_logs.lock()) }
    }

    /// Whether nothing was applied since the last checkpoint. What is to go is then known too.
    fn is_recorded(&self, recorded: &Recorded) -> bool {
        let state = self.state.read();
        let same = state.header.applied() == recorded.applied;
        if same {
            self.lets_go.store(false, Ordering::Relaxed);
        }
        same
    }

    fn changed_logs(&self, frozen: &Frozen) -> Vec<Changed> {
        let logs = self.logs.read();
        let changed = frozen.partitions.iter().filter_map(|(id, changes)| {
            let header = changes.header.as_deref()?;
            let log = Arc::clone(logs.get(id)?);
            let first_segment = header.segments.first().map(|segment| segment.base);
            Some(Changed { log, log_end: header.log_end, first_segment })
        });
        changed.collect()
    }

    /// Makes what was written durable, and answers the ends to record.
    fn sync<'a>(
        &self,
        flushes: Vec<(&'a Arc<PartitionLog>, Flush<'a>)>,
    ) -> Result<Vec<(Arc<PartitionLog>, PartitionEnds)>, Failure> {
        if flushes.len() >= SYNC_ALL_FROM {
            if let Err(error) = self.files.sync_all() {
                flushes.into_iter().for_each(|(_, flush)| flush.failed());
                return Err(Failure::SyncAll(error));
            }
            return Ok(flushes.into_iter().map(|(log, flush)| (Arc::clone(log), flush.synced())).collect());
        }
        flushes.into_iter().map(|(log, flush)| Ok((Arc::clone(log), flush.sync()?))).collect()
    }

    fn commit(
        &self,
        frozen: &Frozen,
        ends: &[(Arc<PartitionLog>, PartitionEnds)],
        deleted: &[Arc<PartitionLog>],
    ) -> Result<(), StoreError> {
        self.store.commit(|put| {
            for log in deleted {
                put_ends(put, log.id(), &log.recorded(), &PartitionEnds::default())?;
            }
            for (log, ends) in ends {
                put_ends(put, log.id(), &log.recorded(), ends)?;
            }
            frozen.write(put)
        })
    }

    /// Removes files that the new checkpoint does not name. What can't be removed is tried again by the next one: it
    /// only takes room.
    fn delete_leftovers(
        &self,
        recorded: &mut Recorded,
        ends: Vec<(Arc<PartitionLog>, PartitionEnds)>,
        deleted: Vec<Arc<PartitionLog>>,
    ) {
        let mut present = std::mem::take(&mut recorded.with_leftovers);
        for (log, ends) in ends {
            log.set_recorded(ends);
            if !present.iter().any(|other| Arc::ptr_eq(other, &log)) {
                present.push(log);
            }
        }
        present.retain(|log| {
            let Some(store) = log.opened() else { return false };
            match store.delete_unnamed(&log.recorded()) {
                Ok(done) => done.kept > 0,
                Err(error) => {
                    tracing::warn!(%error, "files of old segments could not be removed; the next checkpoint tries again");
                    true
                }
            }
        });
        recorded.with_leftovers = present;
        deleted.iter().for_each(|log| log.set_recorded(PartitionEnds::default()));
        recorded.deleted.extend(deleted);
        recorded.deleted.retain(|log| match self.remove_partition(log) {
            Ok(gone) => !gone,
            Err(error) => {
                tracing::warn!(partition = %log.id(), %error, "files of a deleted partition could not be removed");
                true
            }
        });
        if !recorded.with_leftovers.is_empty() || !recorded.deleted.is_empty() {
            self.lets_go.store(true, Ordering::Relaxed);
        }
    }

    /// Removes a deleted partition's directory; not yet where a reader or a snapshot holds files of it.
    fn remove_partition(&self, log: &PartitionLog) -> Result<bool, Box<dyn std::error::Error>> {
        let Some(store) = log.opened() else {
            self.files.storage().remove_dir_all(&log.dir())?;
            return Ok(true);
        };
        store.drop_all();
        let kept = store.delete_unnamed(&PartitionEnds::default())?.kept;
        Ok(kept == 0 && store.remove_dir()?)
    }
}

/// Takes what retention let go out of the partition's files, and hands the rest to the operating system.
fn flush(partition: &Changed) -> Result<Option<Flush<'_>>, SyncError> {
    let Some(store) = partition.log.opened() else { return Ok(None) };
    match partition.first_segment {
        Some(first) => store.drop_before(first),
        None => store.drop_all(),
    };
    store.flush().map(Some)
}

/// Records how a partition's ends changed.
fn put_ends(
    put: &mut Put<'_>,
    partition: TopicPartition,
    before: &PartitionEnds,
    after: &PartitionEnds,
) -> Result<(), StoreError> {
    let end_key = |end: &SegmentEnd| key(space::SEGMENT_END, &(partition, end.base_offset));
    for end in before.segments.iter().filter(|end| after.find(end.base_offset).is_none()) {
        put(&end_key(end), None)?;
    }
    for end in after.segments.iter().filter(|end| before.find(end.base_offset) != Some(end)) {
        put(&end_key(end), Some(&encode_end(end)))?;
    }
    Ok(())
}
