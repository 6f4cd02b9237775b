//! The brokers of a cluster, and the tokens by which more of them come in.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, DirectoryId, NodeId, Timestamp};

use crate::cluster::BrokerRegistration;
use crate::state::Controller;

/// The incarnation of a broker's first data directory.
pub(crate) const FIRST_INCARNATION: u32 = 1;

/// What a broker's replicas are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerState {
    /// It takes replicas and leads.
    Active,
    /// Its replicas move elsewhere; it serves until they have.
    Draining,
    /// It is no part of the cluster any more, and this life of it never will be.
    Removed,
}

/// A broker as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRecord {
    /// Its id, the operator's.
    pub broker: BrokerId,
    /// The life of its data directory: one that was lost and added again has the next.
    pub incarnation: u32,
    /// That directory; `None` until a release that knows of directories has registered.
    pub directory: Option<DirectoryId>,
    /// Rises with each start; 0 until it registered.
    pub starts: u64,
    /// `host:port`, as clients reach it.
    pub addresses: Vec<String>,
    /// `host:port`, as its peers reach it.
    pub peer_addresses: Vec<String>,
    /// What fails together with it; empty where nobody said.
    pub rack: String,
    /// Software version, for people.
    pub software: String,
    /// The highest feature level that its release knows.
    pub features: u32,
    /// Whether the controller's leader heard of it lately.
    pub alive: bool,
    /// The log's time when `alive` changed last.
    pub alive_changed_at: Timestamp,
    /// Rises with each change of `alive` or of the registration.
    pub epoch: u64,
    /// What its replicas are to do.
    pub state: BrokerState,
    /// The least incarnation that was never given to a directory or a replica of it.
    pub next_incarnation: u32,
}

impl BrokerRecord {
    /// A broker that is to come.
    pub(crate) fn expected(broker: BrokerId, now: Timestamp) -> Self {
        Self {
            broker,
            incarnation: FIRST_INCARNATION,
            directory: None,
            starts: 0,
            addresses: Vec::new(),
            peer_addresses: Vec::new(),
            rack: String::new(),
            software: String::new(),
            features: 0,
            alive: false,
            alive_changed_at: now,
            epoch: 0,
            state: BrokerState::Active,
            next_incarnation: FIRST_INCARNATION + 1,
        }
    }

    /// Whether it is part of the cluster.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.state != BrokerState::Removed
    }

    /// Whether it may be given replicas and the lead of shards.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.state == BrokerState::Active && self.alive
    }

    /// What fails together with it: its rack, or itself alone where nobody said.
    pub(crate) fn fault_domain(&self) -> Result<&str, BrokerId> {
        if self.rack.is_empty() { Err(self.broker) } else { Ok(&self.rack) }
    }
}

/// The first form of the record, which is also how a broker without anything new is stored for ever: what a release
/// before the second wrote and replays has the same bytes, so the same state hash, under this one.
impl From<BrokerRegistration> for BrokerRecord {
    fn from(registration: BrokerRegistration) -> Self {
        Self {
            starts: registration.incarnation,
            addresses: registration.addresses,
            software: registration.software,
            alive: true,
            epoch: registration.incarnation,
            ..Self::expected(registration.broker, Timestamp::default())
        }
    }
}

impl BrokerRecord {
    /// The record in its first form, where that says all of it.
    pub(crate) fn first_form(&self) -> Option<BrokerRegistration> {
        let registration = BrokerRegistration {
            broker: self.broker,
            incarnation: self.starts,
            addresses: self.addresses.clone(),
            software: self.software.clone(),
        };
        (Self::from(registration.clone()) == *self).then_some(registration)
    }
}

/// What a broker says of itself at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStart {
    /// Its id, the operator's.
    pub broker: BrokerId,
    /// The life of its data directory, as it was given at formation (1) or by joining.
    pub incarnation: u32,
    /// That directory.
    pub directory: DirectoryId,
    /// Rises with each start.
    pub starts: u64,
    /// `host:port`, as clients reach it.
    pub addresses: Vec<String>,
    /// `host:port`, as its peers reach it.
    pub peer_addresses: Vec<String>,
    /// What fails together with it; empty where nobody said.
    pub rack: String,
    /// Software version, for people.
    pub software: String,
    /// The highest feature level that its release knows.
    pub features: u32,
}

/// Who wants to come in, and by which token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Of the token's secret.
    pub hash: [u8; 32],
    /// The id that the operator gave it.
    pub broker: BrokerId,
    /// Its empty data directory.
    pub directory: DirectoryId,
    /// `host:port`, as clients reach it.
    pub addresses: Vec<String>,
    /// `host:port`, as its peers reach it.
    pub peer_addresses: Vec<String>,
    /// What fails together with it; empty where nobody said.
    pub rack: String,
}

/// Who came in by a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The broker.
    pub broker: BrokerId,
    /// Its data directory, which gets the same answer again.
    pub directory: DirectoryId,
    /// The incarnation that it was given.
    pub incarnation: u32,
}

/// A token that lets one broker in, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// Of its secret, which is stored nowhere.
    pub hash: [u8; 32],
    /// Whom it is for; `None`: whoever is new, or not alive.
    pub broker: Option<BrokerId>,
    /// The log's time from which on it is worth nothing.
    pub expires_at: Timestamp,
    /// Who came in by it.
    pub used: Option<TokenUse>,
}

impl Controller {
    /// The brokers, by id, removed ones included.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerRecord> {
        self.brokers.values()
    }

    /// A broker by id, a removed one included.
    #[must_use]
    pub fn broker(&self, id: BrokerId) -> Option<&BrokerRecord> {
        self.brokers.get(&id)
    }

    /// Join tokens that are not forgotten yet, used and expired ones included.
    pub fn join_tokens(&self) -> impl Iterator<Item = &JoinTokenRecord> {
        self.join_tokens.values()
    }

    /// Brokers that may be given replicas.
    pub(crate) fn eligible_brokers(&self) -> impl Iterator<Item = &BrokerRecord> {
        self.brokers.values().filter(|broker| broker.is_eligible())
    }

    /// Whether a node may be counted on in a shard: its broker is alive, and it is the newest life there.
    pub(crate) fn is_alive(&self, used: u32, node: NodeId) -> bool {
        self.brokers.get(&node.broker()).is_some_and(|broker| {
            broker.alive
                && broker.is_member()
                && node.incarnation() == used
                && node.incarnation() >= broker.incarnation
        })
    }
}
