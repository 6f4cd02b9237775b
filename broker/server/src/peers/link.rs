//! A connection to one broker: made, greeted, kept, made again, until the broker is removed from the cluster.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tidemill_net::{Connection, DialError};
use tidemill_protocol::messages::Error;
use tidemill_protocol::{BrokerId, ErrorCode};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::greeting::{Hello, refused};
use super::messages::{DiskReport, PeerWelcome, Purpose};
use super::{Lane, Peers, disks, first_answer, open_on};

/// Pauses between attempts: a broker that comes back is to be found soon.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A connection that lasted so long was a good one: the next attempt follows at once.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// For the answer to a hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// For the answers of all who may know a broker that forms its first groups.
const LOOK_AROUND_PATIENCE: Duration = Duration::from_secs(2);
/// Others that are started with this one, and name it as their seed, have come to it by then.
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);
/// Trouble that lasts is told at once, again after this long, and then at intervals that double up to the longest.
const TELL_INTERVAL_MIN: Duration = Duration::from_secs(4);
const TELL_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Why there is no connection to a broker, and will be none.
pub(super) const REMOVED: &str = "it was removed from the cluster";

/// The way to one broker in one lane.
pub(super) struct Link {
    broker: BrokerId,
    lane: Lane,
    is_kept: AtomicBool,
    /// Cancelled when nobody is to be connected to the broker any more.
    left: CancellationToken,
    connection: watch::Sender<Option<Connection>>,
    state: Mutex<State>,
}

/// Whoever keeps a link, until that ends, however it does: then it is another's to keep.
struct Keeper<'a>(&'a AtomicBool);

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    trouble: Option<String>,
    telling: Telling,
}

/// How often trouble that lasts is told, whatever it says of itself: a broker that is away is refused, silent and unreachable by turns.
#[derive(Default)]
struct Telling {
    /// When it was told last, and how long the next time must wait.
    told: Option<(Instant, Duration)>,
}

impl Telling {
    fn is_due(&mut self, now: Instant) -> bool {
        let next = match self.told {
            None => TELL_INTERVAL_MIN,
            Some((at, pause)) if now.duration_since(at) >= pause => (pause * 2).min(TELL_INTERVAL_MAX),
            Some(_) => return false,
        };
        self.told = Some((now, next));
        true
    }

    fn begin_anew(&mut self) {
        self.told = None;
    }
}

impl Link {
    pub(super) fn new(broker: BrokerId, lane: Lane) -> Self {
        let (is_kept, left) = (AtomicBool::new(false), CancellationToken::new());
        Self { broker, lane, is_kept, left, connection: watch::Sender::new(None), state: Mutex::default() }
    }

    /// It is not kept any longer: the broker was removed.
    pub(super) fn leave(&self) {
        self.left.cancel();
    }

    /// Whether nobody keeps it yet; who asks does.
    pub(super) fn begin(&self) -> bool {
        !self.is_kept.swap(true, Ordering::Relaxed)
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        self.connection.borrow().clone()
    }

    /// Waits until there is a connection.
    pub(super) async fn connected(&self) -> Connection {
        let mut connection = self.connection.subscribe();
        loop {
            if let Some(connection) = connection.borrow_and_update().clone() {
                return connection;
            }
            // The sender is this link's own.
            let _ = connection.changed().await;
        }
    }

    /// Why there is no connection, for people.
    pub(super) fn trouble(&self) -> String {
        self.last_trouble().unwrap_or_else(|| "it is being connected to".to_owned())
    }

    /// Why the last attempt to connect failed, or the last connection ended.
    pub(super) fn last_trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Connects, and connects again, until the peers stop or the broker is removed.
    pub(super) async fn keep(self: Arc<Self>, peers: Peers) {
        let _keeper = Keeper(&self.is_kept);
        tokio::select! {
            () = self.left.cancelled() => self.is_left(&peers),
            never = self.connect_again(&peers) => match never {},
        }
    }

    async fn connect_again(&self, peers: &Peers) -> Infallible {
        let mut pause = PAUSE_MIN;
        loop {
            match self.connect(peers).await {
                Ok(connection) => {
                    let since = Instant::now();
                    self.is_up(&connection);
                    let lost = self.until_lost(peers, &connection).await;
                    if since.elapsed() >= GOOD_AFTER {
                        pause = PAUSE_MIN;
                        self.state.lock().telling.begin_anew();
                    }
                    self.is_down(&lost);
                }
                Err(reason) => self.is_down(&reason),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn until_lost(&self, peers: &Peers, connection: &Connection) -> String {
        if self.lane != Lane::Brokers {
            return connection.closed().await.to_string();
        }
        let lost = tokio::select! {
            lost = connection.closed() => lost,
            never = disks::follow(peers, self.broker, connection) => match never {},
        };
        peers.disk_heard(self.broker, DiskReport::default());
        lost.to_string()
    }

    async fn connect(&self, peers: &Peers) -> Result<Connection, String> {
        let addresses = peers.entry(self.broker).map(|entry| entry.peer_addresses).unwrap_or_default();
        let mut last = "no address of it is known".to_owned();
        for address in &addresses {
            match greet(peers, address, Some(self.broker)).await {
                Ok((connection, _)) => return Ok(connection),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn is_up(&self, connection: &Connection) {
        self.state.lock().trouble = None;
        self.connection.send_replace(Some(connection.clone()));
        if self.lane != Lane::Brokers {
            tracing::debug!(broker = %self.broker, lane = ?self.lane, "connected to a broker for clients");
            return;
        }
        metrics::gauge!("tidemill_peer_connected", "broker" => self.broker.to_string()).set(1.0);
        tracing::info!(broker = %self.broker, address = %connection.peer().address, "connected to a broker");
    }

    fn is_down(&self, reason: &str) {
        self.connection.send_replace(None);
        let mut state = self.state.lock();
        state.trouble = Some(reason.to_owned());
        if self.lane != Lane::Brokers {
            // What is amiss with the broker, the brokers' own lane tells.
            return;
        }
        metrics::gauge!("tidemill_peer_connected", "broker" => self.broker.to_string()).set(0.0);
        let is_due = state.telling.is_due(Instant::now());
        drop(state);
        if is_due {
            tracing::warn!(broker = %self.broker, reason, "no connection to a broker; it is tried again");
        }
    }

    /// Ends what there is of a connection.
    fn is_left(&self, peers: &Peers) {
        self.state.lock().trouble = Some(REMOVED.to_owned());
        if let Some(connection) = self.connection.send_replace(None) {
            connection.close(ErrorCode::PeerRefused.code(), REMOVED);
        }
        if self.lane == Lane::Brokers {
            peers.disk_heard(self.broker, DiskReport::default());
            metrics::gauge!("tidemill_peer_connected", "broker" => self.broker.to_string()).set(0.0);
            tracing::info!(broker = %self.broker, "a broker is not connected to any more: {REMOVED}");
        }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("at {address}: {reason}")]
    Broken { address: String, reason: String },
    #[error("the broker at {address} refuses this one: {error}")]
    RefusedThere { address: String, error: Error },
    #[error("the broker at {address} is refused: {error}")]
    RefusedHere { address: String, error: Error },
    #[error("{address} is this broker's own address")]
    Myself { address: String },
}

/// Dials an address, and greets who answers there: `expected`, where somebody is.
pub(super) async fn greet(
    peers: &Peers,
    address: &str,
    expected: Option<BrokerId>,
) -> Result<(Connection, Hello), GreetError> {
    let connection = peers.0.endpoint.dial(address).await?;
    let address = address.to_owned();
    let refuse = |error: Error| {
        connection.close(error.code, &error.message);
        metrics::counter!("tidemill_peer_refused_total", "reason" => "hello").increment(1);
        GreetError::RefusedHere { address: address.clone(), error }
    };
    let Some(identity) = connection.peer().peer else {
        return Err(refuse(refused("it shows no broker's certificate")));
    };
    // This broker itself, or one that should not be: their hellos tell.
    let has_own_number = identity.broker == peers.0.myself.broker;
    if let Some(expected) = expected.filter(|expected| *expected != identity.broker && !has_own_number) {
        let reason = format!("broker {} answers where broker {expected} should be", identity.broker);
        return Err(refuse(refused(reason)));
    }
    let welcome = match tokio::time::timeout(HELLO_DEADLINE, say_hello(peers, &connection)).await {
        Ok(Ok(welcome)) => welcome,
        // A refusal closes the connection with the same words; they may come first.
        Ok(Err(reason)) => return Err(GreetError::Broken { address, reason }),
        Err(_) => {
            connection.close(ErrorCode::Deadline.code(), "no answer to the hello");
            return Err(GreetError::Broken { address, reason: "no answer to the hello".to_owned() });
        }
    };
    if let Some(error) = welcome.error {
        connection.close(0, "as you say");
        metrics::counter!("tidemill_peer_failed_dials_total", "reason" => "hello").increment(1);
        if welcome.is_over && identity.cluster == peers.0.myself.cluster {
            peers.0.over.send_if_modified(|over| {
                let is_news = over.is_none();
                over.get_or_insert_with(|| format!("broker {} says: {}", identity.broker, error.message));
                is_news
            });
        }
        return Err(GreetError::RefusedThere { address, error });
    }
    match peers.meet(welcome.hello, &identity).await {
        Ok(_) if has_own_number => {
            connection.close(0, "this is me");
            Err(GreetError::Myself { address })
        }
        Ok(hello) => Ok((connection, hello)),
        Err(refusal) => Err(refuse(refusal.error)),
    }
}

/// Asks the seeds, and then those whom they know, who this broker is to them; only for a moment, and whoever does not answer is not
/// waited for.
pub(super) async fn look_around(peers: &Peers, seeds: &[String]) {
    let known = |peers: &Peers| peers.said().into_iter().flat_map(|known| known.peer_addresses);
    let asked = async {
        let ask = |addresses: Vec<String>| {
            join_all(addresses.into_iter().map(|address| async move {
                if let Ok((connection, _)) = greet(peers, &address, None).await {
                    connection.close(0, "asked");
                }
            }))
        };
        ask(seeds.to_vec()).await;
        ask(known(peers).filter(|address| !seeds.contains(address)).collect()).await;
    };
    if tokio::time::timeout(LOOK_AROUND_PATIENCE, asked).await.is_err() {
        tracing::debug!("not everybody who may know this broker answers");
    }
}

async fn say_hello(peers: &Peers, connection: &Connection) -> Result<PeerWelcome, String> {
    let mut stream = open_on(connection, Purpose::Hello(peers.hello())).await?;
    first_answer(&mut stream).await
}

/// Asks the seeds until one of them answers: from there on the address book knows the others.
pub(super) async fn find(peers: Peers, seeds: Vec<String>) {
    let mut pause = PAUSE_MIN;
    let mut others = seeds.clone();
    let mut telling = Telling::default();
    loop {
        let mut troubles = Vec::new();
        for seed in others.clone() {
            match greet(&peers, &seed, None).await {
                Ok((connection, hello)) => {
                    // The broker's own link has taken note of it by now.
                    connection.close(0, "found");
                    *peers.0.seeds_trouble.lock() = None;
                    tracing::info!(
                        seed,
                        broker = hello.broker.broker_id,
                        software = hello.software,
                        "found the cluster"
                    );
                    return;
                }
                Err(GreetError::Myself { address }) => others.retain(|seed| *seed != address),
                Err(error) => troubles.push(error.to_string()),
            }
        }
        if others.is_empty() {
            return await_others(&peers, &seeds).await;
        }
        *peers.0.seeds_trouble.lock() = Some(troubles.join("; ")).filter(|troubles| !troubles.is_empty());
        if pause >= PAUSE_MAX {
            if telling.is_due(Instant::now()) {
                tracing::warn!(troubles = troubles.join("; "), "no seed answers; they are tried again");
            }
            tokio::time::sleep(PAUSE_MAX * 4).await;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// No seed is left to ask. Where this broker is everybody's seed, the others come to it.
async fn await_others(peers: &Peers, seeds: &[String]) {
    let trouble = format!("every seed ({}) is this broker's own address", seeds.join(", "));
    *peers.0.seeds_trouble.lock() = Some(trouble.clone());
    tokio::time::sleep(OTHERS_PATIENCE).await;
    if !peers.is_formed() && peers.said().is_empty() {
        tracing::warn!(
            "{trouble}; name another broker's peers.listen with --seed, unless the others name this one"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_kept_by_one_and_after_him_by_another() {
        let link = Link::new(BrokerId::new(2), Lane::Brokers);
        assert!(link.begin() && !link.begin());
        drop(Keeper(&link.is_kept));
        assert!(link.begin() && !link.begin());
    }

    #[test]
    fn trouble_that_lasts_is_told_more_and_more_seldom() {
        let (mut telling, start) = (Telling::default(), Instant::now());
        let told = |telling: &mut Telling, seconds: std::ops::Range<u64>| -> Vec<u64> {
            seconds.filter(|second| telling.is_due(start + Duration::from_secs(*second))).collect()
        };
        assert_eq!(told(&mut telling, 0..250), [0, 4, 12, 28, 60, 120, 180, 240]);
        telling.begin_anew();
        assert_eq!(told(&mut telling, 250..260), [250, 254], "what was well for a while is news again");
    }
}
