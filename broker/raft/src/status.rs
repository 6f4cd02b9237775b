//! How a replica is doing.

use std::sync::Arc;

use openraft::ServerState;
use openraft::metrics::RaftServerMetrics;
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, NodeId, ShardId, Term};

use crate::types::TypeConfig;

/// A replica's part in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    /// It takes entries but has no vote.
    Learner,
    /// It takes entries from a leader.
    Follower,
    /// It stands for election.
    Candidate,
    /// It leads: proposals and linearizable reads are its to answer.
    Leader,
    /// It has stopped and will not go on.
    Stopped {
        /// Why.
        reason: Arc<str>,
    },
}

/// A replica's role, as it is announced to whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRole {
    /// Its part in the group.
    pub state: ReplicaState,
    /// The current term.
    pub term: Term,
    /// Who leads, where that is known.
    pub leader: Option<NodeId>,
}

/// A replica's role together with its positions, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Which shard.
    pub shard: ShardId,
    /// Which replica of it.
    pub node: NodeId,
    /// Its part in the group.
    pub state: ReplicaState,
    /// The current term.
    pub term: Term,
    /// Who leads, where that is known.
    pub leader: Option<NodeId>,
    /// The last entry that is applied.
    pub last_applied: Option<EntryId>,
    /// The last entry that the latest checkpoint holds.
    pub checkpointed: Option<EntryId>,
    /// The last entry in the log.
    pub last_entry: Option<EntryId>,
    /// The last entry that this replica goes by, of which its log may be about to hear only: a snapshot is put in place before it.
    pub last_taken: Option<LogIndex>,
    /// The last entry that is no longer in the log.
    pub purged: Option<EntryId>,
}

impl ReplicaRole {
    pub(crate) fn of(metrics: &RaftServerMetrics<TypeConfig>) -> Self {
        let state = match metrics.state {
            ServerState::Learner => ReplicaState::Learner,
            ServerState::Follower => ReplicaState::Follower,
            ServerState::Candidate => ReplicaState::Candidate,
            ServerState::Leader => ReplicaState::Leader,
            ServerState::Shutdown => ReplicaState::Stopped { reason: Arc::from("it was shut down") },
        };
        Self { state, term: Term::new(metrics.vote.leader_id().term), leader: metrics.current_leader }
    }

    /// Whether the replica leads its group.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.state == ReplicaState::Leader
    }

    /// Why it stopped, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<&Arc<str>> {
        match &self.state {
            ReplicaState::Stopped { reason } => Some(reason),
            _ => None,
        }
    }
}
