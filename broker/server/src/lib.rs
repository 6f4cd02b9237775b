//! The broker: router, handlers, configuration, metrics, wiring.
//!
//! [`Broker::start`] opens a data directory, brings every shard up, and serves clients over QUIC until
//! [`Broker::shutdown`]. Where the rooms meet is [`wiring`](self) alone: the rest of this crate turns requests into
//! units and results into answers.

#![allow(
    clippy::multiple_crate_versions,
    reason = "two versions of small crates come with our dependencies' dependencies"
)]

mod admission;
mod adopter;
mod attempts;
mod barriers;
mod broker;
mod certificates;
mod cluster;
mod components;
mod config;
mod connection;
mod context;
mod data_dir;
mod disk;
mod errors;
mod generations;
mod handlers;
mod limits;
mod machine;
mod maintenance;
mod metrics_endpoint;
mod naming;
mod opening;
mod outbox;
mod peers;
mod plans;
mod preparing;
mod producer_ids;
mod refusals;
mod repair;
mod room;
mod scrubber;
mod shards;
mod start_error;
mod task_port;
mod telemetry;
#[cfg(test)]
mod testing;
mod unpacking;
mod view;
mod whole_file;
mod wiring;

pub use broker::Broker;
pub use cluster::{
    ClusterDirectoryError, ClusterPlan, FORMING_BROKERS_MAX, JoinError, RecoverError, RecoverReport,
    RecoverRequest, ShardFinding, recover,
};
pub use config::{
    BrokerConfig, ConfigError, DEFAULT_PORT, DurabilitySetting, LimitSettings, MetricsSettings, PeerSettings,
    PluginSettings, SHARDS_DEFAULT, SHARDS_OF_SEVERAL_DEFAULT, StorageSettings, WalSettings,
};
pub use data_dir::DataDirError;
pub use machine::{Clock, Machine, system_clock};
pub use start_error::StartError;
pub use tidemill_raft::HeldReplica;
pub use wiring::hosting_config;
