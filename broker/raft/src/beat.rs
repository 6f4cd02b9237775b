//! When what replicas do now and then is due.

use std::time::Duration;

use tokio::time::Instant;

/// The replicas of a broker do what is periodic in the same moments: then a broker of a dozen shards wakes up, and sends packets to each of
/// the others, about as often as one of a single shard.
#[derive(Debug, Clone, Copy)]
pub struct Beat(Instant);

impl Beat {
    /// One of its own: other brokers have their moments.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// The next moment of what is due every `period`.
    pub(crate) fn next(self, period: Duration) -> Instant {
        let now = Instant::now();
        let begun = (now - self.0).as_nanos().checked_rem(period.as_nanos()).unwrap_or(0);
        now + period.saturating_sub(Duration::from_nanos(u64::try_from(begun).unwrap_or(u64::MAX)))
    }
}

impl Default for Beat {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_begins_when_is_due_with_the_others() {
        let (beat, period) = (Beat::new(), Duration::from_millis(200));
        let first = beat.next(period);
        assert_eq!(first, Instant::now() + period);
        tokio::time::advance(Duration::from_millis(130)).await;
        assert_eq!(beat.next(period), first);
        tokio::time::sleep_until(first).await;
        assert_eq!(beat.next(period), first + period, "not the same once more");
        assert_eq!(beat.next(period * 3), first + period * 2);
        assert_eq!(beat.next(Duration::ZERO), Instant::now());
    }
}
