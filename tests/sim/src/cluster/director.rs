//! Lets faults happen, and starts again what they ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemill_protocol::{BrokerId, NodeId, ShardId};
use tidemill_raft::{Begin, seed_thread};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bug::Bug;
use super::clients::Client;
use super::controller::control;
use super::disks::Wrong;
use super::faults::Fault;
use super::machine::{Life, Place, Started};
use super::settle::settle;
use super::watcher::{Checks, Watcher};
use super::world::World;
use super::{BROKERS, ClusterReport, SHARDS};
use crate::disk::{SimDisk, Trouble};
use crate::ledger::Ledger;
use crate::network::SimNetwork;
use crate::notes::Notes;
use crate::trace::Trace;

/// How long faults happen.
const TROUBLE: Duration = Duration::from_secs(25);
const BETWEEN_FAULTS_MS: std::ops::Range<u64> = 100..2_500;
pub(super) const DOWN_MS: std::ops::Range<u64> = 20..3_000;
/// How soon somebody sees that a broker has stopped by itself.
const LOOK_AFTER: Duration = Duration::from_millis(500);
const LONG_AWAY: Duration = Duration::from_secs(9);
const PRODUCERS_PER_SHARD: i64 = 2;
/// Of the call to the disk that makes a snapshot the shard.
const INSTALLED: &str = "/staging/complete 0+0";
/// How soon a start that has to wait looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Members of each group.
const VOTERS: u32 = 3;

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
pub(super) enum Undo {
    Start(BrokerId),
    GoOn(BrokerId),
    Mend,
    InTime,
    Fast(BrokerId),
    /// Room was short already: now there is none.
    Fill(BrokerId),
    /// Its disk has room again, and does what it is told.
    Well(BrokerId),
    /// Somebody looks after those that stopped by themselves.
    LookAfter,
    /// What its disk did wrong comes to light: the power goes, or only its process ends.
    ComeToLight(BrokerId, Ending),
}

/// How a broker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    PowerLost,
    Killed,
}

/// Of a start: at which broker, in which life, and what it came to.
type News = (BrokerId, u64, Started);

pub(crate) struct Machine {
    pub(crate) broker: BrokerId,
    pub(crate) disk: SimDisk,
    pub(super) places: BTreeMap<ShardId, Place>,
    pub(super) life: Option<Life>,
    pub(super) clock_wrong_ms: Arc<AtomicI64>,
    /// It may refuse to start: something was taken from its disk.
    pub(super) may_have_lost: bool,
    /// Its disk does wrong, or did: it starts again only once the others have gone on without it.
    pub(super) wrong: Option<Wrong>,
}

pub(crate) struct Director {
    pub(super) rng: StdRng,
    pub(super) bug: Option<Bug>,
    pub(crate) trace: Trace,
    pub(crate) network: SimNetwork,
    pub(crate) world: World,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) machines: BTreeMap<BrokerId, Machine>,
    undo: BTreeMap<(Instant, u64), Undo>,
    pub(super) numbers: u64,
    pub(super) started: (mpsc::UnboundedSender<News>, mpsc::UnboundedReceiver<News>),
    pub(super) lives: BTreeMap<BrokerId, u64>,
    faults: BTreeMap<Fault, u64>,
    pub(super) retired: u64,
}

impl Director {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        seed_thread(rng.random());
        let trace = Trace::begin();
        let network = SimNetwork::new(rng.random(), &trace);
        let world = World::new(&trace);
        let voters: BTreeSet<NodeId> =
            (1..=VOTERS).map(|broker| NodeId::new(BrokerId::new(broker), 1)).collect();
        let lie = bug.and_then(Bug::lie);
        let machine = |broker: u32| {
            let broker = BrokerId::new(broker);
            let node = NodeId::new(broker, 1);
            let begin = if voters.contains(&node) { Begin::Form(voters.clone()) } else { Begin::Join };
            let place = Place { node, begin, retired: false, old_vote: None };
            let disk = SimDisk::new(&format!("disk-{broker}"), rng.random(), &trace);
            disk.set_lie(lie);
            let machine = Machine {
                broker,
                disk,
                places: SHARDS.iter().map(|shard| (*shard, place.clone())).collect(),
                life: None,
                clock_wrong_ms: Arc::default(),
                may_have_lost: false,
                wrong: None,
            };
            (broker, machine)
        };
        let machines = BROKERS.map(machine).collect();
        SHARDS.iter().for_each(|shard| world.want(*shard, voters.clone()));
        Self {
            rng,
            bug,
            trace,
            network,
            world,
            ledger: Arc::default(),
            machines,
            undo: BTreeMap::new(),
            numbers: 0,
            started: mpsc::unbounded_channel(),
            lives: BTreeMap::new(),
            faults: BTreeMap::new(),
            retired: 0,
        }
    }

    pub(crate) async fn run(mut self) -> ClusterReport {
        let _warned = tracing::subscriber::set_default(Notes(self.trace.clone()));
        for broker in BROKERS {
            self.start(BrokerId::new(broker));
        }
        let watching = tokio::spawn(Watcher::new(&self.world, &self.trace).run());
        let controlling = tokio::spawn(control(self.world.clone(), SHARDS.to_vec(), self.trace.clone()));
        let clients = self.start_clients();
        self.later(LOOK_AFTER, Undo::LookAfter);
        self.trouble().await;
        self.trace.note(format_args!("all is mended"));
        self.mend_all();
        self.world.end();
        if self.world.violation().is_none() {
            settle(&mut self, clients).await;
        }
        controlling.abort();
        let mut checks = Checks::default();
        if let Ok(mut watcher) = watching.await {
            watcher.look(true);
            checks = watcher.checks;
        }
        let brokers: Vec<BrokerId> = self.machines.keys().copied().collect();
        brokers.into_iter().for_each(|broker| self.kill(broker));
        let acknowledged = self.ledger.lock().acknowledged();
        ClusterReport {
            snapshots: self.trace.lines().iter().filter(|line| line.contains(INSTALLED)).count() as u64,
            simulated_ms: self.trace.elapsed_ms(),
            trace: self.trace,
            acknowledged,
            faults: self.faults,
            checks,
            retired: self.retired,
            violation: self.world.violation(),
            cut_short: false,
        }
    }

    fn start_clients(&mut self) -> Vec<JoinHandle<()>> {
        let mut clients = Vec::new();
        for shard in SHARDS {
            for number in 0..PRODUCERS_PER_SHARD {
                let producer = i64::from(shard.get()) * PRODUCERS_PER_SHARD + number;
                let client = self.client(format!("producer {producer}"), shard);
                clients.push(tokio::spawn(client.produce(producer)));
            }
            let plain = self.client(format!("plain producer {shard}"), shard);
            clients.push(tokio::spawn(plain.produce_plainly()));
            let reader = self.client(format!("reader {shard}"), shard);
            clients.push(tokio::spawn(reader.read()));
            let trimmer = self.client(format!("trimmer {shard}"), shard);
            clients.push(tokio::spawn(trimmer.trim()));
            let emits = Arc::new(AtomicBool::new(true));
            let task = self.client(format!("task {shard}"), shard);
            clients.push(tokio::spawn(task.run_task(Arc::clone(&emits))));
            let deliverer = self.client(format!("deliverer {shard}"), shard);
            clients.push(tokio::spawn(deliverer.deliver(emits)));
        }
        let router = self.client("router".to_owned(), SHARDS[1]);
        clients.push(tokio::spawn(router.route()));
        clients
    }

    fn client(&mut self, name: String, shard: ShardId) -> Client {
        Client {
            name,
            shard,
            rng: StdRng::seed_from_u64(self.rng.random()),
            trace: self.trace.clone(),
            ledger: Arc::clone(&self.ledger),
            world: self.world.clone(),
        }
    }

    /// Faults, for a while.
    async fn trouble(&mut self) {
        let end = Instant::now() + TROUBLE;
        // The groups are formed first; with faults in between now and then.
        let mut next = Instant::now() + Duration::from_millis(self.rng.random_range(0..4_000));
        while Instant::now() < end && self.world.violation().is_none() {
            self.until(next.min(end)).await;
            if Instant::now() >= next {
                let fault = Fault::draw(&mut self.rng);
                self.happen(fault);
                next = Instant::now() + Duration::from_millis(self.rng.random_range(BETWEEN_FAULTS_MS));
            }
        }
    }

    /// Lets time pass, and looks after brokers that end or start meanwhile.
    pub(crate) async fn until(&mut self, end: Instant) {
        while Instant::now() < end && self.world.violation().is_none() {
            let due = self.undo.keys().next().map_or(end, |(due, _)| (*due).min(end));
            let disks = self.machines.values().filter(|machine| machine.life.is_some());
            let lost: Vec<_> = disks
                .map(|machine| {
                    let (broker, disk) = (machine.broker, machine.disk.clone());
                    async move {
                        disk.power_lost().await;
                        broker
                    }
                    .boxed()
                })
                .collect();
            let lost = async {
                if lost.is_empty() { std::future::pending().await } else { select_all(lost).await.0 }
            };
            tokio::select! {
                biased;
                broker = lost => {
                    self.kill(broker);
                    let down = Duration::from_millis(self.rng.random_range(DOWN_MS));
                    self.later(down, Undo::Start(broker));
                }
                Some((broker, life, started)) = self.started.1.recv() => self.started(broker, life, started),
                () = tokio::time::sleep_until(due) => {}
            }
            self.undo_due();
        }
    }

    fn undo_due(&mut self) {
        while let Some(entry) = self.undo.first_entry().filter(|entry| entry.key().0 <= Instant::now()) {
            let undo = entry.remove();
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(broker) => self.start(broker),
            Undo::ComeToLight(broker, ending) => self.come_to_light(broker, ending),
            Undo::Fill(broker) => self.trouble_at(broker, Some(Trouble::Full)),
            Undo::Well(broker) => self.trouble_at(broker, None),
            Undo::LookAfter => {
                self.restart_stopped();
                self.later(LOOK_AFTER, Undo::LookAfter);
            }
            Undo::GoOn(broker) => self.network.pause(broker, false),
            Undo::Mend => self.network.heal(),
            Undo::InTime => self.network.set_late_one_in(None),
            Undo::Fast(broker) => {
                if let Some(machine) = self.machines.get(&broker) {
                    machine.disk.set_slowness(1);
                }
            }
        }
    }

    pub(super) fn later(&mut self, after: Duration, undo: Undo) {
        self.numbers += 1;
        self.undo.insert((Instant::now() + after, self.numbers), undo);
    }

    /// Ends all that is wrong.
    fn mend_all(&mut self) {
        self.machines.values().for_each(|machine| machine.disk.keep_power());
        for undo in std::mem::take(&mut self.undo).into_values() {
            self.undo(undo);
        }
        self.network.heal();
        self.network.set_late_one_in(None);
        for broker in self.machines.keys().copied().collect::<Vec<_>>() {
            self.network.pause(broker, false);
            self.start(broker);
        }
    }

    fn any_broker(&mut self) -> BrokerId {
        BrokerId::new(self.rng.random_range(BROKERS))
    }

    fn any_shard(&mut self) -> ShardId {
        SHARDS[self.rng.random_range(0..SHARDS.len())]
    }

    fn happen(&mut self, fault: Fault) {
        let broker = self.any_broker();
        let whole = self.is_whole();
        if fault.takes_promises() && !whole {
            return;
        }
        self.trace.note(format_args!("fault: {fault:?} at {broker}"));
        *self.faults.entry(fault).or_default() += 1;
        let moment = Duration::from_millis(self.rng.random_range(DOWN_MS));
        match fault {
            Fault::PowerLoss => {
                let calls = self.rng.random_range(1..60);
                if let Some(machine) = self.machines.get(&broker).filter(|machine| machine.life.is_some()) {
                    machine.disk.lose_power_after(calls);
                }
            }
            Fault::Killed => self.end_for(broker, moment),
            Fault::LongAway => self.end_for(broker, LONG_AWAY),
            Fault::AllPowerLoss => {
                for machine in self.machines.values().filter(|machine| machine.life.is_some()) {
                    machine.disk.lose_power();
                }
            }
            Fault::CutOneWay => {
                let other = self.any_broker();
                if other != broker {
                    self.network.cut(broker, other);
                    self.later(moment * 2, Undo::Mend);
                }
            }
            Fault::Isolated => {
                for other in BROKERS.map(BrokerId::new).filter(|other| *other != broker) {
                    self.network.cut(broker, other);
                    self.network.cut(other, broker);
                }
                self.later(moment * 2, Undo::Mend);
            }
            Fault::StreamsBroken => self.network.break_streams(broker),
            Fault::NetworkLate => {
                self.network.set_late_one_in(Some(10));
                self.later(moment, Undo::InTime);
            }
            Fault::Paused => {
                self.network.pause(broker, true);
                if let Some(machine) = self.machines.get(&broker) {
                    machine.disk.stall(moment);
                }
                self.later(moment, Undo::GoOn(broker));
            }
            Fault::SlowDisk => {
                if let Some(machine) = self.machines.get(&broker) {
                    machine.disk.set_slowness(20);
                }
                self.later(moment, Undo::Fast(broker));
            }
            Fault::ClockJump => {
                let jump = self.rng.random_range(-3_600_000..3_600_000);
                if let Some(machine) = self.machines.get(&broker) {
                    machine.clock_wrong_ms.fetch_add(jump, Ordering::Relaxed);
                }
            }
            Fault::Transfer => self.transfer(broker),
            Fault::Checkpoint => self.checkpoint(broker),
            Fault::Moved => self.move_replica(),
            Fault::LogDamaged => self.damage_log(broker),
            Fault::Misdirected => self.misdirect(broker),
            Fault::FlushLost => self.lose_flushes(broker),
            Fault::DiskFull => self.fill_disk(broker, moment),
            Fault::DiskFails => self.fail_disk(broker, moment),
            Fault::DiskLost => {
                self.kill(broker);
                self.lose_disk(broker);
                self.later(moment, Undo::Start(broker));
            }
        }
    }

    pub(super) fn end_for(&mut self, broker: BrokerId, duration: Duration) {
        self.kill(broker);
        self.later(duration, Undo::Start(broker));
    }

    fn transfer(&mut self, to: BrokerId) {
        let shard = self.any_shard();
        let Some((running, leader)) = self.world.leader(shard) else { return };
        let Some(node) = leader.members().voters.into_iter().find(|node| node.broker() == to) else { return };
        let trace = self.trace.clone();
        tokio::spawn(async move {
            let done = running.until_it_ends(leader.transfer_leadership(node)).await;
            trace.note(format_args!("shard {shard}: handed to {node}: {done:?}"));
        });
    }

    fn checkpoint(&mut self, broker: BrokerId) {
        let shard = self.any_shard();
        let Some(running) = self.world.at(broker) else { return };
        let Some(replica) = running.replicas.get(&shard).cloned() else { return };
        let trace = self.trace.clone();
        tokio::spawn(async move {
            let done = running.until_it_ends(replica.checkpoint()).await;
            let done = done.map(|done| done.map(|done| done.applied));
            trace.note(format_args!("shard {shard}: checkpoint at {broker}: {done:?}"));
        });
    }

    /// Another broker takes the place of one that keeps a shard. Who kept it before comes under a new id.
    fn move_replica(&mut self) {
        let shard = self.any_shard();
        let mut wanted = self.world.wanted(shard);
        let keeping: Vec<NodeId> = wanted.iter().copied().collect();
        let out = keeping[self.rng.random_range(0..keeping.len())];
        let other =
            BROKERS.map(BrokerId::new).find(|broker| wanted.iter().all(|node| node.broker() != *broker));
        let Some(broker) = other else { return };
        self.kill(broker);
        self.renew(broker, shard);
        wanted.remove(&out);
        wanted.extend(self.machines[&broker].places.get(&shard).map(|place| place.node));
        self.world.want(shard, wanted);
        self.start(broker);
    }
}
