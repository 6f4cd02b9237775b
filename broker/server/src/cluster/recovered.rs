//! The file `recovered` in the data directory (TOML): when it was gone on with although a majority was lost, and as what.
//!
//! It is written before anything else is changed and once more when all is done, so a recovery that was broken off is known by it: no
//! broker starts on such a directory until the recovery was run again.

use std::io;

use serde::{Deserialize, Serialize};
use tidemill_log::fs::Storage;

use crate::data_dir::{read_text, write_text};

const FILE: &str = "recovered";
const FORMAT: u32 = 1;
/// So many are remembered, the latest ones.
const RECOVERIES_MAX: usize = 100;

/// One recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovered {
    /// When, in milliseconds since 1970, by the clock of whoever ran it.
    pub(crate) at_ms: i64,
    /// The release that did it.
    pub(crate) by: String,
    /// Under which the replicas go on.
    pub(crate) incarnation: u32,
    /// The shards that go on, the controller's among them.
    pub(crate) shards: Vec<u16>,
    /// The shards of which there was no replica here.
    pub(crate) missing: Vec<u16>,
    /// Who is no part of the cluster any more.
    pub(crate) lost_brokers: Vec<u32>,
    /// It was not broken off.
    pub(crate) complete: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(default)]
    recoveries: Vec<Recovered>,
}

/// All of them, the latest one last; none where there is no such file.
pub(crate) fn read(storage: &dyn Storage) -> io::Result<Vec<Recovered>> {
    let Some(text) = read_text(storage, FILE)? else { return Ok(Vec::new()) };
    let stored: Stored =
        toml::from_str(&text).map_err(|error| io::Error::other(format!("{FILE}: {}", error.message())))?;
    if stored.format != FORMAT {
        let reason = format!(
            "{FILE} has format {}, this release reads format {FORMAT}: start the release that wrote it, or a newer one",
            stored.format
        );
        return Err(io::Error::other(reason));
    }
    Ok(stored.recoveries)
}

/// Replaces what is known of the recovery that is under way: one that is not complete makes room for its next attempt.
pub(crate) fn note(storage: &dyn Storage, recovery: Recovered) -> io::Result<()> {
    let mut recoveries = read(storage)?;
    recoveries.retain(|known| known.complete);
    recoveries.push(recovery);
    let surplus = recoveries.len().saturating_sub(RECOVERIES_MAX);
    recoveries.drain(..surplus);
    let text = toml::to_string(&Stored { format: FORMAT, recoveries }).map_err(io::Error::other)?;
    write_text(storage, FILE, &text)
}

/// Whom attempts that were broken off threw out. The controller may know of it by now and name nobody any more, and the note of the
/// next attempt takes the place of theirs.
pub(crate) fn lost_before(storage: &dyn Storage) -> io::Result<Vec<u32>> {
    let recoveries = read(storage)?;
    Ok(recoveries.into_iter().filter(|known| !known.complete).flat_map(|known| known.lost_brokers).collect())
}

#[cfg(test)]
mod tests {
    use tidemill_log::fs::MemoryStorage;

    use super::*;

    fn recovery(incarnation: u32, complete: bool) -> Recovered {
        let (shards, missing, lost_brokers) = (vec![0, 1], vec![2], vec![2, 3]);
        let by = "tidemill 0.1.0".to_owned();
        Recovered { at_ms: 5, by, incarnation, shards, missing, lost_brokers, complete }
    }

    #[test]
    fn what_was_broken_off_is_known_after_a_power_cut_and_gives_way_to_the_next_attempt() {
        let storage = MemoryStorage::new();
        assert!(read(&storage).expect("none").is_empty());
        note(&storage, recovery(2, true)).expect("noted");
        note(&storage, recovery(3, false)).expect("noted");
        let storage = storage.crash(1);
        assert_eq!(read(&storage).expect("reads"), [recovery(2, true), recovery(3, false)]);
        note(&storage, recovery(4, false)).expect("noted");
        note(&storage, recovery(4, true)).expect("noted");
        assert_eq!(read(&storage).expect("reads"), [recovery(2, true), recovery(4, true)]);
    }

    #[test]
    fn who_was_thrown_out_is_asked_of_what_was_broken_off_alone() {
        let storage = MemoryStorage::new();
        assert!(lost_before(&storage).expect("none").is_empty());
        note(&storage, Recovered { lost_brokers: vec![7], ..recovery(2, true) }).expect("noted");
        assert!(lost_before(&storage).expect("reads").is_empty(), "what is complete is told where it stands");
        note(&storage, recovery(3, false)).expect("noted");
        assert_eq!(lost_before(&storage).expect("reads"), [2, 3]);
        note(&storage, recovery(3, true)).expect("noted");
        assert!(lost_before(&storage).expect("reads").is_empty());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let storage = MemoryStorage::new();
        for incarnation in 1..=120 {
            note(&storage, recovery(incarnation, true)).expect("noted");
        }
        let known = read(&storage).expect("reads");
        assert_eq!((known.len(), known.last()), (RECOVERIES_MAX, Some(&recovery(120, true))));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let storage = MemoryStorage::new();
        write_text(&storage, FILE, "format = 2\n").expect("written");
        assert!(read(&storage).expect_err("newer").to_string().contains("format 2"));
    }
}
