//! The cluster's metadata as a pure state machine: brokers, shards and their
//! replicas, topics, the plugin registry, deployments, producer ids.
//!
//! [`Controller`] is shard 0's state. It changes by [`ControllerCommand`]s alone, the same on every replica: no
//! clock, no randomness, no file. Identities that must be random (a topic's) arrive in the command. What changed is
//! handed out by [`Controller::take_changes`] as key-value objects for the shard's checkpoint and read back by
//! [`Controller::restore`].
//!
//! The controller only *decides*; other shards learn of it when their leaders propose `adopt` units with the
//! versions found here.

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod apply_brokers;
mod apply_deployments;
mod apply_join;
mod apply_loss;
mod apply_plugins;
mod apply_shards;
mod apply_topics;
mod brokers;
mod changes;
mod cluster;
mod command;
mod counted;
mod deployment;
mod difference;
mod error;
mod membership_error;
mod names;
mod placement;
mod planner;
mod plugin;
mod producer_ids;
mod risks;
mod settings;
mod shards;
mod state;
mod topic;

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod membership_tests;
#[cfg(test)]
mod stored_tests;
#[cfg(test)]
mod testing;

pub use brokers::{BrokerRecord, BrokerStart, BrokerState, JoinRequest, JoinTokenRecord, TokenUse};
pub use changes::{Change, RestoreError};
pub use cluster::{BrokerRegistration, ClusterIdentity, Durability};
pub use command::{ControllerCommand, ControllerReply};
pub use deployment::{
    DeploymentKind, DeploymentRecord, DeploymentSpec, DeploymentStatus, FailurePolicy, StartAt,
};
pub use error::ControllerError;
pub use membership_error::MembershipError;
pub use names::{Name, NameError};
pub use placement::initial_placement;
pub use planner::{Liveness, plan};
pub use plugin::{ConfigKey, PluginKind, PluginRecord, PluginUpload};
pub use producer_ids::ProducerIdBlock;
pub use risks::{Risk, Severity, risks, risks_from};
pub use settings::{ClusterSettings, SettingsChange};
pub use shards::{ReportedMembers, ShardRecord};
pub use state::{Bounds, Controller};
pub use topic::{PartitionerBinding, PastPartitioner, TopicConfig, TopicOverrides, TopicRecord};
