//! How the broker is doing.

use tidemill_protocol::messages::{ClusterStatus, MetricsReply, ShardStatus};
use tidemill_raft::ReplicaState;

use crate::context::Context;

pub(crate) fn cluster(context: &Context) -> ClusterStatus {
    let space = context.disk.space();
    let shards = context
        .shards
        .iter()
        .map(|(shard, replica)| {
            let status = replica.status();
            let (state, reason) = match status.state {
                ReplicaState::Leader => ("leader", String::new()),
                ReplicaState::Follower => ("follower", String::new()),
                ReplicaState::Learner => ("learner", String::new()),
                ReplicaState::Candidate => ("candidate", String::new()),
                ReplicaState::Stopped { reason } => ("stopped", reason.to_string()),
            };
            ShardStatus {
                shard: u32::from(shard.get()),
                state: state.to_owned(),
                term: status.term.get(),
                applied: status.last_applied.map_or(0, |id| id.index.get()),
                checkpointed: status.checkpointed.map_or(0, |id| id.index.get()),
                reason,
                partitions: u32::try_from(replica.shard().partitions().len()).unwrap_or(u32::MAX),
            }
        })
        .collect();
    ClusterStatus {
        cluster_id: bytes::Bytes::copy_from_slice(&context.meta.cluster.bytes()),
        broker_id: context.meta.broker_id,
        durability: context.meta.durability.to_string(),
        shards,
        disk_free_bytes: space.map_or(0, |space| space.free),
        disk_total_bytes: space.map_or(0, |space| space.total),
        produce_refused: context.disk.is_nearly_full(),
        disk_full: context.disk.is_full(),
        wal_bytes: context.wal.bytes(),
    }
}

pub(crate) fn metrics(context: &Context) -> MetricsReply {
    MetricsReply { prometheus: context.metrics.render() }
}
