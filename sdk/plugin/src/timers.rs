//! Timers by the log's time; they are part of the task's state. Consumers only.

use crate::host;

/// Sets a timer, or moves the one of this key. One whose time is past is due at once, after this call.
pub fn set(key: impl AsRef<[u8]>, at: i64) {
    host::timer_set(key.as_ref(), at);
}

/// Cancels the timer of this key, if there is one.
pub fn cancel(key: impl AsRef<[u8]>) {
    host::timer_cancel(key.as_ref());
}
