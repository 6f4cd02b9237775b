//! Start and stop of a broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::ControllerCommand;
use tidemill_log::wal::Wal;
use tidemill_net::{Listener, NetConfig};
use tidemill_protocol::{BrokerId, ClusterId, NodeId, ShardId};
use tidemill_raft::{CheckpointConfig, CheckpointDriver, PeerDialer};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::adopter::Adopter;
use crate::certificates::Certificates;
use crate::cluster::registration::{self, register};
use crate::cluster::replicas::ReplicaStarter;
use crate::cluster::{Lives, forming, handover, membership, steering};
use crate::config::BrokerConfig;
use crate::context::Context;
use crate::data_dir::{DataDir, Meta};
use crate::disk::DiskState;
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
use crate::view::{ClusterView, ViewReader};
use crate::{components, connection, errors, maintenance, outbox, repair, scrubber, telemetry, wiring};

/// A running broker.
pub struct Broker {
    context: Arc<Context>,
    listener: Arc<Listener>,
    metrics_addr: Option<SocketAddr>,
    data_dir: DataDir,
    wal: Wal,
    checkpoints: CheckpointDriver,
    accepting: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    peers: Peers,
    /// They are needed to the end: the last leads are handed over by them.
    peers_stopping: CancellationToken,
    running_peers: JoinHandle<()>,
    /// Why the cluster does not want this broker, once it has said so.
    dismissed: watch::Receiver<Option<String>>,
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
    pub async fn start_on(config: BrokerConfig, machine: Machine) -> Result<Self, StartError> {
        config.check()?;
        preparing::check_files(&config)?;
        let ports = HeldPorts::of_first_start(&config)?;
        let metrics = telemetry::recorder();
        let clock = machine.clock.clone();
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
        let running_peers = tokio::spawn(peers.clone().run(config.peers.seeds.clone()));
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
        let registration =
            registration::registration(&config, &meta, &addresses, &peers.myself().peer_addresses);
        let (refused, dismissed) = watch::channel(None);
        let mut background = Vec::new();
        if alone && peers.said().is_empty() {
            register(&shards, registration, &stopping).await.map_err(StartError::Init)?;
        } else {
            let (shards, stopping, refused) = (shards.clone(), stopping.clone(), refused.clone());
            background.push(tokio::spawn(async move {
                if let Err(reason) = register(&shards, registration, &stopping).await {
                    refused.send_replace(Some(reason));
                }
            }));
        }
        background.push(tokio::spawn(heed(peers.over(), refused.clone())));
        let (view, follower) = follow_controller(&shards, &meta, addresses, &stopping);
        let remote = RemoteDialer {
            peers: peers.clone(),
            from: NodeId::new(BrokerId::new(meta.broker_id), meta.incarnation),
        };
        shards.reach_others(remote.from, &(Arc::new(remote) as Arc<dyn PeerDialer>), &view, &starter.limits);
        background.push(tokio::spawn(registration::stay(meta.clone(), view.clone(), refused)));
        background.push(tokio::spawn(starter.tend(
            lost,
            shards.clone(),
            view.clone(),
            peers.clone(),
            stopping.clone(),
        )));
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
        background.extend(start_background(&context, &stopping));
        background.push(tokio::spawn(disk_watch.run(context.shards.clone(), stopping.clone())));
        background.extend(endpoint.map(|endpoint| tokio::spawn(endpoint.run(stopping.clone()))));
        background.push(follower);

        let listener = Arc::new(listener);
        let certificates = Certificates {
            directory: data_dir.path("tls"),
            meta: context.meta.clone(),
            config: context.config.clone(),
            peers: peers.clone(),
            listener: Arc::clone(&listener),
        };
        background.push(tokio::spawn(certificates.keep(stopping.clone())));
        let accepting = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&context)));
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
            peers,
            peers_stopping,
            running_peers,
            dismissed,
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

    /// The brokers without which there is no cluster yet, as people name them. `None` where it is formed, or is so within a moment, which this
    /// takes where it is not.
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
    pub async fn shutdown(mut self, reason: &str) {
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
        self.accepting.abort();
        for task in &self.background {
            task.abort();
        }
        self.context.hosting.stop().await;
        drop(self.checkpoints);
        let mut clean = true;
        for (shard, replica) in self.context.shards.iter() {
            if let Err(error) = replica.checkpoint().await {
                tracing::warn!(%shard, %error, "no last checkpoint; the next start reads the log instead");
                clean = false;
            }
            replica.stop().await;
        }
        self.peers_stopping.cancel();
        let _ = self.running_peers.await;
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

/// Passes on what another broker said: that this one is over for good.
async fn heed(mut over: watch::Receiver<Option<String>>, refused: watch::Sender<Option<String>>) {
    if let Ok(reason) = over.wait_for(Option::is_some).await {
        refused.send_replace(reason.clone());
    }
}

async fn control(shards: &Shards, command: ControllerCommand) -> Result<(), StartError> {
    match shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await {
        Ok(UnitResult::Control(Ok(_))) => Ok(()),
        Ok(other) => Err(StartError::Init(format!("{other:?}"))),
        Err(error) => Err(StartError::Init(error.to_string())),
    }
}

/// Keeps the view up to date with the controller's shard; where that is not here yet, it shows nothing.
fn follow_controller(
    shards: &Shards,
    meta: &Meta,
    addresses: Vec<String>,
    stopping: &CancellationToken,
) -> (ViewReader, JoinHandle<()>) {
    /// How often it is looked whether the controller's replica has come up.
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    let broker = BrokerId::new(meta.broker_id);
    let (shards, stopping) = (shards.clone(), stopping.clone());
    let picture = move |shards: &Shards| {
        let state = shards.state(ShardId::CONTROLLER)?.controller()?;
        Some(ClusterView::new(state, broker, addresses.clone()))
    };
    let (publish, view) = ViewReader::channel(picture(&shards).unwrap_or_default());
    let follower = tokio::spawn(async move {
        loop {
            let Some(controller) = shards.controller() else {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_INTERVAL) => continue,
                    () = stopping.cancelled() => return,
                }
            };
            let mut changes = controller.handle().changes();
            if let Some(view) = picture(&shards) {
                publish.send_if_modified(|held| {
                    let newer = view.version() != held.version();
                    if newer {
                        *held = Arc::new(view);
                    }
                    newer
                });
            }
            tokio::select! {
                () = changes.changed() => {}
                () = stopping.cancelled() => return,
            }
        }
    });
    (view, follower)
}

fn start_background(context: &Arc<Context>, stopping: &CancellationToken) -> Vec<JoinHandle<()>> {
    let (shards, view) = (&context.shards, &context.view);
    let adopter = Adopter {
        context: Arc::clone(context),
        shards: shards.clone(),
        view: view.clone(),
        plugins: context.config.plugins.clone(),
    };
    let every = Duration::from_millis(context.config.storage.retention_interval_ms.max(100));
    let mut tasks = vec![
        tokio::spawn(adopter.run(stopping.clone())),
        tokio::spawn(maintenance::retention(
            shards.clone(),
            every,
            context.clock.clone(),
            context.disk.watch(),
            stopping.clone(),
        )),
        tokio::spawn(scrubber::scrub(
            shards.clone(),
            context.config.storage.scrub_bytes_per_second,
            stopping.clone(),
        )),
        tokio::spawn(repair::repair(Arc::clone(context))),
        tokio::spawn(maintenance::compare_states(shards.clone(), stopping.clone())),
        tokio::spawn(wiring::follow_deployments(Arc::clone(context))),
        tokio::spawn(components::follow(Arc::clone(context))),
        tokio::spawn(components::fetch_missing(Arc::clone(context))),
        tokio::spawn(forming::tell(Arc::clone(context))),
        tokio::spawn(steering::steer(
            shards.clone(),
            context.meta.clone(),
            context.clock.clone(),
            stopping.clone(),
        )),
        tokio::spawn(handover::spread(shards.clone(), view.clone(), context.room.clone(), stopping.clone())),
        tokio::spawn(telemetry::upkeep(context.metrics.clone())),
    ];
    tasks.extend(outbox::start(shards, view, &context.outboxes, &context.room, stopping));
    tasks.extend(membership::start(shards, view, stopping));
    tasks.extend(shards.numbers().map(|shard| {
        tokio::spawn(maintenance::ticks(shards.clone(), shard, context.clock.clone(), stopping.clone()))
    }));
    tasks
}

async fn accept(listener: Arc<Listener>, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some(connection) if context.stopping.is_cancelled() => {
                    let error = errors::stopping();
                    connection.close(error.code, &error.message);
                }
                Some(connection) => {
                    connections.spawn(connection::serve(Arc::clone(&context), connection));
                }
                None => return,
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; only that connection ended");
                }
            }
        }
    }
}
