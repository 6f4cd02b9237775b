//! What one deployment's instances may use, and what they may hand back. Every bound of the room has its name here.

use std::time::Duration;

/// Bytes of a key of a task's state or timers: as many as a shard takes.
pub const TASK_KEY_BYTES_MAX: usize = 4096;

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
    /// Bytes that a task may emit in one call, over all targets: what is handed over, whether records point to it or not, or what
    /// the records add up to, whichever is more, and something for each.
    pub emitted_bytes_per_call_max: usize,
    /// Times that a task may emit in one call.
    pub sends_per_call_max: u32,
    /// Bytes of keys, values and timers that a task may write in one call, with something for each.
    pub written_bytes_per_call_max: usize,
    /// Keys that one `state.get-many` may ask for.
    pub read_keys_max: u32,
    /// Bytes of the values that one `state.get-many` answers.
    pub read_bytes_max: usize,
    /// Bytes that a task may read from its state in one call, with something for each read and each key: what bounds the broker's
    /// own work for a call, which the call's time does not count.
    pub read_bytes_per_call_max: usize,
    /// Entries that one `state.scan` answers at most.
    pub scan_entries_max: u32,
    /// Bytes at which a page of `state.scan` ends, one larger entry excepted.
    pub scan_bytes_max: usize,
    /// Timers that a task may set or cancel in one call.
    pub timers_per_call_max: u32,
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
            sends_per_call_max: 10_000,
            written_bytes_per_call_max: 32 << 20,
            read_keys_max: 10_000,
            read_bytes_max: 32 << 20,
            read_bytes_per_call_max: 512 << 20,
            scan_entries_max: 10_000,
            scan_bytes_max: 4 << 20,
            timers_per_call_max: 10_000,
        }
    }
}
