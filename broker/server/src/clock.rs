//! The broker's clock: the one place where wall time enters.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_protocol::Timestamp;

/// Tells the time; handed to everything that needs it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock, in milliseconds.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}
