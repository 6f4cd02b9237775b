//! Where a partition begins, or goes on after a seek.

use std::sync::Arc;

use tidemill_protocol::messages::Error;
use tidemill_protocol::{NodeId, Offset, TopicPartition};
use tidemill_raft::ShardHandle;
use tokio::sync::Semaphore;

use super::partition::{Needed, ReplicaEnd, Source, catch_up, resolve};
use crate::barriers::Barriers;
use crate::context::Context;
use crate::errors;

/// Times of one subscription that are looked up at once: each keeps a thread busy, and the disk.
const TIMES_MAX: usize = 4;

/// What lookups of one subscription share.
pub(super) struct Finder {
    context: Arc<Context>,
    barriers: Barriers,
    /// Places for times that are looked up.
    times: Arc<Semaphore>,
}

/// What came of a lookup.
pub(super) enum Found {
    /// Where a partition that was added is read.
    Source(Source),
    /// Where one that is there goes on.
    Offset(Offset),
}

impl Finder {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context, barriers: Barriers::default(), times: Arc::new(Semaphore::new(TIMES_MAX)) }
    }

    /// Where a partition is read, and from which offset on.
    ///
    /// # Errors
    /// It is not here, the replica can't show what is needed, or the position is none of the partition's.
    pub(super) async fn open(&self, partition: TopicPartition, needed: &Needed) -> Result<Found, Error> {
        let (_, replica) = self.context.find_fresh(partition).await?;
        catch_up(&self.context, &self.barriers, &replica, partition, needed).await?;
        let shard = replica.handle();
        let high_watermark = shard
            .watch(partition)
            .ok_or_else(|| errors::not_ready(self.context.view.now().partition_name(partition)))?;
        let next = self.resolve(partition, &shard, needed).await?;
        let end = ReplicaEnd::of(&replica);
        Ok(Found::Source(Source { partition, end, shard, high_watermark, next }))
    }

    /// The offset from which a partition that is read in this shard of this replica goes on.
    ///
    /// # Errors
    /// As for [`Self::open`]; and the topic was deleted, or the replica is this broker's no more, so that nothing would come behind what it has.
    pub(super) async fn seek(
        &self,
        partition: TopicPartition,
        (node, shard): (NodeId, &ShardHandle),
        needed: &Needed,
    ) -> Result<Found, Error> {
        let view = self.context.view.now();
        let Some(here) = view.shard_of(partition) else {
            return Err(errors::deleted(&view.partition_name(partition)));
        };
        let Some(here) = self.context.shards.replica(here).filter(|here| here.node() == node) else {
            return Err(errors::left_behind(&view.partition_name(partition)));
        };
        catch_up(&self.context, &self.barriers, &here, partition, needed).await?;
        self.resolve(partition, shard, needed).await.map(Found::Offset)
    }

    async fn resolve(
        &self,
        partition: TopicPartition,
        shard: &ShardHandle,
        needed: &Needed,
    ) -> Result<Offset, Error> {
        let place = match needed.is_a_time() {
            true => Arc::clone(&self.times).acquire_owned().await.ok(),
            false => None,
        };
        let name = self.context.view.now().partition_name(partition);
        let shard = shard.now().ok_or_else(|| errors::left_behind(&name))?;
        resolve(&shard, partition, &name, needed.position.as_ref(), place).await
    }
}
