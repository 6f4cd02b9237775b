use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::finding::{Finding, Kind};

/// What came of a history.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Events looked at.
    pub events: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records read, by consumers and from replicas.
    pub read: u64,
    /// Checks made.
    pub checks: u64,
    /// Tasks of which only the position was checked.
    pub tasks_without_model: u64,
    /// Findings by kind.
    pub counts: BTreeMap<Kind, u64>,
    /// The first of each kind.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.counts.is_empty()
    }

    /// The kinds of what was found.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        self.counts.keys().copied().collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, acknowledged, read, checks, tasks_without_model, .. } = self;
        writeln!(
            f,
            "{events} events, {acknowledged} records acknowledged, {read} read, {checks} checks made"
        )?;
        if *tasks_without_model > 0 {
            writeln!(
                f,
                "{tasks_without_model} tasks have no model here: their outputs and states were not checked"
            )?;
        }
        for finding in &self.findings {
            writeln!(f, "\n{finding}")?;
        }
        if self.is_good() {
            return f.write_str("nothing found");
        }
        f.write_str("\nfound:")?;
        for (kind, count) in &self.counts {
            write!(f, " {count} {kind}")?;
        }
        Ok(())
    }
}
