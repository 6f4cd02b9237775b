//! `docs/errors.md` stays in step with the codes.

use std::collections::BTreeSet;
use std::path::Path;

use tidemill_protocol::ErrorCode;

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the page's tables that begin with a number: number, name, retry, meaning, what to do.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").collect::<Vec<_>>())
        .filter(|cells| cells.first().is_some_and(|cell| cell.parse::<u32>().is_ok()))
        .collect()
}

#[test]
fn every_code_has_its_row() {
    let page = page();
    let rows = rows(&page);
    for code in ErrorCode::ALL {
        let (number, name) = (code.code().to_string(), format!("`{code}`"));
        let retry = if code.retriable() { "yes" } else { "no" };
        let row = rows.iter().find(|cells| cells.first() == Some(&number.as_str()));
        let Some(row) = row else { panic!("docs/errors.md has no row for {number} {name}") };
        assert_eq!(
            row.get(..4),
            Some(&[&number, name.as_str(), retry, code.doc()][..]),
            "the row of {number}"
        );
        assert!(row.len() == 5 && !row[4].trim().is_empty(), "{name}: what is one to do?");
    }
}

#[test]
fn no_row_is_of_a_code_that_does_not_exist() {
    let page = page();
    let rows = rows(&page);
    let numbers: BTreeSet<&str> = rows.iter().map(|cells| cells[0]).collect();
    assert_eq!(numbers.len(), rows.len(), "a code has two rows");
    for number in numbers {
        let known = number.parse().ok().and_then(ErrorCode::from_code);
        assert!(known.is_some(), "docs/errors.md has a row for {number}, which is no code");
    }
}
