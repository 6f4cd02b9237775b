//! Tidemill's client: producers, consumers and administration over QUIC.
//!
//! ```no_run
#![doc = include_str!("../examples/client.rs")]
//! ```
//!
//! It is `cargo run -p tidemill-client --example client`, beside a `tidemill dev` in the same directory.
//!
//! Where to look: [`Client`] for connecting, [`ProducerBuilder`] and [`Producer`] for sending, [`ConsumerBuilder`] and
//! [`Consumer`] for reading, [`Topics`], [`Groups`], [`Offsets`], [`Plugins`], [`Deployments`] and [`State`] for
//! administration. Every error says what happened and, where the broker said so, its stable code.
//!
//! # Delivery
//!
//! A [`Producer`] is idempotent unless told otherwise: after a broken connection it sends the same bytes in the same order
//! again, and the broker drops what it has. Where a delivery fails with [`DeliveryError::TimedOut`] after it was sent, or with
//! [`DeliveryError::Unknown`], the outcome stays unknown; [`DeliveryError::PartlyStored`] says what of a routed batch is stored. A [`Consumer`] reads each record once as long as it lives; across
//! restarts it reads from what was committed, so commit after processing for at least once.
//!
//! # Several brokers
//!
//! Who leads a partition changes; nothing has to be done about it. A producer sends to the leader and moves when another one is
//! named, within [`ProducerBuilder::delivery_timeout`]; a consumer goes on at another replica when its broker does not answer, and
//! follows the leader after a few seconds otherwise. With [`ConsumerBuilder::rack`] it reads from a replica nearby. Requests go to
//! any broker that answers.

mod admin;
mod backoff;
mod client;
mod cluster;
mod config;
mod consumer;
mod error;
mod producer;
mod timer;
mod transport;

pub use admin::{
    Commit, Deployments, Groups, NewDeployment, NewTopic, OffsetAnswer, Offsets, Plugins, Position, State,
    StateRange, Topics,
};
pub use client::Client;
pub use cluster::{PartitionMetadata, PartitionerMetadata, TopicMetadata, Trouble};
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
