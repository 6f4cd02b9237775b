use std::path::PathBuf;
use std::time::Duration;

/// What a run of chaos does. Everything is bounded: rates, records, and with them the disk.
#[derive(Debug, Clone)]
pub struct ChaosConfig {
    /// How long the broker is killed again and again.
    pub duration: Duration,
    /// All random choices follow from it, the kernel's and the network's aside.
    pub seed: u64,
    /// Records per second of each producer.
    pub rate: u32,
    /// Records of each producer at the most.
    pub records_max: u32,
    /// Where the broker keeps its data; a temporary directory by default.
    pub directory: Option<PathBuf>,
    /// Says how it goes.
    pub verbose: bool,
}

impl ChaosConfig {
    /// Producers to the topic `direct`.
    pub const DIRECT_PRODUCERS: u32 = 3;
    /// Producers to the topic `routed`.
    pub const ROUTED_PRODUCERS: u32 = 2;

    /// Load that leaves a small machine room to recover in, for so long.
    #[must_use]
    pub const fn new(duration: Duration, seed: u64) -> Self {
        Self { duration, seed, rate: 100, records_max: 200_000, directory: None, verbose: false }
    }
}
