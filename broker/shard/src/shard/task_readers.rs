//! What hosting reads: tasks, their state and timers, the outboxes.
//!
//! Rows that are not in memory are read from a pinned version of the state file after the state's lock is given back, so
//! that apply never waits for somebody's disk read.

use std::ops::{Bound, ControlFlow};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidemill_protocol::{DeploymentId, Offset, PartitionId, Timestamp, TopicPartition};

use super::Shard;
use crate::apply::{expired, expiry_end, split_state_value, state_key, timer_by_time_prefix};
use crate::keys::{KeyPart, TaskKey, after_prefix, key, space};
use crate::state::{State, TaskState};
use crate::store::{Rows, StoreError};
use crate::unit::{AdoptedStatus, OutboxStream, TaskStatus};

/// Bytes of keys and values in one page of a scan, one larger row excepted.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of items that one look at the outboxes brings, one larger item excepted.
const OUTBOX_BYTES_MAX: usize = 16 << 20;

/// One task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// Its deployment.
    pub deployment: DeploymentId,
    /// Its number.
    pub partition: PartitionId,
    /// The deployment's epoch: what progress must name.
    pub epoch: u32,
    /// Whether the deployment runs.
    pub deployment_status: AdoptedStatus,
    /// Whether this task does.
    pub status: TaskStatus,
    /// Which life of the task: part of its outbox streams' identity.
    pub incarnation: u64,
    /// Where it stands in each source.
    pub positions: Vec<(TopicPartition, Offset)>,
    /// The timer that is due first.
    pub next_timer: Option<(Timestamp, Bytes)>,
    /// Bytes of keyed state and timers, as its quota counts them.
    pub state_bytes: u64,
    /// What is on the way: target, bytes.
    pub outbox: Vec<(TopicPartition, u64)>,
}

/// A key of a task's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// When it goes, if it does.
    pub expires_at: Option<Timestamp>,
}

/// Part of a task's state, in the order of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatePage {
    /// The keys found.
    pub entries: Vec<StateEntry>,
    /// Where to go on, if there may be more: the first key not looked at.
    pub next: Option<Bytes>,
}

/// A batch on its way to another shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxItem {
    /// Which stream.
    pub stream: OutboxStream,
    /// Its number.
    pub number: u64,
    /// The whole batch.
    pub batch: Bytes,
}

/// A stream with something on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutboxQueue {
    stream: OutboxStream,
    /// Number of the oldest item.
    first: u64,
    /// Number of the newest item.
    last: u64,
}

impl Shard {
    /// One task; `None` where it is not here or its deployment is deleted.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn task(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
    ) -> Result<Option<TaskView>, StoreError> {
        let task = (deployment, partition);
        let (mut view, timers) = {
            let state = self.inner.state.read();
            let Some(known) = state.tasks.get(&task) else { return Ok(None) };
            let Some(view) = state.view_task(&task, known) else { return Ok(None) };
            (view, (known.timers > 0).then(|| timers_excerpt(&state, &task, 1)))
        };
        if let Some(timers) = timers {
            view.next_timer =
                read_timers(&task, timers, Timestamp::new(i64::MAX), 1)?.pop().map(|(key, at)| (at, key));
        }
        Ok(Some(view))
    }

    /// One task without its next timer: no disk is read. `None` where it is not here or its deployment is deleted.
    #[must_use]
    pub fn task_now(&self, deployment: DeploymentId, partition: PartitionId) -> Option<TaskView> {
        let (task, state) = ((deployment, partition), self.inner.state.read());
        state.view_task(&task, state.tasks.get(&task)?)
    }

    /// Whether a task has timers, due or not.
    #[must_use]
    pub fn has_timers(&self, deployment: DeploymentId, partition: PartitionId) -> bool {
        self.inner.state.read().tasks.get(&(deployment, partition)).is_some_and(|task| task.timers > 0)
    }

    /// The tasks here, without their next timers, in order.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskView> {
        let state = self.inner.state.read();
        state.tasks.iter().filter_map(|(key, task)| state.view_task(key, task)).collect()
    }

    /// Timers that are due at `now`, the earliest first.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn due_timers(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Bytes, Timestamp)>, StoreError> {
        let task = (deployment, partition);
        let excerpt = {
            let state = self.inner.state.read();
            match state.tasks.get(&task) {
                Some(known) if known.timers > 0 => timers_excerpt(&state, &task, limit),
                _ => return Ok(Vec::new()),
            }
        };
        read_timers(&task, excerpt, now, limit)
    }

    /// Whether a tick at `now` would have something to do for tasks: keys that have expired by then, or rows of deleted tasks. What
    /// one tick does is bounded, so there may be more of it after one.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn tick_due(&self, now: Timestamp) -> Result<bool, StoreError> {
        let excerpts: Vec<_> = {
            let state = self.inner.state.read();
            if state.tasks.iter().any(|((deployment, _), _)| state.is_gone(*deployment)) {
                return Ok(true);
            }
            let expiring = state.tasks.iter().filter(|(_, task)| task.expiring > 0);
            let excerpt = |(key, _): (&TaskKey, _)| {
                let (start, end) = (state.expiry_start(key), expiry_end(key, now));
                (state.rows.excerpt(&start, &end, 1).0, start, end)
            };
            expiring.map(excerpt).collect()
        };
        for (rows, start, end) in excerpts {
            let mut due = false;
            rows.scan(Bound::Included(&start), Bound::Excluded(&end), |_, _| {
                due = true;
                ControlFlow::Break(())
            })?;
            if due {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The values of keys, in their order; `None` where there is none or it expired by the log's time.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn state_get(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let values = self.state_get_within(deployment, partition, keys, usize::MAX)?;
        Ok(values.unwrap_or_default())
    }

    /// As [`Self::state_get`]; `None` where the values are larger than `bytes_max` altogether. A key that comes twice counts
    /// twice. Values beyond the bound are not collected.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn state_get_within(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        keys: &[Bytes],
        bytes_max: usize,
    ) -> Result<Option<Vec<Option<Bytes>>>, StoreError> {
        let task = (deployment, partition);
        let (found, base, now) = {
            let state = self.inner.state.read();
            if state.is_gone(deployment) {
                return Ok(Some(vec![None; keys.len()]));
            }
            let found: Vec<_> = keys.iter().map(|key| state.rows.in_memory(&state_key(&task, key))).collect();
            (found, state.rows.base(), state.header.now())
        };
        let read = |(key, found): (&Bytes, Option<Option<Bytes>>)| {
            let row = match (found, &base) {
                (Some(row), _) => row,
                (None, Some(base)) => base.get(&state_key(&task, key))?,
                (None, None) => None,
            };
            let live =
                row.map(|row| split_state_value(&row)).filter(|(expires_at, _)| !expired(*expires_at, now));
            Ok(live.map(|(_, value)| value))
        };
        let mut values = Vec::with_capacity(keys.len());
        let mut bytes = 0_usize;
        for wanted in keys.iter().zip(found) {
            let value = read(wanted)?;
            bytes = bytes.saturating_add(value.as_ref().map_or(0, Bytes::len));
            if bytes > bytes_max {
                return Ok(None);
            }
            values.push(value);
        }
        Ok(Some(values))
    }

    /// The keys from `start` up to, and not with, `end`, at most `limit` of them and about 4 MiB. An empty `start` is
    /// the first key.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn state_scan(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<StatePage, StoreError> {
        self.state_scan_within(deployment, partition, start, end, limit, PAGE_BYTES_MAX)
    }

    /// As [`Self::state_scan`], and the key that brings the page to `bytes_max` is its last.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn state_scan_within(
        &self,
        deployment: DeploymentId,
        partition: PartitionId,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<StatePage, StoreError> {
        let bytes_max = bytes_max.min(PAGE_BYTES_MAX);
        let task = (deployment, partition);
        let prefix = state_key(&task, &[]);
        let from = state_key(&task, start);
        let to = end.map(|end| state_key(&task, end)).or_else(|| after_prefix(&prefix)).unwrap_or_default();
        let (rows, horizon, now) = {
            let state = self.inner.state.read();
            if state.is_gone(deployment) || limit == 0 {
                return Ok(StatePage::default());
            }
            let (rows, horizon) = state.rows.excerpt(&from, &to, limit.saturating_add(1));
            (rows, horizon, state.header.now())
        };
        let own = |key: &[u8]| Bytes::copy_from_slice(key.get(prefix.len()..).unwrap_or_default());
        let mut page = StatePage { entries: Vec::new(), next: horizon.as_deref().map(own) };
        let mut bytes = 0;
        rows.scan(Bound::Included(&from), Bound::Excluded(horizon.as_deref().unwrap_or(&to)), |key, row| {
            if page.entries.len() >= limit || bytes >= bytes_max {
                page.next = Some(own(key));
                return ControlFlow::Break(());
            }
            let (expires_at, value) = split_state_value(&Bytes::copy_from_slice(row));
            if !expired(expires_at, now) {
                bytes += key.len() + value.len();
                let expires_at = Some(expires_at).filter(|at| at.get() != i64::MAX);
                page.entries.push(StateEntry { key: own(key), value, expires_at });
            }
            ControlFlow::Continue(())
        })?;
        Ok(page)
    }

    /// The streams with something on its way, in order.
    pub(crate) fn outbox_queues(&self) -> Vec<OutboxQueue> {
        self.inner.state.read().outbox_queues()
    }

    /// The oldest items of every stream, at most `limit`, shared out so that no stream waits for the others.
    ///
    /// # Errors
    /// The state store can't be read.
    pub fn outbox_next(&self, limit: usize) -> Result<Vec<OutboxItem>, StoreError> {
        let mut queues = self.outbox_queues();
        if queues.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let each = limit.div_ceil(queues.len()).max(1) as u64;
        let turn = usize::try_from(self.inner.outbox_turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let first = turn % queues.len();
        queues.rotate_left(first);
        queues.truncate(limit);
        let wanted = queues.into_iter().flat_map(|queue| {
            (queue.first..=queue.last.min(queue.first + each - 1)).map(move |number| (queue.stream, number))
        });
        self.outbox_items(wanted.take(limit).collect())
    }

    fn outbox_items(&self, wanted: Vec<(OutboxStream, u64)>) -> Result<Vec<OutboxItem>, StoreError> {
        let row_key = |wanted: &(OutboxStream, u64)| key(space::OUTBOX_ITEM, wanted);
        let (found, base) = {
            let state = self.inner.state.read();
            let found: Vec<_> = wanted.iter().map(|wanted| state.rows.in_memory(&row_key(wanted))).collect();
            (found, state.rows.base())
        };
        let mut items = Vec::new();
        let mut bytes = 0;
        for (wanted, found) in wanted.into_iter().zip(found) {
            let row = match (found, &base) {
                (Some(row), _) => row,
                (None, Some(base)) => base.get(&row_key(&wanted))?,
                (None, None) => None,
            };
            // Delivered since it was listed, or enough for one time: the rest comes with the next look.
            let Some(batch) = row else { continue };
            if bytes > 0 && bytes + batch.len() > OUTBOX_BYTES_MAX {
                break;
            }
            bytes += batch.len();
            items.push(OutboxItem { stream: wanted.0, number: wanted.1, batch });
        }
        Ok(items)
    }
}

impl State {
    fn is_gone(&self, deployment: DeploymentId) -> bool {
        self.deployments.get(&deployment).is_none_or(|known| known.status == AdoptedStatus::Deleted)
    }

    fn view_task(&self, key: &TaskKey, task: &TaskState) -> Option<TaskView> {
        let deployment =
            self.deployments.get(&key.0).filter(|known| known.status != AdoptedStatus::Deleted)?;
        let first = OutboxStream {
            deployment: key.0,
            incarnation: task.incarnation,
            source: key.1,
            target: TopicPartition::new(
                tidemill_protocol::TopicId::new(uuid::Uuid::nil()),
                PartitionId::new(0),
            ),
        };
        let own = |stream: &OutboxStream| {
            (stream.deployment, stream.incarnation, stream.source) == (key.0, task.incarnation, key.1)
        };
        let outbox = (self.outboxes.range(first..))
            .take_while(|(stream, _)| own(stream))
            .filter(|(_, outbox)| outbox.bytes > 0)
            .map(|(stream, outbox)| (stream.target, outbox.bytes))
            .collect();
        Some(TaskView {
            deployment: key.0,
            partition: key.1,
            epoch: deployment.epoch,
            deployment_status: deployment.status,
            status: task.status.clone(),
            incarnation: task.incarnation,
            positions: task.positions.iter().map(|(source, at)| (*source, *at)).collect(),
            next_timer: None,
            state_bytes: task.state_bytes,
            outbox,
        })
    }

    fn outbox_queues(&self) -> Vec<OutboxQueue> {
        let waiting = self.outboxes.iter().filter(|(_, outbox)| outbox.first < outbox.next);
        let queue = waiting.map(|(stream, outbox)| OutboxQueue {
            stream: *stream,
            first: outbox.first,
            last: outbox.next - 1,
        });
        queue.collect()
    }
}

/// The rows of a task's first timers, free of the state's lock.
fn timers_excerpt(state: &State, task: &TaskKey, limit: usize) -> Rows {
    let prefix = timer_by_time_prefix(task);
    let end = after_prefix(&prefix).unwrap_or_default();
    // Its first rows are its first timers: what lies behind the horizon is later than `limit` others.
    state.rows.excerpt(&prefix, &end, limit).0
}

fn read_timers(
    task: &TaskKey,
    rows: Rows,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<(Bytes, Timestamp)>, StoreError> {
    let prefix = timer_by_time_prefix(task);
    let end = after_prefix(&prefix).unwrap_or_default();
    let mut due = Vec::new();
    rows.scan(Bound::Included(&prefix), Bound::Excluded(&end), |key, _| {
        let mut rest = key.get(prefix.len()..).unwrap_or_default();
        match Timestamp::take(&mut rest) {
            Some(at) if at <= now && due.len() < limit => {
                due.push((Bytes::copy_from_slice(rest), at));
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    })?;
    Ok(due)
}
