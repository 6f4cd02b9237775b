//! The contract's `log` and `metrics`: for every world.

use crate::bindings::tidemill::plugin::{log, metrics};
use crate::guest_state::GuestState;
use crate::sink::LogLevel;
use crate::text::cut;

/// Bytes of a counter's name.
const METRIC_NAME_BYTES_MAX: usize = 64;

impl log::Host for GuestState {
    fn enabled(&mut self, level: log::Level) -> wasmtime::Result<bool> {
        Ok(self.sink.enabled(level_of(level)))
    }

    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        self.used.log_lines = self.used.log_lines.saturating_add(1);
        if self.used.log_lines <= self.limits().log_lines_per_call_max {
            let line = cut(message, self.limits().log_line_bytes_max);
            self.sink.log(level_of(level), &line);
        }
        Ok(())
    }
}

impl metrics::Host for GuestState {
    fn add(&mut self, name: String, value: u64) -> wasmtime::Result<()> {
        if self.used.metric_updates < self.limits().metric_updates_per_call_max && is_metric_name(&name) {
            self.used.metric_updates += 1;
            self.sink.count(&name, value);
        }
        Ok(())
    }
}

fn level_of(level: log::Level) -> LogLevel {
    match level {
        log::Level::Debug => LogLevel::Debug,
        log::Level::Info => LogLevel::Info,
        log::Level::Warn => LogLevel::Warn,
        log::Level::Error => LogLevel::Error,
    }
}

/// Names become part of an exported metric's name or label, so they hold nothing that needs to be quoted.
fn is_metric_name(name: &str) -> bool {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    starts_well && name.len() <= METRIC_NAME_BYTES_MAX && name.bytes().all(is_word)
}

#[cfg(test)]
mod tests {
    use super::is_metric_name;

    #[test]
    fn names_need_no_quoting() {
        assert!(is_metric_name("records_seen2"));
        for bad in ["", "2nd", "_x", "a-b", "a b", "ä", "a\"b", &"a".repeat(65)] {
            assert!(!is_metric_name(bad), "{bad}");
        }
    }
}
