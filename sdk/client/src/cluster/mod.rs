//! What the client knows of the cluster: its connections, one per broker, and its metadata.

mod connection;
mod metadata;
mod pool;
mod request;
mod trouble;

pub(crate) use connection::BrokerConnection;
pub use metadata::{PartitionMetadata, PartitionerMetadata, TopicMetadata};
pub(crate) use pool::Cluster;
pub(crate) use request::Repeat;
pub use trouble::Trouble;
