use std::time::Duration;

use crate::arguments::Options;

/// How long and how often things are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    /// One leg.
    pub(crate) leg: Duration,
    /// Legs of each kind.
    pub(crate) rounds: usize,
    /// Before something idle is looked at.
    pub(crate) settle: Duration,
    /// Record bytes that a topic is filled with before it is read.
    pub(crate) fill_bytes: u64,
    /// Record bytes in segments before a restart.
    pub(crate) restart_bytes: u64,
    /// Not what the rows demand.
    pub(crate) quick: bool,
}

impl Scale {
    const FULL: Self = Self {
        leg: Duration::from_secs(20),
        rounds: 5,
        settle: Duration::from_secs(20),
        fill_bytes: 2 << 30,
        restart_bytes: 5 << 30,
        quick: false,
    };

    const QUICK: Self = Self {
        leg: Duration::from_secs(2),
        rounds: 3,
        settle: Duration::from_secs(3),
        fill_bytes: 512 << 20,
        restart_bytes: 1 << 30,
        quick: true,
    };

    /// Of three brokers: shorter, for what lies between the legs takes its time.
    const CLUSTER_FULL: Self =
        Self { leg: Duration::from_secs(10), settle: Duration::from_secs(10), ..Self::FULL };

    const CLUSTER_QUICK: Self = Self { fill_bytes: 256 << 20, ..Self::QUICK };

    /// Of one broker.
    pub(crate) fn single(arguments: &Options) -> Self {
        Self::of(arguments, Self::FULL, Self::QUICK)
    }

    /// Of three brokers.
    pub(crate) fn cluster(arguments: &Options) -> Self {
        Self::of(arguments, Self::CLUSTER_FULL, Self::CLUSTER_QUICK)
    }

    fn of(arguments: &Options, full: Self, short: Self) -> Self {
        let preset = if arguments.quick { short } else { full };
        let leg =
            arguments.leg_seconds.map_or(preset.leg, |seconds| Duration::from_secs_f64(seconds.max(0.1)));
        let rounds = arguments.rounds.map_or(preset.rounds, |rounds| rounds.max(1));
        // Fewer or shorter legs than demanded are a quick run, whatever they are called.
        let quick = arguments.quick || leg < full.leg || rounds < full.rounds;
        Self { leg, rounds, quick, ..preset }
    }

    /// Seconds that `legs` legs of each round take.
    pub(crate) fn seconds(&self, legs: u32) -> f64 {
        self.leg.as_secs_f64() * f64::from(legs) * self.rounds as f64
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn scale(arguments: &[&str]) -> Scale {
        scale_of("single", arguments)
    }

    fn scale_of(command: &str, arguments: &[&str]) -> Scale {
        let all = ["bench", command].into_iter().chain(arguments.iter().copied());
        match Arguments::try_parse_from(all).expect("they parse").command {
            Command::Single(options) => Scale::single(&options),
            Command::Cluster(options) => Scale::cluster(&options),
            Command::Peer(peer) => panic!("{peer:?}"),
        }
    }

    #[test]
    fn three_brokers_have_legs_of_their_own() {
        let full = scale_of("cluster", &[]);
        assert!(full.leg == Duration::from_secs(10) && full.rounds == 5 && !full.quick);
        assert!(scale_of("cluster", &["--leg-seconds", "9"]).quick);
        assert!(scale_of("cluster", &["--quick"]).quick);
    }

    #[test]
    fn by_default_legs_are_as_the_rows_demand() {
        Arguments::command().debug_assert();
        let full = scale(&[]);
        assert!(full.leg >= Duration::from_secs(20) && full.rounds >= 5 && !full.quick);
        assert_eq!(full.seconds(2), 200.0);
    }

    #[test]
    fn fewer_or_shorter_legs_are_a_quick_run_whatever_they_are_called() {
        assert!(scale(&["--quick"]).quick);
        assert!(scale(&["--leg-seconds", "19"]).quick);
        assert!(scale(&["--rounds", "4"]).quick);
        let longer = scale(&["--leg-seconds", "30", "--rounds", "7"]);
        assert!(!longer.quick && longer.leg == Duration::from_secs(30) && longer.rounds == 7);
        // Nothing that was made longer stands for what was asked to be quick.
        assert!(scale(&["--quick", "--leg-seconds", "30"]).quick);
    }
}
