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
mod broker;
mod clock;
mod config;
mod connection;
mod context;
mod data_dir;
mod errors;
mod generations;
mod handlers;
mod limits;
mod maintenance;
mod outbox;
mod plans;
mod producer_ids;
mod shards;
mod task_port;
mod telemetry;
mod view;
mod wiring;

pub use broker::{Broker, StartError};
pub use clock::{Clock, system_clock};
pub use config::{
    BrokerConfig, ConfigError, DEFAULT_PORT, DurabilitySetting, LimitSettings, PluginSettings,
    StorageSettings, WalSettings,
};
pub use data_dir::DataDirError;
pub use wiring::hosting_config;
