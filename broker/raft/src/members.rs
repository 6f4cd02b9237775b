//! Who belongs to a shard's group, how far each has come, and how that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::VoteRequest;
use openraft::vote::RaftVote;
use openraft::{ChangeMembers, EmptyNode};
use tidemill_protocol::{LogIndex, NodeId};
use tokio::sync::watch;

use crate::error::ChangeError;
use crate::replica::Replica;
use crate::status::ReplicaRole;
use crate::types::{LeaderId, StoredMembership, TypeConfig, Vote};

/// The members of a shard's group, as the last committed entry about them says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupMembers {
    /// Those who vote; of a change that is half done, the old ones and the new ones.
    pub voters: BTreeSet<NodeId>,
    /// Those who take entries without a vote.
    pub learners: BTreeSet<NodeId>,
    /// A change of voters is half done.
    pub joint: bool,
    /// The entry that says so; `None` before the first.
    pub index: Option<LogIndex>,
}

impl GroupMembers {
    pub(crate) fn of(stored: &StoredMembership) -> Self {
        let membership = stored.membership();
        Self {
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            joint: membership.get_joint_config().len() > 1,
            index: stored.log_id().as_ref().map(|id| LogIndex::new(id.index)),
        }
    }

    /// Whether anybody but this node may lead.
    #[must_use]
    pub fn has_voters_beside(&self, node: NodeId) -> bool {
        self.voters.iter().any(|voter| *voter != node)
    }
}

/// How far a follower or learner is, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FollowerProgress {
    /// It holds the leader's log up to there.
    pub matched: Option<LogIndex>,
    /// How long ago the last message was sent that it answered.
    pub last_ack: Option<Duration>,
}

type Change = ChangeMembers<NodeId, EmptyNode>;

impl Replica {
    /// The members of the group, as far as this replica knows.
    #[must_use]
    pub fn members(&self) -> GroupMembers {
        self.inner().members.borrow().clone()
    }

    /// Whether the group has voters beside this replica, as far as it knows: where it ends, another may lead.
    #[must_use]
    pub fn others_vote(&self) -> bool {
        self.inner().members.borrow().has_voters_beside(self.node())
    }

    /// The members whenever they change.
    #[must_use]
    pub fn watch_members(&self) -> watch::Receiver<GroupMembers> {
        self.inner().members.clone()
    }

    /// How far the other members are; empty where this replica does not lead.
    #[must_use]
    pub fn followers(&self) -> BTreeMap<NodeId, FollowerProgress> {
        let metrics = self.inner().raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(replication), Some(heartbeat)) = (&metrics.replication, &metrics.heartbeat) else {
            return BTreeMap::new();
        };
        let others = replication.iter().filter(|(node, _)| **node != metrics.id);
        let progress = others.map(|(node, matched)| {
            let acked = heartbeat.get(node).copied().flatten();
            let progress = FollowerProgress {
                matched: matched.as_ref().map(|id| LogIndex::new(id.index)),
                last_ack: acked.map(|at| at.into_inner().elapsed()),
            };
            (*node, progress)
        });
        progress.collect()
    }

    /// At the leader: members that have lost what they acknowledged to it. They get nothing any more, so each must be replaced by one with
    /// a new id.
    #[must_use]
    pub fn lost_followers(&self) -> BTreeSet<NodeId> {
        let Some(peers) = &self.inner().peers else { return BTreeSet::new() };
        let members = self.members();
        let mut lost = peers.links.lost();
        lost.retain(|node| members.voters.contains(node) || members.learners.contains(node));
        lost
    }

    /// Takes a node in as a learner; does not wait for it to catch up. For one that is a member already this changes nothing.
    ///
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::OutcomeUnknown`] leaves open whether it was taken in.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let members = self.members();
        if members.voters.contains(&node) || members.learners.contains(&node) {
            return Ok(());
        }
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, EmptyNode::new())])), true).await
    }

    /// Makes `voters`, who are voters or learners now, the voters of the group: by a joint change, in which both the old and
    /// the new ones must agree. Of the old ones, those in `keep` stay as learners, and the others are let go.
    ///
    /// # Errors
    /// [`ChangeError::OutcomeUnknown`] where it was broken off, perhaps half done: whoever leads then repeats it.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<NodeId>,
        keep: BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        if voters.is_empty() {
            return Err(ChangeError::Refused(
                "a group without voters could never decide anything".to_owned(),
            ));
        }
        let old = self.members().voters;
        let leaving: BTreeSet<NodeId> = old.difference(&voters).copied().collect();
        let let_go: BTreeSet<NodeId> = leaving.difference(&keep).copied().collect();
        // All that leave stay as learners, or none does; what is between takes two changes.
        let retain = let_go.len() < leaving.len();
        self.change(ChangeMembers::ReplaceAllVoters(voters), retain).await?;
        if retain && !let_go.is_empty() {
            self.change(ChangeMembers::RemoveNodes(let_go), true).await?;
        }
        Ok(())
    }

    /// Lets a learner go.
    ///
    /// # Errors
    /// [`ChangeError::Refused`] where it is a voter: see [`Self::change_voters`].
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        if self.members().voters.contains(&node) {
            return Err(ChangeError::Refused(format!("node {node} is a voter, not a learner")));
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node])), true).await
    }

    async fn change(&self, change: Change, retain: bool) -> Result<(), ChangeError> {
        let inner = self.inner();
        let members = self.members();
        if !members.voters.contains(&inner.node) && !members.learners.contains(&inner.node) {
            // openraft's leader that was removed leads on for a moment, but must change nothing any more.
            return Err(ChangeError::NotLeader { leader: None });
        }
        // Without a majority a leader would wait for ever.
        let deadline = inner.limits.proposal_deadline;
        let changed = tokio::time::timeout(deadline, inner.raft.change_membership(change, retain)).await;
        match changed {
            Ok(Ok(done)) => {
                // Whoever changed them is to see them changed.
                let index = Some(LogIndex::new(done.log_id.index));
                let mut members = self.watch_members();
                let seen = members.wait_for(|members| members.index >= index);
                drop(tokio::time::timeout(deadline, seen).await);
                Ok(())
            }
            Ok(Err(error)) => Err(self.change_error(error)),
            Err(_elapsed) => Err(ChangeError::OutcomeUnknown),
        }
    }

    fn change_error(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeError {
        match error {
            RaftError::Fatal(fatal) => ChangeError::Stopped { reason: self.inner().stop_reason(&fatal) },
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ChangeError::NotLeader { leader: forward.leader_id }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ChangeError::OutcomeUnknown,
            RaftError::APIError(
                ClientWriteError::PreconditionFailed(_)
                | ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ),
            ) => ChangeError::InProgress,
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
                ChangeError::Refused(error.to_string())
            }
        }
    }

    /// Hands the lead to another voter, which takes it once it holds the whole log. Nothing is proposed meanwhile.
    ///
    /// # Errors
    /// [`ChangeError::NotTaken`] where it did not do so in time; then this replica stands for election itself.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let inner = self.inner();
        let mut role = self.watch();
        let now = role.borrow_and_update().clone();
        if let Some(reason) = now.stopped() {
            return Err(ChangeError::Stopped { reason: Arc::clone(reason) });
        }
        if !now.is_leader() {
            return Err(ChangeError::NotLeader { leader: now.leader });
        }
        if to == inner.node {
            return Ok(());
        }
        if !self.members().voters.contains(&to) {
            return Err(ChangeError::Refused(format!("node {to} is not a voter of this shard")));
        }
        let stopped = |fatal| ChangeError::Stopped { reason: inner.stop_reason(&fatal) };
        inner.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let taken = async {
            let is_taken =
                |role: &ReplicaRole| role.stopped().is_some() || (role.leader.is_some() && !role.is_leader());
            role.wait_for(is_taken).await.map(|role| role.clone())
        };
        let taken = tokio::time::timeout(inner.transfer_patience, taken).await;
        let leader = match taken {
            Ok(Ok(role)) => match role.stopped() {
                Some(reason) => return Err(ChangeError::Stopped { reason: Arc::clone(reason) }),
                None => role.leader,
            },
            Ok(Err(_gone)) => return Err(ChangeError::Stopped { reason: Arc::from("it was shut down") }),
            Err(_elapsed) => {
                self.lead_anew(to).await?;
                return Err(ChangeError::NotTaken { to });
            }
        };
        if leader == Some(to) { Ok(()) } else { Err(ChangeError::NotTaken { to }) }
    }

    /// openraft's leader takes no proposals any more once it was told to hand the lead over, even where nobody takes it, until
    /// others elect somebody. So it votes, for itself alone to know, for whom it was to be in the next term, which ends its own, and
    /// stands for election in the one after. (A vote for itself would leave openraft's leader in place, under a vote that is not its own.)
    async fn lead_anew(&self, to: NodeId) -> Result<(), ChangeError> {
        let inner = self.inner();
        let stopped = |reason: String| ChangeError::Stopped { reason: Arc::from(reason) };
        let Some(vote) = inner.log.vote() else { return Ok(()) };
        if vote.leader_id().node_id != inner.node {
            return Ok(());
        }
        let next = LeaderId { term: vote.leader_id().term + 1, node_id: to };
        let mut request = VoteRequest::new(Vote::from_leader_id(next, false), inner.log.ends().last);
        request.leadership_transfer = true;
        inner.raft.vote(request).await.map_err(|error| stopped(error.to_string()))?;
        inner.raft.trigger().elect(false).await.map_err(|error| stopped(error.to_string()))
    }
}
