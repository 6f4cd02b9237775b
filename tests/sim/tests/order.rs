//! What would let chance in behind a simulation's back, found in the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that run in a simulation and have tasks.
const ROOMS: [&str; 3] = ["log", "shard", "raft"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Tests may draw lots.
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_select_has_a_set_order() {
    let broker = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../broker");
    let mut files = Vec::new();
    ROOMS.iter().for_each(|room| sources(&broker.join(room).join("src"), &mut files));
    let mut selects = 0;
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        for (at, found) in text.match_indices("select! {") {
            selects += 1;
            let line = text[..at].lines().count();
            let order = text[at + found.len()..].trim_start().starts_with("biased;");
            assert!(order, "{}:{line}: tokio draws lots here unless it says `biased;`", file.display());
        }
    }
    assert!(selects > 0, "nothing was looked at");
}
