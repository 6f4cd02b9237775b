//! What goes wrong, drawn from the seed.

use rand::RngExt;
use rand::rngs::StdRng;

/// Something that goes wrong, or is done in the midst of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One broker's power goes, a few calls to its disk later.
    PowerLoss,
    /// One broker's process ends; what it wrote is there.
    Killed,
    /// The power of all goes at once.
    AllPowerLoss,
    /// A way between two brokers is cut, in one direction.
    CutOneWay,
    /// One broker is cut off from all others.
    Isolated,
    /// All streams of one broker break off.
    StreamsBroken,
    /// Every tenth message is late.
    NetworkLate,
    /// One broker neither sends nor hears, and its disk stands still.
    Paused,
    /// One broker's disk is slow.
    SlowDisk,
    /// One broker's clock jumps.
    ClockJump,
    /// One shard's lead is handed over.
    Transfer,
    /// One replica writes a checkpoint, and frees its log.
    Checkpoint,
    /// One broker is away for so long that its log is gone elsewhere.
    LongAway,
    /// Another broker takes a voter's place.
    Moved,
    /// Bytes of one broker's log change while it is down.
    LogDamaged,
    /// One broker comes back with an empty disk.
    DiskLost,
    /// One write to a broker's write-ahead log lands elsewhere in it; soon after the broker ends.
    Misdirected,
    /// One broker's disk says that it has synced the write-ahead log, and has not; then its power goes.
    FlushLost,
    /// One broker's disk has no room for a while.
    DiskFull,
    /// A write or a sync of one broker's disk fails, or all do for a while. Whoever stopped for that starts again, as for a full disk.
    DiskFails,
}

/// Each with how often it comes.
const WEIGHTS: [(Fault, u32); 20] = [
    (Fault::PowerLoss, 14),
    (Fault::Killed, 8),
    (Fault::AllPowerLoss, 4),
    (Fault::CutOneWay, 8),
    (Fault::Isolated, 8),
    (Fault::StreamsBroken, 6),
    (Fault::NetworkLate, 4),
    (Fault::Paused, 6),
    (Fault::SlowDisk, 6),
    (Fault::ClockJump, 4),
    (Fault::Transfer, 8),
    (Fault::Checkpoint, 12),
    (Fault::LongAway, 3),
    (Fault::Moved, 5),
    (Fault::LogDamaged, 10),
    (Fault::DiskLost, 7),
    (Fault::Misdirected, 5),
    (Fault::FlushLost, 3),
    (Fault::DiskFull, 6),
    (Fault::DiskFails, 6),
];

impl Fault {
    /// All kinds that are drawn.
    pub fn all() -> impl Iterator<Item = Self> {
        WEIGHTS.into_iter().map(|(fault, _)| fault)
    }

    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let all: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.random_range(0..all);
        for (fault, weight) in WEIGHTS {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        Self::Killed
    }

    /// Whether it takes from a broker what it may have promised: only ever while all others are well.
    pub(super) const fn takes_promises(self) -> bool {
        matches!(self, Self::Moved | Self::LogDamaged | Self::DiskLost | Self::Misdirected | Self::FlushLost)
    }
}
