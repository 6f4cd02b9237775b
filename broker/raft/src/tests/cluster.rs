//! Several replicas of one shard, each on a storage of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_log::fs::MemoryStorage;
use tidemill_protocol::{BrokerId, NodeId};
use tidemill_shard::Unit;

use super::fixture::{Broker, PATIENCE, SHARD, commit_position, groups};
use super::network::Network;
use crate::config::{Begin, RaftTiming, ReplicaLimits};
use crate::error::{ProposeError, ReplicaStartError};
use crate::gate::Gate;
use crate::replica::Replica;
use crate::snapshot::SnapshotLimiter;

/// Slow enough for a busy machine.
const TIMING: RaftTiming =
    RaftTiming { heartbeat_interval_ms: 200, lease_ms: 2000, election_spread_ms: 1000 };

pub(super) struct Cluster {
    pub(super) network: Network,
    members: BTreeMap<NodeId, Member>,
    /// What members that start from now on are told beside the defaults.
    pub(super) limits: fn(ReplicaLimits) -> ReplicaLimits,
    pub(super) gate: Option<Arc<dyn Gate>>,
    /// One for all, as if they were replicas of one broker.
    pub(super) snapshot_limiter: Arc<SnapshotLimiter>,
    seed: u64,
}

struct Member {
    storage: MemoryStorage,
    broker: Broker,
    replica: Replica,
}

/// The given broker's first life.
pub(super) const fn node(broker: u32) -> NodeId {
    NodeId::new(BrokerId::new(broker), 1)
}

pub(super) fn nodes<const N: usize>(brokers: [u32; N]) -> BTreeSet<NodeId> {
    brokers.into_iter().map(node).collect()
}

impl Cluster {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            network: Network::new(seed),
            members: BTreeMap::new(),
            limits: |limits| limits,
            gate: None,
            snapshot_limiter: Arc::new(SnapshotLimiter::new(None)),
            seed,
        }
    }

    /// Three members that form a group at once.
    pub(super) async fn of_three(seed: u64) -> Self {
        let mut cluster = Self::new(seed);
        for broker in 1..=3 {
            cluster.start(node(broker), Begin::Form(nodes([1, 2, 3]))).await;
        }
        cluster
    }

    pub(super) async fn start(&mut self, node: NodeId, begin: Begin) -> Replica {
        self.start_on(node, begin, MemoryStorage::new(), false).await.unwrap()
    }

    pub(super) async fn start_on(
        &mut self,
        node: NodeId,
        begin: Begin,
        storage: MemoryStorage,
        retired: bool,
    ) -> Result<Replica, ReplicaStartError> {
        let broker = Broker::in_memory(&storage);
        self.start_broker(node, begin, broker, storage, retired).await
    }

    pub(super) async fn start_broker(
        &mut self,
        node: NodeId,
        begin: Begin,
        mut broker: Broker,
        storage: MemoryStorage,
        retired: bool,
    ) -> Result<Replica, ReplicaStartError> {
        broker.limits = (self.limits)(broker.limits);
        broker.gate = self.gate.clone();
        broker.snapshot_limiter = Arc::clone(&self.snapshot_limiter);
        broker.node = node;
        broker.begin = Some(begin);
        broker.retired = retired;
        broker.timing = TIMING;
        broker.peers = Some(self.network.dialer(node));
        let replica = broker.try_start(SHARD).await?;
        self.network.serve(replica.clone());
        self.members.insert(node, Member { storage, broker, replica: replica.clone() });
        Ok(replica)
    }

    /// What a member has on its disk just now; it goes on.
    pub(super) fn disk(&self, node: NodeId) -> MemoryStorage {
        self.members[&node].storage.kill()
    }

    /// Kills a member, as by a power cut; what it had on its disk.
    pub(super) fn kill(&mut self, node: NodeId) -> MemoryStorage {
        self.network.remove(node);
        let Member { storage, broker, replica } = self.members.remove(&node).unwrap();
        drop((replica, broker));
        self.seed += 1;
        storage.crash(self.seed)
    }

    /// Kills a member and starts it again.
    pub(super) async fn restart(&mut self, node: NodeId) -> Replica {
        let storage = self.kill(node);
        self.start_on(node, Begin::Existing, storage, false).await.unwrap()
    }

    pub(super) fn replica(&self, node: NodeId) -> &Replica {
        &self.members[&node].replica
    }

    /// The log of a member's broker.
    pub(super) fn wal(&self, node: NodeId) -> &tidemill_log::wal::Wal {
        &self.members[&node].broker.wal
    }

    pub(super) fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.members.values().map(|member| &member.replica)
    }

    /// Who leads, once a majority agrees, and its state is current.
    pub(super) async fn leader(&self) -> Replica {
        self.leader_among(|_| true).await
    }

    pub(super) async fn leader_among(&self, counts: impl Fn(NodeId) -> bool) -> Replica {
        let started = Instant::now();
        loop {
            let leading = self
                .replicas()
                .filter(|replica| counts(replica.node()) && replica.watch().borrow().is_leader())
                .max_by_key(|replica| replica.watch().borrow().term);
            if let Some(leader) = leading
                && leader.wait_leading(Duration::from_secs(2)).await.is_ok()
            {
                return leader.clone();
            }
            assert!(started.elapsed() < PATIENCE, "nobody leads: {:?}", self.roles());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes a unit that may be written twice, at whoever leads; tells who did.
    pub(super) async fn propose(&self, unit: Unit) -> Replica {
        loop {
            let leader = self.leader().await;
            match leader.propose(unit.clone()).await {
                Ok(_done) => return leader,
                // On a busy machine the lead may change at any time.
                Err(
                    ProposeError::NotLeader { .. } | ProposeError::NoQuorum | ProposeError::OutcomeUnknown,
                ) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Commits positions of a group one after the other; tells who led at last.
    pub(super) async fn commit(&self, group: &str, offsets: std::ops::Range<i64>) -> Replica {
        for offset in offsets {
            self.propose(commit_position(group, offset)).await;
        }
        self.leader().await
    }

    fn roles(&self) -> Vec<(NodeId, crate::status::ReplicaRole)> {
        self.replicas().map(|replica| (replica.node(), replica.watch().borrow().clone())).collect()
    }

    /// Waits until every member has applied what `replica` has, and that they then have the same state.
    pub(super) async fn agree(&self, replica: &Replica) {
        let upto = replica.shard().applied().last.unwrap().index;
        let expected = groups(replica);
        for other in self.replicas() {
            assert!(other.wait_applied(upto, PATIENCE).await, "{other:?} does not come to {upto}");
            assert_eq!(groups(other), expected, "{}", other.node());
        }
    }
}

pub(super) async fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
