//! This broker as one of several: how it becomes one, and what it does for the others.

mod directory;
mod elsewhere;
pub(crate) mod forming;
mod forward;
pub(crate) mod handover;
mod join;
mod lives;
pub(crate) mod losses;
pub(crate) mod majority;
pub(crate) mod membership;
mod origin;
mod recover;
pub(crate) mod recovered;
pub(crate) mod registration;
pub(crate) mod replicas;
pub(crate) mod steering;
mod tending;

pub use directory::{ClusterDirectoryError, ClusterPlan, FORMING_BROKERS_MAX};
pub(crate) use elsewhere::{Asking, Place, another_answer, ask_a_holder, body_of};
pub(crate) use forward::{leader_elsewhere, relay, serve_forwarded};
pub use join::JoinError;
pub(crate) use join::{Joined, forget, join, take_in};
pub(crate) use lives::Lives;
pub(crate) use origin::Origin;
pub use recover::{RecoverError, RecoverReport, RecoverRequest, ShardFinding, recover};
