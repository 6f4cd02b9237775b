//! The cluster's metadata as a pure state machine: brokers, topics, the plugin registry, deployments, producer ids.
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

mod apply_deployments;
mod apply_plugins;
mod apply_topics;
mod changes;
mod cluster;
mod command;
mod deployment;
mod difference;
mod error;
mod names;
mod plugin;
mod producer_ids;
mod state;
mod topic;

pub use changes::{Change, RestoreError};
pub use cluster::{BrokerRegistration, ClusterIdentity, Durability};
pub use command::{ControllerCommand, ControllerReply};
pub use deployment::{
    DeploymentKind, DeploymentRecord, DeploymentSpec, DeploymentStatus, FailurePolicy, StartAt,
};
pub use error::ControllerError;
pub use names::{Name, NameError};
pub use plugin::{ConfigKey, PluginKind, PluginRecord, PluginUpload};
pub use producer_ids::ProducerIdBlock;
pub use state::{Bounds, Controller};
pub use topic::{PartitionerBinding, PastPartitioner, TopicConfig, TopicOverrides, TopicRecord};
