//! Lines for `tidemill deployment logs`. The broker limits their rate.
//!
//! ```
//! use tidemill_plugin::log;
//! log::warn!("no field {:?} in record {}", "device", 7);
//! ```

use std::fmt;

use crate::host;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the author while developing.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is not as it should be, and the plugin goes on.
    Warn,
    /// Something failed.
    Error,
}

/// Whether lines of this level are kept.
pub fn enabled(level: Level) -> bool {
    host::log_enabled(level)
}

/// Writes a line, formatted only where its level is kept.
pub fn write(level: Level, message: fmt::Arguments<'_>) {
    if enabled(level) {
        host::log(level, &message.to_string());
    }
}

/// Writes a line of level debug, as `format!` does.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($line:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($line)*)) };
}
/// Writes a line of level info, as `format!` does.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($line:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($line)*)) };
}
/// Writes a line of level warn, as `format!` does.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn {
    ($($line:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($line)*)) };
}
/// Writes a line of level error, as `format!` does.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($line:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($line)*)) };
}

pub use crate::{__log_debug as debug, __log_error as error, __log_info as info, __log_warn as warn};
