//! The brokers under fire: one alone, or a cluster with the network and the disks that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidemill_client::{Client, ClientConfig};

use super::config::ChaosConfig;
use super::faults::FaultKind;
use super::findings::Findings;
use super::lives;
use super::proxy::PeerProxy;
use crate::loop_disk::LoopDisk;
use crate::{BrokerOptions, Outcome, TestBroker, TestCluster};

/// Of a cluster, as of a broker that is alone by default.
const SHARDS: u16 = 4;

/// Of each broker's disk.
const DISK_BYTES: u64 = 4 << 30;

/// The brokers.
pub(super) enum Fleet {
    One(Box<TestBroker>),
    Several(Box<Several>),
}

/// A cluster.
pub(super) struct Several {
    pub(super) cluster: TestCluster,
    pub(super) proxy: PeerProxy,
    /// The brokers that are there: their numbers, and the rack that each stands in.
    members: BTreeMap<u32, u32>,
    /// A disk for each; empty where there are none.
    pub(super) disks: BTreeMap<u32, LoopDisk>,
    /// Whether there are disks, and so one for who comes.
    with_disks: bool,
    /// Brokers that came and have no disk of their own, though others do.
    pub(super) without_disk: u64,
    /// What can't be done here, and why.
    pub(super) skipped: BTreeMap<FaultKind, String>,
}

/// Of each shard, where there are as many brokers. One can be drained only where there are others for each of its replicas.
pub(super) const REPLICAS: u32 = 3;

/// The number of a broker that is alone.
pub(super) const ALONE: u32 = 1;

/// Small files and frequent checkpoints: a kill should find every kind of work under way. Replicas compare their states every few seconds, since
/// each start begins the interval anew.
fn options() -> BrokerOptions {
    BrokerOptions::default()
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 32 << 20)
        .set("storage.checkpoint_bytes", 512 << 10)
        // A broker that is started looks at all of its segments before the next fault.
        .set("storage.scrub_bytes_per_second", 64 << 20)
        .set("storage.state_hash_bytes", 64 << 10)
        .set("storage.state_hash_interval_ms", 2_000)
        .set("storage.retention_interval_ms", 1_000)
}

/// In which a broker of a cluster stands alone, so that it can be read by itself. At first that of broker 1 is the first; who comes
/// takes the first that is free.
pub(super) fn rack(number: u32) -> String {
    format!("rack-{number}")
}

/// The first rack in which nobody stands.
fn free_rack(members: &BTreeMap<u32, u32>) -> u32 {
    let taken: BTreeSet<u32> = members.values().copied().collect();
    (1..).find(|number| !taken.contains(number)).unwrap_or(1)
}

/// One of the brokers, to be reached by itself.
pub(super) struct Alone {
    pub(super) broker: u32,
    /// The rack that it stands in alone, where there are others.
    pub(super) rack: Option<String>,
    pub(super) settings: ClientConfig,
}

impl Fleet {
    pub(super) async fn start(config: &ChaosConfig) -> Outcome<Self> {
        if config.brokers <= 1 {
            let options = match &config.directory {
                Some(directory) => options().directory(directory),
                None => options(),
            };
            return Ok(Self::One(Box::new(TestBroker::start(options).await?)));
        }
        Ok(Self::Several(Box::new(Several::start(config).await?)))
    }

    /// A client of its own.
    pub(super) async fn client(&self) -> Outcome<Client> {
        match self {
            Self::One(broker) => Ok(broker.client().await?),
            Self::Several(several) => Ok(several.cluster.client()?),
        }
    }

    /// Where histories are kept.
    pub(super) fn directory(&self) -> PathBuf {
        match self {
            Self::One(broker) => broker.directory().to_owned(),
            Self::Several(several) => several.cluster.directory(),
        }
    }

    /// Leaves data and logs where they are; answers where.
    pub(super) fn keep(&mut self) -> PathBuf {
        match self {
            Self::One(broker) => broker.keep(),
            Self::Several(several) => several.cluster.keep(),
        }
    }

    /// Waits until nothing is at risk.
    pub(super) async fn settled(&self, client: &Client) -> Outcome<()> {
        if let Self::Several(several) = self {
            several.cluster.settled(client).await?;
        }
        Ok(())
    }

    /// kill -9 of all, and a new start: what is found then is what is on the disks. All should still run.
    pub(super) async fn begin_anew(&mut self, findings: &mut Findings) -> Outcome<()> {
        match self {
            Self::One(broker) => {
                lives::kill(ALONE, broker, findings).await?;
                broker.restart().await?;
            }
            Self::Several(several) => {
                for id in several.ids() {
                    lives::kill(id, several.cluster.broker(id), findings).await?;
                }
                for id in several.ids() {
                    several.cluster.broker(id).restart().await?;
                }
            }
        }
        Ok(())
    }

    /// How to reach each broker by itself.
    pub(super) fn each_alone(&self) -> Vec<Alone> {
        match self {
            Self::One(broker) => vec![Alone { broker: ALONE, rack: None, settings: broker.client_config() }],
            Self::Several(several) => several
                .present()
                .map(|(id, own, broker)| {
                    let own = rack(own);
                    let settings = broker.client_config().rack(own.clone());
                    Alone { broker: id, rack: Some(own), settings }
                })
                .collect(),
        }
    }

    /// Where the brokers of a cluster keep their data: their numbers, and the directories.
    pub(super) fn data_dirs(&self) -> Vec<(u32, PathBuf)> {
        match self {
            Self::One(broker) => vec![(ALONE, broker.data_dir())],
            Self::Several(several) => {
                several.present().map(|(id, _, broker)| (id, broker.data_dir())).collect()
            }
        }
    }

    /// All that each broker said, over all its starts; those that are gone too.
    pub(super) fn logs(&self) -> Outcome<Vec<(u32, String)>> {
        let all: Vec<&TestBroker> = match self {
            Self::One(broker) => vec![&**broker],
            Self::Several(several) => several.cluster.brokers().iter().collect(),
        };
        (1u32..).zip(all).map(|(id, broker)| Outcome::Ok((id, broker.log_text()?))).collect()
    }

    /// Checks that all still run, and all that brokers ever said.
    pub(super) async fn check_lives(&mut self, findings: &mut Findings) -> Outcome<()> {
        match self {
            Self::One(broker) => {
                lives::has_ended(ALONE, broker, findings).await?;
            }
            Self::Several(several) => {
                for id in several.ids() {
                    lives::has_ended(id, several.cluster.broker(id), findings).await?;
                }
            }
        }
        for (id, log) in self.logs()? {
            lives::check_log_of(id, &log, findings);
        }
        Ok(())
    }
}

impl Several {
    async fn start(config: &ChaosConfig) -> Outcome<Self> {
        let within = config.directory.as_deref();
        let mut cluster = TestCluster::planned(config.brokers, SHARDS, options(), within).await?;
        let addresses: Result<Vec<SocketAddr>, _> =
            (1..=config.brokers).map(|broker| cluster.peer_address(broker).parse()).collect();
        let proxy = PeerProxy::start(addresses?, config.seed).await?;
        let mut skipped = BTreeMap::new();
        let wanted = config.wanted(&FaultKind::ALL);
        let wants_members = wanted.contains(&FaultKind::Members);
        let disks: Vec<FaultKind> = wanted.into_iter().filter(|kind| kind.needs_disks()).collect();
        if config.brokers < REPLICAS && wants_members {
            let why = format!("of fewer than {REPLICAS} brokers none is drained once there are as many");
            skipped.insert(FaultKind::Members, why);
        }
        let mut mounted = BTreeMap::new();
        if !disks.is_empty() {
            match mount_all(&cluster.directory(), config.brokers) {
                Ok(all) => mounted = all,
                Err(reason) => {
                    let why = format!("no file systems for the brokers can be made here: {reason}");
                    skipped.extend(disks.into_iter().map(|kind| (kind, why.clone())));
                }
            }
        }
        let members: BTreeMap<u32, u32> = (1..=config.brokers).map(|id| (id, id)).collect();
        let ids: Vec<u32> = members.keys().copied().collect();
        let started =
            cluster.start_planned(|id, options| seen_through(&proxy, &ids, (id, id), options)).await;
        // From here on whoever is dropped unmounts them in the right order.
        let with_disks = !mounted.is_empty();
        let several = Self { cluster, proxy, members, disks: mounted, with_disks, without_disk: 0, skipped };
        started?;
        Ok(several)
    }

    /// The brokers' numbers, in order.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.members.keys().copied().collect()
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    /// The brokers that are there: number, rack, broker.
    pub(super) fn present(&self) -> impl Iterator<Item = (u32, u32, &TestBroker)> {
        let all = (1u32..).zip(self.cluster.brokers());
        all.filter_map(move |(id, broker)| Some((id, *self.members.get(&id)?, broker)))
    }

    /// How a broker is started that joins, or joins again, with nothing but a token.
    pub(super) fn joining(&self, id: u32, token: &str) -> BrokerOptions {
        let options = self.cluster.options_of(id).without("cluster").set("join", token);
        let rack = self.members.get(&id).copied().unwrap_or_else(|| free_rack(&self.members));
        seen_through(&self.proxy, &self.ids(), (id, rack), options)
    }

    /// Makes room for one more broker: an address, a face for the others, and a disk where they have some. Answers its number.
    pub(super) async fn make_room(&mut self) -> Outcome<u32> {
        let id = self.cluster.plan_another()?;
        self.proxy.add(self.cluster.peer_address(id).parse()?).await?;
        if self.with_disks {
            match mount(&self.cluster.directory(), id) {
                Ok(disk) => {
                    self.disks.insert(id, disk);
                }
                // Then it does without.
                Err(_) => self.without_disk += 1,
            }
        }
        Ok(id)
    }

    /// It has joined, and is one of them.
    pub(super) fn welcome(&mut self, id: u32, broker: TestBroker) {
        let rack = free_rack(&self.members);
        self.cluster.push(broker);
        self.members.insert(id, rack);
        self.tell_seeds();
    }

    /// It was removed, and its process is gone: so is its data. Its log stays.
    pub(super) fn part_with(&mut self, id: u32) -> Outcome<()> {
        self.members.remove(&id);
        self.proxy.take_down(id);
        let data = self.cluster.broker(id).data_dir();
        if let Some(disk) = self.disks.remove(&id) {
            disk.discard()?;
        }
        match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.tell_seeds();
        Ok(())
    }

    /// From its next start on each knows who is there now, as an operator would have it.
    fn tell_seeds(&mut self) {
        let ids = self.ids();
        for id in &ids {
            let seeds = seeds_of(&self.proxy, &ids, *id);
            self.cluster.broker(*id).set("peers.seeds", seeds);
        }
    }
}

/// The others, as they are reached through the proxy.
fn seeds_of(proxy: &PeerProxy, ids: &[u32], id: u32) -> String {
    let others = ids.iter().filter(|other| **other != id);
    let seeds: Vec<String> = others.map(|other| proxy.face(*other).to_string()).collect();
    seeds.join(",")
}

/// Others reach it through the proxy, and it them; by any of them it finds all. What is written with direct I/O is on the disk before it is
/// flushed: every other broker writes its log through the page cache, of which a loss of power takes what was not.
fn seen_through(
    proxy: &PeerProxy,
    ids: &[u32],
    (id, own): (u32, u32),
    options: BrokerOptions,
) -> BrokerOptions {
    options
        .set("wal.direct_io", !id.is_multiple_of(2))
        .set("rack", rack(own))
        .set("peers.advertise", proxy.face(id))
        .set("peers.seeds", seeds_of(proxy, ids, id))
}

/// A disk for a broker, where it will look for its data.
fn mount(home: &Path, broker: u32) -> Result<LoopDisk, String> {
    let (image, at) = (format!("disk-{broker}"), format!("broker-{broker}"));
    LoopDisk::mount(&home.join(image), &home.join(at).join("data"), DISK_BYTES)
}

/// One for each of the first brokers.
fn mount_all(home: &Path, brokers: u32) -> Result<BTreeMap<u32, LoopDisk>, String> {
    (1..=brokers).map(|broker| mount(home, broker).map(|disk| (broker, disk))).collect()
}

impl Drop for Several {
    fn drop(&mut self) {
        // Nobody uses the disks any more, then they go, then the directory around them.
        self.cluster.let_go();
        self.disks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_takes_the_first_rack_that_is_free() {
        assert_eq!(free_rack(&BTreeMap::new()), 1);
        assert_eq!(free_rack(&BTreeMap::from([(1, 1), (2, 2), (3, 3)])), 4);
        assert_eq!(free_rack(&BTreeMap::from([(5, 4), (2, 2), (3, 3)])), 1);
    }
}
