//! The broker's functions, imported.

use crate::bindings::host as wit;
use crate::emit::EmitError;
use crate::log::Level;
use crate::output::Output;
use crate::state::{Blobs, Page, StateError};

pub(crate) fn emit(target: u32, output: &Output) -> Result<(), EmitError> {
    let records = wit::emit::RecordsParam { data: &output.data, index: &output.index };
    wit::emit::send(target, records).map_err(|error| match error {
        wit::emit::EmitError::NoSuchTarget => EmitError::NoSuchTarget,
        wit::emit::EmitError::OverBudget => EmitError::OverBudget,
        wit::emit::EmitError::Malformed(reason) => EmitError::Malformed(reason),
    })
}

pub(crate) fn state_get_many(keys: &Blobs) -> Blobs {
    own(wit::state::get_many(lend(keys)))
}

pub(crate) fn state_write_many(keys: &Blobs, values: &Blobs, ttl_ms: u64) -> Result<(), StateError> {
    wit::state::write_many(lend(keys), lend(values), ttl_ms).map_err(|error| match error {
        wit::state::StateError::OverBudget => StateError::OverBudget,
        wit::state::StateError::Malformed(reason) => StateError::Malformed(reason),
    })
}

pub(crate) fn state_scan(start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
    let page = wit::state::scan(start, end, limit);
    Page { keys: own(page.keys), values: own(page.values), more: page.more }
}

pub(crate) fn timer_set(key: &[u8], at: i64) {
    wit::timers::set(key, at);
}

pub(crate) fn timer_cancel(key: &[u8]) {
    wit::timers::cancel(key);
}

pub(crate) fn metric_add(name: &str, value: u64) {
    wit::metrics::add(name, value);
}

pub(crate) fn log_enabled(level: Level) -> bool {
    wit::log::enabled(wit_level(level))
}

pub(crate) fn log(level: Level, message: &str) {
    wit::log::write(wit_level(level), message);
}

fn wit_level(level: Level) -> wit::log::Level {
    match level {
        Level::Debug => wit::log::Level::Debug,
        Level::Info => wit::log::Level::Info,
        Level::Warn => wit::log::Level::Warn,
        Level::Error => wit::log::Level::Error,
    }
}

fn lend(blobs: &Blobs) -> wit::state::BlobsParam<'_> {
    wit::state::BlobsParam { data: &blobs.data, ends: &blobs.ends }
}

fn own(blobs: wit::state::BlobsResult) -> Blobs {
    Blobs { data: blobs.data, ends: blobs.ends }
}
