use std::path::PathBuf;

use tidemill_controller::{ControllerCommand, ControllerReply, ReportedMembers, SettingsChange, TopicConfig};
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{LogIndex, PartitionId, Term, Timestamp, TopicId, TopicPartition};
use tidemill_shard::{AdoptTopic, Unit, UnitResult};

use super::*;
use crate::admission::Admission;
use crate::cluster::{Lives, steering};
use crate::data_dir::DataDir;
use crate::machine::Machine;
use crate::opening::{open_data_dir, open_peers, open_wal, replica_starter};
use crate::scrubber::scrub;
use crate::testing::small_config;
use crate::view::ClusterView;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The only one of data.
const SHARD: ShardId = ShardId::new(1);
/// A broker that the controller knows of, and that is nowhere.
const OTHER: BrokerId = BrokerId::new(9);

/// The replicas of a broker that is alone, and nothing else of it.
struct World {
    starter: ReplicaStarter,
    shards: Shards,
    peers: Peers,
    stopping: CancellationToken,
    _data_dir: DataDir,
    home: tempfile::TempDir,
}

impl World {
    async fn open() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let config = small_config(home.path());
        let (machine, stopping) = (Machine::this(), CancellationToken::new());
        let (data_dir, _) = open_data_dir(&config).await.expect("made");
        let meta = data_dir.meta().clone();
        let lives = Lives::open(data_dir.storage(), &meta, data_dir.created()).expect("opened");
        let lives = Arc::new(lives);
        let peers = open_peers(&config, &data_dir, &stopping).expect("bound");
        let (wal, recovery) = open_wal(&config, &data_dir, &machine).await.expect("opened");
        let starter = replica_starter(&config, &data_dir, &machine, &wal, recovery, &lives, &peers);
        let shards = Shards::new(meta.shards, Arc::new(Admission::new(wal.clone(), &config.wal)));
        Self { starter, shards, peers, stopping, _data_dir: data_dir, home }
    }

    async fn start_all(&self) {
        assert!(self.starter.start_all(&self.shards).await.expect("started").is_empty());
    }

    fn me(&self) -> BrokerId {
        BrokerId::new(self.starter.meta.broker_id)
    }

    fn node(&self) -> Option<NodeId> {
        self.shards.replica(SHARD).map(|replica| replica.node())
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join((self.starter.shard_config)(SHARD).dir)
    }

    fn picture(&self, controller: &Controller) -> ClusterView {
        ClusterView::new(Arc::new(controller.clone()), self.me(), Vec::new())
    }

    fn tend(&self, view: ViewReader) -> tokio::task::JoinHandle<()> {
        let (starter, shards, peers) = (self.starter.clone(), self.shards.clone(), self.peers.clone());
        tokio::spawn(starter.tend(Lost::new(), shards, view, peers, self.stopping.clone()))
    }

    /// The controller that runs here, as it is now.
    fn controller(&self) -> Arc<Controller> {
        self.shards.state(ShardId::CONTROLLER).and_then(|shard| shard.controller()).expect("it is here")
    }

    fn seen(&self) -> Arc<ClusterView> {
        Arc::new(self.picture(&self.controller()))
    }

    async fn decide(&self, command: ControllerCommand) -> ControllerReply {
        match self.shards.propose(ShardId::CONTROLLER, Unit::Control(command)).await {
            Ok(UnitResult::Control(Ok(reply))) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// The cluster, as the controller has it, is this broker and the other one, and both are to have the shard.
    async fn form(&self) {
        let ControllerCommand::FormCluster { identity, mut brokers } = steering::forming(&self.starter.meta)
        else {
            panic!("that is how a cluster is formed");
        };
        brokers.push(OTHER);
        self.decide(ControllerCommand::FormCluster { identity, brokers }).await;
    }

    async fn assign(&self, replicas: &[BrokerId]) {
        let version = self.controller().shard(SHARD).expect("it is known").version;
        let (replicas, expected_version) = (replicas.to_vec(), version);
        self.decide(ControllerCommand::AssignReplicas { shard: SHARD, replicas, expected_version }).await;
    }

    /// The shard is to be with the other broker, and its group is there already.
    async fn move_away(&self) {
        self.assign(&[OTHER]).await;
        let leader = NodeId::new(OTHER, 1);
        let members = ReportedMembers {
            voters: [leader].into(),
            learners: [].into(),
            leader: Some(leader),
            term: Term::new(9),
            index: LogIndex::new(9),
        };
        self.decide(ControllerCommand::ReportMembers { shard: SHARD, members }).await;
    }

    /// The shard's replica leaves, is planned here again meanwhile, and comes back as another one. Answers what tends it.
    async fn leaves_and_comes_back(&self) -> tokio::task::JoinHandle<()> {
        let first = NodeId::new(self.me(), 1);
        assert_eq!(self.node(), Some(first));
        let (publish, view) = ViewReader::channel(ClusterView::clone(&self.seen()));
        let tending = self.tend(view);
        self.move_away().await;
        publish.send_replace(self.seen());
        until("it is let go", || self.node().is_none()).await;
        self.assign(&[OTHER, self.me()]).await;
        publish.send_replace(self.seen());
        until("it is here again", || self.node().is_some_and(|node| node > first)).await;
        assert!(self.starter.leaving.lock().is_empty());
        tending
    }

    /// Gives the shard a partition of some sealed segments.
    async fn fill(&self) {
        let partition = TopicPartition::new(TopicId::new(uuid::Uuid::from_u128(1)), PartitionId::new(0));
        let adopt = AdoptTopic {
            topic: partition.topic,
            version: 1,
            name: "plays".to_owned(),
            config: TopicConfig { segment_bytes: 16 << 10, ..TopicConfig::default() },
            partitions: vec![partition.partition],
            deleted: false,
        };
        let adopted = self.shards.propose(SHARD, Unit::AdoptTopic(adopt)).await;
        assert!(matches!(adopted, Ok(UnitResult::Adopted)), "{adopted:?}");
        let mut builder = BatchBuilder::new(BuilderOptions::default());
        builder.append(Timestamp::new(5), None, Some(&[7; 8_000]), []).expect("it fits");
        let batch = builder.build().expect("it builds");
        for _ in 0..10 {
            let append = Unit::Append { partition, batch: batch.clone(), leader_epoch: None };
            let appended = self.shards.propose(SHARD, append).await;
            assert!(matches!(appended, Ok(UnitResult::Appended { .. })), "{appended:?}");
        }
        let replica = self.shards.replica(SHARD).expect("it is here");
        replica.checkpoint().await.expect("written");
        assert!(!replica.shard().sealed_segments().is_empty());
    }

    async fn end(self, tending: tokio::task::JoinHandle<()>) {
        self.stopping.cancel();
        tending.await.expect("it ends");
        for (_, replica) in self.shards.iter() {
            replica.stop().await;
        }
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let comes = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, comes).await.is_ok(), "{what}");
}

/// An operator says it to one broker, the controller decides it, and every broker follows the controller: what it decided comes to the
/// one limiter that all replicas here send by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_the_controller_decided_is_what_snapshots_are_sent_at() {
    let world = World::open().await;
    let limiter = Arc::clone(&world.starter.snapshot_limiter);
    let holders = Arc::strong_count(&limiter);
    world.start_all().await;
    let replicas = world.shards.iter().count();
    assert_eq!(replicas, 2, "the controller's and the one of data");
    assert!(Arc::strong_count(&limiter) >= holders + replicas, "each replica sends by it");

    let mut controller = Controller::default();
    let now = Timestamp::new(1_700_000_000_000);
    controller.apply(&steering::forming(&world.starter.meta), now).expect("formed");
    let (publish, view) = ViewReader::channel(world.picture(&controller));
    let tending = world.tend(view);
    assert_eq!(limiter.bytes_per_second(), None);
    for rate in [50 << 20, 1 << 20, 0] {
        let change = SettingsChange { snapshot_bytes_per_second: Some(rate), ..SettingsChange::default() };
        controller.apply(&ControllerCommand::AlterSettings(change), now).expect("decided");
        publish.send_replace(Arc::new(world.picture(&controller)));
        // 0 is no limit.
        let decided = Some(rate).filter(|rate| *rate > 0);
        until("the rate is set", || limiter.bytes_per_second() == decided).await;
    }
    world.end(tending).await;
}

/// Nobody says again what was planned meanwhile, and a reader who waits for its client for as long as that takes is in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_planned_here_again_while_it_leaves_comes_back_once_it_has_left() {
    let world = World::open().await;
    world.start_all().await;
    world.form().await;
    let reader = world.shards.replica(SHARD).expect("it is here").handle();
    let tending = world.leaves_and_comes_back().await;
    assert!(reader.now().is_none(), "what it follows has ended");
    world.end(tending).await;
}

/// Segments are checked for hours, one shard's after the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_comes_back_while_segments_are_checked_that_were_its_own() {
    let world = World::open().await;
    world.start_all().await;
    world.form().await;
    world.fill().await;
    // At a byte a second it comes nowhere.
    let scrubbing = tokio::spawn(scrub(world.shards.clone(), 1, world.stopping.clone()));
    let tending = world.leaves_and_comes_back().await;
    world.end(tending).await;
    scrubbing.await.expect("it ends");
}

/// What it has stays whole, as it is no part of its group any more but nothing of it was removed: the next start lets go of it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_on_its_way_out_ends_before_the_broker_does() {
    let world = World::open().await;
    world.start_all().await;
    world.form().await;
    let (publish, view) = ViewReader::channel(ClusterView::clone(&world.seen()));
    let tending = world.tend(view);
    let replica = world.shards.replica(SHARD).expect("it is here");
    world.move_away().await;
    publish.send_replace(world.seen());
    until("it is let go", || world.node().is_none()).await;
    let (starter, directory) = (world.starter.clone(), world.directory());
    world.stopping.cancel();
    tending.await.expect("it ends");
    assert!(replica.watch().borrow().stopped().is_some(), "nothing goes on");
    assert!(starter.leaving.lock().is_empty());
    assert_eq!(starter.lives.has_begun(SHARD), directory.exists(), "either all of it is left or nothing");
    for (_, replica) in world.shards.iter() {
        replica.stop().await;
    }
}

/// Its log says what it holds, and not what it promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(debug_assertions, should_panic(expected = "comes back as a new one"))]
async fn a_replica_is_started_as_what_it_was_once_in_a_process() {
    let world = World::open().await;
    world.start_all().await;
    let replica = world.shards.replica(SHARD).expect("it is here");
    world.shards.remove(SHARD);
    replica.stop().await;
    drop(replica);
    let again = world.starter.bring_up(SHARD, &world.shards, Trust::Whole).await;
    assert!(again.is_err_and(|reason| reason.contains("started before in this process")));
}
