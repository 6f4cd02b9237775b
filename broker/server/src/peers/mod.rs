//! The other brokers: who they are, the connections to them, and what comes from them.
//!
//! Each broker dials every other one, and what it asks goes over the connections that it dialled: no tie is to be broken between two
//! dials, and who needs a direction sees whether it works. What clients have passed on goes over connections of its own, made when the
//! first needs them: see [`Lane`].
//!
//! ```text
//!   seeds, address book -> [ a Link per broker and lane: dial, hello, keep ] -> streams for replicas, forwarded clients, components
//!   endpoint            -> [ a task per connection: hello, check ]  -> serve.rs: a task per stream
//! ```

mod book;
mod disks;
mod greeting;
mod link;
pub(crate) mod messages;
mod replicas;
mod serve;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tidemill_log::fs::Storage;
use tidemill_net::{BindError, Connection, PeerEndpoint, PeerTls, Stream};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ClusterId, ErrorCode};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use book::{BookEntry, PeerBook};
pub(crate) use greeting::{decode_hello, own_hello};
pub(crate) use replicas::{RemoteDialer, ReplicaDialer};
pub(crate) use serve::PeerServices;

use link::Link;
use messages::{DiskReport, ForwardOpen, KnownBroker, PeerOpen, Purpose};

/// How long a stream may take to be opened on a connection that is there.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);
/// What ended by a panic begins again after this long: it may do the same.
const PANIC_PAUSE: Duration = Duration::from_millis(500);

/// What goes over one connection to another broker. Streams of a connection share its windows and its number of streams: what clients leave
/// unread, or open in great number, must hold up neither replicas nor each other's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Replicas, and what brokers ask of each other.
    Brokers,
    /// Clients' requests.
    Requests,
    /// Clients' streams: of producers and subscriptions.
    Streams,
}

/// Who this broker is, as it says to others.
#[derive(Debug, Clone)]
pub(crate) struct Myself {
    pub(crate) cluster: ClusterId,
    pub(crate) broker: BrokerId,
    pub(crate) incarnation: u32,
    pub(crate) directory: Uuid,
    pub(crate) starts: u64,
    pub(crate) peer_addresses: Vec<String>,
    /// The largest unit that its log takes.
    pub(crate) unit_bytes_max: usize,
}

impl Myself {
    /// As it would stand in the address book.
    fn entry(&self) -> BookEntry {
        BookEntry {
            broker: self.broker,
            incarnation: self.incarnation,
            directory: self.directory,
            starts: self.starts,
            peer_addresses: self.peer_addresses.clone(),
        }
    }
}

/// The way to the other brokers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

struct Inner {
    myself: Myself,
    endpoint: PeerEndpoint,
    book: PeerBook,
    links: Mutex<HashMap<(BrokerId, Lane), Arc<Link>>>,
    /// There are links that nobody keeps yet.
    new_links: Notify,
    /// The largest unit that each of the others' logs takes, as it said last.
    unit_bytes: Mutex<HashMap<BrokerId, usize>>,
    /// The least of these.
    unit_bytes_elsewhere: Arc<AtomicUsize>,
    /// Of brokers whose disk is not well.
    disks: Mutex<HashMap<BrokerId, DiskReport>>,
    /// What came of the last round of dialling the seeds, while none has led to the others.
    seeds_trouble: Mutex<Option<String>>,
    /// What answers other brokers; `None` until this one is far enough with its start.
    services: watch::Sender<Option<Arc<PeerServices>>>,
    /// What a broker of the formed cluster said, once one has said that this one is over for good.
    over: watch::Sender<Option<String>>,
    stopping: CancellationToken,
}

impl Peers {
    pub(crate) fn new(
        myself: Myself,
        endpoint: PeerEndpoint,
        storage: &Arc<dyn Storage>,
        stopping: &CancellationToken,
    ) -> std::io::Result<Self> {
        let book = PeerBook::open(storage, myself.broker)?;
        Ok(Self(Arc::new(Inner {
            myself,
            endpoint,
            book,
            links: Mutex::default(),
            new_links: Notify::new(),
            unit_bytes: Mutex::default(),
            unit_bytes_elsewhere: Arc::new(AtomicUsize::new(usize::MAX)),
            disks: Mutex::default(),
            seeds_trouble: Mutex::default(),
            services: watch::Sender::new(None),
            over: watch::Sender::new(None),
            // Peers are needed to the very end of a stop: they have a token of their own.
            stopping: stopping.clone(),
        })))
    }

    /// Connects to every broker that is known or will be, but for removed ones, and answers them; ends when the token is cancelled.
    pub(crate) async fn run(self, seeds: Vec<String>) {
        let mut tasks = JoinSet::new();
        let mut accepting = tasks.spawn(serve::accept(self.clone())).id();
        if !seeds.is_empty() {
            tasks.spawn(link::find(self.clone(), seeds));
        }
        let mut known = self.0.book.known();
        let mut looks = tokio::time::interval(serve::STANDING_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = known.borrow_and_update().clone();
            for broker in now.into_iter().filter(|broker| !self.is_removed(*broker)) {
                self.link(broker, Lane::Brokers);
            }
            self.leave_removed();
            let links: Vec<Arc<Link>> = self.0.links.lock().values().cloned().collect();
            for link in links.into_iter().filter(|link| link.begin()) {
                tasks.spawn(link.keep(self.clone()));
            }
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return },
                () = self.0.new_links.notified() => {}
                // Brokers are removed and let in again, and others tell of their new lives.
                _ = looks.tick() => {}
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a task of the connections to other brokers panicked; links are kept, and connections taken, anew");
                        tokio::time::sleep(PANIC_PAUSE).await;
                        // Links that nobody keeps any more are begun with all others.
                        if error.id() == accepting {
                            accepting = tasks.spawn(serve::accept(self.clone())).id();
                        }
                    }
                }
                () = self.0.stopping.cancelled() => break,
            }
        }
        tasks.shutdown().await;
        self.0.endpoint.close(0, "the broker stops").await;
        // The replicas that it answers with hold the way to the others themselves: each would keep the other.
        self.0.services.send_replace(None);
    }

    /// From here on other brokers are answered.
    pub(crate) fn serve(&self, services: PeerServices) {
        self.0.services.send_replace(Some(Arc::new(services)));
    }

    /// Why this broker is over for good, once a broker of the formed cluster has said so.
    pub(crate) fn over(&self) -> watch::Receiver<Option<String>> {
        self.0.over.subscribe()
    }

    /// Before first groups are formed: asks those who may know this broker already. What they say against it is in [`Self::over`].
    pub(crate) async fn look_around(&self, seeds: &[String]) {
        link::look_around(self, seeds).await;
    }

    pub(crate) fn myself(&self) -> &Myself {
        &self.0.myself
    }

    /// The largest unit that the logs of all others take, as far as they were heard.
    pub(crate) fn unit_bytes_elsewhere(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.unit_bytes_elsewhere)
    }

    /// Whether the cluster has removed a broker, in the life that was heard of last. The book keeps it: who was met is not met anew.
    fn is_removed(&self, broker: BrokerId) -> bool {
        let services = self.0.services.borrow().clone();
        let entry = self.0.book.entry(broker);
        services.zip(entry).is_some_and(|(services, entry)| services.is_removed(broker, entry.incarnation))
    }

    /// Whom the cluster has removed is dialled no more.
    fn leave_removed(&self) {
        let linked: BTreeSet<BrokerId> = self.0.links.lock().keys().map(|(broker, _)| *broker).collect();
        for removed in linked.into_iter().filter(|broker| self.is_removed(*broker)) {
            self.0.links.lock().retain(|(broker, _), link| {
                let stays = *broker != removed;
                if !stays {
                    link.leave();
                }
                stays
            });
            // What its log takes binds nobody any more.
            self.change_unit_bytes(|said| _ = said.remove(&removed));
        }
    }

    /// Changes what others have said that their logs take; answers what that let this broker write before, and what it does now.
    fn change_unit_bytes(&self, change: impl FnOnce(&mut HashMap<BrokerId, usize>)) -> (usize, usize) {
        let mut said = self.0.unit_bytes.lock();
        change(&mut said);
        let least = said.values().copied().min().unwrap_or(usize::MAX);
        (self.0.unit_bytes_elsewhere.swap(least, Ordering::Relaxed), least)
    }

    fn note_unit_bytes(&self, broker: BrokerId, bytes: usize) {
        let (before, least) = self.change_unit_bytes(|said| _ = said.insert(broker, bytes));
        let own = self.0.myself.unit_bytes_max;
        if before != least && least < own {
            tracing::warn!(
                %broker, bytes = least, own,
                "the log of another broker takes smaller batches than this one's: larger ones are refused; set wal.segment_bytes alike"
            );
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.0.endpoint.local_addr()
    }

    /// Shows another certificate of this broker from the next connection on.
    pub(crate) fn renew(&self, tls: &PeerTls) -> Result<(), BindError> {
        self.0.endpoint.renew(tls)
    }

    /// Takes what is known from the beginning.
    pub(crate) async fn hear(&self, known: Vec<KnownBroker>) {
        let peers = self.clone();
        let heard = tokio::task::spawn_blocking(move || peers.0.book.hear(&known)).await;
        debug_assert!(heard.is_ok(), "hearing does not panic");
    }

    /// Whom this broker has heard of, to tell others.
    pub(crate) fn said(&self) -> Vec<KnownBroker> {
        self.0.book.said()
    }

    /// What was heard of another broker.
    pub(crate) fn entry(&self, broker: BrokerId) -> Option<BookEntry> {
        self.0.book.entry(broker)
    }

    /// Brokers that this one is connected to just now.
    pub(crate) fn connected(&self) -> Vec<BrokerId> {
        let links = self.0.links.lock();
        let of_brokers = links.iter().filter(|((_, lane), _)| *lane == Lane::Brokers);
        of_brokers.filter(|(_, link)| link.connection().is_some()).map(|((broker, _), _)| *broker).collect()
    }

    /// What stands between this broker and these others, as far as it has tried to reach them.
    pub(crate) fn troubles(&self, others: &[BrokerId]) -> Vec<String> {
        let mut troubles: Vec<String> = self.0.seeds_trouble.lock().iter().cloned().collect();
        let links = self.0.links.lock();
        troubles.extend(others.iter().filter_map(|broker| {
            let trouble = links.get(&(*broker, Lane::Brokers))?.last_trouble()?;
            Some(format!("broker {broker}: {trouble}"))
        }));
        troubles
    }

    /// Whether this broker knows of a cluster that was formed.
    fn is_formed(&self) -> bool {
        self.0.services.borrow().as_ref().is_some_and(|services| services.is_formed())
    }

    /// The link of a lane, which is kept from now on.
    fn link(&self, broker: BrokerId, lane: Lane) -> Arc<Link> {
        let mut links = self.0.links.lock();
        let link = links.entry((broker, lane)).or_insert_with(|| {
            self.0.new_links.notify_one();
            Arc::new(Link::new(broker, lane))
        });
        Arc::clone(link)
    }

    /// A stream to another broker for a client of this one.
    pub(crate) async fn open_for_client(
        &self,
        broker: BrokerId,
        lane: Lane,
        open: ForwardOpen,
    ) -> Result<Stream, NotConnected> {
        let of_brokers = self.0.links.lock().get(&(broker, Lane::Brokers)).cloned();
        // Where brokers do not reach it, clients are not kept waiting either.
        match of_brokers {
            Some(link) if link.connection().is_some() => {}
            Some(link) => return Err(NotConnected { broker, reason: link.trouble() }),
            None => return Err(self.not_linked(broker)),
        }
        let link = self.link(broker, lane);
        let connected = tokio::time::timeout(OPEN_PATIENCE, link.connected()).await;
        let connection = connected.map_err(|_| NotConnected { broker, reason: link.trouble() })?;
        let opened = open_on(&connection, Purpose::Forward(open)).await;
        opened.map_err(|reason| NotConnected { broker, reason })
    }

    /// A new stream to another broker, with what it is for queued on it: it goes out with the first frame that follows.
    pub(crate) async fn open(
        &self,
        broker: BrokerId,
        purpose: impl Into<Purpose>,
    ) -> Result<Stream, NotConnected> {
        let link = self.0.links.lock().get(&(broker, Lane::Brokers)).cloned();
        let Some(link) = link else { return Err(self.not_linked(broker)) };
        let Some(connection) = link.connection() else {
            return Err(NotConnected { broker, reason: link.trouble() });
        };
        open_on(&connection, purpose).await.map_err(|reason| NotConnected { broker, reason })
    }

    /// Why there is not even a link.
    fn not_linked(&self, broker: BrokerId) -> NotConnected {
        let reason = if self.is_removed(broker) { link::REMOVED } else { "nothing was heard of it yet" };
        NotConnected { broker, reason: reason.to_owned() }
    }

    /// Asks another broker one thing that has one answer.
    pub(crate) async fn ask<M: Message + Default>(
        &self,
        broker: BrokerId,
        purpose: impl Into<Purpose>,
    ) -> Result<M, NotConnected> {
        let mut stream = self.open(broker, purpose).await?;
        first_answer(&mut stream).await.map_err(|reason| NotConnected { broker, reason })
    }
}

/// Opens a stream and queues what it is for.
async fn open_on(connection: &Connection, purpose: impl Into<Purpose>) -> Result<Stream, String> {
    // A connection has room for so many streams and no more: who finds none is told, and does not wait for others to go.
    let opened = tokio::time::timeout(OPEN_PATIENCE, connection.open_stream()).await;
    let opened = opened.map_err(|_| "too many streams are open to it".to_owned())?;
    let mut stream = opened.map_err(|error| error.to_string())?;
    let open = PeerOpen::from(purpose.into());
    stream.writer.feed(&open, &[]).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Ends this side of a stream on which everything was asked, and reads the answer, or the first part of it.
pub(crate) async fn first_answer<M: Message + Default>(stream: &mut Stream) -> Result<M, String> {
    stream.writer.finish().await.map_err(|error| error.to_string())?;
    let answer = stream.reader.next().await.map_err(|error| error.to_string())?;
    let answer = answer.ok_or_else(|| "it ended the stream without an answer".to_owned())?;
    answer.message().map_err(|_| "its answer does not read".to_owned())
}

/// There is no way to a broker just now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("broker {broker} can't be reached: {reason}")]
pub(crate) struct NotConnected {
    pub(crate) broker: BrokerId,
    pub(crate) reason: String,
}

impl From<NotConnected> for Error {
    fn from(error: NotConnected) -> Self {
        Self::new(ErrorCode::NotLeader, error.to_string())
    }
}
