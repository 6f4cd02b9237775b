//! The smallest simulation: one broker alone, clients that append, and the power that goes now and then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_controller::TopicConfig;
use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
use tidemill_protocol::{BrokerId, NodeId, PartitionId, Timestamp, TopicId, TopicPartition};
use tidemill_raft::{Replica, seed_thread};
use tidemill_shard::{AdoptTopic, Unit, UnitResult};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::disk::SimDisk;
use crate::host::Host;
use crate::ledger::{Ledger, Violation};
use crate::trace::Trace;

const NODE: NodeId = NodeId::new(BrokerId::new(1), 1);
const LIVES: usize = 6;
const CLIENTS: usize = 4;
const PARTITIONS: u32 = 3;
/// What a client sends in one life of the broker.
const BATCHES: usize = 40;
const RECORD_BYTES_MAX: usize = 6 << 10;
/// One life in so many ends in good order, one by a killed process, the others by the power.
const LIFE_ENDS: u32 = 4;
const CALLS_MAX: u64 = 900;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Everything that happened.
    pub trace: Trace,
    /// Batches that were acknowledged, over all lives.
    pub acknowledged: usize,
    /// How often the power went.
    pub power_losses: usize,
    /// The broken promise that ended the run, if there was one.
    pub violation: Option<Violation>,
}

/// Runs the simulation of a seed on `runtime`: one with a single thread, whose clock was built `start_paused`.
#[must_use]
pub fn run(runtime: &Runtime, seed: u64) -> Report {
    runtime.block_on(async {
        let mut simulation = Simulation::new(seed);
        let violation = simulation.live().await.err();
        if let Some(violation) = &violation {
            simulation.trace.note(format_args!("violation: {violation}"));
        }
        let Simulation { trace, ledger, power_losses, .. } = simulation;
        let acknowledged = ledger.lock().acknowledged();
        Report { trace, acknowledged, power_losses, violation }
    })
}

struct Simulation {
    rng: StdRng,
    trace: Trace,
    ledger: Arc<Mutex<Ledger>>,
    power_losses: usize,
}

/// How a life of the broker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    InGoodOrder,
    Killed,
    PowerLost,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        seed_thread(rng.random());
        Self { rng, trace: Trace::begin(), ledger: Arc::default(), power_losses: 0 }
    }

    async fn live(&mut self) -> Result<(), Violation> {
        let mut disk = SimDisk::new("disk-1", self.rng.random(), &self.trace);
        for life in 0..LIVES {
            let wanted = match self.rng.random_range(0..LIFE_ENDS) {
                0 => End::InGoodOrder,
                1 => End::Killed,
                _ => End::PowerLost,
            };
            if wanted == End::PowerLost {
                disk.lose_power_after(self.rng.random_range(1..CALLS_MAX));
            }
            self.trace.note(format_args!("life {life} begins, to end {wanted:?}"));
            let ended = self.live_once(life, &disk, wanted).await?;
            self.trace.note(format_args!("life {life} ended {ended:?}"));
            self.power_losses += usize::from(ended == End::PowerLost);
            disk = disk.next_life();
        }
        self.trace.note(format_args!("the last look"));
        self.live_once(LIVES, &disk, End::InGoodOrder).await.map(drop)
    }

    async fn live_once(&mut self, life: usize, disk: &SimDisk, wanted: End) -> Result<End, Violation> {
        let started = Host::start(disk, NODE, self.rng.random(), &self.trace).await;
        let host = match started {
            Ok(host) => host,
            Err(_) if disk.has_lost_power() => return Ok(End::PowerLost),
            Err(error) => return Err(Violation::NoStart { reason: error.to_string() }),
        };
        let shard = host.replica().shard();
        self.note_state(host.replica());
        let checked = self.ledger.lock().check(&shard, |_| true);
        drop(shard);
        if !disk.has_lost_power() {
            checked?;
        }
        let clients = self.start_clients(life, host.replica());
        let mut ended = wanted;
        tokio::select! {
            biased;
            () = disk.power_lost() => ended = End::PowerLost,
            () = self.until_done(&clients, wanted) => {}
        }
        for client in clients {
            client.abort();
            // Until what it holds of the replica is let go of.
            drop(client.await);
        }
        if ended == End::PowerLost && !disk.has_lost_power() {
            ended = End::InGoodOrder;
        }
        if ended == End::InGoodOrder {
            self.note_state(host.replica());
            host.stop().await;
        } else {
            host.kill();
        }
        Ok(if disk.has_lost_power() { End::PowerLost } else { ended })
    }

    /// Until the clients have sent everything, or, where the process is to be killed, some moment before.
    async fn until_done(&mut self, clients: &[JoinHandle<()>], wanted: End) {
        let until_killed = Duration::from_millis(self.rng.random_range(1..3_000));
        let all_sent = async {
            while !clients.iter().all(JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match wanted {
            End::Killed => drop(tokio::time::timeout(until_killed, all_sent).await),
            End::InGoodOrder | End::PowerLost => all_sent.await,
        }
    }

    fn start_clients(&mut self, life: usize, replica: &Replica) -> Vec<JoinHandle<()>> {
        let clients = (0..CLIENTS).map(|number| {
            let client = Client {
                name: format!("client-{life}-{number}"),
                rng: StdRng::seed_from_u64(self.rng.random()),
                trace: self.trace.clone(),
                ledger: Arc::clone(&self.ledger),
                replica: replica.clone(),
            };
            tokio::spawn(client.run())
        });
        clients.collect()
    }

    fn note_state(&self, replica: &Replica) {
        let status = replica.status();
        let hash = replica.shard().state_hash().map(|hash| blake3::Hash::from(hash).to_hex());
        let applied = status.last_applied.map(|id| (id.term, id.index));
        match hash {
            Ok(hash) => self.trace.note(format_args!("applied {applied:?}, state {hash}")),
            Err(error) => self.trace.note(format_args!("applied {applied:?}, no state: {error}")),
        }
    }
}

struct Client {
    name: String,
    rng: StdRng,
    trace: Trace,
    ledger: Arc<Mutex<Ledger>>,
    replica: Replica,
}

impl Client {
    async fn run(mut self) {
        let topic = AdoptTopic {
            topic: topic_id(),
            version: 1,
            name: "events".to_owned(),
            config: TopicConfig { segment_bytes: 64 << 10, ..TopicConfig::default() },
            partitions: (0..PARTITIONS).map(PartitionId::new).collect(),
            deleted: false,
        };
        let adopted = self.replica.propose(Unit::AdoptTopic(topic)).await;
        self.trace.note(format_args!("{} adopts: {adopted:?}", self.name));
        for number in 0..BATCHES {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..40))).await;
            let partition = TopicPartition::new(topic_id(), self.partition());
            let batch = self.batch(number);
            let sent = self.ledger.lock().send(&batch);
            let unit = Unit::Append { partition, batch, leader_epoch: None };
            let answer = self.replica.propose(unit).await;
            if let Ok(UnitResult::Appended { base_offset, .. }) = &answer {
                self.ledger.lock().acknowledge(partition, *base_offset, sent);
            }
            self.trace.note(format_args!("{} {number}: {answer:?}", self.name));
        }
    }

    fn partition(&mut self) -> PartitionId {
        PartitionId::new(self.rng.random_range(0..PARTITIONS))
    }

    /// A batch of one record that no other is like.
    fn batch(&mut self, number: usize) -> Bytes {
        let mut value = format!("{} {number} ", self.name).into_bytes();
        let bytes = self.rng.random_range(0..RECORD_BYTES_MAX);
        value.extend((0..bytes).map(|_| self.rng.random::<u8>()));
        let mut builder = BatchBuilder::new(BuilderOptions::default());
        let time = Timestamp::new(1_000);
        let appended = builder.append(time, None, Some(&value), []);
        assert!(appended.is_ok(), "a record of a few KiB fits a batch: {appended:?}");
        builder.build().unwrap_or_else(|error| unreachable!("a batch of one record can be built: {error}"))
    }
}

fn topic_id() -> TopicId {
    TopicId::from_slice(&[9; 16]).unwrap_or_else(|| unreachable!("16 bytes are an id"))
}
