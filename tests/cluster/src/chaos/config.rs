use std::path::PathBuf;
use std::time::Duration;

use super::faults::FaultKind;

/// What a run of chaos does. Everything is bounded: rates, records, and with them the disk.
#[derive(Debug, Clone)]
pub struct ChaosConfig {
    /// Brokers of the cluster; one is a broker alone.
    pub brokers: u32,
    /// What is done to them; nothing said: all that is known to be survived.
    pub faults: Vec<FaultKind>,
    /// A fault that can't be done here is a failure, or not to some of the brokers, and so is what a run of some length has never done.
    pub require_all: bool,
    /// How long they are under fire.
    pub duration: Duration,
    /// All random choices follow from it, the kernel's and the network's aside.
    pub seed: u64,
    /// Records per second of each producer.
    pub rate: u32,
    /// Records of each producer at the most.
    pub records_max: u32,
    /// Where brokers keep their data; a temporary directory by default.
    pub directory: Option<PathBuf>,
    /// Says how it goes.
    pub verbose: bool,
}

impl ChaosConfig {
    /// Producers to the topic `direct`.
    pub const DIRECT_PRODUCERS: u32 = 3;
    /// Producers to the topic `routed`.
    pub const ROUTED_PRODUCERS: u32 = 2;
    /// Producers to the topic `trimmed`.
    pub const TRIMMED_PRODUCERS: u32 = 1;
    /// All of them.
    pub const PRODUCERS: u32 = Self::DIRECT_PRODUCERS + Self::ROUTED_PRODUCERS + Self::TRIMMED_PRODUCERS;

    /// Load that leaves a small machine room to recover in, for so long.
    #[must_use]
    pub const fn new(duration: Duration, seed: u64) -> Self {
        Self {
            brokers: 3,
            faults: Vec::new(),
            require_all: false,
            duration,
            seed,
            rate: 100,
            records_max: 400_000,
            directory: None,
            verbose: false,
        }
    }

    /// What is wanted of these faults.
    pub(super) fn wanted(&self, of: &[FaultKind]) -> Vec<FaultKind> {
        let is_wanted = |kind: &FaultKind| self.faults.is_empty() || self.faults.contains(kind);
        of.iter().copied().filter(is_wanted).collect()
    }

    /// What is wanted by its name, and is none of these faults.
    pub(super) fn named_beside(&self, of: &[FaultKind]) -> Vec<FaultKind> {
        self.faults.iter().copied().filter(|kind| !of.contains(kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::killer;

    #[test]
    fn what_is_named_is_wanted_or_known_to_be_left_out() {
        let mut config = ChaosConfig::new(Duration::from_secs(1), 7);
        assert_eq!(config.wanted(&killer::FAULTS), killer::FAULTS);
        assert!(config.named_beside(&killer::FAULTS).is_empty(), "nothing was named");
        config.faults = vec![FaultKind::Cut, FaultKind::Kill];
        assert_eq!(config.wanted(&killer::FAULTS), [FaultKind::Kill]);
        assert_eq!(config.named_beside(&killer::FAULTS), [FaultKind::Cut]);
        assert!(config.named_beside(&FaultKind::ALL).is_empty());
    }
}
