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
//! has fair weather. A packet is at most a datagram; late ones are bounded by number, and what is too many is dropped.

mod line;
mod weather;

use std::collections::VecDeque;
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
    real: Vec<SocketAddr>,
    /// By from and to, both counted from 0 for nobody known.
    weather: Mutex<Vec<Weather>>,
    cuts: Mutex<Vec<bool>>,
    counters: Counters,
}

impl Shared {
    fn place(&self, (from, to): (usize, usize)) -> usize {
        from * (self.real.len() + 1) + to
    }

    fn weather(&self, pair: (usize, usize)) -> Weather {
        let place = self.place(pair);
        let cut = lock(&self.cuts).get(place).copied().unwrap_or_default();
        let weather = lock(&self.weather).get(place).copied().unwrap_or_default();
        Weather { cut: cut || weather.cut, ..weather }
    }

    /// The number of the broker that sends from there; 0: nobody known.
    fn sender(&self, address: SocketAddr) -> usize {
        self.real.iter().position(|real| *real == address).map_or(0, |place| place + 1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy between brokers.
#[derive(Debug)]
pub(super) struct PeerProxy {
    shared: Arc<Shared>,
    faces: Vec<SocketAddr>,
    running: Vec<JoinHandle<()>>,
}

impl PeerProxy {
    /// One for brokers that listen there, broker 1 first.
    pub(super) async fn start(real: Vec<SocketAddr>, seed: u64) -> io::Result<Self> {
        let pairs = (real.len() + 1) * (real.len() + 1);
        let shared = Arc::new(Shared {
            weather: Mutex::new(vec![Weather::default(); pairs]),
            cuts: Mutex::new(vec![false; pairs]),
            counters: Counters::default(),
            real,
        });
        let (mut faces, mut running) = (Vec::new(), Vec::new());
        for broker in 1..=shared.real.len() {
            let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            faces.push(socket.local_addr()?);
            let face = Face { shared: Arc::clone(&shared), broker, socket, seed, ways: VecDeque::new() };
            running.push(tokio::spawn(face.run()));
        }
        Ok(Self { shared, faces, running })
    }

    /// Where others reach a broker through the proxy.
    pub(super) fn face(&self, broker: u32) -> SocketAddr {
        self.faces[broker as usize - 1]
    }

    /// Lets nothing through from one broker to another, or lets it through again.
    pub(super) fn cut(&self, from: u32, to: u32, is_cut: bool) {
        let place = self.shared.place((from as usize, to as usize));
        if let Some(cut) = lock(&self.shared.cuts).get_mut(place) {
            *cut = is_cut;
        }
    }

    /// How it is from now on from one broker to another.
    pub(super) fn change(&self, from: u32, to: u32, weather: Weather) {
        let place = self.shared.place((from as usize, to as usize));
        if let Some(known) = lock(&self.shared.weather).get_mut(place) {
            *known = weather;
        }
    }

    /// Fair weather everywhere, and no cuts.
    pub(super) fn clear(&self) {
        lock(&self.shared.weather).fill(Weather::default());
        lock(&self.shared.cuts).fill(false);
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
        socket.connect(self.shared.real[self.broker - 1]).await?;
        let (from, to) = (self.shared.sender(sender), self.broker);
        let line = |pair: (usize, usize), exit: Exit| {
            let seed = self.seed ^ ((self.shared.place(pair) as u64 + 1) << 40);
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
}
