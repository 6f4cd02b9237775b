//! Several brokers with one memory, each behind a proxy that can swallow every packet, so that a broker can die without a word and
//! come back where it was.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tidemill_client::{Client, ClientConfig};
use tidemill_protocol::messages::{BrokerInfo, Metadata};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::Model;

/// One broker's view of the cluster, and what is wrong with it.
pub struct Node {
    pub id: u32,
    pub model: Arc<Model>,
    /// What it tells of the cluster, where it has not heard of the present.
    pub stale: Mutex<Option<Metadata>>,
    pub pushes: AtomicBool,
    /// Takes produce streams for partitions that another leads, and hands them on.
    pub forwards: AtomicBool,
    /// Sends whoever asks for something elsewhere.
    pub refuses: AtomicBool,
    /// The topics that clients want to hear of, as one of them said last.
    pub listed: Mutex<Vec<String>>,
    /// How far its replicas reach at most.
    pub reach: AtomicI64,
    /// Packets to and from it are swallowed.
    pub silent: AtomicBool,
    /// Rises when it says that it is going away.
    pub leaving: watch::Sender<u64>,
    pub requests: AtomicUsize,
    pub routed: AtomicUsize,
    /// Where the proxy finds it, and in which life.
    behind: Mutex<Option<SocketAddr>>,
    life: AtomicU64,
}

impl Node {
    pub(super) fn new(id: u32, model: Arc<Model>) -> Self {
        Self {
            id,
            model,
            stale: Mutex::default(),
            pushes: AtomicBool::new(true),
            forwards: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            listed: Mutex::default(),
            reach: AtomicI64::new(i64::MAX),
            silent: AtomicBool::new(false),
            leaving: watch::Sender::new(0),
            requests: AtomicUsize::new(0),
            routed: AtomicUsize::new(0),
            behind: Mutex::default(),
            life: AtomicU64::new(0),
        }
    }

    pub fn metadata(&self) -> Metadata {
        self.stale.lock().expect("no panic").clone().unwrap_or_else(|| self.model.metadata())
    }

    /// How far the replica here reaches.
    pub fn end(&self, partition: usize) -> i64 {
        let end = self.model.logs[partition].lock().expect("no panic").end;
        end.min(self.reach.load(Ordering::Relaxed))
    }

    /// Moves on how far the replicas here reach.
    pub fn reach(&self, end: i64) {
        self.reach.store(end, Ordering::Relaxed);
        self.model.appended.notify_waiters();
    }

    /// Leader and epoch under which a stream that is opened here appends.
    pub(super) fn reign(&self, partition: usize, pinned: i32) -> Option<(u32, i32)> {
        let (leader, epoch) = self.model.leads.lock().expect("no panic")[partition];
        let is_down = self.model.down.lock().expect("no panic").contains(&leader);
        let forwards = self.forwards.load(Ordering::Relaxed) && pinned < 0 && leader != 0 && !is_down;
        let leads = leader == self.id && (pinned < 0 || pinned == epoch);
        (leads || forwards).then_some((leader, epoch))
    }
}

pub struct FakeCluster {
    pub model: Arc<Model>,
    nodes: Vec<Arc<Node>>,
    addresses: Vec<String>,
    endpoints: Mutex<HashMap<u32, quinn::Endpoint>>,
}

impl FakeCluster {
    /// Brokers 1, 2, ... in the racks of these names, with one topic, which broker 1 leads.
    pub async fn start(racks: &[&str], partitions: u32) -> Self {
        let model = Arc::new(Model::new(partitions));
        let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
        for (id, rack) in (1..).zip(racks) {
            let node = Arc::new(Node::new(id, Arc::clone(&model)));
            let outside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
            let address = format!("127.0.0.1:{}", outside.local_addr().expect("bound").port());
            tokio::spawn(proxy(Arc::new(outside), Arc::clone(&node)));
            model.brokers.lock().expect("no panic").push(BrokerInfo {
                broker_id: id,
                addresses: vec![address.clone()],
                rack: (*rack).to_owned(),
            });
            addresses.push(address);
            nodes.push(node);
        }
        let cluster = Self { model, nodes, addresses, endpoints: Mutex::default() };
        (1..).take(racks.len()).for_each(|id| cluster.revive(id));
        cluster
    }

    pub fn node(&self, id: u32) -> &Arc<Node> {
        &self.nodes[id as usize - 1]
    }

    pub fn address(&self, id: u32) -> String {
        self.addresses[id as usize - 1].clone()
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new(self.addresses.clone()).insecure()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.expect("a connection")
    }

    /// From now on no packet comes through.
    pub fn silence(&self, id: u32) {
        self.node(id).silent.store(true, Ordering::Relaxed);
        self.model.down.lock().expect("no panic").insert(id);
    }

    pub fn unsilence(&self, id: u32) {
        self.model.down.lock().expect("no panic").remove(&id);
        self.node(id).silent.store(false, Ordering::Relaxed);
    }

    /// As kill -9 does it: without a word, and with all that it knew of its connections.
    pub fn kill(&self, id: u32) {
        self.silence(id);
        if let Some(endpoint) = self.endpoints.lock().expect("no panic").remove(&id) {
            endpoint.close(0u32.into(), b"nobody hears this");
        }
    }

    /// Closes every connection, as a broker that stops does.
    pub fn close(&self, id: u32) {
        if let Some(endpoint) = self.endpoints.lock().expect("no panic").remove(&id) {
            endpoint.close(0u32.into(), b"stopped");
        }
        self.model.down.lock().expect("no panic").insert(id);
    }

    /// Begins anew, at the same address.
    pub fn revive(&self, id: u32) {
        let endpoint = super::listen(Arc::clone(self.node(id)));
        let node = self.node(id);
        *node.behind.lock().expect("no panic") = endpoint.local_addr().ok();
        node.life.fetch_add(1, Ordering::Relaxed);
        self.endpoints.lock().expect("no panic").insert(id, endpoint);
        self.unsilence(id);
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        for endpoint in self.endpoints.lock().expect("no panic").values() {
            endpoint.close(0u32.into(), b"test over");
        }
    }
}

async fn proxy(outside: Arc<UdpSocket>, node: Arc<Node>) {
    const PACKET_BYTES_MAX: usize = 65_536;
    const BUFFER_BYTES: usize = 4 << 20;
    let _ = socket2::SockRef::from(&*outside).set_recv_buffer_size(BUFFER_BYTES);
    let mut flows: HashMap<(u64, SocketAddr), Arc<UdpSocket>> = HashMap::new();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((bytes, client)) = outside.recv_from(&mut packet).await else { continue };
        if node.silent.load(Ordering::Relaxed) {
            continue;
        }
        let key = (node.life.load(Ordering::Relaxed), client);
        let flow = match flows.entry(key) {
            Entry::Occupied(flow) => flow.into_mut(),
            Entry::Vacant(place) => {
                let behind = node.behind.lock().expect("no panic").expect("it was started");
                let inside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
                inside.connect(behind).await.expect("on loopback");
                let _ = socket2::SockRef::from(&inside).set_recv_buffer_size(BUFFER_BYTES);
                let inside = Arc::new(inside);
                tokio::spawn(back(Arc::clone(&inside), Arc::clone(&outside), client, Arc::clone(&node)));
                place.insert(inside)
            }
        };
        let _ = flow.send(&packet[..bytes]).await;
    }
}

async fn back(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, client: SocketAddr, node: Arc<Node>) {
    let mut packet = vec![0; 65_536];
    loop {
        match inside.recv(&mut packet).await {
            Ok(bytes) if !node.silent.load(Ordering::Relaxed) => {
                let _ = outside.send_to(&packet[..bytes], client).await;
            }
            Ok(_) => {}
            // The port behind it is closed.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}
