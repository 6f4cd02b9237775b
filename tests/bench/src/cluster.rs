//! Three brokers under measurement: the release binary in three processes, with the settings that ship.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tidemill_client::messages::{ClusterStatus, ShardPlacement, ShardReplica};
use tidemill_client::{BrokerId, Client, ClientConfig};
use tidemill_cluster_tests::{BrokerOptions, TestBroker, tidemill_binary};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::Outcome;

pub(crate) const BROKERS: u32 = 3;
/// The directory of the plan, beside those of the brokers.
const PLAN: &str = "plan";
/// Below those that a system gives to whoever asks for any, so that no client has a broker's port when it comes back.
const PEER_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Until nothing is at risk, everything is led and every replica is close.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// A replica that lacks no more entries is close.
const CLOSE_ENTRIES: u64 = 256;
/// A replica of which its leader has heard within this time is there.
const THERE_MS: i64 = 1_500;

pub(crate) struct Cluster {
    /// By id, from 1.
    brokers: Mutex<Vec<TestBroker>>,
    places: Places,
}

/// Where brokers lie and listen.
struct Places {
    dir: PathBuf,
    peer_ports: Vec<u16>,
}

impl Places {
    fn of(&self, broker: u32) -> BrokerOptions {
        let own = index(broker);
        // Each names the one behind it: any connected graph will do.
        let seed = (own + 1) % self.peer_ports.len();
        BrokerOptions::as_shipped()
            .directory(self.dir.join(format!("broker-{broker}")))
            .set("broker_id", broker)
            .set("peers.listen", format!("127.0.0.1:{}", self.peer_ports[own]))
            .set("peers.seeds", format!("127.0.0.1:{}", self.peer_ports[seed]))
    }

    fn plan(&self) -> PathBuf {
        self.dir.join(PLAN)
    }
}

fn index(broker: u32) -> usize {
    broker as usize - 1
}

impl Cluster {
    /// Plans a cluster, as `tidemill cluster init` has it by default, starts its brokers, and waits until it is well.
    pub(crate) async fn start(dir: &Path) -> Outcome<Self> {
        let places = Places { dir: dir.to_owned(), peer_ports: free_ports(BROKERS as usize)? };
        let mut init = Command::new(tidemill_binary()?);
        init.args(["cluster", "init", "--dir"]).arg(places.plan());
        for broker in 1..=BROKERS {
            init.arg("--broker").arg(broker.to_string());
        }
        let output = init.env("HOME", dir).env_remove("XDG_CONFIG_HOME").output().await?;
        if !output.status.success() {
            return Err(format!("cluster init failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let starting = (1..=BROKERS)
            .map(|broker| TestBroker::start(places.of(broker).set("cluster", places.plan().display())));
        let brokers = Mutex::new(try_join_all(starting).await?);
        let cluster = Self { brokers, places };
        cluster.settle().await?;
        Ok(cluster)
    }

    /// A client of the whole cluster, with settings as they ship.
    pub(crate) async fn client(&self) -> Outcome<Client> {
        let brokers = self.brokers.lock().await;
        let addresses: Vec<String> = brokers.iter().map(|broker| broker.address().to_string()).collect();
        drop(brokers);
        let config = ClientConfig::new(addresses).trust_file(self.places.plan().join("ca.pem"));
        Ok(Client::connect(config.client_id("bench")).await?)
    }

    async fn settle(&self) -> Outcome<()> {
        let client = self.client().await?;
        settled(&client).await?;
        client.close().await;
        Ok(())
    }

    /// The numbers of the processes, by id.
    pub(crate) async fn process_ids(&self) -> Outcome<Vec<u32>> {
        let brokers = self.brokers.lock().await;
        let ids = brokers.iter().map(|broker| broker.process_id().ok_or("a broker is not running"));
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// kill -9, until it is gone.
    pub(crate) async fn kill(&self, broker: u32) -> Outcome<()> {
        Ok(self.brokers.lock().await[index(broker)].kill().await?)
    }

    /// Starts one again where it was, until it serves.
    pub(crate) async fn restart(&self, broker: u32) -> Outcome<()> {
        self.brokers.lock().await[index(broker)].restart().await?;
        Ok(())
    }

    /// Kills one and removes all that it had.
    pub(crate) async fn empty(&self, broker: u32) -> Outcome<()> {
        let mut brokers = self.brokers.lock().await;
        let broker = &mut brokers[index(broker)];
        broker.kill().await?;
        std::fs::remove_dir_all(broker.data_dir())?;
        Ok(())
    }

    /// Lets one that was emptied in again, until it serves.
    pub(crate) async fn join(&self, broker: u32, token: &str) -> Outcome<()> {
        let joined = TestBroker::start(self.places.of(broker).set("join", token)).await?;
        self.brokers.lock().await[index(broker)] = joined;
        Ok(())
    }

    /// Stops all of them at once, in good order.
    pub(crate) async fn stop_all(&self) -> Outcome<()> {
        let mut brokers = self.brokers.lock().await;
        try_join_all(brokers.iter_mut().map(|broker| broker.stop())).await?;
        Ok(())
    }

    /// Starts all of them at once, until each serves.
    pub(crate) async fn start_all(&self) -> Outcome<()> {
        let mut brokers = self.brokers.lock().await;
        try_join_all(brokers.iter_mut().map(|broker| broker.restart())).await?;
        Ok(())
    }

    /// Stops and starts all of them, which removes what deleted topics held, and waits until the cluster is well.
    pub(crate) async fn tidy(&self) -> Outcome<()> {
        self.stop_all().await?;
        self.start_all().await?;
        self.settle().await
    }

    /// All that a broker has logged, over all its starts.
    pub(crate) async fn log(&self, broker: u32) -> Outcome<String> {
        Ok(self.brokers.lock().await[index(broker)].log_text()?)
    }
}

/// Waits until the cluster says that it is well: nothing at risk, every shard led, every replica there and close.
pub(crate) async fn settled(client: &Client) -> Outcome<ClusterStatus> {
    until(client, SETTLE_DEADLINE, is_well).await
}

/// Waits until the cluster's status is as wanted.
pub(crate) async fn until(
    client: &Client,
    deadline: Duration,
    is_so: impl Fn(&ClusterStatus) -> bool,
) -> Outcome<ClusterStatus> {
    let begun = Instant::now();
    let mut last = String::from("no answer yet");
    while begun.elapsed() < deadline {
        match client.cluster_status().await {
            Ok(status) if is_so(&status) => return Ok(status),
            Ok(status) => last = complaint(&status),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Err(format!("the cluster was not well again within {:.0} s: {last}", deadline.as_secs_f64()).into())
}

pub(crate) fn is_well(status: &ClusterStatus) -> bool {
    status.risks.is_empty() && !status.placement.is_empty() && status.placement.iter().all(is_whole)
}

fn is_whole(shard: &ShardPlacement) -> bool {
    let voters = shard.replicas.iter().filter(|replica| replica.voter).count();
    shard.leader != 0 && voters == BROKERS as usize && shard.replicas.iter().all(is_close)
}

fn is_close(replica: &ShardReplica) -> bool {
    replica.behind < CLOSE_ENTRIES && (0..THERE_MS).contains(&replica.silent_ms)
}

/// What keeps the cluster from being well, in short.
fn complaint(status: &ClusterStatus) -> String {
    let shards = status.placement.iter().filter(|shard| !is_whole(shard));
    let shards: Vec<String> = shards.map(|shard| format!("{shard:?}")).take(3).collect();
    format!("risks: {}; shards: {}", status.risks.join(", "), shards.join(", "))
}

/// Who leads a shard.
pub(crate) fn leader_of(status: &ClusterStatus, shard: u32) -> Outcome<u32> {
    let placed = status.placement.iter().find(|placed| placed.shard == shard);
    let leader = placed.map_or(0, |placed| placed.leader);
    if leader == 0 { Err(format!("nobody leads shard {shard}").into()) } else { Ok(leader) }
}

/// The brokers but one, the one behind it first.
pub(crate) fn others(broker: u32) -> [u32; 2] {
    let behind = |broker: u32| broker % BROKERS + 1;
    [behind(broker), behind(behind(broker))]
}

/// The shard of a topic's first partition.
pub(crate) async fn shard_of(client: &Client, topic: &str) -> Outcome<u32> {
    let topic = client.topic_metadata(topic).await?;
    let partition = topic.partitions.first().ok_or("a topic without partitions")?;
    Ok(u32::from(partition.shard.get()))
}

/// Which life a broker is in: it rises when one comes back without its data.
pub(crate) fn life_of(status: &ClusterStatus, broker: u32) -> u32 {
    status.brokers.iter().find(|known| known.broker_id == broker).map_or(0, |known| known.incarnation)
}

/// Lets a broker that was emptied in again, and waits until the cluster says that its replicas are there and close: from the start
/// of its process. `life` is the one that it has lost.
pub(crate) async fn rebuild(
    cluster: &Cluster,
    client: &Client,
    broker: u32,
    life: u32,
    deadline: Duration,
) -> Outcome<(Instant, Instant)> {
    let token = client.create_join_token(Some(BrokerId::new(broker)), None).await?;
    let begun = Instant::now();
    cluster.join(broker, &token.token).await?;
    until(client, deadline, |status| is_well(status) && is_rebuilt(status, broker, life)).await?;
    Ok((begun, Instant::now()))
}

/// Whether every shard has a replica of the broker's new life.
fn is_rebuilt(status: &ClusterStatus, broker: u32, life: u32) -> bool {
    let new = life_of(status, broker);
    let mut replicas = status.placement.iter().map(|shard| {
        shard.replicas.iter().any(|replica| replica.broker_id == broker && replica.incarnation == new)
    });
    new > life && replicas.all(|has| has)
}

/// Ports that are free just now.
fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    // Not always from the same on: another run may be about to take those.
    let first = PEER_PORTS.start + u16::try_from(std::process::id() % 8_000)?;
    let is_free = |port: &u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports: Vec<u16> = (first..PEER_PORTS.end).filter(is_free).take(count).collect();
    if ports.len() == count { Ok(ports) } else { Err("there are no free ports for brokers".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(broker_id: u32, incarnation: u32) -> ShardReplica {
        ShardReplica { broker_id, incarnation, voter: true, behind: 3, silent_ms: 20 }
    }

    fn well() -> ClusterStatus {
        let replicas = vec![replica(1, 1), replica(2, 1), replica(3, 2)];
        let shard = ShardPlacement { shard: 4, leader: 2, replicas, ..ShardPlacement::default() };
        let broker = |broker_id, incarnation| tidemill_client::messages::BrokerStatus {
            broker_id,
            incarnation,
            ..Default::default()
        };
        ClusterStatus {
            brokers: vec![broker(1, 1), broker(2, 1), broker(3, 2)],
            placement: vec![shard],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn a_cluster_is_well_when_all_replicas_are_there_and_close() {
        assert!(is_well(&well()));
        let changed = |change: fn(&mut ClusterStatus)| {
            let mut status = well();
            change(&mut status);
            is_well(&status)
        };
        assert!(!changed(|status| status.risks.push("something".to_owned())));
        assert!(!changed(|status| status.placement.clear()));
        assert!(!changed(|status| status.placement[0].leader = 0));
        assert!(!changed(|status| status.placement[0].replicas[1].behind = 1_000));
        assert!(!changed(|status| status.placement[0].replicas[1].silent_ms = -1));
        assert!(!changed(|status| status.placement[0].replicas[1].voter = false));
    }

    #[test]
    fn a_broker_is_rebuilt_when_every_shard_has_it_in_its_new_life() {
        let mut status = well();
        assert!(is_rebuilt(&status, 3, 1));
        assert!(!is_rebuilt(&status, 3, 2), "it has not come back");
        status.placement[0].replicas[2].incarnation = 1;
        assert!(!is_rebuilt(&status, 3, 1), "that is the old one");
    }

    #[test]
    fn leaders_and_others_are_found() {
        assert_eq!(leader_of(&well(), 4).expect("led"), 2);
        leader_of(&well(), 5).expect_err("there is no such shard");
        assert_eq!((others(1), others(2), others(3)), ([2, 3], [3, 1], [1, 2]));
        let ports = free_ports(3).expect("some");
        assert!(ports.is_sorted() && ports.iter().all(|port| PEER_PORTS.contains(port)));
    }
}
