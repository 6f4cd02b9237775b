use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::findings::Findings;
use super::fires::Fires;

/// What a run of chaos did and found.
#[derive(Debug)]
pub struct Report {
    /// As configured.
    pub seed: u64,
    /// As configured.
    pub brokers: u32,
    /// As configured.
    pub require_all: bool,
    /// How long they were under fire.
    pub duration: Duration,
    /// What was done to them.
    pub fires: Fires,
    /// Acknowledged records of the topic `direct`.
    pub direct_acknowledged: u64,
    /// Acknowledged records of the topic `routed`.
    pub routed_acknowledged: u64,
    /// Batches that producers had to send again.
    pub resent_batches: u64,
    /// Subscriptions that were made again.
    pub reconnects: u64,
    /// Acknowledged commits of a reader's position.
    pub commits: u64,
    /// Records that tasks emitted.
    pub outputs: u64,
    /// What the checks found.
    pub findings: Findings,
    /// Where data and log were left, if something was found.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// Whether all checks hold, and all faults were there that had to be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.violation_count() == 0 && !self.lacks_faults()
    }

    fn lacks_faults(&self) -> bool {
        self.require_all && !self.fires.skipped.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fires, findings, .. } = self;
        writeln!(f, "seed                  {}", self.seed)?;
        let seconds = self.duration.as_secs_f64();
        writeln!(f, "under fire            {} broker(s) for {seconds:.0} s", self.brokers)?;
        write!(f, "{fires}")?;
        writeln!(
            f,
            "records acknowledged  {} ({} direct, {} routed); {} batches were sent again",
            self.direct_acknowledged + self.routed_acknowledged,
            self.direct_acknowledged,
            self.routed_acknowledged,
            self.resent_batches
        )?;
        writeln!(
            f,
            "readers               subscribed again {} times, committed {} times",
            self.reconnects, self.commits
        )?;
        writeln!(f, "tasks                 emitted {} records", self.outputs)?;
        writeln!(f, "checks made           {}", findings.checks())?;
        writeln!(f, "violations            {}", findings.violation_count())?;
        for violation in findings.violations() {
            writeln!(f, "  {violation}")?;
        }
        if self.lacks_faults() {
            writeln!(f, "FAILED: faults were SKIPPED, and all are required")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "data and logs are in {}", kept.display())?;
        }
        Ok(())
    }
}
