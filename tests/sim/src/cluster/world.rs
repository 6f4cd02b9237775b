//! Who runs just now, for whoever wants something of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tidemill_log::wal::Wal;
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{CheckpointDriver, Replica};
use tokio::sync::watch;

use crate::ledger::Violation;
use crate::trace::Trace;

/// A broker that runs. Clones share it.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) broker: BrokerId,
    /// Counts all lives of all brokers.
    pub(crate) life: u64,
    pub(crate) replicas: Arc<BTreeMap<ShardId, Replica>>,
    pub(crate) wal: Wal,
    pub(crate) ended: watch::Receiver<bool>,
    pub(crate) short_of_room: Arc<watch::Sender<bool>>,
    pub(crate) _driver: Arc<CheckpointDriver>,
}

impl Running {
    /// Whether its log or one of its replicas has failed: it is of no use until it starts anew.
    pub(crate) fn has_stopped(&self) -> bool {
        let stopped = |replica: &Replica| {
            replica.shard().poisoned().is_some() || replica.watch().borrow().stopped().is_some()
        };
        self.wal.poisoned().is_some() || self.replicas.values().any(stopped)
    }

    /// Does something at this broker; `None` where it ends before that is done.
    pub(crate) async fn until_it_ends<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => None,
            done = work => Some(done),
        }
    }
}

/// What the parts of a simulation share. Clones share it.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<Inner>>, Trace);

#[derive(Default)]
struct Inner {
    running: BTreeMap<BrokerId, Running>,
    wanted: BTreeMap<ShardId, BTreeSet<NodeId>>,
    violation: Option<Violation>,
    ending: bool,
}

impl World {
    pub(crate) fn new(trace: &Trace) -> Self {
        Self(Arc::default(), trace.clone())
    }

    pub(crate) fn runs(&self, running: Running) {
        self.0.lock().running.insert(running.broker, running);
    }

    pub(crate) fn ended(&self, broker: BrokerId) {
        let gone = self.0.lock().running.remove(&broker);
        // Its end may look at who runs.
        drop(gone);
    }

    pub(crate) fn running(&self) -> Vec<Running> {
        self.0.lock().running.values().cloned().collect()
    }

    pub(crate) fn at(&self, broker: BrokerId) -> Option<Running> {
        self.0.lock().running.get(&broker).cloned()
    }

    pub(crate) fn any(&self, rng: &mut StdRng) -> Option<Running> {
        let running = self.running();
        // Drawn in any case, so that what follows is drawn alike.
        let at = rng.random_range(0..running.len().max(1));
        running.into_iter().nth(at)
    }

    /// One of those that should vote.
    pub(crate) fn any_keeper(&self, shard: ShardId, rng: &mut StdRng) -> Option<Running> {
        let wanted = self.wanted(shard);
        let mut running = self.running();
        running.retain(|running| {
            running.replicas.get(&shard).is_some_and(|replica| wanted.contains(&replica.node()))
        });
        let at = rng.random_range(0..running.len().max(1));
        running.into_iter().nth(at)
    }

    /// Who says that it leads, the latest of them.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<(Running, Replica)> {
        let leads = |running: Running| {
            let replica = running.replicas.get(&shard)?.clone();
            let role = replica.watch().borrow().clone();
            role.is_leader().then_some((role.term, running, replica))
        };
        let latest = self.running().into_iter().filter_map(leads).max_by_key(|(term, ..)| *term)?;
        Some((latest.1, latest.2))
    }

    /// Who should vote.
    pub(crate) fn wanted(&self, shard: ShardId) -> BTreeSet<NodeId> {
        self.0.lock().wanted.get(&shard).cloned().unwrap_or_default()
    }

    pub(crate) fn want(&self, shard: ShardId, nodes: BTreeSet<NodeId>) {
        self.1.note(format_args!("shard {shard}: to be kept by {nodes:?}"));
        self.0.lock().wanted.insert(shard, nodes);
    }

    /// Whether nothing more is to be begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.0.lock().ending
    }

    pub(crate) fn end(&self) {
        self.0.lock().ending = true;
    }

    /// Takes note of a broken promise; the first one counts.
    pub(crate) fn broken(&self, violation: Violation) {
        self.1.note(format_args!("violation: {violation}"));
        self.0.lock().violation.get_or_insert(violation);
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.0.lock().violation.clone()
    }
}
