//! Bugs that are put back one at a time, to see whether the simulation finds them. Each is something of the simulation's own
//! that is wrong around the broker's code: a disk, the settings of a start, a client. The broker's code is what it is.

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
    /// Each member forms the group with itself alone, so that each is a majority.
    TooFewVoters,
    /// Whoever believes to lead answers readers without asking the others.
    StaleLeaderAnswers,
    /// A batch that is sent again is another one to the broker.
    RetryIsNew,
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
    pub const ALL: [Self; 12] = [
        Self::AckBeforeSync,
        Self::StateNotSynced,
        Self::SegmentsNotSynced,
        Self::NamesNotSynced,
        Self::VoteForgotten,
        Self::TooFewVoters,
        Self::StaleLeaderAnswers,
        Self::RetryIsNew,
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

    /// In a few words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::AckBeforeSync => "acknowledged before the log is synced",
            Self::StateNotSynced => "log purged before the checkpoint is durable",
            Self::SegmentsNotSynced => "checkpoint names segments that are not durable",
            Self::NamesNotSynced => "directories are not synced",
            Self::VoteForgotten => "vote not durable",
            Self::TooFewVoters => "committed with too few voters",
            Self::StaleLeaderAnswers => "a deposed leader answers readers",
            Self::RetryIsNew => "a retried batch counts as a new one",
            Self::WakeLost => "a wake-up, and with it flush callbacks, is lost",
            Self::SaltsRepeat => "blocks of an earlier life pass for valid",
            Self::WipedUnderOldId => "a lost disk comes back under its old node id",
            Self::DoubtAccepted => "a doubtful tail is taken as it is",
        }
    }
}
