//! The shards of this broker: which replica answers for what.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tidemill_protocol::ShardId;
use tidemill_raft::{ProposeError, Replica};
use tidemill_shard::{Shard, Unit, UnitResult};

use crate::admission::Admission;

type Replicas = BTreeMap<ShardId, Replica>;

/// Every replica on this broker, as it comes up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shards {
    /// Replaced as a whole: whoever looks holds no lock.
    replicas: Arc<RwLock<Arc<Replicas>>>,
    /// Data shards of the cluster, numbered from 1.
    count: u16,
    admission: Arc<Admission>,
}

impl Shards {
    /// Of a cluster with that many data shards, none of which is here yet.
    pub(crate) fn new(count: u16, admission: Arc<Admission>) -> Self {
        Self { replicas: Arc::default(), count, admission }
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

    /// Shard 0's replica.
    pub(crate) fn controller(&self) -> Option<Replica> {
        self.replica(ShardId::CONTROLLER)
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

    /// Whether every shard has a replica here.
    pub(crate) fn are_all_here(&self) -> bool {
        self.replicas.read().len() > usize::from(self.count)
    }

    /// Whether a replica here has stopped for good: its log or its state failed.
    pub(crate) fn any_stopped(&self) -> bool {
        self.replicas.read().values().any(|replica| replica.watch().borrow().stopped().is_some())
    }

    pub(crate) fn state(&self, shard: ShardId) -> Option<Shard> {
        self.replica(shard).map(|replica| replica.shard())
    }

    /// Has a unit written by the shard's leader, here or elsewhere.
    pub(crate) async fn propose(&self, shard: ShardId, unit: Unit) -> Result<UnitResult, ProposeError> {
        match self.replica(shard) {
            Some(replica) => replica.propose_anywhere(unit).await,
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }
}
