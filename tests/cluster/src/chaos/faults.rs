use std::fmt;
use std::str::FromStr;

/// Kinds of what is done to brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// kill -9 of one.
    Kill,
    /// kill -9 of two at once: the cluster has no majority.
    KillTwo,
    /// kill -9 of all.
    KillAll,
    /// Several kills, most of them shortly after a start.
    Storm,
    /// One is stopped in order.
    Stop,
    /// All are stopped in order and started again, one after the other.
    Rolling,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// Two brokers don't hear each other.
    Cut,
    /// One broker does not hear another, which hears it.
    CutOneWay,
    /// No other broker hears one, or it hears none, or both.
    Isolate,
    /// Packets between brokers are late, lost, doubled, and out of order, while other things happen.
    Weather,
    /// Flipped bits and swapped blocks in the write-ahead log of a broker that was killed.
    WalDamage,
    /// The same in its sealed segments, which it takes from the others again.
    SegmentDamage,
    /// A disk without room.
    DiskFull,
    /// A disk that answers EIO for a while.
    DiskFails,
    /// The power of one goes: what was not flushed is gone.
    PowerLoss,
    /// The power of all goes at once.
    PowerLossOfAll,
    /// Another broker joins, and one of them is drained and removed, while other things happen.
    Members,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::KillTwo,
        Self::KillAll,
        Self::Storm,
        Self::Stop,
        Self::Rolling,
        Self::Pause,
        Self::Cut,
        Self::CutOneWay,
        Self::Isolate,
        Self::Weather,
        Self::WalDamage,
        Self::SegmentDamage,
        Self::DiskFull,
        Self::DiskFails,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::Members,
    ];

    /// What it is called on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillTwo => "kill-two",
            Self::KillAll => "kill-all",
            Self::Storm => "storm",
            Self::Stop => "stop",
            Self::Rolling => "rolling",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::Isolate => "isolate",
            Self::Weather => "weather",
            Self::WalDamage => "wal-damage",
            Self::SegmentDamage => "segment-damage",
            Self::DiskFull => "disk-full",
            Self::DiskFails => "disk-fails",
            Self::PowerLoss => "power-loss",
            Self::PowerLossOfAll => "power-loss-all",
            Self::Members => "members",
        }
    }

    /// For the table.
    pub(super) const fn what(self) -> &'static str {
        match self {
            Self::Kill => "kill -9 of one broker",
            Self::KillTwo => "kill -9 of two at once",
            Self::KillAll => "kill -9 of all at once",
            Self::Storm => "restart storms",
            Self::Stop => "stops in order",
            Self::Rolling => "rolling restarts",
            Self::Pause => "SIGSTOP, SIGCONT later",
            Self::Cut => "two brokers cut off from each other",
            Self::CutOneWay => "cut in one direction",
            Self::Isolate => "one broker cut off from all",
            Self::Weather => "packets late, lost, doubled, out of order",
            Self::WalDamage => "write-ahead log damaged",
            Self::SegmentDamage => "sealed segments damaged",
            Self::DiskFull => "disk full",
            Self::DiskFails => "disk answers EIO",
            Self::PowerLoss => "power loss of one broker",
            Self::PowerLossOfAll => "power loss of all at once",
            Self::Members => "a broker joins, another one leaves",
        }
    }

    /// How often it is drawn, beside the others.
    pub(super) const fn weight(self) -> u64 {
        match self {
            Self::Kill => 20,
            Self::Pause | Self::Cut | Self::Weather => 8,
            Self::KillTwo | Self::Storm | Self::Stop | Self::CutOneWay | Self::Isolate | Self::Members => 5,
            Self::KillAll | Self::Rolling | Self::PowerLoss | Self::PowerLossOfAll => 3,
            Self::WalDamage | Self::SegmentDamage | Self::DiskFull | Self::DiskFails => 2,
        }
    }

    /// Whether each broker needs a file system of its own for it.
    pub(super) const fn needs_disks(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskFails | Self::PowerLoss | Self::PowerLossOfAll)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("no such fault; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_called_by_their_names() {
        for kind in FaultKind::ALL {
            assert_eq!(kind.name().parse::<FaultKind>(), Ok(kind));
        }
        "meteor".parse::<FaultKind>().unwrap_err();
    }
}
