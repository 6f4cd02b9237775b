use std::fmt;

/// Violations kept word for word; of more, only the number is kept.
const VIOLATIONS_MAX: usize = 40;

/// What checks found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    checks: u64,
    violations: Vec<Violation>,
    omitted: u64,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of which kind.
    pub kind: ViolationKind,
    /// What and where.
    pub what: String,
}

/// Kinds of [`Violation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ViolationKind {
    /// Acknowledged and not there.
    Lost,
    /// There twice.
    Doubled,
    /// There, but behind what was sent later.
    Reordered,
    /// There, but not where it was acknowledged.
    Misplaced,
    /// An offset that no record has.
    Gap,
    /// There and never sent.
    Foreign,
    /// There, with other bytes.
    Damaged,
    /// Refused, where nothing is to be refused.
    Refused,
    /// A task's output that is not there.
    OutputMissing,
    /// A task's output that is there twice.
    OutputDoubled,
    /// A task's output behind a later one.
    OutputReordered,
    /// A task's output that no replay of the log gives.
    OutputForeign,
    /// A task's state is not what the log gives.
    State,
    /// A committed position moved back, or came from nowhere.
    Position,
    /// A reader saw something else than the log has.
    Read,
    /// Something came to an end that should have gone on.
    Stopped,
    /// A thread of a broker panicked.
    Panicked,
    /// Replicas differ.
    Replica,
    /// What the checker of histories found.
    History,
}

impl Findings {
    /// One check; where it does not hold, `what` says what was found.
    pub fn check(&mut self, holds: bool, kind: ViolationKind, what: impl FnOnce() -> String) {
        self.checks += 1;
        if holds {
            return;
        }
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { kind, what: what() });
        } else {
            self.omitted += 1;
        }
    }

    /// Counts checks that were made elsewhere and held, and some that did not and of which no more is known here.
    pub(super) const fn add(&mut self, held: u64, omitted: u64) {
        self.checks += held + omitted;
        self.omitted += omitted;
    }

    /// How many checks were made.
    #[must_use]
    pub const fn checks(&self) -> u64 {
        self.checks
    }

    /// How many did not hold.
    #[must_use]
    pub const fn violation_count(&self) -> u64 {
        self.violations.len() as u64 + self.omitted
    }

    /// The first of those that did not hold.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

#[cfg(test)]
impl Findings {
    /// The kinds of what did not hold, each once.
    pub(super) fn kinds(&self) -> Vec<ViolationKind> {
        let mut kinds: Vec<_> = self.violations.iter().map(|violation| violation.kind).collect();
        kinds.dedup();
        kinds
    }
}
