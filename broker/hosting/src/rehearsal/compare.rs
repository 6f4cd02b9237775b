//! Where two runs differ first.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemill_protocol::Timestamp;

use super::run::{EmittedRecord, Run, RunFailure, Verdict};

/// What of a consumer's outputs must be the same, however records are cut into calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComparedOutputs {
    /// All of them, in their order in each partition.
    #[default]
    All,
    /// The last one of each key in each partition, and all without a key: for plugins that emit results as they come, once per call.
    LastOfKey,
}

/// What the second run answered otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub at: DifferenceAt,
    /// What it comes from.
    pub cause: Cause,
}

/// Where the answers part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceAt {
    /// In the answer to a record.
    Verdict {
        /// Its number.
        record: usize,
        /// The first run's.
        first: Verdict,
        /// The second run's.
        second: Verdict,
    },
    /// The second run failed where the first did not.
    Failure(RunFailure),
    /// In what was emitted.
    Emitted {
        /// The output's number in its partition, from 0; with [`ComparedOutputs::LastOfKey`] no number to count on.
        number: usize,
        /// The first run's; `None` where it emitted no more.
        first: Option<EmittedRecord>,
        /// The second run's.
        second: Option<EmittedRecord>,
        /// The last outputs of each key are the same.
        same_by_key: bool,
    },
    /// In the state at the end.
    State {
        /// Which key.
        key: Bytes,
        /// The first run's value.
        first: Option<Bytes>,
        /// The second run's value.
        second: Option<Bytes>,
    },
    /// In the timers that are set at the end.
    Timer {
        /// Which key.
        key: Bytes,
        /// The first run's time.
        first: Option<Timestamp>,
        /// The second run's time.
        second: Option<Timestamp>,
    },
}

/// What a difference comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The answer depends on how records are cut into calls.
    Cuts,
    /// The answer depends on what an instance remembers from earlier calls.
    Memory,
}

/// The first difference; its cause is not known yet.
pub(super) fn difference(first: &Run, second: &Run, outputs: ComparedOutputs) -> Option<Difference> {
    let at = verdicts(first, second)
        .or_else(|| second.failure.clone().map(DifferenceAt::Failure))
        .or_else(|| emitted(first, second, outputs))
        .or_else(|| {
            let (key, first, second) = first_of(&first.entries, &second.entries)?;
            Some(DifferenceAt::State { key, first, second })
        })
        .or_else(|| {
            let (key, first, second) = first_of(&first.timers, &second.timers)?;
            Some(DifferenceAt::Timer { key, first, second })
        })?;
    Some(Difference { at, cause: Cause::Cuts })
}

fn verdicts(first: &Run, second: &Run) -> Option<DifferenceAt> {
    let pairs = first.verdicts.iter().zip(&second.verdicts).enumerate();
    let (record, (first, second)) = pairs.into_iter().find(|(_, (a, b))| a.answer != b.answer)?;
    Some(DifferenceAt::Verdict { record, first: first.clone(), second: second.clone() })
}

fn emitted(first: &Run, second: &Run, outputs: ComparedOutputs) -> Option<DifferenceAt> {
    let by_key = first_emitted(first, second, &last_of_key(first), &last_of_key(second));
    match outputs {
        ComparedOutputs::LastOfKey => by_key,
        ComparedOutputs::All => {
            let mut found = first_emitted(first, second, &all(first), &all(second));
            if let Some(DifferenceAt::Emitted { same_by_key, .. }) = &mut found {
                *same_by_key = by_key.is_none();
            }
            found
        }
    }
}

/// By target and partition: comparable lists.
type Lists<'r> = BTreeMap<(usize, u32), Vec<&'r EmittedRecord>>;

fn all(run: &Run) -> Lists<'_> {
    let mut lists = Lists::new();
    for emitted in &run.emitted {
        lists.entry((emitted.target, emitted.partition)).or_default().push(emitted);
    }
    lists
}

fn last_of_key(run: &Run) -> Lists<'_> {
    let mut lists = all(run);
    for list in lists.values_mut() {
        let mut seen = BTreeSet::new();
        let mut kept: Vec<&EmittedRecord> = list
            .iter()
            .rev()
            .filter(|emitted| emitted.record.key.as_ref().is_none_or(|key| seen.insert(key)))
            .copied()
            .collect();
        // Which of two keys came last depends on the cuts too.
        kept.reverse();
        kept.sort_by(|a, b| a.record.key.cmp(&b.record.key));
        *list = kept;
    }
    lists
}

/// Of all lists the difference that the first run came to first.
fn first_emitted(first: &Run, second: &Run, lists: &Lists<'_>, other: &Lists<'_>) -> Option<DifferenceAt> {
    let places: BTreeSet<_> = lists.keys().chain(other.keys()).collect();
    let list = |lists: &Lists<'_>, place| -> Vec<EmittedRecord> {
        let list: &[&EmittedRecord] = lists.get(place).map_or(&[], Vec::as_slice);
        list.iter().map(|emitted| (*emitted).clone()).collect()
    };
    let differences = places.into_iter().filter_map(|place| {
        let (a, b) = (list(lists, place), list(other, place));
        let number = (0..a.len().max(b.len())).find(|number| match (a.get(*number), b.get(*number)) {
            (Some(a), Some(b)) => !same(first, a, second, b),
            _ => true,
        })?;
        let (a, b) = (a.get(number).cloned(), b.get(number).cloned());
        let after = |run: &Run, emitted: &Option<EmittedRecord>| {
            emitted.as_ref().map(|emitted| run.last_record_of(emitted.call))
        };
        let record = [after(first, &a), after(second, &b)].into_iter().flatten().min();
        Some((record, DifferenceAt::Emitted { number, first: a, second: b, same_by_key: true }))
    });
    differences.min_by_key(|(record, _)| *record).map(|(_, difference)| difference)
}

/// Whether two outputs are the same. A timestamp that is the log's time of its call says nothing.
fn same(first: &Run, a: &EmittedRecord, second: &Run, b: &EmittedRecord) -> bool {
    let of_its_call = |run: &Run, emitted: &EmittedRecord| {
        run.calls.get(emitted.call).is_some_and(|call| call.now == emitted.record.timestamp)
    };
    a.record.same_contents(&b.record)
        && (a.record.timestamp == b.record.timestamp || of_its_call(first, a) || of_its_call(second, b))
}

/// The first key of which two lists by key do not have the same.
fn first_of<T: Clone + PartialEq>(
    a: &[(Bytes, T)],
    b: &[(Bytes, T)],
) -> Option<(Bytes, Option<T>, Option<T>)> {
    let (a, b): (BTreeMap<_, _>, BTreeMap<_, _>) = (by_key(a), by_key(b));
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let key = keys.into_iter().find(|key| a.get(*key) != b.get(*key))?;
    let value = |map: &BTreeMap<&Bytes, &T>| map.get(*key).map(|value| (*value).clone());
    Some(((*key).clone(), value(&a), value(&b)))
}

fn by_key<T>(list: &[(Bytes, T)]) -> BTreeMap<&Bytes, &T> {
    list.iter().map(|(key, value)| (key, value)).collect()
}
