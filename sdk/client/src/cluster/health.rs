//! Whether a broker lives. QUIC itself notices after 30 s that nobody answers; an election takes one.

use std::time::Duration;

use tokio::time::Instant;

/// A connection that is quiet for so long is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);
/// How long that may take.
const ANSWER: Duration = Duration::from_millis(400);
/// So long without any sign of life, and there is none to be expected.
const DEAD: Duration = Duration::from_secs(4);

/// What to do after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    /// Send something that is answered.
    Ask,
    /// It does not answer: whoever can goes elsewhere.
    Unwell,
    /// It does again.
    Well,
    /// It will not.
    Dead,
}

/// What was heard of a broker on one connection. Any packet is a sign of life: those of a live system acknowledge what they get,
/// however long the broker takes for an answer.
#[derive(Debug)]
pub(super) struct Health {
    packets: u64,
    heard_at: Instant,
    asked_at: Option<Instant>,
    looked_at: Instant,
    is_unwell: bool,
    is_urgent: bool,
}

impl Health {
    pub(super) const fn new(now: Instant) -> Self {
        Self { packets: 0, heard_at: now, asked_at: None, looked_at: now, is_unwell: false, is_urgent: false }
    }

    /// Somebody waits: the next look is now, and asks.
    pub(super) const fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// When to look. Only where somebody relies on the connection, or has asked already.
    pub(super) fn next_look(&self, is_relied_on: bool) -> Option<Instant> {
        if self.is_urgent && self.asked_at.is_none() {
            return Some(self.heard_at);
        }
        match self.asked_at {
            Some(asked_at) if !self.is_unwell => Some(asked_at + ANSWER),
            Some(_) => Some(self.looked_at + ANSWER),
            None => is_relied_on.then(|| self.heard_at + QUIET),
        }
    }

    /// Looks at the number of packets that came so far.
    pub(super) fn look(&mut self, now: Instant, packets: u64) -> Verdict {
        let is_urgent = std::mem::take(&mut self.is_urgent);
        self.looked_at = now;
        if packets != self.packets {
            self.packets = packets;
            self.heard_at = now;
            self.asked_at = None;
            if std::mem::take(&mut self.is_unwell) {
                return Verdict::Well;
            }
            if !is_urgent {
                return Verdict::Nothing;
            }
        }
        match self.asked_at {
            None => {
                self.asked_at = Some(now);
                Verdict::Ask
            }
            Some(asked_at) if now < asked_at + ANSWER => Verdict::Nothing,
            Some(_) if now >= self.heard_at + DEAD => Verdict::Dead,
            Some(_) => {
                self.is_unwell = true;
                Verdict::Unwell
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_and_then_held_against_the_broker() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut health = Health::new(begun);
        assert_eq!(health.next_look(false), None, "nobody relies on it");
        assert_eq!(health.next_look(true), Some(at(2_000)));
        assert_eq!(health.look(at(2_000), 7), Verdict::Nothing, "it was heard of");
        assert_eq!(health.look(at(4_000), 7), Verdict::Ask);
        assert_eq!(health.look(at(4_300), 7), Verdict::Nothing, "it has a moment");
        assert_eq!(health.look(at(4_400), 8), Verdict::Nothing, "it answers");
        assert_eq!(health.look(at(6_400), 8), Verdict::Ask);
        assert_eq!(health.look(at(6_800), 8), Verdict::Unwell);
        assert_eq!(health.next_look(true), Some(at(7_200)));
        assert_eq!(health.look(at(7_200), 8), Verdict::Unwell, "still");
        assert_eq!(health.look(at(7_500), 9), Verdict::Well);
        assert_eq!(health.look(at(9_500), 9), Verdict::Ask);
        assert_eq!(health.look(at(9_900), 9), Verdict::Unwell);
        assert_eq!(health.look(at(11_600), 9), Verdict::Dead);
    }

    #[test]
    fn whoever_waits_makes_it_quicker() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut health = Health::new(begun);
        health.hurry();
        assert!(health.next_look(false).is_some_and(|look| look <= at(0)));
        assert_eq!(health.look(at(100), 3), Verdict::Ask, "what came before says little");
        health.hurry();
        assert_eq!(health.next_look(false), Some(at(500)), "it has been asked");
        assert_eq!(health.look(at(500), 3), Verdict::Unwell);
    }
}
