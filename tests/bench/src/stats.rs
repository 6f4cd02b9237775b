use hdrhistogram::Histogram;

use crate::Outcome;

/// Several measurements of the same thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Summary {
    /// `None` of nothing, and of what is no number.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min: sorted[0], max: sorted[sorted.len() - 1], count: sorted.len() })
    }
}

/// Durations of many single operations, in microseconds, to three digits.
#[derive(Debug)]
pub(crate) struct Latencies {
    nanoseconds: Histogram<u64>,
}

impl Latencies {
    /// Longer ones count as this.
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);

    pub(crate) fn new() -> Outcome<Self> {
        let most = u64::try_from(Self::LONGEST.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { nanoseconds: Histogram::new_with_bounds(1, most, 3)? })
    }

    pub(crate) fn record(&mut self, taken: std::time::Duration) {
        self.nanoseconds.saturating_record(u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// Microseconds that this share of all operations stayed within.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        self.nanoseconds.value_at_quantile(quantile) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_median_is_the_middle_and_not_the_mean() {
        let summary = Summary::of(&[9.0, 1.0, 2.0, 100.0, 3.0]).expect("numbers");
        assert_eq!(summary, Summary { median: 3.0, min: 1.0, max: 100.0, count: 5 });
        let even = Summary::of(&[4.0, 1.0]).expect("numbers");
        assert_eq!(even.median, 2.5);
    }

    #[test]
    fn nothing_and_no_number_have_no_median() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn quantiles_are_of_what_was_recorded() {
        let mut latencies = Latencies::new().expect("a histogram");
        for microseconds in 1..=1000 {
            latencies.record(Duration::from_micros(microseconds));
        }
        assert_eq!(latencies.count(), 1000);
        assert!((latencies.at(0.5) - 500.0).abs() < 1.0, "{}", latencies.at(0.5));
        assert!((latencies.at(0.99) - 990.0).abs() < 2.0, "{}", latencies.at(0.99));
        latencies.record(Duration::from_secs(3600));
        assert!(latencies.at(1.0) >= 59e6, "longer than the longest counts as that");
    }
}
