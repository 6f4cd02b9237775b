//! What can go wrong, per operation.

use std::sync::Arc;

use tidemill_log::wal::EntryId;
use tidemill_protocol::{BrokerId, NodeId, ShardId};

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaStartError {
    /// The log holds nothing of this shard, and nobody said that it is new.
    #[error(
        "shard {shard} has no log on this broker, and it is not being created now: \
         is the data directory the right one, and complete?"
    )]
    Missing {
        /// The shard.
        shard: ShardId,
    },
    /// The end of the log cannot be trusted.
    #[error(
        "shard {shard}: the end of the write-ahead log can't be trusted, and it may have been acknowledged: {doubt}. \
         Entries from there on are lost. Restore the directory wal/ from a copy, or start with --accept-data-loss to \
         go on with what can be read"
    )]
    DoubtfulTail {
        /// The shard.
        shard: ShardId,
        /// Where, and what was found.
        doubt: String,
    },
    /// The shard's checkpoint is ahead of the log, so the log has lost entries that were durable.
    #[error(
        "shard {shard}: the checkpoint holds entries up to {applied}, but the write-ahead log ends at {last}: \
         the log was lost or replaced. Restore the directory wal/, or start with --accept-data-loss to go on from \
         the checkpoint",
        applied = position(Some(.applied)),
        last = position(.last.as_ref())
    )]
    LogLost {
        /// The shard.
        shard: ShardId,
        /// The last entry in the checkpoint.
        applied: EntryId,
        /// The last entry in the log.
        last: Option<EntryId>,
    },
    /// The log begins after the checkpoint ends.
    #[error(
        "shard {shard}: the write-ahead log begins after {purged}, but the checkpoint ends at {applied}: the state \
         in the directory of this shard was lost or replaced by an older one. Restore it",
        purged = position(Some(.purged)),
        applied = position(.applied.as_ref())
    )]
    StateLost {
        /// The shard.
        shard: ShardId,
        /// What the log no longer has.
        purged: EntryId,
        /// What the checkpoint holds.
        applied: Option<EntryId>,
    },
    /// The group of this shard consists of others, and this broker, which is alone, can't be taken in by them.
    #[error(
        "shard {shard}: node {node} is not a member of its group ({members}); was the broker id changed?"
    )]
    NotAMember {
        /// The shard.
        shard: ShardId,
        /// Who was to start.
        node: NodeId,
        /// Who belongs to the group.
        members: String,
    },
    /// What the log holds is not readable by this release.
    #[error("shard {shard}: {what} in the write-ahead log cannot be read: {reason}")]
    Unreadable {
        /// The shard.
        shard: ShardId,
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The settings contradict each other.
    #[error("shard {shard}: the settings of its Raft group are not usable: {reason}")]
    BadConfig {
        /// The shard.
        shard: ShardId,
        /// Which, and why.
        reason: String,
    },
    /// The log or the state failed while the replica was brought up to date.
    #[error("shard {shard} could not be started: {reason}")]
    Failed {
        /// The shard.
        shard: ShardId,
        /// What failed.
        reason: String,
    },
}

/// Why a proposal has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads the shard; nothing was written.
    #[error("this broker does not lead the shard{}", hint(.leader))]
    NotLeader {
        /// Who does, where that is known.
        leader: Option<NodeId>,
    },
    /// This replica leads, and has not heard from a majority for so long that others may lead by now; nothing was written.
    #[error("a majority of the shard's replicas does not answer; nothing was written")]
    NoQuorum,
    /// There was no room in time; nothing was written.
    #[error("too much is waiting to be written; try again later")]
    Overloaded,
    /// There is no room on a disk of the group for more records; nothing was written.
    #[error("the disk of broker {broker}, which keeps a replica of the shard, is nearly full")]
    DiskFull {
        /// Whose.
        broker: BrokerId,
    },
    /// The unit is larger than an entry may be; nothing was written.
    #[error("a unit of {bytes} bytes is larger than the limit of {bytes_max} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The unit may or may not have been written: repeat it in a way that the shard recognises.
    #[error("the outcome is unknown: the unit may or may not have been written")]
    OutcomeUnknown,
    /// The replica has stopped; nothing was written.
    #[error("the shard's replica has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: Arc<str>,
        /// Whether the group has other voters, one of which leads soon: the same may be proposed to it.
        others_vote: bool,
    },
}

impl ProposeError {
    /// Who leads, where it says that another does and who.
    pub(crate) const fn leader(&self) -> Option<NodeId> {
        match self {
            Self::NotLeader { leader } => *leader,
            _ => None,
        }
    }
}

/// Why a read cannot be served here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another node leads the shard.
    #[error("this broker does not lead the shard{}", hint(.leader))]
    NotLeader {
        /// Who does, where that is known.
        leader: Option<NodeId>,
    },
    /// A majority did not confirm in time that this node leads.
    #[error("a majority of the shard's replicas did not answer in time")]
    NoQuorum,
    /// The replica has stopped.
    #[error("the shard's replica has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: Arc<str>,
    },
}

/// Why a group's members did not change, or its leader did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Another node leads the shard; nothing changed.
    #[error("this broker does not lead the shard{}", hint(.leader))]
    NotLeader {
        /// Who does, where that is known.
        leader: Option<NodeId>,
    },
    /// An earlier change is not through, or this leader is so new that it is not known whether one is; nothing changed.
    #[error("an earlier change of the shard's members is not through yet; try again")]
    InProgress,
    /// It can't be done as it was said; nothing changed.
    #[error("the members of the shard can't be changed so: {0}")]
    Refused(String),
    /// The change may be through, may become so, or may be left half done: look at the members, and repeat it.
    #[error("the outcome is unknown: the shard's members may or may not have changed")]
    OutcomeUnknown,
    /// The other node did not take the lead in time; this one leads on, or somebody else does.
    #[error("node {to} did not take the lead in time")]
    NotTaken {
        /// Who was to.
        to: NodeId,
    },
    /// The replica has stopped.
    #[error("the shard's replica has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: Arc<str>,
    },
}

/// Why a checkpoint was not taken, or the log not freed after it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CheckpointFailed {
    /// The state could not be written; it can be tried again.
    #[error("the checkpoint of shard {shard} could not be written: {reason}")]
    NotWritten {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// The replica has stopped.
    #[error("the shard's replica has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: Arc<str>,
    },
}

fn hint(leader: &Option<NodeId>) -> String {
    leader
        .map_or_else(|| "; its leader is not known yet".to_owned(), |leader| format!("; node {leader} does"))
}

fn position(id: Option<&EntryId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| format!("entry {} of term {}", id.index, id.term))
}
