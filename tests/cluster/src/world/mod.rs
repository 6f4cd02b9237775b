//! Broker processes.

mod binary;
mod broker;
mod cluster;
mod error;
mod options;

pub use binary::tidemill_binary;
pub use broker::TestBroker;
pub use cluster::TestCluster;
pub use error::WorldError;
pub use options::BrokerOptions;
