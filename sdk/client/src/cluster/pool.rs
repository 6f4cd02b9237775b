use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_protocol::{BrokerId, PartitionId, TopicId, messages};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::connection::BrokerConnection;
use super::dials::Dials;
use super::interest::Interest;
use super::metadata::{Lead, Learned, Metadata, TopicMetadata};
use super::trouble::{Trouble, Troubles};
use crate::backoff::{Backoff, random_number};
use crate::transport::Dialer;
use crate::{ClientConfig, ConnectError};

/// How long a broker may take to be connected to before another is asked in its place. The attempt goes on meanwhile.
const DIRECT_PATIENCE: Duration = Duration::from_millis(500);
/// The least time for which a broker that said that it is going away is left alone.
const GOING_AWAY_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The client's one object: everything else holds it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(super) config: ClientConfig,
    dialer: Dialer,
    pub(super) dials: Dials,
    open: Mutex<Open>,
    /// A whole at a time, so that whoever looks holds no lock.
    known: watch::Sender<Arc<Metadata>>,
    pub(super) interest: Interest,
    /// Somebody has reason to think that the metadata are out of date.
    pub(super) wanted: Arc<Notify>,
    pub(super) is_scouting: AtomicBool,
    /// Any number, by which this client chooses among brokers that are as good as each other.
    pub(super) choice: u32,
    troubles: Troubles,
    pub(crate) closed: CancellationToken,
}

/// The connections. Each leaves by itself when it ends ([`Cluster::lost`]).
#[derive(Debug, Default)]
struct Open {
    by_broker: HashMap<BrokerId, Arc<BrokerConnection>>,
    /// Whom requests go to as long as it answers: what one request did the next one finds done.
    preferred: Option<BrokerId>,
}

impl Cluster {
    pub(crate) fn new(mut config: ClientConfig) -> Result<Arc<Self>, ConnectError> {
        if config.addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        // Clients that are configured alike do not all ask the same broker.
        let first = random_number() as usize % config.addresses.len();
        config.addresses.rotate_left(first);
        Ok(Arc::new(Self {
            dialer: Dialer::new(&config)?,
            config,
            dials: Dials::default(),
            open: Mutex::default(),
            known: watch::Sender::default(),
            interest: Interest::default(),
            wanted: Arc::default(),
            is_scouting: AtomicBool::new(false),
            choice: random_number(),
            troubles: Troubles::default(),
            closed: CancellationToken::new(),
        }))
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.config.backoff_min, self.config.backoff_max)
    }

    /// How long a stream that was opened may go unanswered.
    pub(crate) const fn answer_timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// The rack that partitions are read in by default.
    pub(crate) fn rack(&self) -> Option<&str> {
        self.config.rack.as_deref()
    }

    /// A connection to `broker`, or to any where `None`. Where the broker does not answer at once (it is dead, or behind NAT),
    /// any other broker does: it forwards.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        broker: Option<BrokerId>,
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        if let Some(broker) = broker
            && let Some(direct) = self.direct(broker).await
        {
            return Ok(direct);
        }
        self.any(&[]).await
    }

    /// A connection to any broker that answers; to one of `failed`, in whose order they failed, only where there is no other, and to
    /// the first of them then.
    pub(crate) async fn any(
        self: &Arc<Self>,
        failed: &[BrokerId],
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        if self.closed.is_cancelled() {
            return Err(ConnectError::Closed);
        }
        if let Some(connection) = self.connected_well(failed) {
            return Ok(connection);
        }
        let Some(poor) = self.connected(failed) else {
            let mut addresses = self.addresses();
            addresses.sort_by_key(|a| self.broker_at(a).is_some_and(|broker| failed.contains(&broker)));
            return self.race(addresses).await;
        };
        let better = self.addresses_better_than(poor.broker, failed);
        match tokio::time::timeout(DIRECT_PATIENCE, self.race(better)).await {
            Ok(Ok(better)) => Ok(better),
            Ok(Err(ConnectError::Closed)) => Err(ConnectError::Closed),
            _ => Ok(poor),
        }
    }

    /// A connection to this very broker.
    pub(crate) async fn connection_to(
        self: &Arc<Self>,
        broker: BrokerId,
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        if let Some(connection) = self.open.lock().by_broker.get(&broker).filter(|c| c.is_usable()) {
            return Ok(Arc::clone(connection));
        }
        let dialled = tokio::time::timeout(DIRECT_PATIENCE, self.race(self.addresses_of(broker))).await;
        if let Ok(Ok(connection)) = &dialled
            && connection.broker == broker
        {
            return Ok(Arc::clone(connection));
        }
        // Perhaps it is not where it says, as behind NAT, and is where the configuration has it.
        self.unwell(broker);
        let other = self.any(&[]).await?;
        if other.broker == broker {
            return Ok(other);
        }
        Err(match dialled {
            Ok(Err(ConnectError::NoAddress)) => ConnectError::Handshake {
                address: format!("broker {broker}"),
                reason: "nobody that answers says where it is".to_owned(),
            },
            Ok(Err(error)) => error,
            _ => ConnectError::TimedOut {
                address: self.addresses_of(broker).join(","),
                after: DIRECT_PATIENCE,
            },
        })
    }

    /// The connection to a broker that answers, as far as is known.
    async fn direct(self: &Arc<Self>, broker: BrokerId) -> Option<Arc<BrokerConnection>> {
        if !self.known().is_well(broker) {
            return None;
        }
        let present = self.open.lock().by_broker.get(&broker).cloned();
        match present {
            Some(present) if present.is_usable() => return Some(present),
            // It broke just now, and who looks after it has not come to it yet.
            Some(present) => {
                self.lost(&present);
                return None;
            }
            None => {}
        }
        let addresses = self.addresses_of(broker);
        if addresses.is_empty() || self.closed.is_cancelled() {
            return None;
        }
        let dialled = tokio::select! {
            biased;
            dialled = tokio::time::timeout(DIRECT_PATIENCE, self.race(addresses)) => dialled,
            () = self.until_unwell(broker) => return None,
        };
        match dialled {
            Ok(Ok(connection)) => return (connection.broker == broker).then_some(connection),
            Ok(Err(error)) => tracing::debug!(%broker, %error, "asking any broker instead"),
            Err(_) => tracing::debug!(%broker, "does not answer at once: asking any broker instead"),
        }
        self.unwell(broker);
        None
    }

    /// Connects and says hello.
    pub(super) async fn dial(self: &Arc<Self>, address: &str) -> Result<Arc<BrokerConnection>, ConnectError> {
        let quinn = self.dialer.dial(address).await?;
        let interest = self.interest.subscribe();
        let connection = BrokerConnection::greet(quinn, address, &self.config, self, interest).await?;
        tracing::debug!(address, broker = %connection.broker, software = connection.software, "connected");
        Ok(self.admit(connection))
    }

    /// One connection per broker is kept.
    fn admit(&self, connection: Arc<BrokerConnection>) -> Arc<BrokerConnection> {
        let broker = connection.broker;
        let is_well = self.known().is_well(broker);
        let mut open = self.open.lock();
        let present = open.by_broker.get(&broker).filter(|present| present.is_usable() && is_well).cloned();
        let (kept, superfluous) = match present {
            Some(present) => (present, Some(connection)),
            None => (Arc::clone(&connection), open.by_broker.insert(broker, connection)),
        };
        drop(open);
        if let Some(superfluous) = superfluous {
            superfluous.quinn.close(0u32.into(), b"another connection takes its place");
        }
        self.is_well();
        self.well(broker);
        kept
    }

    fn connected_well(&self, failed: &[BrokerId]) -> Option<Arc<BrokerConnection>> {
        let known = self.known();
        let mut open = self.open.lock();
        let is_good = |connection: &&Arc<BrokerConnection>| {
            connection.is_usable() && known.is_well(connection.broker) && !failed.contains(&connection.broker)
        };
        if let Some(preferred) = open.preferred.and_then(|broker| open.by_broker.get(&broker)).filter(is_good)
        {
            return Some(Arc::clone(preferred));
        }
        let found = open.by_broker.values().find(is_good).cloned();
        if let Some(found) = &found {
            open.preferred = Some(found.broker);
        }
        found
    }

    /// What there is where nobody is as good as could be: a broker that answers, as far as is known, and the one whose failure is
    /// the oldest.
    fn connected(&self, failed: &[BrokerId]) -> Option<Arc<BrokerConnection>> {
        let known = self.known();
        let open = self.open.lock();
        let usable = open.by_broker.values().filter(|connection| connection.is_usable());
        let best = usable.min_by_key(|connection| {
            let failed_at = failed.iter().position(|broker| *broker == connection.broker);
            (!known.is_well(connection.broker), failed_at)
        });
        best.cloned()
    }

    /// All that can be asked for news.
    pub(super) fn all_connected_well(&self) -> Vec<Arc<BrokerConnection>> {
        let known = self.known();
        let open = self.open.lock();
        let is_good =
            |connection: &&Arc<BrokerConnection>| connection.is_usable() && known.is_well(connection.broker);
        open.by_broker.values().filter(is_good).cloned().collect()
    }

    /// Where there may be somebody better than this connected broker. Whoever is connected already is no better at another of its
    /// addresses, and where this one does answer nobody waits for those that do not.
    fn addresses_better_than(&self, poor: BrokerId, failed: &[BrokerId]) -> Vec<String> {
        let known = self.known();
        let may_be_better = |broker: BrokerId| {
            !failed.contains(&broker)
                && (known.is_well(broker) || !known.is_well(poor))
                && !self.open.lock().by_broker.contains_key(&broker)
        };
        let mut addresses = self.addresses();
        addresses.retain(|address| self.broker_at(address).is_none_or(may_be_better));
        addresses
    }

    /// Who answered at an address last, else who should be there.
    fn broker_at(&self, address: &str) -> Option<BrokerId> {
        self.dials.broker_at(address).or_else(|| {
            let known = self.known();
            let mut brokers = known.brokers.iter();
            let found = brokers.find(|(_, broker)| broker.addresses.iter().any(|a| a == address));
            found.map(|(broker, _)| *broker)
        })
    }

    pub(super) fn addresses_of(&self, broker: BrokerId) -> Vec<String> {
        self.known().brokers.get(&broker).map(|broker| broker.addresses.clone()).unwrap_or_default()
    }

    /// Every address of the cluster: as configured, then as the brokers say; those that failed last come last.
    fn addresses(&self) -> Vec<String> {
        let known = self.known();
        let advertised = known.brokers.values().flat_map(|broker| &broker.addresses);
        let mut addresses: Vec<String> = Vec::new();
        for address in self.config.addresses.iter().chain(advertised) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses.sort_by_key(|address| self.dials.is_failing(address));
        addresses
    }

    /// A connection has ended.
    pub(super) fn lost(&self, connection: &Arc<BrokerConnection>) {
        if self.take_out(connection) && !self.closed.is_cancelled() {
            self.unwell(connection.broker);
        }
    }

    /// The broker asks for no new streams, which go elsewhere from now on.
    pub(super) fn is_going_away(&self, connection: &Arc<BrokerConnection>, grace: Duration) {
        if self.take_out(connection) {
            let pause = grace.clamp(GOING_AWAY_PAUSE_MIN, self.config.backoff_max.max(GOING_AWAY_PAUSE_MIN));
            self.dials.put_off(&self.addresses_of(connection.broker), pause);
            self.unwell(connection.broker);
        }
    }

    fn take_out(&self, connection: &Arc<BrokerConnection>) -> bool {
        let mut open = self.open.lock();
        let is_present =
            open.by_broker.get(&connection.broker).is_some_and(|present| Arc::ptr_eq(present, connection));
        if is_present {
            open.by_broker.remove(&connection.broker);
        }
        is_present
    }

    /// Everything known, as it is now.
    pub(crate) fn known(&self) -> Arc<Metadata> {
        Arc::clone(&self.known.borrow())
    }

    /// Tells when anything of what is known changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Metadata>> {
        self.known.subscribe()
    }

    /// A broker does not answer just now. Answers whether that is news.
    pub(super) fn unwell(&self, broker: BrokerId) -> bool {
        self.known.send_if_modified(|known| {
            !known.unwell.contains(&broker) && Arc::make_mut(known).unwell.insert(broker)
        })
    }

    /// A broker answers.
    pub(super) fn well(&self, broker: BrokerId) {
        self.known.send_if_modified(|known| {
            known.unwell.contains(&broker) && Arc::make_mut(known).unwell.remove(&broker)
        });
    }

    /// An attempt to connect failed: whoever should be there does not answer.
    pub(super) fn did_not_answer(&self, address: &str) {
        let is_connected =
            |broker| self.open.lock().by_broker.get(&broker).is_some_and(|present| present.is_usable());
        if let Some(broker) = self.broker_at(address).filter(|broker| !is_connected(*broker)) {
            self.unwell(broker);
        }
    }

    /// Whoever waits for this broker would like to know that it lives.
    pub(crate) fn doubt(&self, broker: BrokerId) {
        if let Some(connection) = self.open.lock().by_broker.get(&broker) {
            connection.doubt();
        }
    }

    /// Waits until a broker does not answer, and another does.
    pub(crate) async fn until_unwell(&self, broker: BrokerId) {
        let is_so = |known: &Arc<Metadata>| !known.is_well(broker) && known.has_well_beside(broker);
        // The sender is here: the wait ends by what is waited for alone.
        let _ = self.watch().wait_for(is_so).await;
    }

    /// Takes metadata that a broker sent, of the topics that are listed: of others nothing newer would come.
    pub(super) fn learn(&self, mut news: messages::Metadata) {
        let mut learned = Learned::default();
        self.known.send_if_modified(|known| {
            // Looked up within: what leaves the list after this is unlearned after this.
            let listed = self.interest.list();
            news.topics.retain(|topic| listed.contains(topic.name.as_str()));
            learned = Arc::make_mut(known).merge(news);
            learned.changed
        });
        for leader in learned.leaders {
            self.dials.forgive(&self.addresses_of(leader));
        }
        self.unlearn(&self.interest.forget(&learned.gone));
    }

    /// These topics left the list: what is known of them will soon be out of date.
    pub(super) fn unlearn(&self, topics: &[Arc<str>]) {
        if topics.is_empty() {
            return;
        }
        self.known.send_if_modified(|known| {
            // Of one that is listed again what is known is brought up to date.
            let listed = self.interest.list();
            let is_out = |topic: &&Arc<str>| !listed.contains(*topic) && known.topics.contains_key(*topic);
            let out: Vec<&Arc<str>> = topics.iter().filter(is_out).collect();
            for topic in &out {
                Arc::make_mut(known).topics.remove(*topic);
            }
            !out.is_empty()
        });
    }

    /// The topic as last heard of, without asking.
    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        self.known.borrow().topics.get(name).cloned()
    }

    /// Whether this very topic is there, as far as is known. A broker that is behind may say otherwise.
    pub(crate) fn knows(&self, name: &str, id: TopicId) -> bool {
        self.known_topic(name).is_some_and(|topic| topic.id == id)
    }

    /// Who leads a partition, as far as is known. A topic that was deleted and made anew is another.
    pub(crate) fn lead(&self, name: &str, id: TopicId, partition: PartitionId) -> Option<Lead> {
        self.known.borrow().lead(name, id, partition)
    }

    /// Waits until something else than `seen` is known of who leads a partition.
    pub(crate) async fn other_lead(
        &self,
        name: &str,
        id: TopicId,
        partition: PartitionId,
        seen: Option<Lead>,
    ) {
        let is_other = |known: &Arc<Metadata>| known.lead(name, id, partition) != seen;
        // The sender is here: the wait ends by what is waited for alone.
        let _ = self.watch().wait_for(is_other).await;
    }

    /// An attempt at something failed, and is repeated.
    pub(crate) fn is_troubled(&self, reason: &dyn std::fmt::Display) {
        self.troubles.began(reason);
    }

    /// Something went well.
    pub(crate) fn is_well(&self) {
        self.troubles.ended();
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.troubles.present()
    }

    pub(crate) async fn close(&self) {
        self.closed.cancel();
        self.dialer.close().await;
        self.open.lock().by_broker.clear();
    }
}
