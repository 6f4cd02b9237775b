//! Legs of a measurement, run in turn: A B A B. A slow moment of the machine hits neighbours alike, so ratios are taken within a round, and
//! the median over the rounds counts.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use crate::Outcome;
use crate::stats::Summary;

/// Checkpoints that a leg which writes must have in it, or a leg shows nothing of what they cost.
const CHECKPOINTS_LEAST: u64 = 3;

/// What one leg came to: values by name, with their unit in the name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Sample {
    values: Vec<(&'static str, f64)>,
    /// Checkpoints of the broker meanwhile; `None` for a leg that writes nothing to it.
    checkpoints: Option<u64>,
}

impl Sample {
    pub(crate) fn of(name: &'static str, value: f64) -> Self {
        Self { values: vec![(name, value)], checkpoints: None }
    }

    pub(crate) fn and(mut self, name: &'static str, value: f64) -> Self {
        self.values.push((name, value));
        self
    }

    pub(crate) const fn checkpoints(mut self, count: u64) -> Self {
        self.checkpoints = Some(count);
        self
    }
}

/// One kind of leg. It is told the number of its round.
pub(crate) struct Leg<'a> {
    name: &'static str,
    run: Box<dyn Fn(usize) -> BoxFuture<'a, Outcome<Sample>> + Send + Sync + 'a>,
}

impl<'a> Leg<'a> {
    pub(crate) fn new<F>(name: &'static str, run: impl Fn(usize) -> F + Send + Sync + 'a) -> Self
    where
        F: Future<Output = Outcome<Sample>> + Send + 'a,
    {
        Self { name, run: Box::new(move |round| Box::pin(run(round))) }
    }
}

/// What all rounds came to.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    rounds: Vec<BTreeMap<&'static str, f64>>,
    /// By leg that writes: the fewest checkpoints in one of it.
    checkpoints: BTreeMap<&'static str, u64>,
}

/// Runs every leg once per round, in the order given.
pub(crate) async fn interleave(rounds: usize, legs: &[Leg<'_>]) -> Outcome<Runs> {
    let mut runs = Runs::default();
    for round in 0..rounds {
        let mut values = BTreeMap::new();
        for leg in legs {
            let sample = (leg.run)(round)
                .await
                .map_err(|error| format!("{}, round {}: {error}", leg.name, round + 1))?;
            println!("  round {} of {rounds}, {}: {}", round + 1, leg.name, shown(&sample));
            values.extend(sample.values.iter().copied());
            if let Some(count) = sample.checkpoints {
                let fewest = runs.checkpoints.entry(leg.name).or_insert(count);
                *fewest = count.min(*fewest);
            }
        }
        runs.rounds.push(values);
    }
    Ok(runs)
}

fn shown(sample: &Sample) -> String {
    let mut parts: Vec<String> =
        sample.values.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
    parts.extend(sample.checkpoints.map(|count| format!("{count} checkpoints")));
    parts.join(", ")
}

/// A number as people read it: three or four digits that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

impl Runs {
    /// One value of each round, over all rounds.
    pub(crate) fn each(&self, of: impl Fn(&dyn Fn(&str) -> f64) -> f64) -> Outcome<Summary> {
        let values: Vec<f64> = self
            .rounds
            .iter()
            .map(|round| of(&|name| round.get(name).copied().unwrap_or(f64::NAN)))
            .collect();
        Summary::of(&values).ok_or_else(|| format!("a round has no such value: {:?}", self.rounds).into())
    }

    /// A value over all rounds.
    pub(crate) fn value(&self, name: &str) -> Outcome<Summary> {
        self.each(|of| of(name))
    }

    /// A value over another of the same round.
    pub(crate) fn ratio(&self, name: &str, over: &str) -> Outcome<Summary> {
        self.each(|of| of(name) / of(over))
    }

    /// What each leg's values came to, and where a leg had too few checkpoints: for people.
    pub(crate) fn notes(&self) -> Vec<String> {
        let names: Vec<&str> =
            self.rounds.first().map(|round| round.keys().copied().collect()).unwrap_or_default();
        let mut notes = Vec::new();
        for name in names {
            if let Ok(summary) = self.value(name) {
                let (median, min, max) = (number(summary.median), number(summary.min), number(summary.max));
                notes.push(format!("{name}: {median} ({min} to {max})"));
            }
        }
        for (leg, fewest) in &self.checkpoints {
            if *fewest < CHECKPOINTS_LEAST {
                notes.push(format!(
                    "{leg}: only {fewest} checkpoints in one of its legs, fewer than {CHECKPOINTS_LEAST}"
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn legs_run_in_turn_and_ratios_are_of_one_round() {
        let order = Mutex::new(Vec::new());
        let (slow, fast) = ([1.0, 2.0, 30.0], [2.0, 8.0, 40.0]);
        let legs = [
            Leg::new("a", |round| {
                order.lock().expect("free").push(("a", round));
                async move { Ok(Sample::of("a MB/s", slow[round])) }
            }),
            Leg::new("b", |round| {
                order.lock().expect("free").push(("b", round));
                async move { Ok(Sample::of("b MB/s", fast[round]).checkpoints(4 - round as u64)) }
            }),
        ];
        let runs = interleave(3, &legs).await.expect("they run");
        drop(legs);
        let order = order.into_inner().expect("free");
        assert_eq!(order, [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]);
        let ratio = runs.ratio("a MB/s", "b MB/s").expect("numbers");
        // Of 0.5, 0.25 and 0.75; the ratio of the medians would be 2/8.
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.25, 0.75));
        assert_eq!(runs.value("b MB/s").expect("numbers").median, 8.0);
        let notes = runs.notes().join("\n");
        assert!(notes.contains("only 2 checkpoints"), "{notes}");
    }

    #[tokio::test]
    async fn a_leg_that_fails_is_named_with_its_round() {
        let legs = [Leg::new("broken", |_| async { Err("no broker".into()) })];
        let error = interleave(2, &legs).await.expect_err("it fails").to_string();
        assert_eq!(error, "broken, round 1: no broker");
    }

    #[tokio::test]
    async fn a_value_that_no_leg_has_is_an_error() {
        let legs = [Leg::new("a", |_| async { Ok(Sample::of("a", 1.0)) })];
        let runs = interleave(1, &legs).await.expect("it runs");
        runs.ratio("a", "b").expect_err("there is no b");
        assert!(runs.notes().iter().all(|note| !note.contains("checkpoints")));
    }
}
