use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::messages::{self, MetadataRequest, reply, request};
use tidemill_protocol::{BrokerId, ErrorCode, PartitionId, TopicId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{BrokerConnection, InterestList};
use super::metadata::{Metadata, TopicMetadata};
use super::request::Repeat;
use super::trouble::{Trouble, Troubles};
use crate::backoff::Backoff;
use crate::transport::Dialer;
use crate::{ClientConfig, ConnectError, RequestError, ServerError};

/// The client's one object: everything else holds it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(super) config: ClientConfig,
    dialer: Dialer,
    open: Mutex<HashMap<BrokerId, Arc<BrokerConnection>>>,
    /// One attempt at a time per broker, and `None` for any of the configured addresses.
    attempts: Mutex<HashMap<Option<BrokerId>, Arc<tokio::sync::Mutex<Attempts>>>>,
    metadata: watch::Sender<Metadata>,
    interest: watch::Sender<InterestList>,
    troubles: Troubles,
    pub(crate) closed: CancellationToken,
}

/// When the next attempt may begin.
#[derive(Debug)]
struct Attempts {
    backoff: Backoff,
    not_before: Option<Instant>,
    /// Where among the addresses to begin.
    next_address: usize,
}

impl Cluster {
    pub(crate) fn new(config: ClientConfig) -> Result<Arc<Self>, ConnectError> {
        if config.addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        Ok(Arc::new(Self {
            dialer: Dialer::new(&config)?,
            config,
            open: Mutex::default(),
            attempts: Mutex::default(),
            metadata: watch::Sender::default(),
            interest: watch::Sender::default(),
            troubles: Troubles::default(),
            closed: CancellationToken::new(),
        }))
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.config.backoff_min, self.config.backoff_max)
    }

    /// How long a stream that was opened may go unanswered.
    pub(crate) const fn answer_timeout(&self) -> std::time::Duration {
        self.config.request_timeout
    }

    /// A connection to `broker`, or to any where `None`. Where the broker's own addresses do not answer (behind NAT,
    /// say), any other broker does: it forwards.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        broker: Option<BrokerId>,
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        let addresses = broker.and_then(|id| self.metadata.borrow().brokers.get(&id).cloned());
        if let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) {
            match self.connect(broker, &addresses).await {
                Err(error) if error != ConnectError::Closed => {
                    tracing::debug!(?broker, %error, "asking any broker instead");
                }
                done => return done,
            }
        }
        self.connect(None, &self.config.addresses).await
    }

    async fn connect(
        self: &Arc<Self>,
        broker: Option<BrokerId>,
        addresses: &[String],
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        if let Some(connection) = self.usable(broker) {
            return Ok(connection);
        }
        let attempts = Arc::clone(self.attempts.lock().entry(broker).or_insert_with(|| {
            let attempts = Attempts { backoff: self.backoff(), not_before: None, next_address: 0 };
            Arc::new(tokio::sync::Mutex::new(attempts))
        }));
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(ConnectError::Closed),
            done = self.attempt(broker, addresses, &attempts) => done,
        }
    }

    /// One round over the addresses, after the pause that earlier failures ask for.
    async fn attempt(
        self: &Arc<Self>,
        broker: Option<BrokerId>,
        addresses: &[String],
        attempts: &tokio::sync::Mutex<Attempts>,
    ) -> Result<Arc<BrokerConnection>, ConnectError> {
        let mut attempts = attempts.lock().await;
        if let Some(connection) = self.usable(broker) {
            return Ok(connection);
        }
        if let Some(instant) = attempts.not_before {
            tokio::time::sleep_until(instant).await;
        }
        let mut last = ConnectError::NoAddress;
        for step in 0..addresses.len() {
            let Some(address) = addresses.get((attempts.next_address + step) % addresses.len()) else {
                continue;
            };
            match self.dial(address).await {
                Ok(connection) => {
                    attempts.backoff.reset();
                    self.is_well();
                    // A broker that takes connections and drops them at once is not asked without pause either.
                    attempts.not_before = Some(Instant::now() + self.config.backoff_min);
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
        }
        attempts.next_address = attempts.next_address.wrapping_add(1) % addresses.len().max(1);
        attempts.not_before = Some(Instant::now() + attempts.backoff.pause());
        self.is_troubled(&last);
        Err(last)
    }

    async fn dial(self: &Arc<Self>, address: &str) -> Result<Arc<BrokerConnection>, ConnectError> {
        let quinn = self.dialer.dial(address).await?;
        let interest = self.interest.subscribe();
        let connection = BrokerConnection::greet(quinn, address, &self.config, self, interest).await?;
        tracing::debug!(address, broker = %connection.broker, software = connection.software, "connected");
        self.open.lock().insert(connection.broker, Arc::clone(&connection));
        Ok(connection)
    }

    fn usable(&self, broker: Option<BrokerId>) -> Option<Arc<BrokerConnection>> {
        let mut open = self.open.lock();
        open.retain(|_, connection| connection.is_usable());
        match broker {
            Some(broker) => open.get(&broker).cloned(),
            None => open.values().next().cloned(),
        }
    }

    /// Takes metadata that a broker sent.
    pub(super) fn learn(&self, news: messages::Metadata) {
        self.metadata.send_modify(|metadata| metadata.merge(news));
    }

    /// The topic as last heard of, without asking.
    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        self.metadata.borrow().topics.get(name).cloned()
    }

    /// The topic, asked for where it is not known yet; from then on its changes are pushed.
    pub(crate) async fn topic(self: &Arc<Self>, name: &str) -> Result<Arc<TopicMetadata>, RequestError> {
        match self.known_topic(name) {
            Some(topic) => Ok(topic),
            None => self.refresh_topic(name).await,
        }
    }

    /// The topic as the cluster knows it now.
    pub(crate) async fn refresh_topic(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Arc<TopicMetadata>, RequestError> {
        self.interest.send_if_modified(|interest| {
            let is_new = !interest.contains(name);
            if is_new {
                let mut names: BTreeSet<_> = BTreeSet::clone(interest);
                names.insert(name.into());
                *interest = Arc::new(names);
            }
            is_new
        });
        let body = request::Body::Metadata(MetadataRequest { topics: vec![name.to_owned()], all: false });
        let reply::Body::Metadata(metadata) = self.call(body, Repeat::Freely).await? else {
            return Err(RequestError::BadAnswer("expected metadata".to_owned()));
        };
        let said = metadata.topics.iter().find(|info| info.name == name);
        crate::error::server_error(said.and_then(|info| info.error.clone()))?;
        self.learn(metadata);
        self.known_topic(name).ok_or_else(|| {
            RequestError::Server(ServerError {
                code: ErrorCode::UnknownTopic.code(),
                message: format!("there is no topic '{name}'; `tidemill topic list` shows the topics"),
                retriable: false,
                rejections: Vec::new(),
            })
        })
    }

    /// Who leads a partition, as far as is known. A topic that was deleted and made anew is another.
    pub(crate) fn leader(&self, name: &str, id: TopicId, partition: PartitionId) -> Option<BrokerId> {
        let topic = self.known_topic(name).filter(|topic| topic.id == id)?;
        let index = usize::try_from(partition.get()).ok()?;
        topic.partitions.get(index).map(|partition| partition.leader)
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
        self.open.lock().clear();
    }
}
