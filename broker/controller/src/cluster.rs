//! The cluster's identity and its brokers.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, ClusterId};

/// When a record counts as written. Chosen at init, for the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// fsync on a majority before the acknowledgement.
    Fsync,
    /// In the page cache of a majority before the acknowledgement, flushed soon after.
    Replicated,
}

/// What `cluster init` fixed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Random, given by the broker that initialises.
    pub cluster: ClusterId,
    /// Number of data shards: 1 to `data_shards`. Shard 0 is the controller and holds no partitions.
    pub data_shards: u16,
    /// When a record counts as written.
    pub durability: Durability,
}

/// A broker as it registered last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRegistration {
    /// Its id, the operator's.
    pub broker: BrokerId,
    /// Rises with each start.
    pub incarnation: u64,
    /// `host:port`, as clients reach it.
    pub addresses: Vec<String>,
    /// Software version, for people.
    pub software: String,
}
