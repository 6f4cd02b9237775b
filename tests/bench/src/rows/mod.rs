//! The rows: one file per family, and the lists of them.

mod cluster;
mod consume;
mod filter;
mod latency;
mod partitions;
mod produce;
mod restart;
mod small;
mod wasm;

use std::path::PathBuf;

use futures::future::BoxFuture;

use crate::Outcome;
use crate::report::Row;
use crate::scale::Scale;

pub(crate) use cluster::FAMILIES as CLUSTER;

/// What a family is given.
#[derive(Debug, Clone)]
pub(crate) struct Bench {
    pub(crate) scale: Scale,
    /// On the disk to measure; emptied after each family.
    pub(crate) dir: PathBuf,
}

/// What a family came to.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    /// What the rows are made of, for people.
    pub(crate) notes: Vec<String>,
}

/// Rows that are measured together.
pub(crate) struct Family {
    /// For `--rows`.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Run although nobody asked for it by name.
    pub(crate) by_default: bool,
    /// How long it takes, about.
    pub(crate) seconds: fn(&Scale) -> f64,
    /// Room on the disk that it takes at most.
    pub(crate) disk_bytes: fn(&Scale) -> u64,
    pub(crate) run: fn(Bench) -> BoxFuture<'static, Outcome<Measured>>,
}

/// Of one broker.
pub(crate) const SINGLE: &[Family] = &[
    produce::ONE_PARTITION,
    produce::EIGHT_PARTITIONS,
    produce::REPLICATED,
    latency::ACKNOWLEDGEMENT,
    latency::END_TO_END,
    small::SMALL,
    consume::CATCH_UP,
    filter::PASSES_ONE_PERCENT,
    wasm::CALL,
    partitions::UNDER_LOAD,
    partitions::IDLE,
    restart::AFTER_KILL,
    produce::ENCODED,
];

/// Those with these names, or those that run by default.
pub(crate) fn choose(families: &'static [Family], names: &[String]) -> Outcome<Vec<&'static Family>> {
    if names.is_empty() {
        return Ok(families.iter().filter(|family| family.by_default).collect());
    }
    let find = |name: &String| {
        families.iter().find(|family| family.name == name).ok_or_else(|| {
            let known: Vec<_> = families.iter().map(|family| family.name).collect();
            format!("there are no rows {name:?}; there are: {}", known.join(", ")).into()
        })
    };
    names.iter().map(find).collect()
}

/// Room for what a broker holds beside records: its write-ahead log, the reserve, what it wants to stay free, and files that are being replaced.
const BROKER_BYTES: u64 = 5 << 30;

/// Room for a broker and for legs at no more than a rate that no disk of today exceeds here; two legs' records may lie there at once.
fn room_for_legs(scale: &Scale) -> u64 {
    const BYTES_PER_SECOND_MOST: u64 = 400 << 20;
    BROKER_BYTES + 2 * scale.leg.as_secs().max(1) * BYTES_PER_SECOND_MOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for families in [SINGLE, CLUSTER] {
            let mut names: Vec<_> = families.iter().map(|family| family.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), families.len());
        }
        let chosen = choose(SINGLE, &["small".to_owned(), "produce".to_owned()]).expect("known");
        assert_eq!(chosen.iter().map(|family| family.name).collect::<Vec<_>>(), ["small", "produce"]);
        assert_eq!(choose(CLUSTER, &[]).expect("all").len(), CLUSTER.len());
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_the_known_ones() {
        let error = choose(SINGLE, &["speed".to_owned()]).err().expect("unknown").to_string();
        assert!(error.contains("speed") && error.contains("produce-8"), "{error}");
    }
}
