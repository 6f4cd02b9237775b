//! What time does: expiry and clean-up, in steps that are bounded per entry.

use std::ops::{Bound, ControlFlow};

use tidemill_partition::PRODUCER_EXPIRY_MS;
use tidemill_protocol::Timestamp;

use super::Context;
use super::task_rows::{StateChange, expiry_end};
use crate::keys::{KeyPart, TaskKey, after_prefix, key, space};
use crate::state::State;
use crate::store::StoreError;
use crate::unit::AdoptedStatus;

/// How often expired producers are swept. They count as unknown anyway: this only frees their memory.
const SWEEP_INTERVAL_MS: i64 = 10 * 60 * 1000;
/// How long the shard remembers that a topic or a deployment was deleted, and how far its streams came.
const TOMBSTONE_MS: i64 = PRODUCER_EXPIRY_MS;
/// Expired keys of one task that one tick deletes.
const EXPIRED_PER_TICK_MAX: usize = 256;
/// Rows of deleted tasks that one tick deletes.
const PURGED_PER_TICK_MAX: usize = 4096;

impl State {
    pub(super) fn tick(&mut self, context: Context) -> Result<(), StoreError> {
        if context.now.get().saturating_sub(self.header.swept_at.get()) >= SWEEP_INTERVAL_MS {
            self.header.swept_at = context.now;
            self.sweep(context.now);
        }
        self.expire_state(context.now)?;
        self.purge_deleted_tasks()
    }

    fn sweep(&mut self, now: Timestamp) {
        for id in self.partitions.ids() {
            if self.partitions.get(&id).is_some_and(|partition| partition.producers().next().is_some())
                && let Some(partition) = self.partitions.get_mut(&id)
            {
                partition.sweep_producers(now);
            }
        }
        let old = |since: Timestamp| since.plus_ms(TOMBSTONE_MS) < now;
        let routed: Vec<_> =
            self.routed.iter().filter(|(_, producer)| producer.expired(now)).map(|(key, _)| *key).collect();
        for key in routed {
            self.forget_routed(key);
        }
        let topics: Vec<_> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.deleted_at.is_some_and(old))
            .map(|(id, _)| *id)
            .collect();
        for id in topics {
            self.topics.remove(&id);
        }
        // How far a stream came must be known as long as its deployment may send more of it.
        let over = |id| self.deployments.get(&id).is_some_and(|known| known.status == AdoptedStatus::Deleted);
        let inboxes: Vec<_> = self
            .inboxes
            .iter()
            .filter(|(stream, inbox)| over(stream.deployment) && old(inbox.last_used))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in inboxes {
            self.inboxes.remove(&stream);
        }
        let used: std::collections::BTreeSet<_> = (self.tasks.iter().map(|((deployment, _), _)| *deployment))
            .chain(self.outboxes.iter().map(|(stream, _)| stream.deployment))
            .chain(self.inboxes.iter().map(|(stream, _)| stream.deployment))
            .collect();
        let deployments: Vec<_> = self
            .deployments
            .iter()
            .filter(|(id, known)| {
                known.status == AdoptedStatus::Deleted && old(known.adopted_at) && !used.contains(id)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in deployments {
            self.deployments.remove(&id);
        }
    }

    fn expire_state(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let expiring: Vec<TaskKey> =
            self.tasks.iter().filter(|(_, task)| task.expiring > 0).map(|(key, _)| *key).collect();
        for task in expiring {
            let prefix = key(space::EXPIRY, &task);
            let (start, end) = (self.expiry_start(&task), expiry_end(&task, now));
            let due = self.keys_between(&start, Some(&end), EXPIRED_PER_TICK_MAX)?;
            let before = if due.len() < EXPIRED_PER_TICK_MAX { end } else { start };
            self.expired_before.insert(task, due.last().cloned().unwrap_or_default().max(before));
            for row in due {
                let mut rest = row.get(prefix.len()..).unwrap_or_default();
                let Some(at) = Timestamp::take(&mut rest) else { continue };
                let own = bytes::Bytes::copy_from_slice(rest);
                let old = self.stored_state(&task, &own)?;
                debug_assert_eq!(
                    old.map(|(expires_at, _)| expires_at),
                    Some(at),
                    "the index leads to its row"
                );
                let change = StateChange { key: &own, old, new: None };
                let expired = self.write_state(&task, &change);
                if let Some(task) = self.tasks.get_mut(&task) {
                    task.state_bytes = task.state_bytes.saturating_sub(change.bytes_before());
                    task.expiring = task.expiring.saturating_add_signed(expired);
                }
            }
        }
        Ok(())
    }

    fn purge_deleted_tasks(&mut self) -> Result<(), StoreError> {
        let gone: Vec<TaskKey> = self
            .tasks
            .iter()
            .map(|(key, _)| *key)
            .filter(|(deployment, _)| self.is_deleted(*deployment))
            .collect();
        let mut budget = PURGED_PER_TICK_MAX;
        for task in gone {
            for space in [space::STATE, space::TIMER, space::TIMER_BY_TIME, space::EXPIRY] {
                let prefix = key(space, &task);
                let end = after_prefix(&prefix);
                let rows = self.keys_between(&prefix, end.as_deref(), budget)?;
                budget -= rows.len();
                for row in rows {
                    self.rows.delete(row);
                }
            }
            if budget == 0 {
                return Ok(());
            }
            self.tasks.remove(&task);
            self.expired_before.remove(&task);
            // Streams with nothing on the way end with their task.
            let done: Vec<_> = self
                .outboxes
                .iter()
                .filter(|(stream, outbox)| {
                    (stream.deployment, stream.source) == task && outbox.first == outbox.next
                })
                .map(|(stream, _)| *stream)
                .collect();
            for stream in done {
                self.outboxes.remove(&stream);
            }
        }
        Ok(())
    }

    /// The first keys of a range, at most `limit`.
    fn keys_between(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = Vec::new();
        if limit == 0 {
            return Ok(keys);
        }
        self.rows.scan(Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded), |key, _| {
            keys.push(key.to_vec());
            if keys.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(keys)
    }
}
