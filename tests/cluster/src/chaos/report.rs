use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::faults::FaultKind;
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
        self.require_all && !(self.fires.skipped.is_empty() && self.fires.lacking().is_empty())
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
        if self.require_all && !fires.skipped.is_empty() {
            writeln!(f, "FAILED: faults were SKIPPED, and all are required")?;
        }
        let lacking: Vec<&str> = fires.lacking().into_iter().map(FaultKind::name).collect();
        if self.require_all && !lacking.is_empty() {
            writeln!(f, "FAILED: never done, and all are required: {}", lacking.join(", "))?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "data and logs are in {}", kept.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::ViolationKind;

    const FAILED: &str = "FAILED: ";
    const WERE_SKIPPED: &str = "FAILED: faults were SKIPPED, and all are required";

    /// Of a run in which one broker was killed, and nothing was found.
    fn report(require_all: bool) -> Report {
        let mut fires = Fires::default();
        fires.count(FaultKind::Kill);
        Report {
            seed: 7,
            brokers: 3,
            require_all,
            duration: Duration::from_secs(60),
            fires,
            direct_acknowledged: 300,
            routed_acknowledged: 200,
            resent_batches: 0,
            reconnects: 0,
            commits: 0,
            outputs: 0,
            findings: Findings::default(),
            kept: None,
        }
    }

    #[test]
    fn a_fault_that_can_not_be_done_here_fails_a_run_that_requires_all() {
        let without_mounts = |require_all| {
            let mut report = report(require_all);
            report.fires.skipped.insert(FaultKind::PowerLoss, "no mount".to_owned());
            report
        };
        let (lenient, strict) = (without_mounts(false), without_mounts(true));
        assert!(lenient.is_good() && !strict.is_good());
        for report in [&lenient, &strict] {
            let said = report.to_string();
            let is_said = |line: &str| line.contains("power-loss") && line.contains("SKIPPED");
            assert!(said.lines().any(|line| is_said(line) && line.ends_with("no mount")), "{said}");
        }
        assert!(strict.to_string().contains(WERE_SKIPPED) && !lenient.to_string().contains(FAILED));
    }

    /// What a run draws is left to chance at first, and a short one draws little: of that only what can't be done is required to.
    #[test]
    fn a_fault_that_was_never_done_fails_a_run_that_requires_all_and_was_long_enough() {
        const LACKING: &str = "FAILED: never done, and all are required: weather, power-loss\n";
        for (require_all, is_long) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut report = report(require_all);
            let fires = &mut report.fires;
            fires.kinds = vec![FaultKind::Kill, FaultKind::Weather, FaultKind::PowerLoss];
            // The one was not drawn, the other could not be done.
            fires.count_in_vain(FaultKind::PowerLoss);
            let draws = fires.draws_for_all() - u64::from(!is_long);
            while fires.draws() < draws {
                fires.count(FaultKind::Kill);
            }
            let (said, fails) = (report.to_string(), require_all && is_long);
            assert_eq!(report.is_good(), !fails, "{said}");
            assert_eq!((said.contains(LACKING), said.contains(FAILED)), (fails, fails), "{said}");
            report.fires.count(FaultKind::Weather);
            report.fires.count(FaultKind::PowerLoss);
            assert!(report.is_good() && !report.to_string().contains(FAILED), "{report}");
        }
    }

    #[test]
    fn whatever_the_checks_find_fails_a_run() {
        for require_all in [false, true] {
            let mut report = report(require_all);
            report.findings.check(true, ViolationKind::Lost, || "it is there".to_owned());
            assert!(report.is_good());
            report.findings.check(false, ViolationKind::Lost, || "it is gone".to_owned());
            assert!(!report.is_good());
            let said = report.to_string();
            assert!(said.contains("Lost: it is gone") && !said.contains("it is there"), "{said}");
            assert!(!said.contains(FAILED), "no fault is lacking: {said}");
        }
    }
}
