//! What every handler reaches: the broker's parts, shared by all connections.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tidemill_hosting::Hosting;
use tidemill_net::ClusterCa;
use tidemill_protocol::messages::Error;
use tidemill_protocol::record_batch::BatchLimits;
use tidemill_protocol::{BrokerId, ErrorCode, NodeId, ShardId, Term, TopicPartition};
use tidemill_raft::{ReadError, Replica, ReplicaState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admitted, NoRoom};
use crate::attempts::Attempts;
use crate::barriers::Barriers;
use crate::components::Kept;
use crate::config::BrokerConfig;
use crate::data_dir::Meta;
use crate::disk::DiskState;
use crate::errors;
use crate::generations::Generations;
use crate::machine::Clock;
use crate::peers::Peers;
use crate::producer_ids::ProducerIds;
use crate::room::Room;
use crate::shards::Shards;
use crate::unpacking::UnpackPool;
use crate::view::{ClusterView, ViewReader};

/// The broker as its handlers see it.
pub(crate) struct Context {
    pub(crate) config: BrokerConfig,
    pub(crate) meta: Meta,
    pub(crate) view: ViewReader,
    pub(crate) shards: Shards,
    /// The way to the other brokers; `None`: there are none, and never will be.
    pub(crate) peers: Option<Peers>,
    /// With which this broker makes sure that it knows all that the controller decided.
    pub(crate) freshness: Barriers,
    pub(crate) hosting: Hosting,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) outboxes: Arc<crate::outbox::OutboxSignals>,
    pub(crate) clock: Clock,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) requests: Requests,
    pub(crate) generations: Arc<Generations>,
    pub(crate) disk: Arc<DiskState>,
    pub(crate) room: Room,
    /// The largest batch that fits a frame and a shard's log here; a topic may allow less.
    pub(crate) batch_bytes_max: usize,
    pub(crate) wal: tidemill_log::wal::Wal,
    pub(crate) unpacking: UnpackPool,
    /// Places for components that are being uploaded, checked and compiled.
    pub(crate) uploads: tokio::sync::Semaphore,
    /// Places for what was received: checked and compiled.
    pub(crate) compiles: tokio::sync::Semaphore,
    /// Places for components that come from other brokers.
    pub(crate) fetches: tokio::sync::Semaphore,
    /// Components that nothing names yet.
    pub(crate) kept: Arc<Kept>,
    /// Places for segments that are checked and sent to brokers whose own don't read.
    pub(crate) repairs_sent: tokio::sync::Semaphore,
    /// Segments here that do not read, and that several tries did not mend.
    pub(crate) segments_unrepaired: AtomicU32,
    pub(crate) metrics: metrics_exporter_prometheus::PrometheusHandle,
    /// Cancelled when the broker begins to stop.
    pub(crate) stopping: CancellationToken,
}

/// Uploads that arrive at once: each holds a component in memory, as far as it came.
const UPLOADS_MAX: usize = 16;
/// Of what was received, so many are checked at once: each holds a component in memory, and a compiler's process.
const COMPILES_MAX: usize = 4;

impl Context {
    /// This broker, and those that it has a connection to.
    pub(crate) fn reached(&self) -> BTreeSet<BrokerId> {
        let connected = self.peers.as_ref().map(|peers| peers.connected()).unwrap_or_default();
        connected.into_iter().chain([BrokerId::new(self.meta.broker_id)]).collect()
    }
}

/// Components that come from other brokers at once: each is in memory as a whole.
const FETCHES_MAX: usize = 2;

/// Places for components that come from other brokers.
pub(crate) const fn fetches() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::const_new(FETCHES_MAX)
}

/// Segments that are checked and sent to others at once: each keeps a core and the disk busy.
const REPAIRS_SENT_MAX: usize = 2;

/// Places for segments that are sent.
pub(crate) const fn repairs_sent() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::const_new(REPAIRS_SENT_MAX)
}

/// Places for uploads.
pub(crate) const fn uploads() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::const_new(UPLOADS_MAX)
}

/// Places for compilers.
pub(crate) const fn compiles() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::const_new(COMPILES_MAX)
}

/// Who leads a shard, as far as this broker has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardLeader {
    pub(crate) node: NodeId,
    pub(crate) term: Term,
}

/// How long a request waits for this broker to hear of what the controller decided before.
const VIEW_PATIENCE: Duration = Duration::from_secs(5);

/// Requests that have no answer yet.
#[derive(Debug, Default)]
pub(crate) struct Requests(AtomicUsize);

/// One of them, until it is dropped.
pub(crate) struct UnderWay<'a>(&'a Requests);

impl Requests {
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    pub(crate) fn all_answered(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether what a replica shows is all that was acknowledged: it leads, and has applied something of its own reign.
pub(crate) fn shows_all(replica: &Replica) -> bool {
    let status = replica.status();
    status.state == ReplicaState::Leader
        && status.last_applied.is_some_and(|applied| applied.term == status.term)
}

/// Whether another may lead a replica's group without its knowledge: not where nobody else votes.
pub(crate) fn may_be_deposed(replica: &Replica) -> bool {
    !replica.members().voters.iter().eq([&replica.node()])
}

impl Context {
    /// What a batch for a topic may be.
    pub(crate) fn batch_limits(&self, batch_bytes_max: u32) -> BatchLimits {
        let limits = &self.config.limits;
        BatchLimits {
            batch_bytes_max: usize::try_from(batch_bytes_max).unwrap_or(usize::MAX).min(self.batch_bytes_max),
            record_bytes_max: usize::try_from(limits.record_bytes_max).unwrap_or(usize::MAX),
            decompressed_bytes_max: limits.decompressed_bytes_max,
            ..BatchLimits::default()
        }
    }

    /// Refuses what would need room on a disk that has none.
    pub(crate) fn room_to_write(&self) -> Result<(), Error> {
        self.serving()?;
        if self.disk.is_nearly_full() { Err(errors::disk_full()) } else { Ok(()) }
    }

    /// Refuses records for shards of which some broker has no room: all that have a replica here, whose groups this broker knows. Of others
    /// their leader says so.
    pub(crate) fn room_for_records(&self, shards: &[ShardId]) -> Result<(), Error> {
        self.room_to_write()?;
        let replicas = shards.iter().filter_map(|shard| self.shards.replica(*shard));
        match replicas.filter_map(|replica| self.room.lacking(&replica)).next() {
            None => Ok(()),
            Some(broker) => Err(errors::disk_full_at(broker)),
        }
    }

    /// Refuses what takes next to no room, where there is none but what retention needs.
    pub(crate) fn room_for_positions(&self) -> Result<(), Error> {
        self.serving()?;
        match self.disk.is_full() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorCode::DiskFull,
                "the broker's disk is full: positions are refused until retention or an operator frees space",
            )),
        }
    }

    fn serving(&self) -> Result<(), Error> {
        match self.stopping.is_cancelled() {
            false => Ok(()),
            true => Err(errors::stopping()),
        }
    }

    /// Room for a unit of `bytes` in the write-ahead log and on the disk, to be held until its answer is there.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<Admitted, Error> {
        self.shards.admission().admit(bytes).await.map_err(|no_room| self.not_admitted(no_room))
    }

    /// The same without a look at the disk: for what goes on when it is nearly full.
    pub(crate) async fn admit_to_log(&self, bytes: usize) -> Result<Admitted, Error> {
        self.shards.admission().admit_to_log(bytes).await.map_err(|no_room| self.not_admitted(no_room))
    }

    /// The topic and shard of a partition that somebody named.
    pub(crate) fn locate(
        &self,
        view: &ClusterView,
        partition: TopicPartition,
    ) -> Result<(Arc<tidemill_controller::TopicRecord>, ShardId), Error> {
        let topic =
            view.topic(partition.topic).ok_or_else(|| errors::unknown_topic(&partition.topic.to_string()))?;
        let shard = topic.shard_of(partition.partition).ok_or_else(|| {
            Error::new(
                ErrorCode::UnknownPartition,
                format!(
                    "topic '{}' has no partition {}: it has {}, counted from 0",
                    topic.name,
                    partition.partition,
                    topic.partition_count()
                ),
            )
        })?;
        Ok((Arc::clone(topic), shard))
    }

    /// The topic and the replica here of a partition that somebody named.
    pub(crate) fn find(
        &self,
        view: &ClusterView,
        partition: TopicPartition,
    ) -> Result<(Arc<tidemill_controller::TopicRecord>, Replica), Error> {
        let (topic, shard) = self.locate(view, partition)?;
        let replica = self.shards.replica(shard).ok_or_else(|| errors::not_on_this_broker(shard))?;
        Ok((topic, replica))
    }

    /// As [`Self::find`], for a stream that somebody opens: the topic may be newer than what this broker has heard.
    pub(crate) async fn find_fresh(
        &self,
        partition: TopicPartition,
    ) -> Result<(Arc<tidemill_controller::TopicRecord>, Replica), Error> {
        match self.find(&self.view.now(), partition) {
            Err(error) if error.error_code() == Some(ErrorCode::UnknownTopic) => {
                let view = self.fresh_view().await;
                self.find(&view, partition)
            }
            found => found,
        }
    }

    /// Who leads a shard: its replica here may know better than what the leader told the controller, or have heard less.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<ShardLeader> {
        let here = self.shards.replica(shard).and_then(|replica| {
            let role = replica.watch().borrow().clone();
            Some(ShardLeader { node: role.leader?, term: role.term })
        });
        let view = self.view.now();
        let told = view.controller().shard(shard).and_then(|record| record.members.as_ref());
        let told = told.and_then(|members| Some(ShardLeader { node: members.leader?, term: members.term }));
        here.into_iter().chain(told).max_by_key(|leader| leader.term)
    }

    /// Those [`Self::holders`] that this broker is connected to.
    pub(crate) fn connected_holders(&self, shard: ShardId) -> Vec<BrokerId> {
        let connected = self.peers.as_ref().map(|peers| peers.connected()).unwrap_or_default();
        let mut holders = self.holders(shard);
        holders.retain(|broker| connected.contains(broker));
        holders
    }

    /// The other brokers that have a replica of a shard, whoever leads it first.
    pub(crate) fn holders(&self, shard: ShardId) -> Vec<BrokerId> {
        let leader = self.leader(shard).map(|leader| leader.node);
        let view = self.view.now();
        let record = view.controller().shard(shard);
        let members = record.and_then(|record| record.members.as_ref());
        let voters = members.into_iter().flat_map(|members| members.voters.iter().copied());
        let planned = record
            .filter(|_| members.is_none())
            .into_iter()
            .flat_map(|record| record.replicas.iter().copied());
        let mut holders: Vec<BrokerId> = Vec::new();
        for broker in leader.into_iter().chain(voters).chain(planned).map(|node| node.broker()) {
            if broker != view.broker && !holders.contains(&broker) {
                holders.push(broker);
            }
        }
        holders
    }

    /// The cluster's metadata with everything that was decided before the call. All who ask meanwhile share the next answer; where the
    /// controller can't be asked, it is what this broker has heard.
    pub(crate) async fn fresh_view(&self) -> Arc<ClusterView> {
        self.asked_view().await.unwrap_or_else(|| self.view.now())
    }

    /// The same; `None` where the controller can't be asked.
    pub(crate) async fn asked_view(&self) -> Option<Arc<ClusterView>> {
        let controller = self.shards.controller()?;
        if may_be_deposed(&controller) || !shows_all(&controller) {
            self.freshness.confirm(&controller, Instant::now()).await.ok()?;
        }
        self.view_shows(&controller).await;
        Some(self.view.now())
    }

    /// Waits until the view shows what this broker's replica of the controller has applied.
    pub(crate) async fn view_shows(&self, controller: &Replica) {
        let Some(applied) = controller.shard().controller() else { return };
        self.view_reaches(applied.version()).await;
    }

    /// Waits until the view shows a version of the controller's state, for as long as a request waits for that.
    pub(crate) async fn view_reaches(&self, version: u64) {
        let mut view = self.view.clone();
        let shown = async {
            while view.now().version() < version {
                if view.changed().await.is_none() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(VIEW_PATIENCE, shown).await;
    }

    /// Waits until the replicas here of these shards show all that was acknowledged; those that lead are taken at their word. For what a
    /// majority decides about afterwards in any case: one that was deposed and does not know it yet shows an older state.
    pub(crate) async fn settle(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<(), Error> {
        self.barriers(shards, |replica| !shows_all(replica)).await
    }

    /// The same for whoever is told what is there now: those that lead make sure that they still do, with a round that all who ask
    /// meanwhile share.
    pub(crate) async fn confirm(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<(), Error> {
        self.barriers(shards, |replica| may_be_deposed(replica) || !shows_all(replica)).await
    }

    async fn barriers(
        &self,
        shards: impl IntoIterator<Item = ShardId>,
        asks: impl Fn(&Replica) -> bool,
    ) -> Result<(), Error> {
        let shards: BTreeSet<ShardId> = shards.into_iter().collect();
        let asked = shards.into_iter().filter_map(|shard| self.shards.replica(shard)).filter(asks);
        let settled = join_all(asked.map(|replica| async move {
            match replica.read_barrier().await {
                // One that has stopped shows what it had, and says so where it matters.
                Ok(()) | Err(ReadError::Stopped { .. }) => Ok(()),
                Err(error) => Err(errors::barrier(&error, replica.others_vote())),
            }
        }));
        settled.await.into_iter().collect()
    }

    /// The cluster's authority, whose key every broker has.
    pub(crate) fn authority(&self) -> Result<ClusterCa, Error> {
        ClusterCa::open(self.config.data_dir.join("tls"))
            .map_err(|error| Error::new(ErrorCode::StorageFailed, error.to_string()))
    }

    /// A request's deadline.
    pub(crate) fn deadline(&self, asked_ms: u32) -> Duration {
        const REQUEST_DEADLINE_MAX: Duration = Duration::from_secs(600);
        let ms = if asked_ms == 0 { self.config.limits.request_deadline_ms } else { asked_ms };
        Duration::from_millis(u64::from(ms)).min(REQUEST_DEADLINE_MAX)
    }

    fn not_admitted(&self, no_room: NoRoom) -> Error {
        errors::not_admitted(no_room, self.stopped_shard())
    }

    /// A stopped shard whose entries lie in the oldest segment of the log though it is at its bound: there are too many to
    /// carry forward, or they can't be read.
    fn stopped_shard(&self) -> Option<(ShardId, bool)> {
        self.wal.pinning_shards().into_iter().find_map(|shard| {
            let replica = self.shards.replica(shard)?;
            let has_stopped = replica.watch().borrow().stopped().is_some();
            has_stopped.then(|| (shard, replica.others_vote()))
        })
    }
}
