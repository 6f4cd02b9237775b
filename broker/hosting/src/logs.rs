//! What deployments say and count: bounded, whatever a guest does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidemill_protocol::Timestamp;
use tidemill_wasm::{GuestSink, LogLevel};

/// Lines of a deployment per second, and how many may come at once.
const LINES_PER_SECOND: f64 = 100.0;
const LINES_BURST: f64 = 1000.0;
/// Counters of a plugin's own.
const COUNTERS_MAX: usize = 64;
/// What tells these from the broker's.
const PLUGIN_PREFIX: &str = "plugin_";

/// A line of a deployment's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Rises by one with each line that was kept, from 1.
    pub number: u64,
    /// The broker's time.
    pub time: Timestamp,
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// Of which task.
    pub partition: Option<u32>,
    /// What it says.
    pub message: String,
}

/// Some lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPage {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Ask for lines after this number next.
    pub next: u64,
    /// Lines that are not kept any more, or never were because too many came at once.
    pub dropped: u64,
}

/// The log and the counters of one deployment.
pub(crate) struct DeploymentLog {
    bytes_max: usize,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    lines: Mutex<Lines>,
    counters: Mutex<BTreeMap<String, u64>>,
    /// By task: why it does not come on at present.
    waits: Mutex<BTreeMap<u32, String>>,
}

struct Lines {
    ring: VecDeque<LogLine>,
    bytes: usize,
    next: u64,
    dropped: u64,
    allowance: f64,
    refilled: Instant,
}

impl DeploymentLog {
    pub(crate) fn new(bytes_max: usize, clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Arc<Self> {
        let lines = Lines {
            ring: VecDeque::new(),
            bytes: 0,
            next: 1,
            dropped: 0,
            allowance: LINES_BURST,
            refilled: Instant::now(),
        };
        Arc::new(Self {
            bytes_max,
            clock,
            lines: Mutex::new(lines),
            counters: Mutex::default(),
            waits: Mutex::default(),
        })
    }

    /// Keeps a line; `false` where too many came at once.
    pub(crate) fn line(&self, level: LogLevel, partition: Option<u32>, message: &str) -> bool {
        let time = (self.clock)();
        let mut lines = self.lines.lock();
        let now = Instant::now();
        let earned = now.duration_since(lines.refilled).as_secs_f64() * LINES_PER_SECOND;
        lines.refilled = now;
        lines.allowance = (lines.allowance + earned).min(LINES_BURST);
        if lines.allowance < 1.0 {
            lines.dropped += 1;
            return false;
        }
        lines.allowance -= 1.0;
        let line = LogLine {
            number: lines.next,
            time,
            level: level_name(level),
            partition,
            message: message.to_owned(),
        };
        lines.next += 1;
        lines.bytes += line_bytes(&line);
        lines.ring.push_back(line);
        while lines.bytes > self.bytes_max {
            let Some(oldest) = lines.ring.pop_front() else { break };
            lines.bytes -= line_bytes(&oldest);
            lines.dropped += 1;
        }
        true
    }

    pub(crate) fn page(&self, after: u64, limit: usize) -> LogPage {
        let lines = self.lines.lock();
        let found: Vec<LogLine> =
            lines.ring.iter().filter(|line| line.number > after).take(limit).cloned().collect();
        let next = found.last().map_or(after, |line| line.number);
        LogPage { lines: found, next, dropped: lines.dropped }
    }

    /// Adds to a counter of the broker's.
    pub(crate) fn count(&self, name: &str, value: u64) {
        let mut counters = self.counters.lock();
        if let Some(counter) = counters.get_mut(name) {
            *counter = counter.saturating_add(value);
        } else {
            counters.insert(name.to_owned(), value);
        }
    }

    /// Adds to a counter of the plugin's; a new one beyond the bound is not kept.
    fn count_own(&self, name: &str, value: u64) {
        let name = format!("{PLUGIN_PREFIX}{name}");
        let is_known_or_fits = {
            let counters = self.counters.lock();
            let own = || counters.keys().filter(|known| known.starts_with(PLUGIN_PREFIX)).count();
            counters.contains_key(&name) || own() < COUNTERS_MAX
        };
        if is_known_or_fits {
            self.count(&name, value);
        }
    }

    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        self.counters.lock().clone()
    }

    /// What a task waits for; `None` when it goes on.
    pub(crate) fn set_waits(&self, partition: u32, reason: Option<&str>) {
        let mut waits = self.waits.lock();
        match reason {
            Some(reason) => _ = waits.insert(partition, reason.to_owned()),
            None => _ = waits.remove(&partition),
        }
    }

    pub(crate) fn waits(&self, partition: u32) -> Option<String> {
        self.waits.lock().get(&partition).cloned()
    }

    fn drop_lines(&self, count: u32) {
        self.lines.lock().dropped += u64::from(count);
    }
}

fn line_bytes(line: &LogLine) -> usize {
    size_of::<LogLine>() + line.message.len()
}

fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

/// Where one plugin's instances log and count: its deployment's log, under its task.
pub(crate) struct TaskSink {
    pub(crate) log: Arc<DeploymentLog>,
    pub(crate) partition: Option<u32>,
}

impl GuestSink for TaskSink {
    fn enabled(&self, level: LogLevel) -> bool {
        level != LogLevel::Debug
    }

    fn log(&self, level: LogLevel, message: &str) {
        if self.enabled(level) {
            self.log.line(level, self.partition, message);
        }
    }

    fn lines_dropped(&self, count: u32) {
        self.log.drop_lines(count);
    }

    fn count(&self, name: &str, value: u64) {
        // A plugin's own counter can't pass for one of the broker's.
        self.log.count_own(name, value);
    }
}

/// How long a counter of seconds has run, for the sum of a plugin's time.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes_max: usize) -> Arc<DeploymentLog> {
        DeploymentLog::new(bytes_max, Arc::new(|| Timestamp::new(7)))
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let log = log(1 << 20);
        for number in 1..=5 {
            log.line(LogLevel::Info, Some(2), &format!("line {number}"));
        }
        let first = log.page(0, 2);
        assert_eq!((first.lines.len(), first.next, first.lines[0].number), (2, 2, 1));
        let second = log.page(first.next, 10);
        assert_eq!((second.lines.len(), second.next), (3, 5));
        assert!(log.page(5, 10).lines.is_empty());
    }

    #[test]
    fn a_flood_is_bounded_in_rate_bytes_and_names() {
        let log = log(4096);
        for _ in 0..5000 {
            log.line(LogLevel::Error, None, &"x".repeat(100));
        }
        let page = log.page(0, 10_000);
        assert!(page.lines.len() < 100 && page.dropped > 4000, "{} lines kept", page.lines.len());
        for number in 0..1000 {
            log.count_own(&format!("c{number}"), 1);
        }
        assert_eq!(log.counters().len(), COUNTERS_MAX);
        // What the broker counts is not the plugin's to push out.
        log.count("traps", 1);
        log.count_own("c0", 1);
        let counters = log.counters();
        assert_eq!((counters.get("traps"), counters.get("plugin_c0")), (Some(&1), Some(&2)));
    }
}
