//! Tests of whole brokers: real processes, real clients, kill -9.
//!
//! - [`TestBroker`]: a broker process in a directory of its own, which can be killed and started again; [`TestCluster`]: several;
//! - [`plugins`]: the shipped plugins' components; [`reading`], [`waiting`], [`metrics`]: what tests do again and again;
//! - [`fixtures`], [`plays`]: records to send; [`skips`], [`machine`]: tests that can't run here; [`loop_disk`]: disks that break;
//! - [`chaos`]: brokers struck by faults at random under load, and the checks of what is left.
//!
//! `cargo xtask demo` runs the binary `demo`, `cargo xtask chaos` the binary `chaos`.

pub mod chaos;
#[path = "../../fixtures/events.rs"]
pub mod fixtures;
pub mod loop_disk;
pub mod machine;
pub mod metrics;
pub mod plays;
pub mod plugins;
pub mod reading;
#[path = "../../fixtures/skips.rs"]
pub mod skips;
pub mod waiting;
mod world;

pub use world::{BrokerOptions, TestBroker, TestCluster, WorldError, tidemill_binary};

/// What a test or a step of one comes to; any error will do.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
