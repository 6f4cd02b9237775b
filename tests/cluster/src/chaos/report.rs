use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::findings::Findings;
use super::killer::Kills;

/// What a run of chaos did and found.
#[derive(Debug)]
pub struct Report {
    /// As configured.
    pub seed: u64,
    /// How long the broker was under fire.
    pub duration: Duration,
    /// What was done to the broker.
    pub kills: Kills,
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
    /// Whether all checks hold.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.findings.violation_count() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, findings, .. } = self;
        writeln!(f, "seed                  {}", self.seed)?;
        writeln!(f, "under fire            {:.0} s", self.duration.as_secs_f64())?;
        writeln!(
            f,
            "kill -9               {} ({} of them shortly after a start); stopped in order {} times",
            kills.total(),
            kills.starting,
            kills.stops
        )?;
        if let Some((median, longest)) = kills.start_times() {
            let (median, longest) = (median.as_secs_f64(), longest.as_secs_f64());
            writeln!(f, "until it served again {median:.2} s median, {longest:.2} s at the longest")?;
        }
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
        if let Some(kept) = &self.kept {
            writeln!(f, "data and log are in {}", kept.display())?;
        }
        Ok(())
    }
}
