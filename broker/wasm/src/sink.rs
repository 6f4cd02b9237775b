//! Where a plugin's own log lines and counters go.

/// How much a log line matters, by the plugin's judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// For the plugin's author.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something failed.
    Error,
}

/// Takes a deployment's log lines and counters. Lines are bounded in length and in number per call before they get here; how many
/// per second are kept is the sink's decision. Called on the task that runs the plugin, so it must not block.
pub trait GuestSink: Send + Sync + 'static {
    /// Whether lines of this level are kept at all. Plugins ask before they make a line.
    fn enabled(&self, level: LogLevel) -> bool;

    /// A log line.
    fn log(&self, level: LogLevel, message: &str);

    /// Lines of one call that were not passed on because there were too many.
    fn lines_dropped(&self, count: u32);

    /// Adds to a counter of the plugin's own. The name is short, of letters, digits and `_`.
    fn count(&self, name: &str, value: u64);

    /// A call, or an instance's start, is over, in whichever way. `memory_bytes` is the linear memory that the instance has grown to.
    fn call_ended(&self, memory_bytes: usize) {
        let _ = memory_bytes;
    }
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullSink;

impl GuestSink for NullSink {
    fn enabled(&self, _level: LogLevel) -> bool {
        false
    }

    fn log(&self, _level: LogLevel, _message: &str) {}

    fn lines_dropped(&self, _count: u32) {}

    fn count(&self, _name: &str, _value: u64) {}
}
