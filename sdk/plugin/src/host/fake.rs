//! The broker's functions, played on the host: one world per thread, so per test.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;

use crate::emit::EmitError;
use crate::log::Level;
use crate::output::Output;
use crate::state::{Blobs, Page, StateError};

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::default());
}

/// A state entry and when it expires, by the log's time.
type Entry = (Vec<u8>, Option<i64>);

/// All that the fake broker keeps for a task.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: i64,
    pub(crate) targets: u32,
    /// What one call may emit.
    pub(crate) emit_bytes_max: usize,
    /// What the task may keep.
    pub(crate) state_bytes_max: usize,
    pub(crate) state: BTreeMap<Vec<u8>, Entry>,
    pub(crate) timers: BTreeMap<Vec<u8>, i64>,
    /// Of the call under way.
    pub(crate) emitted: Vec<(u32, Output)>,
    pub(crate) metrics: BTreeMap<String, u64>,
    pub(crate) log: Vec<(Level, String)>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            now: 0,
            targets: 0,
            emit_bytes_max: usize::MAX,
            state_bytes_max: usize::MAX,
            state: BTreeMap::new(),
            timers: BTreeMap::new(),
            emitted: Vec::new(),
            metrics: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

/// Looks at this thread's world, or changes it.
pub(crate) fn with_world<R>(look: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(look)
}

impl World {
    fn live(&self, entry: &Entry) -> bool {
        entry.1.is_none_or(|expires_at| expires_at > self.now)
    }

    fn state_bytes(&self) -> usize {
        self.state.iter().map(|(key, (value, _))| key.len() + value.len()).sum()
    }
}

/// The functions that plugins call.
pub(crate) mod calls {
    use super::*;

    pub(crate) fn emit(target: u32, output: &Output) -> Result<(), EmitError> {
        with_world(|world| {
            if target >= world.targets {
                return Err(EmitError::NoSuchTarget);
            }
            let bytes: usize = world.emitted.iter().map(|(_, output)| output.bytes()).sum();
            if bytes + output.bytes() > world.emit_bytes_max {
                return Err(EmitError::OverBudget);
            }
            world.emitted.push((target, output.clone()));
            Ok(())
        })
    }

    pub(crate) fn state_get_many(keys: &Blobs) -> Blobs {
        with_world(|world| {
            let mut values = Blobs::default();
            for key in keys.iter().flatten() {
                match world.state.get(key).filter(|entry| world.live(entry)) {
                    Some((value, _)) => values.push(value),
                    None => values.push_absent(),
                }
            }
            values
        })
    }

    pub(crate) fn state_write_many(keys: &Blobs, values: &Blobs, ttl_ms: u64) -> Result<(), StateError> {
        if keys.len() != values.len() {
            return Err(StateError::Malformed(format!("{} keys, {} values", keys.len(), values.len())));
        }
        with_world(|world| {
            let expires_at = (ttl_ms > 0).then(|| world.now.saturating_add_unsigned(ttl_ms));
            for (key, value) in keys.iter().flatten().zip(values.iter()) {
                match value {
                    Some(value) => _ = world.state.insert(key.to_vec(), (value.to_vec(), expires_at)),
                    None => _ = world.state.remove(key),
                }
            }
            if world.state_bytes() > world.state_bytes_max { Err(StateError::OverBudget) } else { Ok(()) }
        })
    }

    pub(crate) fn state_scan(start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
        with_world(|world| {
            let mut page = Page::default();
            let above = (Bound::Included(start), Bound::Unbounded);
            let entries = world.state.range::<[u8], _>(above).filter(|(_, entry)| world.live(entry));
            for (key, (value, _)) in entries.take_while(|(key, _)| end.is_none_or(|end| key.as_slice() < end))
            {
                if page.keys.len() == limit as usize {
                    page.more = true;
                    break;
                }
                page.keys.push(key);
                page.values.push(value);
            }
            page
        })
    }

    pub(crate) fn timer_set(key: &[u8], at: i64) {
        with_world(|world| _ = world.timers.insert(key.to_vec(), at));
    }

    pub(crate) fn timer_cancel(key: &[u8]) {
        with_world(|world| _ = world.timers.remove(key));
    }

    pub(crate) fn metric_add(name: &str, value: u64) {
        with_world(|world| *world.metrics.entry(name.to_owned()).or_default() += value);
    }

    pub(crate) fn log_enabled(_level: Level) -> bool {
        true
    }

    pub(crate) fn log(level: Level, message: &str) {
        with_world(|world| world.log.push((level, message.to_owned())));
    }
}
