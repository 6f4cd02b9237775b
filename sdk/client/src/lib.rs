//! Tidemill's client: producers, consumers and administration over QUIC.

mod admin;
mod backoff;
mod client;
mod cluster;
mod config;
mod consumer;
mod error;
mod producer;
mod transport;

pub use admin::{
    Commit, Deployments, Groups, NewDeployment, NewTopic, OffsetAnswer, Offsets, Plugins, Position, State,
    StateRange, Topics,
};
pub use client::Client;
pub use cluster::{PartitionMetadata, PartitionerMetadata, TopicMetadata};
pub use config::{ClientConfig, Identity, Trust};
pub use consumer::{
    ConsumeError, Consumer, ConsumerBuilder, ConsumerError, ConsumerRecord, ConsumerStats, FetchedBatch,
    OutOfRange, PartitionPosition, Start,
};
pub use error::{ConnectError, Rejection, RequestError, ServerError};
pub use producer::{
    Acks, Delivery, DeliveryError, Placement, Producer, ProducerBuilder, ProducerError, ProducerStats,
    Receipt, Record, SendError,
};
pub use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions, Compression, Header, RecordBatch};
pub use tidemill_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionId, Timestamp, TopicId, TopicPartition, messages,
};
