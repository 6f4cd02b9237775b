//! Lines of the broker's log that come as often as strangers, or what is out of order, cause them: so many, and no more.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that may come at once.
const BURST: u32 = 10;
/// One more each time so much has passed.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// How much may be logged of one kind. Counters tell the rest.
#[derive(Debug)]
pub struct LogBudget {
    line_interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lines: u32,
    earned_at: Option<Instant>,
    left_out: u64,
}

impl LogBudget {
    /// A full budget.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_interval(LINE_INTERVAL)
    }

    /// The same, but after the first lines one comes only each time that so much has passed, which is not nothing.
    #[must_use]
    pub const fn with_interval(line_interval: Duration) -> Self {
        assert!(!line_interval.is_zero(), "a budget has an interval");
        Self { line_interval, state: Mutex::new(State { lines: BURST, earned_at: None, left_out: 0 }) }
    }

    /// Whether a line may be written now: if so, how many were left out since the last one.
    pub fn take(&self) -> Option<u64> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let since = state.earned_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let earned = u32::try_from(since.as_nanos() / self.line_interval.as_nanos()).unwrap_or(u32::MAX);
        if earned > 0 || state.earned_at.is_none() {
            state.earned_at = Some(now);
            state.lines = state.lines.saturating_add(earned).min(BURST);
        }
        if state.lines == 0 {
            state.left_out += 1;
            return None;
        }
        state.lines -= 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

impl Default for LogBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let budget = LogBudget::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let written = (0..1_000).filter(|_| budget.take_at(start).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(budget.take_at(at(1)), Some(990));
        assert_eq!(budget.take_at(at(1)), None);
        assert_eq!(budget.take_at(at(3)), Some(1), "two were earned");
        assert_eq!(budget.take_at(at(3)), Some(0));
        assert_eq!(budget.take_at(at(3)), None);
        let later = (0..1_000).filter(|_| budget.take_at(at(1_000)).is_some()).count();
        assert_eq!(later, 10, "silence earns no more than a burst");
    }

    #[test]
    fn a_budget_may_earn_more_slowly() {
        let budget = LogBudget::with_interval(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((0..20).filter(|_| budget.take_at(start).is_some()).count(), 10);
        assert_eq!(budget.take_at(at(9)), None);
        assert_eq!(budget.take_at(at(10)), Some(11));
        assert_eq!(budget.take_at(at(19)), None);
    }
}
