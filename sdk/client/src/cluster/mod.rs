//! What the client knows of the cluster: its connections, one per broker, and its metadata.

mod connection;
mod dials;
mod health;
mod interest;
mod metadata;
mod pool;
mod request;
mod scout;
mod trouble;

pub(crate) use connection::BrokerConnection;
pub(crate) use interest::TopicInUse;
pub(crate) use metadata::{Lead, Metadata};
pub use metadata::{PartitionMetadata, PartitionerMetadata, TopicMetadata};
pub(crate) use pool::Cluster;
pub(crate) use request::{Repeat, is_of_this_broker};
pub use trouble::Trouble;
