//! Whether a leader hears from its majority.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::RaftTiming;

/// Looks at a leader now and then. Lost is what was silent for as long as two leases at two looks in a row: where the process itself
/// stood still, the first look comes before what arrived meanwhile is read.
#[derive(Debug)]
pub(crate) struct Contact {
    patience: Duration,
    /// The term that is led, and since when it is seen.
    reign: Option<(u64, Instant)>,
    was_silent: bool,
}

/// What a replica knows of its majority at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    /// The term that this replica leads.
    pub(crate) leading: Option<u64>,
    /// It is the group's only voter.
    pub(crate) alone: bool,
    /// How long ago the last message was sent that a majority has answered.
    pub(crate) acked: Option<Duration>,
}

impl Contact {
    pub(crate) fn new(timing: RaftTiming) -> Self {
        // After one lease openraft takes nothing more; after two the others have elected somebody if they could.
        let patience = Duration::from_millis(timing.lease_ms.saturating_mul(2));
        Self { patience, reign: None, was_silent: false }
    }

    /// How often to look.
    pub(crate) fn look_interval(timing: RaftTiming) -> Duration {
        /// A look at each replica costs something, however short its lease is.
        const LEAST: Duration = Duration::from_millis(10);
        Duration::from_millis(timing.lease_ms).max(LEAST)
    }

    /// Whether nobody is to wait for the majority any longer.
    pub(crate) fn is_lost(&mut self, heard: &Heard, now: Instant) -> bool {
        let Some(term) = heard.leading.filter(|_| !heard.alone) else {
            (self.reign, self.was_silent) = (None, false);
            return false;
        };
        let since = match self.reign {
            Some((known, since)) if known == term => since,
            _ => now,
        };
        self.reign = Some((term, since));
        // Whoever was elected just now was heard by a majority, before any message of its own was answered.
        let reign = now.saturating_duration_since(since);
        let is_silent = heard.acked.map_or(reign, |acked| acked.min(reign)) > self.patience;
        std::mem::replace(&mut self.was_silent, is_silent) && is_silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_cut_off_when_it_was_silent_for_two_leases_at_two_looks() {
        let timing = RaftTiming::default();
        let patience = Duration::from_millis(timing.lease_ms * 2);
        let (mut contact, start) = (Contact::new(timing), Instant::now());
        let second = Duration::from_secs(1);
        let mut look =
            |leading, acked, after| contact.is_lost(&Heard { leading, alone: false, acked }, start + after);
        assert!(!look(Some(3), None, Duration::ZERO), "it has only begun");
        assert!(!look(Some(3), None, patience));
        assert!(!look(Some(3), None, patience + second), "once may be this process's fault");
        assert!(!look(Some(3), Some(second), patience + second * 2), "it was");
        assert!(!look(Some(3), Some(patience + second), patience * 2 + second * 2));
        assert!(look(Some(3), Some(patience + second * 2), patience * 2 + second * 3));
        assert!(look(Some(3), Some(patience * 9), patience * 9), "for as long as it lasts");
        assert!(!look(Some(3), Some(second), patience * 10));
        assert!(!look(Some(3), Some(patience * 2), patience * 11));
        assert!(!look(Some(5), Some(patience * 3), patience * 12), "another reign");
        assert!(!look(None, None, patience * 13));
    }

    #[test]
    fn a_group_of_one_is_its_own_majority() {
        let (mut contact, start) = (Contact::new(RaftTiming::default()), Instant::now());
        let alone = Heard { leading: Some(1), alone: true, acked: None };
        for minutes in 0..5 {
            assert!(!contact.is_lost(&alone, start + Duration::from_secs(60 * minutes)));
        }
    }
}
