//! What the host keeps beside each instance: its limits, and what the call under way has used of them.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::budget::Budget;
use crate::config::TABLE_ELEMENTS_MAX;
use crate::limits::PluginLimits;
use crate::sink::GuestSink;
use crate::task_host::TaskHost;
use crate::task_use::TaskUse;

/// Core instances, tables and memories of one store; a component of one of our worlds needs a handful, Python's above 32.
const INSTANCES_MAX: usize = 64;
const TABLES_MAX: usize = 64;
const MEMORIES_MAX: usize = 4;

pub(crate) struct GuestState {
    limits: Arc<PluginLimits>,
    pub(crate) sink: Arc<dyn GuestSink>,
    pub(crate) task: Option<Box<dyn TaskHost>>,
    pub(crate) used: CallUse,
    memory: MemoryUse,
    pub(crate) budget: Budget,
}

/// What the call under way has used.
#[derive(Default)]
pub(crate) struct CallUse {
    pub(crate) log_lines: u32,
    pub(crate) metric_updates: u32,
    pub(crate) task: TaskUse,
    /// Records of the batch under way; none while timers fire.
    pub(crate) input_records: u32,
}

#[derive(Default)]
struct MemoryUse {
    bytes: usize,
    refused: bool,
}

impl GuestState {
    pub(crate) fn new(
        limits: Arc<PluginLimits>,
        sink: Arc<dyn GuestSink>,
        task: Option<Box<dyn TaskHost>>,
    ) -> Self {
        Self {
            limits,
            sink,
            task,
            used: CallUse::default(),
            memory: MemoryUse::default(),
            budget: Budget::default(),
        }
    }

    pub(crate) fn limits(&self) -> &PluginLimits {
        &self.limits
    }

    /// What the task's call has used, beside what it may.
    pub(crate) fn task_use(&mut self) -> (&mut TaskUse, &PluginLimits) {
        (&mut self.used.task, &self.limits)
    }

    /// A call begins: nothing of it is used yet.
    pub(crate) fn begin_call(&mut self, time: Duration, tick: Duration, input_records: u32) {
        self.used = CallUse { input_records, ..CallUse::default() };
        self.memory.refused = false;
        self.budget.begin(time, tick);
    }

    /// A call is over, in whichever way.
    pub(crate) fn end_call(&mut self) {
        let dropped = self.used.log_lines.saturating_sub(self.limits.log_lines_per_call_max);
        if dropped > 0 {
            self.sink.lines_dropped(dropped);
        }
        self.sink.call_ended(self.memory.bytes);
    }

    /// The epoch's deadline has come while the guest runs.
    pub(crate) fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        self.budget.look()
    }

    pub(crate) fn budget_ms(&self) -> u64 {
        u64::try_from(self.budget.time().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn memory_refused(&self) -> bool {
        self.memory.refused
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.bytes
    }
}

impl ResourceLimiter for GuestState {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.memory.bytes.saturating_add(desired.saturating_sub(current));
        if wanted > self.limits.memory_bytes_max {
            self.memory.refused = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory.bytes = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::NullSink;

    fn state(memory_bytes_max: usize) -> GuestState {
        let limits = PluginLimits { memory_bytes_max, ..PluginLimits::inline() };
        GuestState::new(Arc::new(limits), Arc::new(NullSink), None)
    }

    #[test]
    fn the_cap_is_over_all_memories() {
        let mut state = state(100);
        assert!(state.memory_growing(0, 60, None).unwrap());
        assert!(!state.memory_growing(0, 50, None).unwrap());
        assert!(state.memory_refused());
        assert!(state.memory_growing(60, 100, None).unwrap());
        assert_eq!(state.memory_bytes(), 100);
    }
}
