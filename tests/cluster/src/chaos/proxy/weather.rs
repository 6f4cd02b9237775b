use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fixtures::Random;

/// What becomes of packets from one broker to another. By default they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::chaos) struct Weather {
    /// None arrives.
    pub(in crate::chaos) cut: bool,
    /// So many of a hundred are lost.
    pub(in crate::chaos) lost_percent: u64,
    /// So many of a hundred arrive twice.
    pub(in crate::chaos) doubled_percent: u64,
    /// So many of a hundred arrive behind later ones.
    pub(in crate::chaos) overtaken_percent: u64,
    /// All take so long.
    pub(in crate::chaos) delay: Duration,
}

/// An overtaken packet is held up for so long at the most.
const OVERTAKEN_MS_MAX: u64 = 30;

/// What becomes of one packet: when each copy of it arrives, and whether later packets may come before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) copies: u32,
    pub(super) after: Duration,
    pub(super) is_overtaken: bool,
}

impl Weather {
    /// Bad weather of some kind.
    pub(in crate::chaos) fn random(random: &mut Random) -> Self {
        let mut some = |max: u64| if random.chance(50) { 1 + random.below(max) } else { 0 };
        let weather = Self {
            cut: false,
            lost_percent: some(15),
            doubled_percent: some(20),
            overtaken_percent: some(20),
            delay: Duration::from_millis(some(60)),
        };
        // Some of it, in any case.
        match weather == Self::default() {
            true => Self { lost_percent: 5, ..weather },
            false => weather,
        }
    }

    pub(super) fn fate(&self, random: &mut Random) -> Fate {
        let none = Fate { copies: 0, after: Duration::ZERO, is_overtaken: false };
        if self.cut || random.chance(self.lost_percent) {
            return none;
        }
        let copies = if random.chance(self.doubled_percent) { 2 } else { 1 };
        let is_overtaken = random.chance(self.overtaken_percent);
        let held_up = if is_overtaken { 1 + random.below(OVERTAKEN_MS_MAX) } else { 0 };
        Fate { copies, after: self.delay + Duration::from_millis(held_up), is_overtaken }
    }
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cut {
            return f.write_str("cut");
        }
        let Self { lost_percent, doubled_percent, overtaken_percent, delay, .. } = self;
        write!(
            f,
            "{lost_percent} % lost, {doubled_percent} % doubled, {overtaken_percent} % overtaken, {} ms late",
            delay.as_millis()
        )
    }
}

/// Packets between brokers, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Sent on, each once.
    pub forwarded: u64,
    /// Dropped, as the weather was, or because too many were under way.
    pub dropped: u64,
    /// Sent on twice.
    pub doubled: u64,
    /// Held up.
    pub delayed: u64,
    /// Of these, behind later ones.
    pub overtaken: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { forwarded, dropped, doubled, delayed, overtaken } = self;
        write!(
            f,
            "{forwarded} sent on, {dropped} dropped, {doubled} doubled, {delayed} late, {overtaken} of them overtaken"
        )
    }
}

/// Counts [`Traffic`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) forwarded: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) doubled: AtomicU64,
    pub(super) delayed: AtomicU64,
    pub(super) overtaken: AtomicU64,
}

impl Counters {
    pub(super) fn now(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            forwarded: of(&self.forwarded),
            dropped: of(&self.dropped),
            doubled: of(&self.doubled),
            delayed: of(&self.delayed),
            overtaken: of(&self.overtaken),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(weather: Weather) -> Vec<Fate> {
        let mut random = Random::new(7);
        (0..200).map(|_| weather.fate(&mut random)).collect()
    }

    #[test]
    fn what_happens_to_all_packets_happens_to_each() {
        let fair = Fate { copies: 1, after: Duration::ZERO, is_overtaken: false };
        assert_eq!(fates(Weather::default()), [fair; 200]);
        let lost = fates(Weather { lost_percent: 100, ..Weather::default() });
        assert_eq!(lost, [Fate { copies: 0, ..fair }; 200]);

        let longest = Duration::from_millis(OVERTAKEN_MS_MAX);
        let overtaken = fates(Weather { overtaken_percent: 100, ..Weather::default() });
        let is_held_up = |fate: &Fate| !fate.after.is_zero() && fate.after <= longest && fate.is_overtaken;
        assert!(overtaken.iter().all(|fate| is_held_up(fate) && fate.copies == 1), "{overtaken:?}");
        assert!(overtaken.windows(2).any(|two| two[1].after < two[0].after), "later ones come first");
    }
}
