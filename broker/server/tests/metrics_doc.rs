//! docs/operations.md names every metric that the broker has, and no other.

use std::collections::BTreeSet;
use std::path::Path;

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("tests") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// Words that begin so, as far as letters, digits and underscores go.
fn names<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = String> + 'a {
    text.match_indices(before).map(move |(at, _)| {
        let rest = &text[at + before.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        format!("tidemill_{}", &rest[..end])
    })
}

#[test]
fn every_metric_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    sources(&root.join("broker"), &mut files);
    let mut counted = BTreeSet::new();
    for file in &files {
        for kind in ["counter", "gauge", "histogram"] {
            counted.extend(names(file, &format!("{kind}!(\"tidemill_")));
        }
    }
    assert!(counted.len() > 40, "only {counted:?} were found");
    let document = std::fs::read_to_string(root.join("docs/operations.md")).expect("docs");
    let section = document.split("## Metrics").nth(1).and_then(|rest| rest.split("\n## ").next());
    let explained: BTreeSet<String> = names(section.expect("a section"), "`tidemill_").collect();
    let missing: Vec<_> = counted.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
    let gone: Vec<_> = explained.difference(&counted).collect();
    assert!(gone.is_empty(), "docs/operations.md explains {gone:?}, which nothing counts");
}
