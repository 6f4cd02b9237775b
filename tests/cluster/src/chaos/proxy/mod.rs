//! The network between brokers, with its weather: each broker tells the others an address of the proxy, which sends on to where it
//! really listens.
//!
//! ```text
//!   broker 1  <->  face of 2 | way of 1 to 2  <->  broker 2
//!   broker 2  <->  face of 1 | way of 2 to 1  <->  broker 1
//! ```
//!
//! A broker dials from the socket that it listens on, so the address that a packet comes from says who sent it. On its way to the broker
//! behind a face it leaves from a socket of the sender's own, so that the answers find back. Who is unknown (who joins, that is)
//! has fair weather. A packet is at most a datagram; late ones are bounded by number, and what is too many is dropped. Brokers come and go:
//! each has a number of its own for good, and the face of one that is gone is taken down.

mod line;
mod weather;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use self::line::{Exit, Line};
use self::weather::Counters;
pub use self::weather::Traffic;
pub(super) use self::weather::Weather;

/// A datagram at the most.
const PACKET_BYTES_MAX: usize = 65_535;
/// Senders that a face remembers; of more, the one that came first is forgotten.
const WAYS_MAX: usize = 64;
/// After an error of a socket: nobody listens there just now.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Shared {
    /// Where brokers listen; the first is broker 1.
    real: Mutex<Vec<SocketAddr>>,
    /// By from and to, both counted from 0 for nobody known; fair where nothing is said.
    weather: Mutex<BTreeMap<(usize, usize), Weather>>,
    cuts: Mutex<BTreeSet<(usize, usize)>>,
    counters: Counters,
}

impl Shared {
    fn weather(&self, pair: (usize, usize)) -> Weather {
        let cut = lock(&self.cuts).contains(&pair);
        let weather = lock(&self.weather).get(&pair).copied().unwrap_or_default();
        Weather { cut: cut || weather.cut, ..weather }
    }

    /// The number of the broker that sends from there; 0: nobody known. A port may be another broker's after one is gone.
    fn sender(&self, address: SocketAddr) -> usize {
        lock(&self.real).iter().rposition(|real| *real == address).map_or(0, |place| place + 1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy between brokers.
#[derive(Debug)]
pub(super) struct PeerProxy {
    shared: Arc<Shared>,
    /// Where brokers are reached; the first is that of broker 1.
    faces: Vec<SocketAddr>,
    /// Who takes the packets there.
    running: Vec<JoinHandle<()>>,
    seed: u64,
}

impl PeerProxy {
    /// One for brokers that listen there, broker 1 first.
    pub(super) async fn start(real: Vec<SocketAddr>, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            real: Mutex::default(),
            weather: Mutex::default(),
            cuts: Mutex::default(),
            counters: Counters::default(),
        });
        let mut proxy = Self { shared, faces: Vec::new(), running: Vec::new(), seed };
        for address in real {
            proxy.add(address).await?;
        }
        Ok(proxy)
    }

    /// One more broker that will listen there; its number is the next one.
    pub(super) async fn add(&mut self, real: SocketAddr) -> io::Result<()> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let at = socket.local_addr()?;
        self.faces.push(at);
        let broker = self.faces.len();
        lock(&self.shared.real).push(real);
        let (shared, seed) = (Arc::clone(&self.shared), self.seed);
        let face = Face { shared, broker, real, socket, seed, ways: VecDeque::new() };
        self.running.push(tokio::spawn(face.run()));
        Ok(())
    }

    /// Nobody reaches this broker any more.
    pub(super) fn take_down(&self, broker: u32) {
        if let Some(face) = self.running.get(broker as usize - 1) {
            face.abort();
        }
    }

    /// Where others reach a broker through the proxy.
    pub(super) fn face(&self, broker: u32) -> SocketAddr {
        self.faces[broker as usize - 1]
    }

    /// Lets nothing through from one broker to another, or lets it through again.
    pub(super) fn cut(&self, from: u32, to: u32, is_cut: bool) {
        let pair = (from as usize, to as usize);
        let mut cuts = lock(&self.shared.cuts);
        if is_cut {
            cuts.insert(pair);
        } else {
            cuts.remove(&pair);
        }
    }

    /// How it is from now on from one broker to another.
    pub(super) fn change(&self, from: u32, to: u32, weather: Weather) {
        lock(&self.shared.weather).insert((from as usize, to as usize), weather);
    }

    /// Fair weather everywhere, and no cuts.
    pub(super) fn clear(&self) {
        lock(&self.shared.weather).clear();
        lock(&self.shared.cuts).clear();
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.shared.counters.now()
    }
}

impl Drop for PeerProxy {
    fn drop(&mut self) {
        for task in &self.running {
            task.abort();
        }
    }
}

/// What other brokers take for a broker.
struct Face {
    shared: Arc<Shared>,
    broker: usize,
    /// Where that one listens.
    real: SocketAddr,
    socket: Arc<UdpSocket>,
    seed: u64,
    ways: VecDeque<Way>,
}

/// From one sender to the broker behind a face.
struct Way {
    sender: SocketAddr,
    there: Line,
    back: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.back.abort();
    }
}

impl Face {
    async fn run(mut self) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            let Ok((length, sender)) = self.socket.recv_from(&mut packet).await else {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            let place = match self.ways.iter().position(|way| way.sender == sender) {
                Some(place) => place,
                None => {
                    // Without a socket the packet is lost.
                    let Ok(way) = self.way(sender).await else { continue };
                    if self.ways.len() >= WAYS_MAX {
                        self.forget_one();
                    }
                    self.ways.push_back(way);
                    self.ways.len() - 1
                }
            };
            if let Some(way) = self.ways.get_mut(place) {
                way.there.pass(&packet[..length]).await;
            }
        }
    }

    /// The one that came first and is no broker's.
    fn forget_one(&mut self) {
        let stranger = self.ways.iter().position(|way| self.shared.sender(way.sender) == 0);
        drop(self.ways.remove(stranger.unwrap_or(0)));
    }

    async fn way(&self, sender: SocketAddr) -> io::Result<Way> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        socket.connect(self.real).await?;
        let (from, to) = (self.shared.sender(sender), self.broker);
        let line = |pair: (usize, usize), exit: Exit| {
            let seed = self.seed ^ ((pair.0 as u64 + 1) << 48) ^ ((pair.1 as u64 + 1) << 40);
            Line::new(Arc::clone(&self.shared), pair, exit, seed)
        };
        let there = line((from, to), Exit { socket: Arc::clone(&socket), to: None });
        let back = line((to, from), Exit { socket: Arc::clone(&self.socket), to: Some(sender) });
        Ok(Way { sender, there, back: tokio::spawn(come_back(socket, back)) })
    }
}

/// Answers of the broker behind a face.
async fn come_back(socket: Arc<UdpSocket>, mut line: Line) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        match socket.recv(&mut packet).await {
            Ok(length) => line.pass(&packet[..length]).await,
            // While the broker is down, the system says that nobody is there.
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::waiting::eventually;

    /// Sent one behind the other: fewer than any buffer on the way holds.
    const PACKETS: u8 = 32;
    /// For packets that come, or are seen to be lost.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn socket() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    async fn heard(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut packet = [0; 100];
        let received = timeout(Duration::from_millis(200), socket.recv_from(&mut packet)).await;
        let (length, from) = received.ok()?.unwrap();
        Some((packet[..length].to_vec(), from))
    }

    #[tokio::test]
    async fn packets_and_answers_pass_and_either_direction_can_be_cut() {
        let ((one, at_one), (two, at_two)) = (socket().await, socket().await);
        let proxy = PeerProxy::start(vec![at_one, at_two], 1).await.unwrap();
        one.send_to(b"hello", proxy.face(2)).await.unwrap();
        let (said, way) = heard(&two).await.expect("it passes");
        assert_eq!(said, b"hello");
        two.send_to(b"answer", way).await.unwrap();
        let (said, from) = heard(&one).await.expect("the answer passes");
        assert_eq!((&said[..], from), (&b"answer"[..], proxy.face(2)));

        proxy.cut(2, 1, true);
        one.send_to(b"still", proxy.face(2)).await.unwrap();
        assert!(heard(&two).await.is_some());
        two.send_to(b"lost", way).await.unwrap();
        assert_eq!(heard(&one).await, None);
        two.send_to(b"lost", proxy.face(1)).await.unwrap();
        assert_eq!(heard(&one).await, None, "nor what it sends by itself");

        proxy.clear();
        two.send_to(b"again", way).await.unwrap();
        assert!(heard(&one).await.is_some());
        assert_eq!(proxy.traffic().dropped, 2);
    }

    #[tokio::test]
    async fn brokers_come_and_go() {
        let ((one, at_one), (two, at_two)) = (socket().await, socket().await);
        let mut proxy = PeerProxy::start(vec![at_one], 1).await.unwrap();
        proxy.cut(2, 1, true);
        two.send_to(b"who", proxy.face(1)).await.unwrap();
        assert_eq!(heard(&one).await.expect("it is nobody yet").0, b"who");
        proxy.add(at_two).await.unwrap();
        one.send_to(b"hello", proxy.face(2)).await.unwrap();
        let (said, way) = heard(&two).await.expect("it passes");
        assert_eq!(said, b"hello");
        two.send_to(b"lost", way).await.unwrap();
        assert_eq!(heard(&one).await, None, "it is known by its address");
        proxy.take_down(2);
        // Its packets may be refused by then, as those to any port that nobody listens on.
        let _ = one.send_to(b"anybody", proxy.face(2)).await;
        assert_eq!(heard(&two).await, None);
    }

    #[tokio::test]
    async fn strangers_pass_and_weather_doubles_and_delays() {
        let ((one, at_one), (two, at_two)) = (socket().await, socket().await);
        let proxy = PeerProxy::start(vec![at_one, at_two], 1).await.unwrap();
        let (stranger, _) = socket().await;
        stranger.send_to(b"who", proxy.face(1)).await.unwrap();
        assert_eq!(heard(&one).await.expect("it passes").0, b"who");
        let delay = Duration::from_millis(30);
        proxy.change(1, 2, Weather { doubled_percent: 100, delay, ..Weather::default() });
        let begun = tokio::time::Instant::now();
        one.send_to(b"twice", proxy.face(2)).await.unwrap();
        assert_eq!(heard(&two).await.expect("once").0, b"twice");
        assert!(begun.elapsed() >= delay);
        assert_eq!(heard(&two).await.expect("again").0, b"twice");
        assert_eq!(heard(&two).await, None);
    }

    #[tokio::test]
    async fn what_the_weather_loses_never_comes() {
        let ((one, at_one), (two, at_two)) = (socket().await, socket().await);
        let proxy = PeerProxy::start(vec![at_one, at_two], 1).await.unwrap();
        proxy.change(1, 2, Weather { lost_percent: 100, ..Weather::default() });
        for number in 0..PACKETS {
            one.send_to(&[number], proxy.face(2)).await.unwrap();
        }
        let all = Traffic { dropped: u64::from(PACKETS), ..Traffic::default() };
        eventually("all are lost", PATIENCE, async || (proxy.traffic() == all).then_some(())).await.unwrap();
        assert_eq!(heard(&two).await, None);
        proxy.clear();
        one.send_to(b"again", proxy.face(2)).await.unwrap();
        assert!(heard(&two).await.is_some());
    }

    #[tokio::test]
    async fn overtaken_packets_all_come_in_another_order() {
        let ((one, at_one), (two, at_two)) = (socket().await, socket().await);
        let proxy = PeerProxy::start(vec![at_one, at_two], 1).await.unwrap();
        proxy.change(1, 2, Weather { overtaken_percent: 100, ..Weather::default() });
        let sent: Vec<u8> = (0..PACKETS).collect();
        for number in &sent {
            one.send_to(&[*number], proxy.face(2)).await.unwrap();
        }
        let (mut came, mut packet) = (Vec::new(), [0; 100]);
        while came.len() < sent.len() {
            let next = timeout(PATIENCE, two.recv_from(&mut packet)).await;
            let (length, _) = next.expect("all of them come").unwrap();
            came.extend_from_slice(&packet[..length]);
        }
        assert_ne!(came, sent);
        came.sort_unstable();
        assert_eq!(came, sent, "each once");
        assert_eq!(heard(&two).await, None);
        let all = u64::from(PACKETS);
        let traffic = Traffic { forwarded: all, delayed: all, overtaken: all, ..Traffic::default() };
        assert_eq!(proxy.traffic(), traffic);
    }
}
