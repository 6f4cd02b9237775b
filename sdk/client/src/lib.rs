//! Tidemill's client: producers, consumers and administration over QUIC.
//!
//! ```no_run
//! use tidemill_client::{Client, ClientConfig, Compression, NewTopic, Record, Start};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // A development broker keeps its authority in ca.pem; `ClientConfig::insecure` needs none.
//!     let config = ClientConfig::new(["localhost:4433"]).trust_file("data/tls/ca.pem").client_id("example");
//!     let client = Client::connect(config).await?;
//!     client.topics().create(NewTopic::new("plays", 3).if_not_exists()).await?;
//!
//!     // Records are gathered into batches, sent in order, and stored once, whatever breaks in between.
//!     let producer = client.producer("plays").compression(Compression::Zstd).build().await?;
//!     for number in 0..1_000 {
//!         let (user, play) = (format!("user-{}", number % 7), format!(r#"{{"song": {number}}}"#));
//!         producer.send_and_forget(Record::new(&play).key(&user)).await?;
//!     }
//!     producer.flush().await?;
//!     // One record whose place matters.
//!     let delivery = producer.send(Record::new("the last one")).await?;
//!     println!("stored at {:?}", delivery.await?.offset());
//!
//!     // Reads from where "royalties" left off, to the end of what is there now.
//!     let mut consumer = client.consumer().topic("plays").from(Start::committed("royalties")).stop_at_end().build().await?;
//!     while let Some(record) = consumer.next().await {
//!         let record = record?;
//!         println!("{}-{} {:?}", record.topic, record.offset, record.value);
//!     }
//!     consumer.commit("royalties").await?;
//!     client.close().await;
//!     Ok(())
//! }
//! ```
//!
//! Where to look: [`Client`] for connecting, [`ProducerBuilder`] and [`Producer`] for sending, [`ConsumerBuilder`] and
//! [`Consumer`] for reading, [`Topics`], [`Groups`], [`Offsets`], [`Plugins`], [`Deployments`] and [`State`] for
//! administration. Every error says what happened and, where the broker said so, its stable code.
//!
//! # Delivery
//!
//! A [`Producer`] is idempotent unless told otherwise: after a broken connection it sends the same bytes in the same order
//! again, and the broker drops what it has. A delivery that fails with [`DeliveryError::TimedOut`] after it was sent
//! is the one case where the outcome stays unknown. A [`Consumer`] reads each record once as long as it lives; across
//! restarts it reads from what was committed, so commit after processing for at least once.

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
