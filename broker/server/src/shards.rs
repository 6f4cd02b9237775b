//! The shards of this broker: which replica answers for what.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_protocol::ShardId;
use tidemill_raft::{ProposeError, Replica};
use tidemill_shard::{Shard, Unit, UnitResult};

use crate::admission::Admission;

/// Every replica on this broker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shards {
    replicas: Arc<BTreeMap<ShardId, Replica>>,
    admission: Arc<Admission>,
}

impl Shards {
    pub(crate) fn new(replicas: BTreeMap<ShardId, Replica>, admission: Arc<Admission>) -> Self {
        Self { replicas: Arc::new(replicas), admission }
    }

    /// What the units of clients and tasks pass before they are proposed.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    pub(crate) fn replica(&self, shard: ShardId) -> Option<&Replica> {
        self.replicas.get(&shard)
    }

    /// Shard 0's replica.
    pub(crate) fn controller(&self) -> Option<&Replica> {
        self.replica(ShardId::CONTROLLER)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ShardId, &Replica)> {
        self.replicas.iter().map(|(id, replica)| (*id, replica))
    }

    /// The shards that hold partitions: all but the controller's.
    pub(crate) fn data(&self) -> impl Iterator<Item = (ShardId, &Replica)> {
        self.iter().filter(|(id, _)| *id != ShardId::CONTROLLER)
    }

    pub(crate) fn state(&self, shard: ShardId) -> Option<Shard> {
        self.replica(shard).map(Replica::shard)
    }

    pub(crate) async fn propose(&self, shard: ShardId, unit: Unit) -> Result<UnitResult, ProposeError> {
        match self.replica(shard) {
            Some(replica) => replica.propose(unit).await,
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }
}
