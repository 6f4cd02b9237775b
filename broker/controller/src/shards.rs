//! Which replicas a shard is to have, and which it has.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, LogIndex, NodeId, ShardId, Term};

use crate::state::Controller;

/// A shard's group as its leader knew it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedMembers {
    /// Who votes; of both sides while a joint change is under way.
    pub voters: BTreeSet<NodeId>,
    /// Who only follows.
    pub learners: BTreeSet<NodeId>,
    /// Who leads; `None` where it steps down.
    pub leader: Option<NodeId>,
    /// The term of who reports.
    pub term: Term,
    /// The log index of the membership.
    pub index: LogIndex,
}

/// A shard: which replicas it is to have, and which it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Which shard.
    pub shard: ShardId,
    /// Who is to vote; the first is the preferred leader.
    pub replicas: Vec<NodeId>,
    /// Who is to follow without a vote: of the controller's shard every other broker, of others nobody.
    pub observers: Vec<NodeId>,
    /// Of the metadata when `replicas` or `observers` changed last.
    pub version: u64,
    /// What its leader said last.
    pub members: Option<ReportedMembers>,
    /// The last incarnation under which each broker had a replica here: none comes twice.
    pub used: BTreeMap<BrokerId, u32>,
}

impl ShardRecord {
    pub(crate) fn new(shard: ShardId, replicas: Vec<NodeId>) -> Self {
        let used = replicas.iter().map(|node| (node.broker(), node.incarnation())).collect();
        Self { shard, replicas, observers: Vec::new(), version: 0, members: None, used }
    }

    /// The brokers of `replicas`, in their order.
    pub fn brokers(&self) -> impl Iterator<Item = BrokerId> + use<'_> {
        self.replicas.iter().map(|node| node.broker())
    }

    /// The node under which a broker is to take part, with or without a vote.
    #[must_use]
    pub fn node_of(&self, broker: BrokerId) -> Option<NodeId> {
        self.replicas.iter().chain(&self.observers).copied().find(|node| node.broker() == broker)
    }

    /// Who votes, as far as is known.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        match &self.members {
            Some(members) => members.voters.clone(),
            None => self.replicas.iter().copied().collect(),
        }
    }

    /// Whether those who are to vote do, and nobody else; not known before the first report.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let Some(members) = &self.members else { return false };
        members.voters.len() == self.replicas.len()
            && self.replicas.iter().all(|node| members.voters.contains(node))
    }
}

impl Controller {
    /// The shards by id, the controller's included; none before a broker has registered.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.values()
    }

    /// A shard by id.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> Option<&ShardRecord> {
        self.shards.get(&id)
    }

    /// Voters of a shard that can be counted on, and all of them.
    pub(crate) fn alive_voters(&self, shard: &ShardRecord) -> (usize, usize) {
        let voters = shard.voters();
        (voters.iter().filter(|node| self.is_alive_in(shard, **node)).count(), voters.len())
    }

    pub(crate) fn is_alive_in(&self, shard: &ShardRecord, node: NodeId) -> bool {
        shard.used.get(&node.broker()).is_some_and(|used| self.is_alive(*used, node))
    }
}

/// Whether so many of a group decide.
pub(crate) fn is_majority(count: usize, of: usize) -> bool {
    count * 2 > of
}
