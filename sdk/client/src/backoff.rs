use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Pauses between attempts: doubling, bounded, and each a random part shorter, so that clients that failed together
/// do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1));
        Self { min, max: max.max(min), next: min }
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.max);
        // Between half and all of it.
        let half = full / 2;
        half + half.mul_f64(random_fraction())
    }

    /// Whether nothing failed since the last success.
    pub(crate) fn is_fresh(&self) -> bool {
        self.next == self.min
    }

    /// The last attempt succeeded.
    pub(crate) const fn reset(&mut self) {
        self.next = self.min;
    }
}

/// From 0 up to 1. Not for secrets.
pub(crate) fn random_fraction() -> f64 {
    f64::from(random_number()) / (f64::from(u32::MAX) + 1.0)
}

/// Any number. Not for secrets.
pub(crate) fn random_number() -> u32 {
    let mixed = RandomState::new().build_hasher().finish();
    // Both halves, so that no bit is lost.
    (mixed ^ (mixed >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(50));
        for full in [10, 20, 40, 50, 50] {
            let pause = backoff.pause();
            let full = Duration::from_millis(full);
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(10));
    }
}
