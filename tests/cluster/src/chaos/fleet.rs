//! The brokers under fire: one alone, or a cluster with the network and the disks that it is given.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidemill_client::{Client, ClientConfig};

use super::config::ChaosConfig;
use super::disks::LoopDisk;
use super::faults::FaultKind;
use super::proxy::PeerProxy;
use crate::{BrokerOptions, Outcome, TestBroker, TestCluster};

/// Of a cluster, as of a broker that is alone by default.
const SHARDS: u16 = 4;

/// The brokers.
pub(super) enum Fleet {
    One(Box<TestBroker>),
    Several(Box<Several>),
}

/// A cluster.
pub(super) struct Several {
    pub(super) cluster: TestCluster,
    pub(super) proxy: PeerProxy,
    /// A disk for each, the one of broker 1 first; empty where there are none.
    pub(super) disks: Vec<LoopDisk>,
    /// What can't be done here, and why.
    pub(super) skipped: BTreeMap<FaultKind, String>,
}

/// Small files and frequent checkpoints: a kill should find every kind of work under way.
fn options() -> BrokerOptions {
    BrokerOptions::default()
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 32 << 20)
        .set("storage.checkpoint_bytes", 512 << 10)
        // A broker that is started looks at all of its segments before the next fault.
        .set("storage.scrub_bytes_per_second", 64 << 20)
}

/// In which a broker of a cluster stands alone, so that it can be read by itself.
pub(super) fn rack_of(broker: u32) -> String {
    format!("rack-{broker}")
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

    /// Whether the brokers have disks that can fail.
    pub(super) fn has_disks(&self) -> bool {
        matches!(self, Self::Several(several) if !several.disks.is_empty())
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

    /// kill -9 of all, and a new start: what is found then is what is on the disks.
    pub(super) async fn begin_anew(&mut self) -> Outcome<()> {
        match self {
            Self::One(broker) => {
                broker.kill().await?;
                broker.restart().await?;
            }
            Self::Several(several) => {
                for id in several.ids() {
                    several.cluster.broker(id).kill().await?;
                }
                for id in several.ids() {
                    several.cluster.broker(id).restart().await?;
                }
            }
        }
        Ok(())
    }

    /// How to reach each broker by itself: its number, and a client's settings; where there are others, in a rack of its own.
    pub(super) fn each_alone(&self) -> Vec<(u32, ClientConfig)> {
        match self {
            Self::One(broker) => vec![(1, broker.client_config())],
            Self::Several(several) => {
                let brokers = (1u32..).zip(several.cluster.brokers());
                brokers.map(|(id, broker)| (id, broker.client_config().rack(rack_of(id)))).collect()
            }
        }
    }

    /// Where the brokers of a cluster keep their data: their numbers, and the directories.
    pub(super) fn data_dirs(&self) -> Vec<(u32, PathBuf)> {
        match self {
            Self::One(broker) => vec![(1, broker.data_dir())],
            Self::Several(several) => {
                let brokers = (1u32..).zip(several.cluster.brokers());
                brokers.map(|(id, broker)| (id, broker.data_dir())).collect()
            }
        }
    }

    /// All that the brokers said, over all their starts.
    pub(super) fn logs(&self) -> String {
        let all: Vec<&TestBroker> = match self {
            Self::One(broker) => vec![&**broker],
            Self::Several(several) => several.cluster.brokers().iter().collect(),
        };
        all.iter().map(|broker| broker.log_text().unwrap_or_default()).collect()
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
        let disks: Vec<FaultKind> = wanted.into_iter().filter(|kind| kind.needs_disks()).collect();
        let mut mounted = Vec::new();
        if !disks.is_empty() {
            match mount(&cluster.directory(), config.brokers) {
                Ok(all) => mounted = all,
                Err(reason) => {
                    let why = format!("no file systems for the brokers can be made here: {reason}");
                    skipped.extend(disks.into_iter().map(|kind| (kind, why.clone())));
                }
            }
        }
        let brokers = config.brokers;
        let started = cluster.start_planned(|id, options| seen_through(&proxy, brokers, id, options)).await;
        // From here on whoever is dropped unmounts them in the right order.
        let several = Self { cluster, proxy, disks: mounted, skipped };
        started?;
        Ok(several)
    }

    /// The brokers' numbers.
    pub(super) fn ids(&self) -> std::ops::RangeInclusive<u32> {
        1..=u32::try_from(self.cluster.brokers().len()).unwrap_or(u32::MAX)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        *self.ids().end()
    }

    /// How a broker is started that joins again, with nothing but a token.
    pub(super) fn joining(&self, id: u32, token: &str) -> BrokerOptions {
        let options = self.cluster.options_of(id).without("cluster").set("join", token);
        seen_through(&self.proxy, self.count(), id, options)
    }
}

/// Others reach it through the proxy, and it them; by any of them it finds all.
fn seen_through(proxy: &PeerProxy, brokers: u32, id: u32, options: BrokerOptions) -> BrokerOptions {
    let others = (1..=brokers).filter(|other| *other != id);
    let seeds: Vec<String> = others.map(|other| proxy.face(other).to_string()).collect();
    options
        .set("rack", rack_of(id))
        .set("peers.advertise", proxy.face(id))
        .set("peers.seeds", seeds.join(","))
}

/// A disk for each broker, where it will look for its data.
fn mount(home: &Path, brokers: u32) -> Result<Vec<LoopDisk>, String> {
    let disk = |broker: u32| {
        let (image, at) = (format!("disk-{broker}"), format!("broker-{broker}"));
        LoopDisk::mount(&home.join(image), &home.join(at).join("data"))
    };
    (1..=brokers).map(disk).collect()
}

impl Drop for Several {
    fn drop(&mut self) {
        // Nobody uses the disks any more, then they go, then the directory around them.
        self.cluster.let_go();
        self.disks.clear();
    }
}
