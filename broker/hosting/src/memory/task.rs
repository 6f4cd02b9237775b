//! One task's rows, with the indexes that find what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use tidemill_protocol::{Offset, Timestamp, TopicPartition};

use crate::port::{DueTimer, StateEntries, TaskRunState};

/// What a key takes beside itself and its value.
const ROW_BYTES: u64 = 32;
/// Keys and values of one page of state.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A value, and when it goes.
pub(super) type Entry = (Bytes, Option<Timestamp>);

pub(super) struct Task {
    pub(super) epoch: u32,
    pub(super) state: TaskRunState,
    pub(super) positions: BTreeMap<TopicPartition, Offset>,
    entries: BTreeMap<Bytes, Entry>,
    expiring: BTreeSet<(Timestamp, Bytes)>,
    timers: BTreeMap<Bytes, Timestamp>,
    by_time: BTreeSet<(Timestamp, Bytes)>,
    bytes: u64,
}

impl Task {
    pub(super) fn new(epoch: u32, positions: &[(TopicPartition, Offset)]) -> Self {
        Self {
            epoch,
            state: TaskRunState::Running,
            positions: positions.iter().copied().collect(),
            entries: BTreeMap::new(),
            expiring: BTreeSet::new(),
            timers: BTreeMap::new(),
            by_time: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// What state and timers take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a key's row takes now, and with another value.
    pub(super) fn entry_bytes(&self, key: &Bytes, new: Option<&Entry>) -> (u64, u64) {
        let of = |entry: &Entry| row_bytes(key, entry.0.len());
        (self.entries.get(key).map_or(0, of), new.map_or(0, of))
    }

    /// The same of a timer.
    pub(super) fn timer_bytes(&self, key: &Bytes, new: Option<Timestamp>) -> (u64, u64) {
        (self.timers.get(key).map_or(0, |_| row_bytes(key, 0)), new.map_or(0, |_| row_bytes(key, 0)))
    }

    pub(super) fn put(&mut self, key: &Bytes, new: Option<Entry>) {
        let (before, after) = self.entry_bytes(key, new.as_ref());
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
        if let Some(at) = new.as_ref().and_then(|(_, expires_at)| *expires_at) {
            self.expiring.insert((at, key.clone()));
        }
        let new_expiry = new.as_ref().and_then(|(_, expires_at)| *expires_at);
        let old = match new {
            Some(entry) => self.entries.insert(key.clone(), entry),
            None => self.entries.remove(key),
        };
        if let Some(at) = old.and_then(|(_, expires_at)| expires_at).filter(|at| Some(*at) != new_expiry) {
            self.expiring.remove(&(at, key.clone()));
        }
    }

    pub(super) fn set_timer(&mut self, key: &Bytes, new: Option<Timestamp>) {
        let (before, after) = self.timer_bytes(key, new);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
        let old = match new {
            Some(at) => self.timers.insert(key.clone(), at),
            None => self.timers.remove(key),
        };
        if let Some(at) = old {
            self.by_time.remove(&(at, key.clone()));
        }
        if let Some(at) = new {
            self.by_time.insert((at, key.clone()));
        }
    }

    /// What has expired is gone.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some((at, key)) = self.expiring.first().cloned().filter(|(at, _)| *at <= now) {
            self.put(&key, None);
            // Also where the index led to nothing: the loop must end.
            self.expiring.remove(&(at, key));
        }
    }

    pub(super) fn get(&self, key: &Bytes) -> Option<&Bytes> {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub(super) fn scan(
        &self,
        start: &Bytes,
        end: Option<&Bytes>,
        limit: usize,
        bytes_max: usize,
    ) -> StateEntries {
        let mut page = StateEntries::default();
        if end.is_some_and(|end| start >= end) {
            return page;
        }
        let mut bytes = 0;
        let range = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        for (key, (value, _)) in self.entries.range::<Bytes, _>(range) {
            if page.entries.len() >= limit || bytes >= bytes_max.min(PAGE_BYTES_MAX) {
                page.next = Some(key.clone());
                break;
            }
            bytes += key.len() + value.len();
            page.entries.push((key.clone(), value.clone()));
        }
        page
    }

    pub(super) fn entries(&self) -> Vec<(Bytes, Bytes)> {
        self.entries.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }

    pub(super) fn timers(&self) -> &BTreeMap<Bytes, Timestamp> {
        &self.timers
    }

    pub(super) fn next_timer(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<DueTimer> {
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now).take(limit);
        due.map(|(at, key)| DueTimer { key: key.clone(), at: *at }).collect()
    }
}

fn row_bytes(key: &Bytes, value_bytes: usize) -> u64 {
    (key.len() + value_bytes) as u64 + ROW_BYTES
}
