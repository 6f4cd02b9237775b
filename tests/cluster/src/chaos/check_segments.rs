//! Sealed segments are the same bytes on every broker that has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::damage::segments;
use super::findings::{Findings, ViolationKind};
use crate::Outcome;

/// Until what was damaged last is found and fetched from another broker.
const REPAIR_DEADLINE: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A segment by its path in any data directory, and what each broker has of it.
type BySegment = BTreeMap<PathBuf, BTreeMap<u32, blake3::Hash>>;

/// Waits until damaged segments are repaired, and tells which are not.
pub(super) async fn check_segments(data_dirs: &[(u32, PathBuf)], findings: &mut Findings) -> Outcome<()> {
    let begun = Instant::now();
    loop {
        let held = sealed(data_dirs)?;
        if held.values().all(is_same) || begun.elapsed() >= REPAIR_DEADLINE {
            compare(&held, findings);
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn compare(held: &BySegment, findings: &mut Findings) {
    for (path, held) in held {
        findings.check(is_same(held), ViolationKind::Replica, || {
            format!("sealed segment {} differs among brokers: {held:?}", path.display())
        });
    }
}

fn is_same(held: &BTreeMap<u32, blake3::Hash>) -> bool {
    let mut held = held.values();
    held.next().is_none_or(|first| held.all(|other| other == first))
}

/// What is sealed at all that have it: the last of a partition may be written still, anywhere.
fn sealed(data_dirs: &[(u32, PathBuf)]) -> Outcome<BySegment> {
    let mut held = BySegment::new();
    let mut last = BTreeSet::new();
    for (broker, data_dir) in data_dirs {
        for mut files in segments(data_dir)?.into_values() {
            last.extend(files.pop().and_then(|file| Some(within(&file, data_dir)?.to_owned())));
            for file in files {
                let Some(path) = within(&file, data_dir) else { continue };
                // Retention may have let it go since it was listed.
                let Ok(bytes) = std::fs::read(&file) else { continue };
                held.entry(path.to_owned()).or_default().insert(*broker, blake3::hash(&bytes));
            }
        }
    }
    held.retain(|path, _| !last.contains(path));
    Ok(held)
}

fn within<'a>(file: &'a Path, data_dir: &Path) -> Option<&'a Path> {
    file.strip_prefix(data_dir).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_segment_that_differs_is_a_finding_and_the_last_is_not() {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (number, home) in homes.iter().enumerate() {
            let partition = home.path().join("shard-01").join("p-0");
            std::fs::create_dir_all(&partition).unwrap();
            std::fs::write(partition.join("0.log"), [1]).unwrap();
            std::fs::write(partition.join("5.log"), [u8::try_from(number).unwrap()]).unwrap();
        }
        let data_dirs: Vec<_> = (1..).zip(homes.iter().map(|home| home.path().to_owned())).collect();
        let mut findings = Findings::default();
        compare(&sealed(&data_dirs).unwrap(), &mut findings);
        assert_eq!((findings.checks(), findings.violation_count()), (1, 0));
        std::fs::write(homes[1].path().join("shard-01").join("p-0").join("0.log"), [2]).unwrap();
        compare(&sealed(&data_dirs).unwrap(), &mut findings);
        assert_eq!((findings.checks(), findings.violation_count()), (2, 1));
    }
}
