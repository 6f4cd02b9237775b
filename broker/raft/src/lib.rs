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
//! ```text
//!   peers of the group --- streams ---> serve: entries, votes, proposals ---> openraft, proposer
//!                      <-- streams --- peer_network, forward: the same, to them
//! ```
//!
//! Architecture invariant: no other room names openraft, and nothing of it shows in this one's public types.

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod anywhere;
mod append_stream;
mod beat;
mod catch_up;
mod codec;
mod compare;
mod config;
mod contact;
mod driver;
mod error;
mod flight;
mod follow;
mod forward;
mod gate;
mod log_reader;
mod log_store;
mod members;
mod network;
mod peer_network;
mod peers;
mod pending;
mod proposer;
mod pulse;
mod recent;
mod recover;
mod remote;
mod replica;
mod responder;
mod rpc;
mod runtime;
mod serve;
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
mod unbroken;
mod window;

pub use anywhere::PermitAnywhere;
pub use beat::Beat;
pub use config::{Begin, Clock, RaftTiming, ReplicaConfig, ReplicaLimits};
pub use driver::{CheckpointConfig, CheckpointDriver};
pub use error::{ChangeError, CheckpointFailed, ProposeError, ReadError, ReplicaStartError};
pub use follow::{HighWatermark, ShardChanges, ShardHandle};
pub use gate::{Gate, Held};
pub use members::{FollowerProgress, GroupMembers};
pub use peers::{MessageReceiver, MessageSender, PeerDialer, PeerError, PeerMessage, PeerStream};
pub use pending::Pending;
pub use proposer::Permit;
pub use recover::{HeldReplica, entries_behind, examine, go_on_alone};
pub use remote::RemoteShard;
pub use replica::Replica;
pub use runtime::seed_thread;
pub use snapshot::SnapshotLimiter;
pub use start::recovered_shard;
pub use status::{ReplicaRole, ReplicaState, ReplicaStatus};
