//! A task's rows: keyed state, timers, and the indexes that find what is due.
//!
//! ```text
//! state          key                 -> expires at i64 be (i64::MAX: never) | value
//! expiry         expires at, key     -> empty
//! timer          key                 -> at i64 be
//! timer by time  at, key             -> empty
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use tidemill_protocol::Timestamp;

use crate::keys::{TaskKey, key, key_with, space};
use crate::state::State;
use crate::store::StoreError;

/// What a row takes beside its key and value, as quotas count it.
const ROW_BYTES: u64 = 32;
const NEVER: i64 = i64::MAX;

pub(crate) fn state_key(task: &TaskKey, own: &[u8]) -> Vec<u8> {
    key_with(space::STATE, task, own)
}

fn timer_key(task: &TaskKey, own: &[u8]) -> Vec<u8> {
    key_with(space::TIMER, task, own)
}

fn by_time_key(space: u8, task: &TaskKey, at: Timestamp, own: &[u8]) -> Vec<u8> {
    key_with(space, &(*task, at), own)
}

/// The end of what has expired at a time in a task's expiry index.
pub(crate) fn expiry_end(task: &TaskKey, now: Timestamp) -> Vec<u8> {
    key(space::EXPIRY, &(*task, now.plus_ms(1)))
}

/// What the keys of a task's timers by time begin with.
pub(crate) fn timer_by_time_prefix(task: &TaskKey) -> Vec<u8> {
    key(space::TIMER_BY_TIME, task)
}

/// The expiry and the value in a state row.
pub(crate) fn split_state_value(row: &Bytes) -> (Timestamp, Bytes) {
    let expires_at = row.first_chunk().map_or(NEVER, |at| i64::from_be_bytes(*at));
    (Timestamp::new(expires_at), row.slice(row.len().min(8)..))
}

pub(crate) fn expired(expires_at: Timestamp, now: Timestamp) -> bool {
    expires_at <= now && expires_at.get() != NEVER
}

/// A key's row as it is, and as it will be.
pub(super) struct StateChange<'a> {
    pub(super) key: &'a Bytes,
    /// Expiry, and bytes of the value.
    pub(super) old: Option<(Timestamp, u64)>,
    pub(super) new: Option<(&'a Bytes, Timestamp)>,
}

/// A timer's time as it is, and as it will be.
pub(super) struct TimerChange<'a> {
    pub(super) key: &'a Bytes,
    pub(super) old: Option<Timestamp>,
    pub(super) new: Option<Timestamp>,
}

impl StateChange<'_> {
    fn row_bytes(&self, value_bytes: u64) -> u64 {
        self.key.len() as u64 + value_bytes + ROW_BYTES
    }

    pub(super) fn bytes_before(&self) -> u64 {
        self.old.map_or(0, |(_, bytes)| self.row_bytes(bytes))
    }

    pub(super) fn bytes_after(&self) -> u64 {
        self.new.map_or(0, |(value, _)| self.row_bytes(value.len() as u64))
    }
}

impl TimerChange<'_> {
    pub(super) fn bytes_before(&self) -> u64 {
        self.old.map_or(0, |_| self.key.len() as u64 + ROW_BYTES)
    }

    pub(super) fn bytes_after(&self) -> u64 {
        self.new.map_or(0, |_| self.key.len() as u64 + ROW_BYTES)
    }
}

/// When a key that is written now goes; for ever where that is not said.
pub(super) fn expiry(expires_at: Option<Timestamp>) -> Timestamp {
    expires_at.unwrap_or(Timestamp::new(NEVER))
}

impl State {
    pub(super) fn stored_state(
        &self,
        task: &TaskKey,
        own: &[u8],
    ) -> Result<Option<(Timestamp, u64)>, StoreError> {
        let row = self.rows.get(&state_key(task, own))?;
        Ok(row.map(|row| {
            let (expires_at, value) = split_state_value(&row);
            (expires_at, value.len() as u64)
        }))
    }

    pub(super) fn stored_timer(&self, task: &TaskKey, own: &[u8]) -> Result<Option<Timestamp>, StoreError> {
        let row = self.rows.get(&timer_key(task, own))?;
        Ok(row.and_then(|row| row.first_chunk().map(|at| Timestamp::new(i64::from_be_bytes(*at)))))
    }

    /// Changes a key's row and its place in the expiry index. Answers how many more keys expire.
    pub(super) fn write_state(&mut self, task: &TaskKey, change: &StateChange<'_>) -> i64 {
        let expires = |at: &Timestamp| at.get() != NEVER;
        let old_expiry = change.old.map(|(at, _)| at).filter(expires);
        let new_expiry = change.new.map(|(_, at)| at).filter(expires);
        if let Some(at) = old_expiry.filter(|at| Some(*at) != new_expiry) {
            self.rows.delete(by_time_key(space::EXPIRY, task, at, change.key));
        }
        if let Some(at) = new_expiry.filter(|at| Some(*at) != old_expiry) {
            let row = by_time_key(space::EXPIRY, task, at, change.key);
            if self.expired_before.get(task).is_some_and(|before| row < *before) {
                self.expired_before.insert(*task, row.clone());
            }
            self.rows.put(row, Bytes::new(), true);
        }
        let key = state_key(task, change.key);
        match change.new {
            Some((value, expires_at)) => {
                let mut row = BytesMut::with_capacity(8 + value.len());
                row.put_i64(expires_at.get());
                row.extend_from_slice(value);
                self.rows.put(key, row.freeze(), change.old.is_none());
            }
            None if change.old.is_some() => self.rows.delete(key),
            None => {}
        }
        i64::from(new_expiry.is_some()) - i64::from(old_expiry.is_some())
    }

    /// Changes a timer's rows. Answers how many more timers are set.
    pub(super) fn write_timer(&mut self, task: &TaskKey, change: &TimerChange<'_>) -> i64 {
        if change.old == change.new {
            return 0;
        }
        if let Some(at) = change.old {
            self.rows.delete(by_time_key(space::TIMER_BY_TIME, task, at, change.key));
        }
        let key = timer_key(task, change.key);
        match change.new {
            Some(at) => {
                self.rows.put(by_time_key(space::TIMER_BY_TIME, task, at, change.key), Bytes::new(), true);
                let value = Bytes::copy_from_slice(&at.get().to_be_bytes());
                self.rows.put(key, value, change.old.is_none());
            }
            None => self.rows.delete(key),
        }
        i64::from(change.new.is_some()) - i64::from(change.old.is_some())
    }
}
