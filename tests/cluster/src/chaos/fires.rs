use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::faults::FaultKind;
use super::proxy::Traffic;

/// So many faults are drawn by their weights alone.
const FREE_DRAWS: u64 = 40;
/// From there on one in so many is of a kind that was not done yet, as long as there is one.
const TURN_INTERVAL: u64 = 2;
/// So often each has its turn, since what is drawn can't always be done.
const TURNS: u64 = 2;

/// What was done to the brokers.
#[derive(Debug, Clone, Default)]
pub struct Fires {
    /// The kinds that were drawn from.
    pub kinds: Vec<FaultKind>,
    /// How often each was done.
    pub counts: BTreeMap<FaultKind, u64>,
    /// How often each was drawn and could not be done.
    pub in_vain: BTreeMap<FaultKind, u64>,
    /// What was wanted and could not be done, and why.
    pub skipped: BTreeMap<FaultKind, String>,
    /// Processes killed with kill -9, whatever for.
    pub kills: u64,
    /// Of these, shortly after they were started.
    pub kills_while_starting: u64,
    /// How long each start took until the broker served.
    pub starts: Vec<Duration>,
    /// Brokers that came back with an empty directory and a token, because they refused to start with a damaged one.
    pub rejoined: u64,
    /// Brokers that came and went.
    pub members: MemberChanges,
    /// Replicas that were retired because their log was damaged.
    pub retired: u64,
    /// Hashes that replicas took of their states to compare them, as far as brokers were asked in time.
    pub state_hashes: u64,
    /// From the kill of a leader to the next acknowledged write of each partition that it led.
    pub failovers: Vec<Duration>,
    /// What went over the network between brokers.
    pub traffic: Traffic,
}

/// Changes of who belongs to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberChanges {
    /// Brokers that joined with a token.
    pub joined: u64,
    /// Brokers that were drained, removed, and ended.
    pub removed: u64,
    /// How often a step of that was refused or not answered, as it may be while other faults hold, and was tried again later.
    pub tried_again: u64,
    /// Of those that joined: without a disk of their own, though others have one.
    pub without_disk: u64,
}

impl Fires {
    /// Faults, all told.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Faults that were drawn, whether they could be done or not.
    #[must_use]
    pub fn draws(&self) -> u64 {
        self.total() + self.in_vain.values().sum::<u64>()
    }

    /// From so many draws on each kind has had its turns.
    #[must_use]
    pub fn draws_for_all(&self) -> u64 {
        FREE_DRAWS + TURN_INTERVAL * TURNS * self.kinds.len() as u64
    }

    /// Whether each kind has had its turns.
    #[must_use]
    pub fn had_all_turns(&self) -> bool {
        self.draws() >= self.draws_for_all()
    }

    /// What was never done, though each kind has had its turns.
    #[must_use]
    pub fn lacking(&self) -> Vec<FaultKind> {
        let is_lacking = |kind: &FaultKind| self.had_all_turns() && self.is_overdue(*kind);
        self.kinds.iter().copied().filter(is_lacking).collect()
    }

    /// Whether this kind was not done yet, and chance had its time.
    pub(super) fn is_overdue(&self, kind: FaultKind) -> bool {
        self.draws() >= FREE_DRAWS && !self.counts.contains_key(&kind)
    }

    /// Which of these kinds is next, whatever its weight: the one that was tried least of those that were not done yet. Not each
    /// time, so that one that can't be done does not keep the others away.
    pub(super) fn whose_turn(&self, kinds: &[FaultKind]) -> Option<FaultKind> {
        if !self.draws().is_multiple_of(TURN_INTERVAL) {
            return None;
        }
        let overdue = kinds.iter().copied().filter(|kind| self.is_overdue(*kind));
        overdue.min_by_key(|kind| self.times_in_vain(*kind))
    }

    pub(super) fn times_in_vain(&self, kind: FaultKind) -> u64 {
        self.in_vain.get(&kind).copied().unwrap_or(0)
    }

    pub(super) fn count(&mut self, kind: FaultKind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    pub(super) fn count_in_vain(&mut self, kind: FaultKind) {
        *self.in_vain.entry(kind).or_default() += 1;
    }
}

/// The smallest that is not below `percent` of them.
pub(super) fn percentile(times: &[Duration], percent: usize) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied()
}

impl fmt::Display for Fires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "faults                  how often")?;
        for kind in FaultKind::ALL {
            let (name, what) = (kind.name(), kind.what());
            let count = self.counts.get(&kind).copied().unwrap_or(0);
            if let Some(reason) = self.skipped.get(&kind) {
                let count = "SKIPPED";
                writeln!(f, "  {name:16} {count:>8}  {what}: {reason}")?;
            } else if count > 0 || self.kinds.contains(&kind) {
                write!(f, "  {name:16} {count:8}  {what}")?;
                match self.times_in_vain(kind) {
                    0 => writeln!(f)?,
                    times => writeln!(f, ": {times} times it could not be done")?,
                }
            }
        }
        writeln!(
            f,
            "kill -9               {} processes ({} of them shortly after a start)",
            self.kills, self.kills_while_starting
        )?;
        if let (Some(median), Some(longest)) = (percentile(&self.starts, 50), self.starts.iter().max()) {
            let (median, longest) = (median.as_secs_f64(), longest.as_secs_f64());
            writeln!(f, "until it served again {median:.2} s median, {longest:.2} s at the longest")?;
        }
        if let (Some(p50), Some(p95), Some(longest)) =
            (percentile(&self.failovers, 50), percentile(&self.failovers, 95), self.failovers.iter().max())
        {
            writeln!(
                f,
                "leader killed         next acknowledged write after {:.2} s p50, {:.2} s p95, {:.2} s at the longest ({} partitions)",
                p50.as_secs_f64(),
                p95.as_secs_f64(),
                longest.as_secs_f64(),
                self.failovers.len()
            )?;
        }
        if self.members != MemberChanges::default() {
            let MemberChanges { joined, removed, tried_again, without_disk } = self.members;
            writeln!(
                f,
                "members               {joined} joined, {removed} drained and removed; {tried_again} times a step was refused and tried again"
            )?;
            if without_disk > 0 {
                writeln!(
                    f,
                    "                      {without_disk} of them without a disk of their own, which no disk fault could strike"
                )?;
            }
        }
        if self.retired + self.rejoined > 0 {
            writeln!(
                f,
                "after damage          {} replicas retired, {} brokers joined again with nothing",
                self.retired, self.rejoined
            )?;
        }
        if self.traffic != Traffic::default() {
            writeln!(f, "packets among brokers {}", self.traffic)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=20).rev().map(Duration::from_secs).collect();
        assert_eq!(percentile(&times, 50), Some(Duration::from_secs(10)));
        assert_eq!(percentile(&times, 95), Some(Duration::from_secs(19)));
        assert_eq!(percentile(&times[..1], 50), Some(Duration::from_secs(20)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn the_table_says_how_often_and_what_was_not_done() {
        let mut fires = Fires::default();
        fires.count(FaultKind::Kill);
        fires.count(FaultKind::Kill);
        fires.skipped.insert(FaultKind::PowerLoss, "no mount".to_owned());
        let said = fires.to_string();
        let words: Vec<&str> = said.split_whitespace().collect();
        let words = words.join(" ");
        assert!(words.contains("kill 2 kill -9 of one broker"), "{said}");
        assert!(words.contains("power-loss SKIPPED power loss of one broker: no mount"), "{said}");
        assert!(!said.contains("rolling"), "{said}");
        assert!(!said.contains("drained"), "{said}");
        fires.members = MemberChanges { joined: 3, removed: 2, ..MemberChanges::default() };
        assert!(fires.to_string().contains("3 joined, 2 drained and removed; 0 times"), "{fires}");
    }

    #[test]
    fn the_table_has_what_was_drawn_from_and_never_done() {
        let mut fires = Fires { kinds: vec![FaultKind::Rolling, FaultKind::DiskFull], ..Fires::default() };
        fires.count_in_vain(FaultKind::DiskFull);
        fires.count_in_vain(FaultKind::DiskFull);
        let said = fires.to_string();
        let words: Vec<&str> = said.split_whitespace().collect();
        let words = words.join(" ");
        assert!(
            words.contains("rolling 0 rolling restarts disk-full 0 disk full: 2 times it could"),
            "{said}"
        );
        assert!(!said.contains("kill-all"), "{said}");
    }

    #[test]
    fn after_some_faults_what_was_not_done_yet_has_its_turn() {
        let kinds = [FaultKind::Kill, FaultKind::Cut, FaultKind::Weather];
        let mut fires = Fires::default();
        while fires.draws() < FREE_DRAWS {
            assert_eq!(fires.whose_turn(&kinds), None, "chance decides");
            fires.count(FaultKind::Kill);
        }
        assert_eq!(fires.whose_turn(&kinds), Some(FaultKind::Cut));
        fires.count_in_vain(FaultKind::Cut);
        assert_eq!(fires.whose_turn(&kinds), None, "in between chance goes on");
        fires.count(FaultKind::Kill);
        assert_eq!(fires.whose_turn(&kinds), Some(FaultKind::Weather), "it was not tried yet");
        fires.count(FaultKind::Weather);
        fires.count(FaultKind::Kill);
        assert_eq!(fires.whose_turn(&kinds), Some(FaultKind::Cut), "again");
        assert_eq!(fires.whose_turn(&kinds[..1]), None, "all that can be done now was done");
        fires.count(FaultKind::Cut);
        fires.count(FaultKind::Kill);
        assert_eq!(fires.whose_turn(&kinds), None);
    }

    #[test]
    fn however_unlucky_a_run_is_each_kind_has_its_turns() {
        let mut fires = Fires { kinds: FaultKind::ALL.to_vec(), ..Fires::default() };
        while fires.draws() < fires.draws_for_all() {
            assert!(fires.lacking().is_empty(), "it may still come: {fires}");
            match fires.whose_turn(&FaultKind::ALL) {
                Some(kind) if fires.times_in_vain(kind) == 0 => fires.count_in_vain(kind),
                Some(kind) => fires.count(kind),
                None => fires.count(FaultKind::Kill),
            }
        }
        assert!(fires.lacking().is_empty() && fires.counts.len() == FaultKind::ALL.len(), "{fires}");
    }
}
