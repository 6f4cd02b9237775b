//! Tidemill's vocabulary and wire format: ids, record batches, frames, messages, error codes. Sans-IO.

mod ids;

pub use ids::{
    BrokerId, ClusterId, DeploymentId, LeaderEpoch, LogIndex, Offset, PartitionId, ProducerEpoch, ProducerId,
    Sequence, ShardId, Term, Timestamp, TopicId, TopicPartition,
};
