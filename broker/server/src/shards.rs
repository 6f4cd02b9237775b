//! The shards of the cluster: which replica here answers for what, and the way to the leaders of those that have none here.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tidemill_controller::Controller;
use tidemill_protocol::{NodeId, ShardId};
use tidemill_raft::{
    PeerDialer, PermitAnywhere, ProposeError, RemoteShard, Replica, ReplicaLimits, ReplicaRole, ReplicaState,
};
use tidemill_shard::{Shard, Unit, UnitResult};

use crate::admission::Admission;
use crate::view::ViewReader;

type Replicas = BTreeMap<ShardId, Replica>;

/// Every replica on this broker, as it comes up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shards {
    /// Replaced as a whole: whoever looks holds no lock.
    replicas: Arc<RwLock<Arc<Replicas>>>,
    /// Data shards of the cluster, numbered from 1.
    count: u16,
    admission: Arc<Admission>,
    /// The ways to the leaders of data shards, for where no replica is here; once this broker hears who leads.
    others: Arc<OnceLock<Others>>,
}

/// The ways to the shards' leaders on other brokers.
struct Others {
    view: ViewReader,
    ways: BTreeMap<ShardId, RemoteShard>,
}

/// Who leads a shard on another broker, as its leader told the controller.
fn leader_elsewhere(view: &ViewReader, shard: ShardId) -> Option<NodeId> {
    let view = view.now();
    let leader = view.controller().shard(shard)?.members.as_ref()?.leader?;
    (leader.broker() != view.broker).then_some(leader)
}

/// Whether a replica in this role has what its group has. A learner is still being filled; only the controller's may be one for good:
/// every broker follows the controller, and most of them without a vote.
fn takes_part(shard: ShardId, role: &ReplicaRole) -> bool {
    match role.state {
        ReplicaState::Stopped { .. } => false,
        ReplicaState::Learner => shard == ShardId::CONTROLLER && role.leader.is_some(),
        ReplicaState::Follower | ReplicaState::Candidate | ReplicaState::Leader => true,
    }
}

impl Shards {
    /// Of a cluster with that many data shards, none of which is here yet.
    pub(crate) fn new(count: u16, admission: Arc<Admission>) -> Self {
        Self { replicas: Arc::default(), count, admission, others: Arc::default() }
    }

    /// From here on units of shards that have no replica here go to their leaders. `from` names this broker to them.
    pub(crate) fn reach_others(
        &self,
        from: NodeId,
        dialer: &Arc<dyn PeerDialer>,
        view: &ViewReader,
        limits: &ReplicaLimits,
    ) {
        let way = |shard| {
            let view = view.clone();
            let leader = move || leader_elsewhere(&view, shard);
            (shard, RemoteShard::new(shard, from, Arc::clone(dialer), limits, leader))
        };
        let others = Others { view: view.clone(), ways: self.numbers().map(way).collect() };
        let set = self.others.set(others);
        debug_assert!(set.is_ok(), "a broker starts once");
    }

    pub(crate) fn insert(&self, replica: Replica) {
        let mut replicas = self.replicas.write();
        let mut next = Replicas::clone(&replicas);
        next.insert(replica.shard_id(), replica);
        *replicas = Arc::new(next);
    }

    /// Takes a replica out: it is about to stop.
    pub(crate) fn remove(&self, shard: ShardId) {
        let mut replicas = self.replicas.write();
        let mut next = Replicas::clone(&replicas);
        next.remove(&shard);
        *replicas = Arc::new(next);
    }

    /// What the units of clients and tasks pass before they are proposed.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    pub(crate) fn replica(&self, shard: ShardId) -> Option<Replica> {
        self.replicas.read().get(&shard).cloned()
    }

    /// The replica here of a shard, if it answers for the shard: one that has stopped, or that its group has not taken in yet, does not
    /// where another broker does.
    pub(crate) fn serving(&self, shard: ShardId) -> Option<Replica> {
        let replica = self.replica(shard)?;
        let takes_part = takes_part(shard, &replica.watch().borrow());
        let others = self.others.get();
        let is_led_elsewhere =
            || others.is_some_and(|others| leader_elsewhere(&others.view, shard).is_some());
        (takes_part || !is_led_elsewhere()).then_some(replica)
    }

    /// Shard 0's replica.
    pub(crate) fn controller(&self) -> Option<Replica> {
        self.replica(ShardId::CONTROLLER)
    }

    /// The controller's state with all that was decided before the call: what it does not know then, is not. `None` where no majority says
    /// so, or this broker's replica has not been told of the cluster yet.
    pub(crate) async fn controller_now(&self) -> Option<Arc<Controller>> {
        let replica = self.controller()?;
        replica.read_barrier().await.ok()?;
        replica.shard().controller().filter(|controller| controller.identity().is_some())
    }

    /// The replicas that are here now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ShardId, Replica)> + use<> {
        let replicas = Replicas::clone(&self.replicas.read());
        replicas.into_iter()
    }

    /// Those of shards that hold partitions: all but the controller's.
    pub(crate) fn data(&self) -> impl Iterator<Item = (ShardId, Replica)> + use<> {
        self.iter().filter(|(id, _)| *id != ShardId::CONTROLLER)
    }

    /// The cluster's shards that hold partitions, whether they have a replica here or not.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.count).map(ShardId::new)
    }

    /// Whether a replica here has stopped for good: its log or its state failed, or its state is not the group's.
    pub(crate) fn any_stopped(&self) -> bool {
        self.replicas.read().values().any(|replica| replica.watch().borrow().stopped().is_some())
    }

    pub(crate) fn state(&self, shard: ShardId) -> Option<Shard> {
        self.replica(shard).map(|replica| replica.shard())
    }

    /// Has a unit written by the shard's leader, here or elsewhere.
    pub(crate) async fn propose(&self, shard: ShardId, unit: Unit) -> Result<UnitResult, ProposeError> {
        match (self.serving(shard), self.way(shard)) {
            (Some(replica), _) => replica.propose_anywhere(unit).await,
            (None, Some(way)) => way.propose(unit).await,
            (None, None) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Waits for room for a unit of `bytes` at the shard's leader, here or elsewhere: units that are submitted to the same leader are
    /// written in the order of the calls.
    pub(crate) async fn reserve(&self, shard: ShardId, bytes: usize) -> Result<PermitAnywhere, ProposeError> {
        match (self.serving(shard), self.way(shard)) {
            (Some(replica), _) => replica.reserve_anywhere(bytes).await,
            (None, Some(way)) => way.reserve(bytes).await,
            (None, None) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    fn way(&self, shard: ShardId) -> Option<&RemoteShard> {
        self.others.get()?.ways.get(&shard)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{BrokerId, Term};

    use super::*;

    #[test]
    fn a_learner_answers_for_the_controller_alone() {
        let leader = Some(NodeId::new(BrokerId::new(1), 1));
        let takes_part =
            |shard, state, leader| takes_part(shard, &ReplicaRole { state, term: Term::new(1), leader });
        let (controller, data) = (ShardId::CONTROLLER, ShardId::new(1));
        assert!(takes_part(controller, ReplicaState::Learner, leader), "it observes");
        assert!(!takes_part(controller, ReplicaState::Learner, None), "it was not taken in yet");
        assert!(!takes_part(data, ReplicaState::Learner, leader), "it is being filled");
        for shard in [controller, data] {
            assert!(!takes_part(shard, ReplicaState::Stopped { reason: "EIO".into() }, None));
            for state in [ReplicaState::Follower, ReplicaState::Candidate, ReplicaState::Leader] {
                assert!(takes_part(shard, state, None));
            }
        }
    }
}
