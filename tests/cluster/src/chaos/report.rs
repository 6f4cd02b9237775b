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
    /// Acknowledged records of the topic `trimmed`.
    pub trimmed_acknowledged: u64,
    /// Records of that topic that retention has let go.
    pub let_go: u64,
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
    /// Whether all checks hold, and all was there that had to be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.violation_count() == 0 && self.lacks().is_empty()
    }

    /// What was not done though all is required, for people.
    fn lacks(&self) -> Vec<String> {
        let (fires, mut lacks) = (&self.fires, Vec::new());
        if !self.require_all {
            return lacks;
        }
        if !fires.skipped.is_empty() {
            lacks.push("faults were SKIPPED, and all are required".to_owned());
        }
        let lacking: Vec<&str> = fires.lacking().into_iter().map(FaultKind::name).collect();
        if !lacking.is_empty() {
            lacks.push(format!("never done, and all are required: {}", lacking.join(", ")));
        }
        let without_disk = fires.members.without_disk;
        if without_disk > 0 {
            lacks.push(format!(
                "{without_disk} of the brokers that joined had no disk of their own, and all faults are required of all brokers"
            ));
        }
        if self.compares_states() && fires.state_hashes == 0 && fires.had_all_turns() {
            lacks.push("no replica took a hash of its state, and states are to be compared".to_owned());
        }
        lacks
    }

    /// A replica that is alone has nobody to compare with.
    const fn compares_states(&self) -> bool {
        self.brokers > 1
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
            "records acknowledged  {} ({} direct, {} routed, {} trimmed); {} batches were sent again",
            self.direct_acknowledged + self.routed_acknowledged + self.trimmed_acknowledged,
            self.direct_acknowledged,
            self.routed_acknowledged,
            self.trimmed_acknowledged,
            self.resent_batches
        )?;
        writeln!(f, "retention             let {} records go", self.let_go)?;
        writeln!(
            f,
            "readers               subscribed again {} times, committed {} times",
            self.reconnects, self.commits
        )?;
        writeln!(f, "tasks                 emitted {} records", self.outputs)?;
        if self.compares_states() {
            writeln!(f, "state hashes          {} taken to be compared", fires.state_hashes)?;
        }
        writeln!(f, "checks made           {}", findings.checks())?;
        writeln!(f, "violations            {}", findings.violation_count())?;
        for violation in findings.violations() {
            writeln!(f, "  {violation}")?;
        }
        for lack in self.lacks() {
            writeln!(f, "FAILED: {lack}")?;
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
        fires.state_hashes = 12;
        Report {
            seed: 7,
            brokers: 3,
            require_all,
            duration: Duration::from_secs(60),
            fires,
            direct_acknowledged: 300,
            routed_acknowledged: 200,
            trimmed_acknowledged: 100,
            let_go: 0,
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
    fn a_broker_that_no_disk_fault_could_strike_fails_a_run_that_requires_all() {
        for require_all in [false, true] {
            let mut report = report(require_all);
            report.fires.members.joined = 2;
            report.fires.members.without_disk = 1;
            let said = report.to_string();
            assert_eq!(report.is_good(), !require_all, "{said}");
            assert_eq!(
                said.contains("FAILED: 1 of the brokers that joined had no disk"),
                require_all,
                "{said}"
            );
        }
    }

    #[test]
    fn states_that_were_never_compared_fail_a_run_that_requires_all_and_was_long_enough() {
        for (require_all, is_long, brokers) in
            [(false, true, 3), (true, false, 3), (true, true, 1), (true, true, 3)]
        {
            let mut report = Report { brokers, ..report(require_all) };
            assert_eq!(report.to_string().contains("state hashes          12"), brokers > 1, "{report}");
            report.fires.state_hashes = 0;
            while is_long && !report.fires.had_all_turns() {
                report.fires.count(FaultKind::Kill);
            }
            let fails = require_all && is_long && brokers > 1;
            assert_eq!(report.is_good(), !fails, "{report}");
            assert_eq!(report.to_string().contains("FAILED: no replica took a hash"), fails, "{report}");
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
