//! How fast snapshots leave a broker.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What may be sent at once after a pause, as a share of a second's allowance.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket in bytes per second, shared by all that a broker sends: transfers in turn, a piece each. The rate can be
/// changed at any time.
#[derive(Debug)]
pub struct SnapshotLimiter {
    bucket: Mutex<Bucket>,
    /// Whoever waits, in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug)]
struct Bucket {
    /// `None`: unlimited.
    bytes_per_second: Option<u64>,
    /// Seconds of the rate's allowance; below zero, what was sent in advance.
    seconds: f64,
    filled_at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.seconds = (self.seconds + passed).min(BURST.as_secs_f64());
        self.filled_at = now;
    }
}

impl SnapshotLimiter {
    /// A limiter at that rate; unlimited for `None`. No rate is below a byte per second.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let bucket = Bucket { bytes_per_second, seconds: BURST.as_secs_f64(), filled_at: Instant::now() };
        Self { bucket: Mutex::new(bucket), turn: tokio::sync::Mutex::new(()), changed: Notify::new() }
    }

    /// Changes the rate, for transfers under way too.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let mut bucket = self.bucket.lock();
        bucket.fill(Instant::now());
        if bucket.bytes_per_second != bytes_per_second {
            bucket.bytes_per_second = bytes_per_second;
            // What was sent in advance at the old rate is not paid for at the new one.
            bucket.seconds = bucket.seconds.max(0.0);
            drop(bucket);
            self.changed.notify_waiters();
        }
    }

    /// The rate; `None`: unlimited.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.bucket.lock().bytes_per_second
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, bytes: usize) {
        if self.bytes_per_second().is_none() {
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let Some(wait) = self.try_take(bytes) else { return };
            let _whichever = tokio::time::timeout(wait, changed).await;
        }
    }

    /// Takes the bytes, or says how long to wait. What is taken is paid for afterwards: a piece may be larger than the bucket.
    fn try_take(&self, bytes: usize) -> Option<Duration> {
        let mut bucket = self.bucket.lock();
        let rate = bucket.bytes_per_second?.max(1);
        bucket.fill(Instant::now());
        if bucket.seconds < 0.0 {
            // Rounded up: a timer that is a little early would come here again and again.
            return Some(Duration::from_secs_f64(-bucket.seconds) + Duration::from_millis(1));
        }
        bucket.seconds -= bytes as f64 / rate as f64;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds(limiter: &SnapshotLimiter, pieces: usize) -> f64 {
        let started = Instant::now();
        for _ in 0..pieces {
            limiter.take(1_000).await;
        }
        started.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_over_all_and_changes_at_once() {
        let limiter = SnapshotLimiter::new(Some(20_000));
        let (a, b) = tokio::join!(seconds(&limiter, 4), seconds(&limiter, 4));
        // 8,000 bytes: 2,000 at once and one piece in advance, the rest at the rate.
        let took = a.max(b);
        assert!((0.25..0.35).contains(&took), "{took}");
        limiter.set(Some(1));
        limiter.take(1_000).await;
        let faster = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            limiter.set(None);
        };
        let (took, ()) = tokio::join!(seconds(&limiter, 3), faster);
        assert!(took < 0.1, "who waits for a slow rate goes on at the new one: {took}");
        assert_eq!(limiter.bytes_per_second(), None);
        assert!(seconds(&limiter, 1_000).await < 0.1);
    }
}
