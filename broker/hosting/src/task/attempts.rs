//! How often what comes next has been tried, and how much of it at a time.

use std::time::Duration;

/// Longest wait between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Of records, or of timers: one that fails must not hide behind others that do not.
#[derive(Debug)]
pub(super) struct Attempts {
    most: usize,
    /// How many the next call gets at the most: halved while it fails, doubled while it does not.
    at_most: usize,
    tries: u32,
}

/// What to do after a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The same again, after this.
    Again(Duration),
    /// Fewer.
    Fewer,
    /// There was but one: the policy decides.
    Policy,
}

impl Attempts {
    pub(super) fn new(most: usize) -> Self {
        Self { most, at_most: most, tries: 0 }
    }

    pub(super) fn at_most(&self) -> usize {
        self.at_most
    }

    pub(super) fn limit(&mut self, at_most: usize) {
        self.at_most = at_most.clamp(1, self.most);
    }

    pub(super) fn succeeded(&mut self) {
        self.tries = 0;
        self.limit(self.at_most.saturating_mul(2));
    }

    /// A call with `count` of them failed.
    pub(super) fn failed(&mut self, count: usize, may_pass: bool, attempts: u32, backoff_ms: u32) -> Next {
        self.tries += 1;
        if may_pass && self.tries < attempts {
            let base = Duration::from_millis(u64::from(backoff_ms.max(1)));
            return Next::Again(base.saturating_mul(1 << (self.tries - 1).min(16)).min(BACKOFF_MAX));
        }
        self.tries = 0;
        self.limit(count / 2);
        if count > 1 { Next::Fewer } else { Next::Policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_then_halves_until_one_is_left_and_grows_again() {
        let mut attempts = Attempts::new(1000);
        let ms = Duration::from_millis;
        assert_eq!(attempts.failed(1000, true, 3, 200), Next::Again(ms(200)));
        assert_eq!(attempts.failed(1000, true, 3, 200), Next::Again(ms(400)));
        assert_eq!(attempts.failed(1000, true, 3, 200), Next::Fewer);
        assert_eq!(attempts.at_most(), 500);
        assert_eq!(attempts.failed(3, false, 3, 200), Next::Fewer, "what never will is not tried again");
        assert_eq!(attempts.at_most(), 1);
        assert_eq!(attempts.failed(1, false, 3, 200), Next::Policy);
        attempts.succeeded();
        assert_eq!(attempts.at_most(), 2);
        (0..20).for_each(|_| attempts.succeeded());
        assert_eq!(attempts.at_most(), 1000);
    }

    #[test]
    fn a_wait_has_a_bound() {
        let mut attempts = Attempts::new(1);
        let longest = (0..99).map(|_| attempts.failed(1, true, 100, 200)).max_by_key(|next| match next {
            Next::Again(wait) => *wait,
            Next::Fewer | Next::Policy => Duration::MAX,
        });
        assert_eq!(longest, Some(Next::Again(BACKOFF_MAX)));
        assert_eq!(attempts.failed(1, true, 100, 200), Next::Policy);
    }
}
