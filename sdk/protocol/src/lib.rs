//! Tidemill's vocabulary and wire format: ids, record batches, frames, messages, error codes.
//!
//! Sans-IO: bytes in, types out, and back. This crate knows neither a runtime, nor a disk, nor a socket.
//!
//! - the ids at the crate's root: newtypes that keep the axes apart;
//! - [`messages`]: what requests and answers say, generated from `proto/tidemill.proto`;
//! - [`frame`]: how messages and record bytes stand on a stream;
//! - [`record_batch`]: Kafka's record batch v2, encoded, verified, filtered and split;
//! - [`partitioner`]: where a key goes by default;
//! - [`ErrorCode`]: what can go wrong, as stable numbers.

#![warn(clippy::unwrap_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic"))]

mod error_code;
pub mod frame;
mod ids;
pub mod messages;
mod node_id;
pub mod partitioner;
pub mod record_batch;
#[doc(hidden)]
pub mod testing;

pub use error_code::ErrorCode;
pub use ids::{
    BrokerId, ClusterId, DeploymentId, DirectoryId, LeaderEpoch, LogIndex, Offset, PartitionId,
    ProducerEpoch, ProducerId, Sequence, ShardId, Term, Timestamp, TopicId, TopicPartition,
};
pub use node_id::NodeId;
