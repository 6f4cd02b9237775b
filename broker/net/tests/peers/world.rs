//! Clusters of endpoints, and what the tests say of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tidemill_net::{
    ClusterCa, Connection, Frame, NetLimits, PeerEndpoint, PeerIdentity, PeerLimits, PeerNetConfig, PeerTls,
    Stream,
};
use tidemill_protocol::{BrokerId, ClusterId};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// The defaults for a machine that has other things to do, too: nothing is lost because a test had to wait for its turn.
pub(crate) fn patient() -> PeerLimits {
    let net = NetLimits { idle_timeout: 3 * PATIENCE, ..PeerLimits::default().net };
    PeerLimits { net, dial_timeout: PATIENCE, ..PeerLimits::default() }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

/// An authority and what it signed.
pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    pub(crate) ca: ClusterCa,
    dir: tempfile::TempDir,
}

pub(crate) fn cluster(id: u128) -> Cluster {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = ClusterCa::open_or_create(dir.path().join("ca")).expect("an authority");
    Cluster { id: ClusterId::new(Uuid::from_u128(id)), ca, dir }
}

impl Cluster {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn tls(&self, broker: u32) -> PeerTls {
        self.tls_of(self.id, broker)
    }

    /// As a broker of another cluster that has this one's authority.
    pub(crate) fn tls_of(&self, cluster: ClusterId, broker: u32) -> PeerTls {
        let dir = self.path(&format!("{cluster}-{broker}"));
        let files = self.ca.issue_peer(cluster, BrokerId::new(broker), dir).expect("a certificate");
        PeerTls::new(files, &self.ca)
    }

    /// A certificate that counts for so long.
    pub(crate) fn tls_living(&self, broker: u32, life: Duration) -> PeerTls {
        let ca = ClusterCa::open(self.path("ca")).expect("an authority").certificates_live(life);
        let dir = self.path(&format!("{}-{broker}-short", self.id));
        let files = ca.issue_peer(self.id, BrokerId::new(broker), dir).expect("a certificate");
        PeerTls::new(files, &ca)
    }

    pub(crate) fn identity(&self, broker: u32) -> PeerIdentity {
        PeerIdentity { cluster: self.id, broker: BrokerId::new(broker) }
    }

    pub(crate) fn peer(&self, broker: u32) -> PeerEndpoint {
        self.limited_peer(broker, patient())
    }

    pub(crate) fn limited_peer(&self, broker: u32, limits: PeerLimits) -> PeerEndpoint {
        endpoint(self.tls(broker), limits)
    }
}

pub(crate) fn endpoint(tls: PeerTls, limits: PeerLimits) -> PeerEndpoint {
    PeerEndpoint::bind(PeerNetConfig { listen: loopback(), tls, limits }).expect("an endpoint")
}

pub(crate) fn address(peer: &PeerEndpoint) -> String {
    peer.local_addr().to_string()
}

/// A connection as both sides have it: who dialled first.
pub(crate) async fn connected(from: &PeerEndpoint, to: &PeerEndpoint) -> (Connection, Connection) {
    let address = address(to);
    let (there, here) = within(async { tokio::join!(from.dial(&address), to.accept()) }).await;
    (there.expect("let in"), here.expect("a connection"))
}

/// A stream as both sides have it: who opened it first. It begins with a frame that says its name.
pub(crate) async fn stream(from: &Connection, to: &Connection, name: &str) -> (Stream, Stream) {
    let mut near = within(from.open_stream()).await.expect("a stream");
    say(&mut near, name, &[]).await;
    let mut far = within(to.accept_stream()).await.expect("alive").expect("a stream");
    assert_eq!(heard(&mut far).await.0, name);
    (near, far)
}

pub(crate) async fn say(stream: &mut Stream, head: &str, payload: &[Bytes]) {
    within(stream.writer.send(&head.to_owned(), payload)).await.expect("written");
}

pub(crate) async fn heard(stream: &mut Stream) -> (String, Bytes) {
    let frame = within(stream.reader.next()).await.expect("a frame").expect("not the end");
    let Frame { header, payload, .. } = frame;
    (prost::Message::decode(header).expect("a string"), payload)
}

/// Counters of one test, which runs on one thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Counters {
    pub(crate) fn of(&self, name: &str, reason: &str) -> u64 {
        let counters = self.0.lock().expect("nobody panicked");
        counters.get(&format!("{name} {reason}")).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Waits until a refusal was counted.
    pub(crate) async fn refused(&self, reason: &str) {
        within(async {
            while self.of("tidemill_peer_refused_total", reason) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let reason = key.labels().next().map_or("", |label| label.value());
        let name = format!("{} {reason}", key.name());
        Counter::from_arc(Arc::clone(self.0.lock().expect("nobody panicked").entry(name).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
