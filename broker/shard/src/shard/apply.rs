//! The log's way in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidemill_log::segment::PartitionEnds;
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LeaderEpoch, Offset, TopicPartition};

use super::poison::ShardStopped;
use super::{Inner, Shard};
use crate::apply::{Effect, Effects};
use crate::partition_log::{PartitionLog, PartitionView, tail_bytes};
use crate::result::UnitResult;
use crate::unit::Entry;

/// How far the log is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedState {
    /// The last applied entry.
    pub last: Option<EntryId>,
    /// Raft's membership as of then, opaque here.
    pub membership: Option<Bytes>,
}

/// Bytes that an entry without units counts as.
const ENTRY_BYTES: u64 = 64;

impl Shard {
    /// How far the log is applied: where it goes on after a start.
    #[must_use]
    pub fn applied(&self) -> AppliedState {
        let state = self.inner.state.read();
        AppliedState { last: state.header.applied(), membership: state.header.membership() }
    }

    /// Applies the next entry, in memory, and answers each of its units. Deterministic; its records can be fetched when
    /// it returns.
    ///
    /// # Errors
    /// [`ShardStopped`] where the shard has failed, fails now, or the entry is not the next one. None of the entry is
    /// to be acknowledged then.
    pub fn apply(&self, id: EntryId, entry: &Entry) -> Result<Vec<UnitResult>, ShardStopped> {
        let inner = &*self.inner;
        let mut effects = Effects::default();
        let mut done = Done::default();
        let results = {
            let mut state = inner.state.write();
            inner.check_next(&state.header.applied(), id)?;
            let results =
                state.apply(id, entry, &mut effects).map_err(|error| inner.stop(&error.to_string()))?;
            let metadata_changed = std::mem::take(&mut effects.metadata_changed);
            inner.perform(effects, &mut done);
            done.metadata_changed = metadata_changed;
            results
        };
        inner.bytes_since_checkpoint.fetch_add(entry.bytes() as u64, Ordering::Relaxed);
        inner.tell(done);
        Ok(results)
    }

    /// Applies an entry that says nothing: a new leader's first.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_blank(&self, id: EntryId) -> Result<(), ShardStopped> {
        self.apply_header(id, None)
    }

    /// Applies a change of Raft's membership.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_membership(&self, id: EntryId, membership: &[u8]) -> Result<(), ShardStopped> {
        self.apply_header(id, Some(membership))
    }

    fn apply_header(&self, id: EntryId, membership: Option<&[u8]>) -> Result<(), ShardStopped> {
        let mut state = self.inner.state.write();
        self.inner.check_next(&state.header.applied(), id)?;
        if let Some(membership) = membership {
            state.header.set_membership(membership);
        }
        state.header.set_applied(id);
        drop(state);
        self.inner.bytes_since_checkpoint.fetch_add(ENTRY_BYTES, Ordering::Relaxed);
        Ok(())
    }
}

/// Whom to tell once the state is free again.
#[derive(Default)]
struct Done {
    appended_to: Vec<Arc<PartitionLog>>,
    now_waiting: Vec<Arc<PartitionLog>>,
    metadata_changed: bool,
}

impl Inner {
    fn check_next(&self, applied: &Option<EntryId>, id: EntryId) -> Result<(), ShardStopped> {
        self.poison.check()?;
        match applied {
            // Entries may be missing only before the first: a log whose beginning a snapshot stands for.
            Some(last) if id.index != last.index.next() || id.term < last.term => {
                let (index, after) = (id.index, last.index);
                Err(self
                    .stop(&format!("entry {index} came where the one after {after} is next; this is a bug")))
            }
            _ => Ok(()),
        }
    }

    /// Stops the shard for good.
    pub(super) fn stop(&self, reason: &str) -> ShardStopped {
        if self.poison.set(reason) {
            tracing::error!(shard = %self.config.shard, reason, "the shard stops");
            metrics::counter!("tidemill_shards_stopped_total").increment(1);
            self.note_change();
            self.write_behind.give_up();
        }
        ShardStopped { reason: self.poison.reason().unwrap_or_else(|| reason.into()) }
    }

    /// Carries the effects to the partitions' logs, while nobody else sees the state.
    fn perform(&self, effects: Effects, done: &mut Done) {
        let mut found: Option<Arc<PartitionLog>> = None;
        for effect in effects.list {
            match effect {
                Effect::Appended { partition, batch, starts_segment } => {
                    // Batches of one entry often go to one partition.
                    if found.as_ref().is_none_or(|log| log.id() != partition) {
                        found = self.log(partition);
                        done.appended_to.extend(found.clone());
                    }
                    let Some(log) = &found else { continue };
                    self.write_behind.add(tail_bytes(&batch));
                    if log.push(batch, starts_segment) {
                        done.now_waiting.push(Arc::clone(log));
                    }
                }
                Effect::LogStart { partition, log_start, segments, bytes } => {
                    if let Some(log) = self.log(partition)
                        && log.advance_log_start(log_start, segments, bytes)
                    {
                        self.lets_go.store(true, Ordering::Relaxed);
                    }
                }
                Effect::Configured { partition, config } => {
                    if let Some(log) = self.log(partition) {
                        log.configure(config);
                    }
                }
                Effect::Created { partition, config } => {
                    let log = self.new_log(partition, config);
                    self.logs.write().insert(partition, log);
                }
                Effect::Deleted { partition } => {
                    found = None;
                    if let Some(log) = self.logs.write().remove(&partition) {
                        log.mark_deleted();
                        self.deleted_logs.lock().push(log);
                        self.lets_go.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    fn new_log(&self, id: TopicPartition, config: tidemill_controller::TopicConfig) -> Arc<PartitionLog> {
        let view = PartitionView {
            log_start: Offset::ZERO,
            last_stable: Offset::ZERO,
            high_watermark: Offset::ZERO,
            leader_epoch: LeaderEpoch::new(-1),
            bytes: 0,
            segments: 0,
            config,
        };
        PartitionLog::new(id, self.log_files.clone(), view, PartitionEnds::default())
    }

    fn tell(&self, done: Done) {
        for log in done.appended_to {
            log.publish();
        }
        self.write_behind.wait_for_write(done.now_waiting, self.config.write_behind_bytes);
        if done.metadata_changed {
            self.note_change();
        }
    }
}
