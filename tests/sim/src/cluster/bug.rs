//! Bugs that are put back one at a time, to see whether the simulation finds them. Each is something of the simulation's own
//! that is wrong around the broker's code: a disk, the settings of a start. The broker's code is what it is.

use crate::disk::Lie;

/// A bug that is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The log says that it is on the disk, and is not.
    AckBeforeSync,
    /// The log is purged though the checkpoint's state is not on the disk.
    StateNotSynced,
    /// The state names segments that are not on the disk.
    SegmentsNotSynced,
    /// New and renamed files are not on the disk under their names.
    NamesNotSynced,
    /// After a restart the vote is the one of the life before.
    VoteForgotten,
    /// A worker of the log or of a shard is not woken any more, and its callbacks never come.
    WakeLost,
    /// The log's segments have the same salts in each life, so that blocks of an earlier one pass for valid.
    SaltsRepeat,
    /// Who lost its disk comes back under the node id that it had.
    WipedUnderOldId,
    /// A doubtful tail is taken as it is.
    DoubtAccepted,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AckBeforeSync,
        Self::StateNotSynced,
        Self::SegmentsNotSynced,
        Self::NamesNotSynced,
        Self::VoteForgotten,
        Self::WakeLost,
        Self::SaltsRepeat,
        Self::WipedUnderOldId,
        Self::DoubtAccepted,
    ];

    /// What disks say that they have synced, and have not.
    pub(super) const fn lie(self) -> Option<Lie> {
        match self {
            Self::AckBeforeSync => Some(Lie::Wal),
            Self::StateNotSynced => Some(Lie::State),
            Self::SegmentsNotSynced => Some(Lie::Segments),
            Self::NamesNotSynced => Some(Lie::Names),
            _ => None,
        }
    }

    /// The number that it has among all bugs, those of [`EDITS`](crate::EDITS) included.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::AckBeforeSync => 1,
            Self::StateNotSynced => 2,
            Self::SegmentsNotSynced => 3,
            Self::NamesNotSynced => 4,
            Self::VoteForgotten => 5,
            Self::WakeLost => 9,
            Self::SaltsRepeat => 10,
            Self::WipedUnderOldId => 11,
            Self::DoubtAccepted => 12,
        }
    }

    /// In a few words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::AckBeforeSync => "acknowledged before the log is synced",
            Self::StateNotSynced => "log purged before the checkpoint is durable",
            Self::SegmentsNotSynced => "checkpoint names segments that are not durable",
            Self::NamesNotSynced => "directories are not synced",
            Self::VoteForgotten => "vote not durable",
            Self::WakeLost => "a wake-up, and with it flush callbacks, is lost",
            Self::SaltsRepeat => "blocks of an earlier life pass for valid",
            Self::WipedUnderOldId => "a lost disk comes back under its old node id",
            Self::DoubtAccepted => "a doubtful tail is taken as it is",
        }
    }
}
