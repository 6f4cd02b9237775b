use std::path::Path;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::Outcome;
use crate::legs::number;
use crate::stats::Summary;

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One row of the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    row: &'static str,
    value: f64,
    unit: &'static str,
    goal: Option<f64>,
    better: Better,
    /// What is not in the document: the spread of the value over the rounds.
    #[serde(skip)]
    spread: (f64, f64),
}

impl Row {
    /// A row that is shown, and has no goal.
    pub(crate) const fn shown(row: &'static str, unit: &'static str, better: Better, value: Summary) -> Self {
        Self { row, value: value.median, unit, goal: None, better, spread: (value.min, value.max) }
    }

    /// A row that should reach at least this.
    pub(crate) const fn at_least(row: &'static str, unit: &'static str, goal: f64, value: Summary) -> Self {
        Self { goal: Some(goal), ..Self::shown(row, unit, Better::Higher, value) }
    }

    /// A row that should stay within this.
    pub(crate) const fn at_most(row: &'static str, unit: &'static str, goal: f64, value: Summary) -> Self {
        Self { goal: Some(goal), ..Self::shown(row, unit, Better::Lower, value) }
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match self.better {
            Better::Higher => self.value >= goal,
            Better::Lower => self.value <= goal,
        })
    }

    fn goal_shown(&self) -> String {
        let sign = match self.better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        self.goal.map_or_else(|| "shown".to_owned(), |goal| format!("{sign} {goal}"))
    }
}

/// The table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["row", "value", "unit", "goal", "met", "spread"]);
    for row in rows {
        let met = row.met().map_or("", |met| if met { "yes" } else { "no" });
        let spread = format!("{} to {}", number(row.spread.0), number(row.spread.1));
        table.add_row([row.row, &number(row.value), row.unit, &row.goal_shown(), met, &spread]);
    }
    if let Some(values) = table.column_mut(1) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Writes the document; answers what it would be read as.
pub(crate) fn write(rows: &[Row], path: &Path) -> Outcome<()> {
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn summary(median: f64) -> Summary {
        Summary { median, min: 0.4, max: 0.6, count: 5 }
    }

    #[test]
    fn the_document_is_a_list_of_rows_with_five_fields() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bench").join("single.json");
        let rows = [
            Row::at_least("a / b", "ratio", 0.45, summary(0.5)),
            Row::at_most("idle CPU", "% of a core", 3.0, summary(4.5)),
            Row::shown("records/s", "records/s", Better::Higher, summary(7.0)),
        ];
        write(&rows, &path).expect("written");
        let text = std::fs::read_to_string(&path).expect("read");
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            document,
            serde_json::json!([
                { "row": "a / b", "value": 0.5, "unit": "ratio", "goal": 0.45, "better": "higher" },
                { "row": "idle CPU", "value": 4.5, "unit": "% of a core", "goal": 3.0, "better": "lower" },
                { "row": "records/s", "value": 7.0, "unit": "records/s", "goal": null, "better": "higher" },
            ])
        );
    }

    #[test]
    fn a_goal_is_met_from_its_side() {
        assert_eq!(Row::at_least("", "", 0.45, summary(0.45)).met(), Some(true));
        assert_eq!(Row::at_least("", "", 0.45, summary(0.44)).met(), Some(false));
        assert_eq!(Row::at_most("", "", 2.0, summary(2.0)).met(), Some(true));
        assert_eq!(Row::at_most("", "", 2.0, summary(2.1)).met(), Some(false));
        assert_eq!(Row::shown("", "", Better::Lower, summary(1.0)).met(), None);
    }

    #[test]
    fn the_table_says_what_is_met() {
        let rows =
            [Row::at_least("a / b", "ratio", 0.45, summary(0.5)), Row::at_most("c", "x", 2.0, summary(9.0))];
        let shown = table(&rows);
        let line = |name: &str| shown.lines().find(|line| line.contains(name)).expect("its line").to_owned();
        assert!(line("a / b").contains("yes") && line("a / b").contains(">= 0.45"), "{shown}");
        assert!(line(" c ").contains("no") && line(" c ").contains("<= 2"), "{shown}");
    }
}
