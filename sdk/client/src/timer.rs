//! Waiting for what may have no time at all.

use tokio::time::Instant;

/// Never, where there is no instant.
pub(crate) async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
