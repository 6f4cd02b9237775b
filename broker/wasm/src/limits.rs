//! What one deployment's instances may use, and what they may hand back. Every bound of the room has its name here.

use std::time::Duration;

/// The bounds of one deployment's instances. Times are CPU time: an instance that waits for state, or for its turn on
/// a busy machine, is not charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginLimits {
    /// Linear memory of one instance, over all its memories. A bulk fill can't be interrupted: 64 MiB take about 30 ms.
    pub memory_bytes_max: usize,
    /// CPU time of one call.
    pub call_time: Duration,
    /// CPU time of starting an instance: instantiation and `lifecycle.init`, and of `lifecycle.describe`. A partitioner, which
    /// is started for each call, has only `call_time` for both.
    pub init_time: Duration,
    /// Bytes that one answer, or one call of a host function, may copy out of the instance.
    pub answer_bytes_max: usize,
    /// Bytes of a rejection's reason or of a failure's text; the rest is cut off.
    pub reason_bytes_max: usize,
    /// Log lines of one call; the rest is counted and not shown.
    pub log_lines_per_call_max: u32,
    /// Bytes of one log line; the rest is cut off.
    pub log_line_bytes_max: usize,
    /// Counter updates of one call; the rest is dropped.
    pub metric_updates_per_call_max: u32,
    /// Bytes that a task may emit in one call, over all targets.
    pub emitted_bytes_per_call_max: usize,
    /// Bytes of keys and values that a task may write to its state in one call.
    pub written_bytes_per_call_max: usize,
    /// Entries that one `state.scan` answers at most.
    pub scan_entries_max: u32,
    /// Timers that a task may set or cancel in one call.
    pub timers_per_call_max: u32,
    /// Bytes of a key of state or of a timer.
    pub key_bytes_max: usize,
}

impl PluginLimits {
    /// For partitioners and filters, which stand between a client and its acknowledgement or its records.
    #[must_use]
    pub fn inline() -> Self {
        Self { memory_bytes_max: 32 << 20, call_time: Duration::from_millis(100), ..Self::task() }
    }

    /// For tasks of hosted consumers.
    #[must_use]
    pub fn task() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            call_time: Duration::from_secs(10),
            init_time: Duration::from_secs(1),
            answer_bytes_max: 32 << 20,
            reason_bytes_max: 1024,
            log_lines_per_call_max: 64,
            log_line_bytes_max: 4096,
            metric_updates_per_call_max: 256,
            emitted_bytes_per_call_max: 32 << 20,
            written_bytes_per_call_max: 32 << 20,
            scan_entries_max: 10_000,
            timers_per_call_max: 10_000,
            key_bytes_max: 4096,
        }
    }
}
