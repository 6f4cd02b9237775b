//! A broker of the cluster from life to life: its disk stays, all else begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::{Wal, WalOpenError};
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{
    Begin, CheckpointDriver, PeerStream, Replica, ReplicaConfig, ReplicaStartError, recovered_shard,
};
use tidemill_shard::{Shard, ShardOpenError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::bug::Bug;
use super::world::Running;
use crate::background::SimBackground;
use crate::disk::SimDisk;
use crate::host::{checkpoint_config, replica_limits, shard_config, wal_config, wall_clock};
use crate::network::SimNetwork;
use crate::trace::Trace;

/// With [`Bug::WakeLost`], one time in so many.
const WAKES_LOST_ONE_IN: u32 = 3_000;

/// A replica's place at a broker.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) node: NodeId,
    /// How a replica with an empty log begins, as long as it has not begun.
    pub(crate) begin: Begin,
    /// It takes the place of one that can't be trusted, and has not started yet.
    pub(crate) retired: bool,
    /// Of the life before, for [`Bug::VoteForgotten`].
    pub(crate) old_vote: Option<Bytes>,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Wal(#[from] WalOpenError),
    #[error("shard {0}: {1}")]
    Shard(ShardId, ShardOpenError),
    #[error("{1}")]
    Replica(ShardId, ReplicaStartError),
}

impl StartError {
    /// Which shard's replica can't be trusted any more, if it is that.
    pub(crate) fn loss(&self) -> Option<ShardId> {
        match self {
            Self::Replica(
                shard,
                ReplicaStartError::DoubtfulTail { .. }
                | ReplicaStartError::LogLost { .. }
                | ReplicaStartError::StateLost { .. }
                | ReplicaStartError::Missing { .. },
            ) => Some(*shard),
            _ => None,
        }
    }
}

/// What a life of a broker is begun with.
pub(crate) struct Beginning {
    pub(crate) broker: BrokerId,
    pub(crate) life: u64,
    pub(crate) salt_seed: u64,
    pub(crate) disk: SimDisk,
    pub(crate) network: SimNetwork,
    pub(crate) trace: Trace,
    pub(crate) places: BTreeMap<ShardId, Place>,
    pub(crate) clock_wrong_ms: Arc<AtomicI64>,
    pub(crate) bug: Option<Bug>,
}

/// A life of a broker, from the moment in which it begins to start.
pub(crate) struct Life {
    background: SimBackground,
    tasks: Tasks,
    ended: watch::Sender<bool>,
}

/// What runs for a life, and ends with it.
type Tasks = Arc<Mutex<Vec<JoinHandle<()>>>>;
type Serving = Arc<Mutex<Option<Arc<BTreeMap<ShardId, Replica>>>>>;

/// What a start came to: who runs, with the votes that were found.
pub(crate) type Started = Result<(Running, BTreeMap<ShardId, Option<Bytes>>), StartError>;

impl Life {
    /// Begins to start; `then` hears how that ended.
    pub(crate) fn begin(beginning: Beginning, then: impl FnOnce(Started) + Send + 'static) -> Self {
        let loses = beginning.bug == Some(Bug::WakeLost);
        let background = SimBackground::losing_wakes(
            beginning.disk.clone(),
            loses.then_some((WAKES_LOST_ONE_IN, beginning.salt_seed)),
        );
        let (ended, ends) = watch::channel(false);
        let tasks = Tasks::default();
        let serving = Serving::default();
        let (open, serves) = (Arc::clone(&tasks), Arc::clone(&serving));
        let accept = move |from: NodeId, shard: ShardId, stream: PeerStream| {
            let replica = serves.lock().as_ref().and_then(|replicas| replicas.get(&shard).cloned());
            // Dropped, the stream breaks off.
            let Some(replica) = replica else { return };
            let mut open = open.lock();
            open.retain(|task| !task.is_finished());
            open.push(tokio::spawn(async move { replica.serve_peer(from, stream).await }));
        };
        beginning.network.listen(beginning.broker, Arc::new(accept));
        let starting = {
            let background = background.clone();
            tokio::spawn(async move { then(start(beginning, &background, ends, serving).await) })
        };
        tasks.lock().push(starting);
        Self { background, tasks, ended }
    }

    /// Ends it as the end of its process does.
    pub(crate) fn kill(self) {
        self.ended.send_replace(true);
        self.background.kill();
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.abort();
        }
    }
}

async fn start(
    beginning: Beginning,
    background: &SimBackground,
    ended: watch::Receiver<bool>,
    serving: Serving,
) -> Started {
    let Beginning { broker, life, salt_seed, disk, network, trace, places, clock_wrong_ms, bug } = beginning;
    let salt_seed = if bug == Some(Bug::SaltsRepeat) { u64::from(broker.get()) } else { salt_seed };
    let (wal, recovery) = Wal::open(Arc::new(disk.clone()), &wal_config(salt_seed, background))?;
    disk.settle().await;
    let files = SegmentFiles::new(Arc::new(disk.clone()), SegmentFilesConfig::default());
    let (mut replicas, mut votes) = (BTreeMap::new(), BTreeMap::new());
    for (shard, place) in places {
        let opened = Shard::open(shard_config(shard, background), &files);
        let opened = opened.map_err(|error| StartError::Shard(shard, error))?;
        disk.settle().await;
        let (clock, wrong) = (trace.clone(), Arc::clone(&clock_wrong_ms));
        let now = move || wall_clock(&clock, wrong.load(Ordering::Relaxed));
        let mut config = ReplicaConfig::new(shard, place.node, Arc::new(now));
        config.begin = place.begin;
        config.retired = place.retired;
        config.peers = Some(network.dialer(place.node));
        config.limits = replica_limits();
        config.accept_data_loss = bug == Some(Bug::DoubtAccepted);
        let mut recovered = recovered_shard(&recovery, shard);
        votes.insert(shard, recovered.vote.clone());
        if bug == Some(Bug::VoteForgotten) && place.old_vote.is_some() {
            recovered.vote = place.old_vote;
        }
        let replica = Replica::start(config, wal.clone(), recovered, opened).await;
        replicas.insert(shard, replica.map_err(|error| StartError::Replica(shard, error))?);
    }
    let replicas = Arc::new(replicas);
    // Only now is any of them heard of: until here none has promised anything to anybody.
    *serving.lock() = Some(Arc::clone(&replicas));
    let (room, short_of_room) = watch::channel(false);
    let driven: Vec<Replica> = replicas.values().cloned().collect();
    let driver =
        CheckpointDriver::start(checkpoint_config(), wal.clone(), move || driven.clone(), short_of_room);
    let (short_of_room, driver) = (Arc::new(room), Arc::new(driver));
    let running = Running { broker, life, replicas, wal, ended, short_of_room, _driver: driver };
    Ok((running, votes))
}
