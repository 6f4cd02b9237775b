//! Counters of the plugin's own, shown and exported with its deployment's.

use crate::host;

/// Adds to a counter.
pub fn add(name: &str, value: u64) {
    host::metric_add(name, value);
}
