//! Replication by openraft, behind the broker's own types.
//!
//! A [`Replica`] is one shard on one broker: it turns units into entries, has them written and agreed on, applies them
//! to the [`Shard`](tidemill_shard::Shard), and answers each unit. Even a broker that runs alone does it this way, as a
//! group of one: there is no second path.
//!
//! ```text
//!   units -> proposer -> openraft -> log store -> write-ahead log (one for all shards)
//!               ^            |
//!               |            '--> state machine -> shard: results, checkpoints, snapshots
//!               '-- next entry -------'
//! ```
//!
//! Architecture invariant: no other room names openraft, and nothing of it shows in this one's public types.

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod codec;
mod config;
mod driver;
mod error;
mod flight;
mod follow;
mod log_reader;
mod log_store;
mod network;
mod node;
mod pending;
mod proposer;
mod recent;
mod replica;
mod responder;
mod shared_log;
mod snapshot;
mod start;
mod state_machine;
mod status;
mod supervisor;
mod telemetry;
#[cfg(test)]
mod tests;
mod types;

pub use config::{Clock, RaftTiming, ReplicaConfig, ReplicaLimits};
pub use driver::{CheckpointConfig, CheckpointDriver};
pub use error::{CheckpointFailed, ProposeError, ReadError, ReplicaStartError};
pub use follow::{HighWatermark, ShardChanges, ShardHandle};
pub use node::NodeId;
pub use pending::Pending;
pub use proposer::Permit;
pub use replica::Replica;
pub use snapshot::ShardHome;
pub use start::recovered_shard;
pub use status::{ReplicaRole, ReplicaState, ReplicaStatus};
