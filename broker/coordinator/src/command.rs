//! What may be asked of the groups, and their answers.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{LeaderEpoch, Offset, TopicPartition};

/// A change of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupCommand {
    /// Sets positions, all of them or none; creates the group where there is none.
    Commit {
        /// Any text of 1 to 255 bytes.
        group: String,
        /// One for each partition named.
        positions: Vec<PositionCommit>,
    },
    /// Forgets the group.
    Delete {
        /// Which group.
        group: String,
    },
    /// Forgets the positions of a topic that is gone, in every group.
    ForgetTopic {
        /// The deleted topic.
        topic: tidemill_protocol::TopicId,
    },
}

/// One partition's position to commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionCommit {
    /// Which partition.
    pub partition: TopicPartition,
    /// The next offset to read; `None` removes the position.
    pub offset: Option<Offset>,
    /// The leader epoch of the last record read, where the reader knows it.
    pub leader_epoch: Option<LeaderEpoch>,
    /// The reader's own, at most 4 KiB.
    pub note: String,
}

/// What a [`GroupCommand`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupReply {
    /// Done.
    Done,
    /// Nothing changed.
    Refused(GroupRefusal),
}

/// Why a group command was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GroupRefusal {
    /// No such group.
    #[error("there is no group '{0}'; `tidemill group list` shows the groups")]
    UnknownGroup(String),
    /// The name or a note is out of bounds, or too many.
    #[error("group '{group}' can't be so: {reason}")]
    Invalid {
        /// Which group, shortened.
        group: String,
        /// What to change.
        reason: String,
    },
}
