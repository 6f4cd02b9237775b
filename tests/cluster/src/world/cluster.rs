use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidemill_client::{Client, ClientConfig};
use tidemill_protocol::messages::ClusterStatus;
use tokio::process::Command;

use super::binary::without_variables;
use super::{BrokerOptions, TestBroker, WorldError, tidemill_binary};

/// Until a cluster is as it should be, on a machine that is busy with other things.
const SETTLE_DEADLINE: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Below those that the kernel gives to whoever asks for any: one of these would be taken by a client's socket while its broker is down.
const PEER_PORTS: Range<u16> = 16_000..32_000;

/// Broker processes that form a cluster, each on loopback ports of its own.
#[derive(Debug)]
pub struct TestCluster {
    /// First, and so dropped first: gone before their directories go.
    brokers: Vec<TestBroker>,
    home: tempfile::TempDir,
    options: BrokerOptions,
    peer_ports: Vec<u16>,
}

impl TestCluster {
    /// Plans a cluster of that many brokers with `tidemill cluster init`, and starts all of them, each with one seed.
    ///
    /// # Errors
    /// One does not start.
    pub async fn start(brokers: u32, shards: u16, options: BrokerOptions) -> Result<Self, WorldError> {
        let mut cluster = Self::planned(brokers, shards, options, None).await?;
        cluster.start_planned(|_, options| options).await?;
        Ok(cluster)
    }

    /// Plans a cluster and starts nobody yet; in a directory of its own within `within`, if that is said.
    ///
    /// # Errors
    /// There is no directory or no free port, or the plan is refused.
    pub async fn planned(
        brokers: u32,
        shards: u16,
        options: BrokerOptions,
        within: Option<&Path>,
    ) -> Result<Self, WorldError> {
        Self::planned_with(brokers, shards, options, within, &[]).await
    }

    /// The same with further arguments of `tidemill cluster init`: what is fixed for good with the plan.
    ///
    /// # Errors
    /// See [`Self::planned`].
    pub async fn planned_with(
        brokers: u32,
        shards: u16,
        options: BrokerOptions,
        within: Option<&Path>,
        arguments: &[&str],
    ) -> Result<Self, WorldError> {
        let within = within.map_or_else(std::env::temp_dir, Path::to_owned);
        let made = std::fs::create_dir_all(&within)
            .and_then(|()| tempfile::Builder::new().prefix("tidemill-").tempdir_in(&within));
        let home = made.map_err(|source| WorldError::Io { path: within, source })?;
        let mut init: Vec<String> = vec!["cluster".into(), "init".into(), "--dir".into()];
        init.push(home.path().join("cluster").display().to_string());
        init.extend(["--shards".to_owned(), shards.to_string()]);
        init.extend((1..=brokers).flat_map(|broker| ["--broker".to_owned(), broker.to_string()]));
        init.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        run(&home, &init).await?;
        let peer_ports = free_ports(brokers as usize)?;
        Ok(Self { brokers: Vec::new(), home, options, peer_ports })
    }

    /// Starts all brokers of the plan, each with what `options` makes of its options.
    ///
    /// # Errors
    /// One does not start.
    pub async fn start_planned(
        &mut self,
        options: impl Fn(u32, BrokerOptions) -> BrokerOptions,
    ) -> Result<(), WorldError> {
        for broker in (1..).take(self.peer_ports.len()) {
            let options = options(broker, self.options_of(broker));
            self.brokers.push(TestBroker::start(options).await?);
        }
        Ok(())
    }

    /// Kills all brokers, and knows of none any more.
    pub fn let_go(&mut self) {
        self.brokers.clear();
    }

    /// How a broker of the plan is started, or of [`Self::plan_another`].
    #[must_use]
    pub fn options_of(&self, broker: u32) -> BrokerOptions {
        let own = broker as usize - 1;
        // Each names the one before it, and the first the last: any connected graph will do.
        let seed = (own + self.peer_ports.len() - 1) % self.peer_ports.len();
        self.options
            .clone()
            .directory(self.home.path().join(format!("broker-{broker}")))
            .set("broker_id", broker)
            .set("cluster", self.plan().display())
            .set("peers.listen", format!("127.0.0.1:{}", self.peer_ports[own]))
            .set("peers.seeds", format!("127.0.0.1:{}", self.peer_ports[seed]))
    }

    fn plan(&self) -> PathBuf {
        self.home.path().join("cluster")
    }

    /// The certificate of the cluster's authority, which clients trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.plan().join("ca.pem")
    }

    /// The directory of the plan; each broker has one of its own beside it.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// Leaves everything where it is when the cluster is dropped; answers where.
    pub fn keep(&mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        for broker in &mut self.brokers {
            broker.keep();
        }
        self.directory()
    }

    /// Where other brokers reach a broker of the plan.
    #[must_use]
    pub fn peer_address(&self, broker: u32) -> String {
        format!("127.0.0.1:{}", self.peer_ports[broker as usize - 1])
    }

    /// The brokers, the one with id 1 first.
    #[must_use]
    pub fn brokers(&self) -> &[TestBroker] {
        &self.brokers
    }

    /// A broker by its id.
    ///
    /// # Panics
    /// There is none.
    pub fn broker(&mut self, id: u32) -> &mut TestBroker {
        &mut self.brokers[id as usize - 1]
    }

    /// Puts a broker that joined among the others; its id is the next one.
    pub fn push(&mut self, broker: TestBroker) {
        self.brokers.push(broker);
    }

    /// Finds an address for one more broker, which is to join; answers its number. [`Self::options_of`] says how it is started, but
    /// for a token in place of the plan.
    ///
    /// # Errors
    /// There is no free port.
    pub fn plan_another(&mut self) -> Result<u32, WorldError> {
        self.peer_ports.extend(free_ports(1)?);
        Ok(u32::try_from(self.peer_ports.len()).unwrap_or(u32::MAX))
    }

    /// Options of a broker that joins with a token.
    ///
    /// # Errors
    /// There is no free port.
    pub fn joining(&mut self, id: u32, token: &str) -> Result<BrokerOptions, WorldError> {
        let port = free_ports(1)?[0];
        let seed = self.peer_ports[0];
        self.peer_ports.push(port);
        Ok(self
            .options
            .clone()
            .directory(self.home.path().join(format!("broker-{id}")))
            .set("broker_id", id)
            .set("join", token)
            .set("peers.listen", format!("127.0.0.1:{port}"))
            .set("peers.seeds", format!("127.0.0.1:{seed}")))
    }

    /// Runs a command of the command line to its end, however that is.
    ///
    /// # Errors
    /// It can't be run.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output, WorldError> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        command(self.home.path(), &arguments).await
    }

    /// How a client reaches the cluster: by all of its brokers' addresses.
    ///
    /// # Panics
    /// There is no broker.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        let addresses: Vec<String> = self.brokers.iter().map(|broker| broker.address().to_string()).collect();
        self.client_config_at(addresses)
    }

    /// How a client reaches the cluster that knows these addresses at first.
    #[must_use]
    pub fn client_config_at<A: Into<String>>(&self, addresses: impl IntoIterator<Item = A>) -> ClientConfig {
        ClientConfig::new(addresses)
            .trust_file(self.authority())
            .connect_timeout(Duration::from_secs(2))
            .backoff(Duration::from_millis(10), Duration::from_millis(250))
    }

    /// A client of the whole cluster.
    ///
    /// # Errors
    /// The settings do not stand.
    pub fn client(&self) -> Result<Client, tidemill_client::ConnectError> {
        Client::detached(self.client_config().client_id("test"))
    }

    /// Waits until the cluster says that nothing is at risk: every shard is led, every replica is there and close.
    ///
    /// # Errors
    /// It does not come to that; the error says how it stands.
    pub async fn settled(&self, client: &Client) -> Result<ClusterStatus, WorldError> {
        self.until(client, "be well", is_well).await
    }

    /// As [`Self::settled`], and until every shard is led by the broker that is to lead it: then leads stay where they are.
    ///
    /// # Errors
    /// It does not come to that; the error says how it stands.
    pub async fn led_as_planned(&self, client: &Client) -> Result<ClusterStatus, WorldError> {
        self.until(client, "be led as planned", |status| {
            let as_planned =
                status.placement.iter().all(|shard| shard.planned.first() == Some(&shard.leader));
            is_well(status) && as_planned
        })
        .await
    }

    /// Waits until the cluster's status is as wanted.
    ///
    /// # Errors
    /// It does not come to that; the error says how it stands.
    pub async fn until(
        &self,
        client: &Client,
        what: &'static str,
        is_so: impl Fn(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, WorldError> {
        let begun = Instant::now();
        let mut last = String::from("no answer yet");
        while begun.elapsed() < SETTLE_DEADLINE {
            match client.cluster_status().await {
                Ok(status) if is_so(&status) => return Ok(status),
                Ok(status) => last = format!("{status:#?}"),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let logs: String = self.brokers.iter().map(|broker| broker.log_tail() + "\n----\n").collect();
        Err(WorldError::TimedOut { what, after: SETTLE_DEADLINE, log: format!("{last}\n{logs}") })
    }
}

/// Whether nothing is at risk, every shard is led, and every replica is there and close.
fn is_well(status: &ClusterStatus) -> bool {
    let shards = status.placement.iter();
    let led = shards.clone().all(|shard| shard.leader != 0 && !shard.replicas.is_empty());
    let close = shards.flat_map(|shard| &shard.replicas).all(|replica| replica.behind < 256);
    status.risks.is_empty() && led && close && !status.placement.is_empty()
}

/// Runs one command of the command line, which should end well.
async fn run(home: &tempfile::TempDir, arguments: &[String]) -> Result<(), WorldError> {
    let output = command(home.path(), arguments).await?;
    match output.status.success() {
        true => Ok(()),
        false => Err(WorldError::Ended {
            status: output.status,
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

async fn command(home: &Path, arguments: &[String]) -> Result<Output, WorldError> {
    let binary = tidemill_binary()?;
    let mut command = Command::new(&binary);
    without_variables(&mut command);
    command.args(arguments).env("HOME", home).env_remove("XDG_CONFIG_HOME").kill_on_drop(true);
    command.output().await.map_err(|source| WorldError::Io { path: binary, source })
}

/// Ports that are free just now, and that nobody else in this process gets.
fn free_ports(count: usize) -> Result<Vec<u16>, WorldError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let all = u32::from(PEER_PORTS.end - PEER_PORTS.start);
    // Not always from the same on: another process may be about to take those.
    let first = std::process::id().wrapping_mul(64);
    let is_free = |port: &u16| UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], *port))).is_ok();
    let candidates = (0..all).map(|_| {
        let step = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % all;
        PEER_PORTS.start + u16::try_from(step).unwrap_or(0)
    });
    let ports: Vec<u16> = candidates.filter(is_free).take(count).collect();
    if ports.len() == count {
        return Ok(ports);
    }
    let source = io::Error::new(io::ErrorKind::AddrInUse, "no port for a broker's peers is free");
    Err(WorldError::Io { path: PathBuf::from("127.0.0.1"), source })
}
