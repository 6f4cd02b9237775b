//! Start and stop of a broker.

mod background;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use tidemill_controller::ControllerCommand;
use tidemill_log::wal::Wal;
use tidemill_net::{Listener, NetConfig};
use tidemill_protocol::{BrokerId, ClusterId, NodeId, ShardId};
use tidemill_raft::{CheckpointConfig, CheckpointDriver, PeerDialer};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Admission;
use crate::certificates::Certificates;
use crate::cluster::registration::{self, register};
use crate::cluster::replicas::ReplicaStarter;
use crate::cluster::{Lives, forming, handover, steering};
use crate::config::BrokerConfig;
use crate::context::Context;
use crate::data_dir::DataDir;
use crate::disk::{DiskState, DiskWatch};
use crate::limits::{batch_bytes_max, net_limits, unit_bytes_max};
use crate::machine::Machine;
use crate::opening::{
    disk_watch, metrics_endpoint, open_data_dir, open_peers, open_wal, replica_starter, tls, unwanted,
};
use crate::outbox::OutboxSignals;
use crate::peers::{PeerServices, Peers, RemoteDialer};
use crate::preparing::{self, HeldPorts};
use crate::producer_ids::ProducerIds;
use crate::room::{PeersGate, Room};
use crate::shards::Shards;
use crate::start_error::StartError;
use crate::{telemetry, wiring};
use background::{accept, follow_controller, heed, start_background};

/// A running broker.
pub struct Broker {
    context: Arc<Context>,
    listener: Arc<Listener>,
    metrics_addr: Option<SocketAddr>,
    data_dir: DataDir,
    wal: Wal,
    checkpoints: CheckpointDriver,
    accepting: AbortOnDropHandle<()>,
    background: Vec<AbortOnDropHandle<()>>,
    /// Of the replicas; it ends by itself when the broker stops.
    tending: AbortOnDropHandle<()>,
    peers: Peers,
    /// They are needed to the end: the last leads are handed over by them.
    running_peers: RunningPeers,
    /// Why the cluster does not want this broker, once it has said so.
    dismissed: watch::Receiver<Option<String>>,
    /// A broker that is dropped stops, as if it had been killed.
    _stops: DropGuard,
}

/// The connections to other brokers. They end with this.
struct RunningPeers {
    stopping: DropGuard,
    ended: CancellationToken,
}

impl RunningPeers {
    /// `stopping` is what ends them.
    fn start(peers: &Peers, seeds: Vec<String>, stopping: CancellationToken) -> Self {
        let ended = CancellationToken::new();
        let (peers, ends) = (peers.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            peers.run(seeds).await;
            drop(ends);
        });
        Self { stopping: stopping.drop_guard(), ended }
    }

    async fn stop(self) {
        drop(self.stopping);
        self.ended.cancelled().await;
    }
}

/// A broker on its way up: what it is, and the way to the others.
struct Ground {
    config: BrokerConfig,
    machine: Machine,
    metrics: PrometheusHandle,
    data_dir: DataDir,
    lives: Arc<Lives>,
    disk: Arc<DiskState>,
    disk_watch: Arc<DiskWatch>,
    peers: Peers,
    /// It is the first of its cluster, or all of it.
    alone: bool,
}

impl Broker {
    /// Starts a broker on this machine. Returns when it serves.
    ///
    /// # Errors
    /// [`StartError`] says what stands in the way, and what to do.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        Self::start_on(config, Machine::this()).await
    }

    /// As [`Self::start`], on a machine with a clock and a boot of its own.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn start_on(config: BrokerConfig, machine: Machine) -> BoxFuture<'static, Result<Self, StartError>> {
        // Boxed, so that it is compiled here, and not in each program and test that starts a broker.
        Box::pin(Self::start_here(config, machine))
    }

    async fn start_here(config: BrokerConfig, machine: Machine) -> Result<Self, StartError> {
        config.check()?;
        preparing::check_files(&config)?;
        let ports = HeldPorts::of_first_start(&config)?;
        let metrics = telemetry::recorder();
        let (mut data_dir, known) = open_data_dir(&config).await?;
        // From here on they are bound by those who serve them.
        drop(ports);
        let meta = data_dir.meta().clone();
        let alone = meta.forming == [BrokerId::new(meta.broker_id)];
        let lives = Lives::open(data_dir.storage(), &meta, data_dir.created()).map_err(StartError::Write)?;
        let lives = Arc::new(lives);
        if data_dir.created() && !alone {
            // Its group counts on what it answers from here on: the directory may not begin anew any more.
            data_dir.complete().map_err(StartError::Write)?;
        }
        let disk = Arc::new(DiskState::default());
        let disk_watch = Arc::new(disk_watch(&config, &data_dir, &disk));
        disk_watch.look();

        let peers_stopping = CancellationToken::new();
        let peers = open_peers(&config, &data_dir, &peers_stopping)?;
        peers.hear(known).await;
        let running_peers = RunningPeers::start(&peers, config.peers.seeds.clone(), peers_stopping);
        let peers_ended = running_peers.ended.clone();
        let ground = Ground { config, machine, metrics, data_dir, lives, disk, disk_watch, peers, alone };
        let started = Self::rise(ground, running_peers).await;
        if started.is_err() {
            // What was begun is over when the error is told: whoever tries again finds the ports free.
            peers_ended.cancelled().await;
        }
        started
    }

    /// Goes on from where others can be asked to where clients are served.
    async fn rise(ground: Ground, running_peers: RunningPeers) -> Result<Self, StartError> {
        let Ground { config, machine, metrics, mut data_dir, lives, disk, disk_watch, peers, alone } = ground;
        let (meta, clock) = (data_dir.meta().clone(), machine.clock.clone());
        if !alone && !meta.forming.is_empty() && !lives.has_any_begun() {
            // It would form the cluster anew, with others that lost their directories as well.
            peers.look_around(&config.peers.seeds).await;
            if let Some(reason) = peers.over().borrow().clone() {
                return Err(StartError::Over(unwanted(&config, &data_dir, reason)));
            }
        }

        let (wal, recovery) = open_wal(&config, &data_dir, &machine).await?;
        let batch_bytes_max = batch_bytes_max(&config, unit_bytes_max(&config));
        let shards = Shards::new(meta.shards, Arc::new(Admission::new(wal.clone(), &config.wal)));
        let (offer_context, context_there) = watch::channel(None);
        peers.serve(PeerServices {
            shards: shards.clone(),
            lives: Arc::clone(&lives),
            context: context_there,
        });
        let room = Room::new(&disk, &peers);
        let gate = Arc::new(PeersGate { room: room.clone(), admission: Arc::clone(shards.admission()) });
        let starter = ReplicaStarter {
            gate: Some(gate),
            ..replica_starter(&config, &data_dir, &machine, &wal, recovery, &lives, &peers)
        };
        let lost = starter.start_all(&shards).await?;
        if data_dir.created() && alone {
            control(&shards, steering::forming(&meta)).await?;
            data_dir.complete().map_err(StartError::Write)?;
        }

        let listener = Listener::bind(NetConfig {
            listen: config.listen,
            tls: tls(&config, &data_dir.path("tls"))?,
            limits: net_limits(&config),
        })?;
        let endpoint = metrics_endpoint(&config, &metrics).await?;
        let metrics_addr = endpoint.as_ref().and_then(|endpoint| endpoint.local_addr().ok());
        let addresses = match config.advertise.as_slice() {
            [] => vec![listener.local_addr().to_string()],
            named => named.to_vec(),
        };

        let stopping = CancellationToken::new();
        let stops = stopping.clone().drop_guard();
        let registration =
            registration::registration(&config, &meta, &addresses, &peers.myself().peer_addresses);
        let (refused, dismissed) = watch::channel(None);
        let mut background = Vec::new();
        if alone && peers.said().is_empty() {
            register(&shards, registration, &stopping).await.map_err(StartError::Init)?;
        } else {
            let (shards, stopping, refused) = (shards.clone(), stopping.clone(), refused.clone());
            background.push(task(async move {
                if let Err(reason) = register(&shards, registration, &stopping).await {
                    refused.send_replace(Some(reason));
                }
            }));
        }
        background.push(task(heed(peers.over(), refused.clone())));
        let (view, follower) = follow_controller(&shards, &meta, addresses, &stopping);
        let remote = RemoteDialer {
            peers: peers.clone(),
            from: NodeId::new(BrokerId::new(meta.broker_id), meta.incarnation),
        };
        shards.reach_others(remote.from, &(Arc::new(remote) as Arc<dyn PeerDialer>), &view, &starter.limits);
        background.push(AbortOnDropHandle::new(follower));
        background.push(task(registration::stay(meta.clone(), view.clone(), refused)));
        let tending = task(starter.tend(lost, shards.clone(), view.clone(), peers.clone(), stopping.clone()));
        let outboxes = OutboxSignals::new(&shards);
        let hosting = wiring::start_hosting(&config, &data_dir, &shards, &outboxes, &disk, &room, &clock)?;
        let context = Arc::new(Context {
            producer_ids: ProducerIds::new(shards.clone()),
            requests: Default::default(),
            generations: Arc::default(),
            disk,
            room,
            attempts: Arc::default(),
            batch_bytes_max,
            wal: wal.clone(),
            unpacking: crate::unpacking::UnpackPool::new(),
            uploads: crate::context::uploads(),
            compiles: crate::context::compiles(),
            fetches: crate::context::fetches(),
            kept: Arc::default(),
            repairs_sent: crate::context::repairs_sent(),
            segments_unrepaired: AtomicU32::new(0),
            stopping: stopping.clone(),
            config,
            meta,
            view,
            shards,
            peers: Some(peers.clone()),
            freshness: Default::default(),
            hosting,
            outboxes,
            clock,
            metrics,
        });
        offer_context.send_replace(Some(Arc::clone(&context)));
        let checkpoints = CheckpointDriver::start(
            CheckpointConfig {
                wal_bytes_max: Admission::log_bytes_high(&context.config.wal),
                ..CheckpointConfig::default()
            },
            wal.clone(),
            {
                let shards = context.shards.clone();
                move || shards.iter().map(|(_, replica)| replica).collect()
            },
            context.disk.watch(),
        );
        context.shards.admission().relieve_with(checkpoints.pressure());
        background.extend(start_background(&context, &stopping).into_iter().map(AbortOnDropHandle::new));
        background.push(task(disk_watch.run(context.shards.clone(), stopping.clone())));
        background.extend(endpoint.map(|endpoint| task(endpoint.run(stopping.clone()))));

        let listener = Arc::new(listener);
        let certificates = Certificates {
            directory: data_dir.path("tls"),
            meta: context.meta.clone(),
            config: context.config.clone(),
            peers: peers.clone(),
            listener: Arc::clone(&listener),
        };
        background.push(task(certificates.keep(stopping)));
        let accepting = task(accept(Arc::clone(&listener), Arc::clone(&context)));
        tracing::info!(
            address = %listener.local_addr(),
            peers = %peers.local_addr(),
            cluster = %context.meta.cluster,
            "serving"
        );
        Ok(Self {
            context,
            listener,
            metrics_addr,
            data_dir,
            wal,
            checkpoints,
            accepting,
            background,
            tending,
            peers,
            running_peers,
            dismissed,
            _stops: stops,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Where other brokers reach it.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peers.local_addr()
    }

    /// Where it answers for metrics over HTTP, if it does.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// The cluster that this broker belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.context.meta.cluster
    }

    /// PEM file of the authority that signed the broker's certificate; `None` where it was given one.
    #[must_use]
    pub fn authority(&self) -> Option<PathBuf> {
        self.context.config.tls_certificate.is_none().then(|| self.data_dir.path("tls").join("ca.pem"))
    }

    /// The brokers without which there is no cluster yet, or which its majority lacks, as people name them, and what they are waited for.
    /// `None` where nobody is, or not for longer than a moment, which this takes.
    pub async fn waits_for(&self) -> Option<String> {
        forming::awaited(&self.context).await
    }

    /// Waits until a shard has stopped for good, and says which and why: nothing of it can be acknowledged any more by this broker.
    pub async fn failed(&self) -> (ShardId, String) {
        /// Replicas come and go: all are looked at, now and then.
        const LOOK_INTERVAL: Duration = Duration::from_millis(500);
        loop {
            for (shard, replica) in self.context.shards.iter() {
                if let Some(reason) = replica.watch().borrow().stopped() {
                    return (shard, reason.to_string());
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the cluster has said that this broker is none of its own, and why: it was removed, say.
    pub async fn dismissed(&self) -> String {
        let mut dismissed = self.dismissed.clone();
        match dismissed.wait_for(Option::is_some).await {
            Ok(reason) => {
                let reason = reason.clone().unwrap_or_default();
                unwanted(&self.context.config, &self.data_dir, reason)
            }
            // It was registered at once.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops cleanly: clients are told, what is under way gets its time, everything is written down.
    pub fn shutdown(self, reason: &str) -> BoxFuture<'_, ()> {
        Box::pin(self.shut_down(reason))
    }

    async fn shut_down(mut self, reason: &str) {
        tracing::info!(reason, "shutting down");
        // First, so that whoever is told to go finds the new leaders.
        handover::hand_over_all(&self.context.shards).await;
        self.context.stopping.cancel();
        // Tasks would go on for as long as there is something to read.
        self.context.hosting.reconcile(Vec::new());
        let grace = Duration::from_millis(self.context.config.shutdown_grace_ms);
        if tokio::time::timeout(grace, self.drained()).await.is_err() {
            tracing::info!("what is under way takes too long, and is cut off");
        }
        self.listener.close(0, reason).await;
        drop(self.accepting);
        drop(self.background);
        self.context.hosting.stop().await;
        drop(self.checkpoints);
        // Replicas that come, or are on their way out, are none of those below.
        let _ = self.tending.await;
        let mut clean = true;
        for (shard, replica) in self.context.shards.iter() {
            if let Err(error) = replica.checkpoint().await {
                tracing::warn!(%shard, %error, "no last checkpoint; the next start reads the log instead");
                clean = false;
            }
            replica.stop().await;
        }
        self.running_peers.stop().await;
        let wal = self.wal.clone();
        let closed = tokio::task::spawn_blocking(move || wal.close()).await;
        clean &= matches!(closed, Ok(Ok(())));
        if let Err(error) = self.data_dir.save(clean) {
            tracing::warn!(%error, "the clean stop could not be noted");
        }
        tracing::info!(clean, "stopped");
    }

    /// Waits until clients have gone, or have their answers and ask for nothing more: who only reads goes on elsewhere.
    async fn drained(&self) {
        const LOOK_INTERVAL: Duration = Duration::from_millis(20);
        /// For the last answers to arrive.
        const QUIET: Duration = Duration::from_millis(300);
        let mut quiet = Duration::ZERO;
        while self.listener.connections() > 0 && quiet < QUIET {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let answered = self.context.requests.all_answered() && self.context.shards.admission().is_idle();
            quiet = if answered { quiet + LOOK_INTERVAL } else { Duration::ZERO };
        }
    }
}

/// A task that ends with its handle.
fn task(runs: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(runs))
}

async fn control(shards: &Shards, command: ControllerCommand) -> Result<(), StartError> {
    match shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await {
        Ok(UnitResult::Control(Ok(_))) => Ok(()),
        Ok(other) => Err(StartError::Init(format!("{other:?}"))),
        Err(error) => Err(StartError::Init(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small_config;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_broker_began_ends_with_it() {
        let home = tempfile::tempdir().expect("a directory");
        let config = small_config(home.path());
        let broker = Broker::start(config).await.expect("starts");
        let (stopping, ended) = (broker.context.stopping.clone(), broker.running_peers.ended.clone());
        assert!(!stopping.is_cancelled() && !ended.is_cancelled());
        drop(broker);
        assert!(stopping.is_cancelled());
        tokio::time::timeout(PATIENCE, ended.cancelled()).await.expect("the way to others ends");
    }
}
