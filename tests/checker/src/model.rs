//! What a task must have done. A model is the embedding test's: the checker knows no plugins.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ids::{RecordId, TopicPartition};

/// A record that a task read.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Where it lies.
    pub partition: &'a TopicPartition,
    /// At which offset.
    pub offset: u64,
    /// Which it is.
    pub id: RecordId,
}

/// How a task differs from its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// In what it sent on.
    Output {
        /// The target, and the offset there, if there is something.
        at: Option<(TopicPartition, u64)>,
        /// How.
        what: String,
    },
    /// In its state.
    State {
        /// How.
        what: String,
    },
}

/// A model of one task. It is told of outputs and state first, as the history has them, and keeps what it needs of them; then of the
/// records that the task read up to its position, one source partition after the other, each in the order of its offsets.
pub trait Model {
    /// What the task sent on, in the order of each target partition.
    fn output(&mut self, partition: &TopicPartition, offset: u64, value: &str);

    /// An entry of its state at the end.
    fn state(&mut self, key: &str, value: &str);

    /// A record that it read.
    fn input(&mut self, input: &Input<'_>);

    /// How the two differ, once everything has been told.
    fn finish(&mut self) -> Vec<Mismatch>;
}

/// A task whose outputs and state follow from its inputs, however they were cut into calls.
pub trait Replay {
    /// Reads a record; gives what is sent on for it, and where to.
    fn apply(&mut self, input: &Input<'_>) -> Vec<(TopicPartition, String)>;

    /// The state.
    fn state(&self) -> BTreeMap<String, String>;
}

/// The model of a task that does exactly what a [`Replay`] does. It keeps sixteen bytes of each output.
#[derive(Debug)]
pub struct Exact<R> {
    replay: R,
    /// By target: what was found, as (offset, hash), and how much of it has been expected.
    found: HashMap<TopicPartition, (Vec<(u64, u64)>, usize)>,
    state: BTreeMap<String, String>,
    /// The first for each target.
    mismatches: BTreeMap<TopicPartition, Mismatch>,
}

impl<R: Replay> Exact<R> {
    /// A model of what `replay` does.
    #[must_use]
    pub fn new(replay: R) -> Self {
        Self { replay, found: HashMap::new(), state: BTreeMap::new(), mismatches: BTreeMap::new() }
    }
}

impl<R: Replay> Model for Exact<R> {
    fn output(&mut self, partition: &TopicPartition, offset: u64, value: &str) {
        self.found.entry(partition.clone()).or_default().0.push((offset, hash(value)));
    }

    fn state(&mut self, key: &str, value: &str) {
        self.state.insert(key.to_owned(), value.to_owned());
    }

    fn input(&mut self, input: &Input<'_>) {
        for (target, value) in self.replay.apply(input) {
            let (found, expected) = self.found.entry(target.clone()).or_default();
            let here = found.get(*expected).copied();
            *expected += 1;
            if here.is_some_and(|(_, found)| found == hash(&value)) || self.mismatches.contains_key(&target) {
                continue;
            }
            let (at, there) = match here {
                Some((offset, _)) => {
                    (Some((target.clone(), offset)), format!("{target} has another at {offset}"))
                }
                None => (None, format!("{target} has no more")),
            };
            let what = format!(
                "output {} must be {value:?}, for {} in {} at {}; {there}",
                *expected - 1,
                input.id,
                input.partition,
                input.offset
            );
            self.mismatches.insert(target, Mismatch::Output { at, what });
        }
    }

    fn finish(&mut self) -> Vec<Mismatch> {
        for (target, (found, expected)) in &self.found {
            if let Some((offset, _)) = found.get(*expected) {
                let what = format!("{target} has an output at {offset} where the model has no more");
                let at = Some((target.clone(), *offset));
                self.mismatches.entry(target.clone()).or_insert(Mismatch::Output { at, what });
            }
        }
        let mut all: Vec<Mismatch> = std::mem::take(&mut self.mismatches).into_values().collect();
        let model = self.replay.state();
        let keys = model.keys().chain(self.state.keys().filter(|key| !model.contains_key(*key)));
        all.extend(keys.filter(|key| model.get(*key) != self.state.get(*key)).map(|key| {
            let (kept, expected) = (self.state.get(key), model.get(key));
            Mismatch::State { what: format!("{key:?} is {kept:?}, and {expected:?} by the model") }
        }));
        all
    }
}

fn hash(value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
