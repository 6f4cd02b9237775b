//! Components that this broker could not keep or use: each is tried again after a pause, since it travels and is compiled each time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{FETCH_INTERVAL, LOOK_INTERVAL};

/// Digests that rest, each for twice as long as the time before, up to [`LOOK_INTERVAL`].
#[derive(Default)]
pub(super) struct Resting(HashMap<[u8; 32], Rest>);

struct Rest {
    length: Duration,
    until: Instant,
}

impl Resting {
    pub(super) fn rests(&self, digest: &[u8; 32]) -> bool {
        self.0.get(digest).is_some_and(|rest| Instant::now() < rest.until)
    }

    /// It was tried, in vain.
    pub(super) fn begin(&mut self, digest: [u8; 32]) {
        let before = self.0.get(&digest).map(|rest| rest.length);
        let length = before.map_or(FETCH_INTERVAL, |before| (before * 2).min(LOOK_INTERVAL));
        self.0.insert(digest, Rest { length, until: Instant::now() + length });
    }

    /// It is here.
    pub(super) fn end(&mut self, digest: &[u8; 32]) {
        self.0.remove(digest);
    }

    /// No others are wanted any more.
    pub(super) fn retain(&mut self, wanted: &HashSet<[u8; 32]>) {
        self.0.retain(|digest, _| wanted.contains(digest));
    }

    /// How long until the first of them has rested.
    pub(super) fn left(&self) -> Option<Duration> {
        let first = self.0.values().map(|rest| rest.until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_rests_longer_than_before_and_no_longer_than_the_bound() {
        let (one, other) = ([1; 32], [2; 32]);
        let mut resting = Resting::default();
        assert!(!resting.rests(&one) && resting.left().is_none());
        resting.begin(one);
        assert!(resting.rests(&one) && !resting.rests(&other));
        assert_eq!(resting.left(), Some(FETCH_INTERVAL));
        tokio::time::advance(FETCH_INTERVAL).await;
        assert!(!resting.rests(&one));
        resting.begin(one);
        resting.begin(other);
        assert_eq!(resting.left(), Some(FETCH_INTERVAL), "the other's is the first");
        resting.end(&other);
        assert_eq!(resting.left(), Some(FETCH_INTERVAL * 2));
        (0..20).for_each(|_| resting.begin(one));
        assert_eq!(resting.left(), Some(LOOK_INTERVAL));
        resting.retain(&HashSet::from([other]));
        assert!(resting.left().is_none());
    }
}
