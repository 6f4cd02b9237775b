//! The keyed state of hosted consumers: reading it from outside.

use futures::{StreamExt, TryStreamExt, stream};
use tidemill_controller::DeploymentKind;
use tidemill_protocol::messages::{
    Error, StateEntry, StateGetReply, StateGetRequest, StateScanReply, StateScanRequest, request,
};
use tidemill_protocol::{DeploymentId, ErrorCode, PartitionId, ShardId, Timestamp};
use tidemill_raft::Replica;

use crate::cluster::{Asking, Place, body_of};
use crate::context::Context;
use crate::errors;

const SCAN_LIMIT_MAX: u32 = 10_000;
/// Bytes of keys and values in one answer.
const SCAN_BYTES_MAX: usize = 4 << 20;
/// Tasks that are asked for a key at once.
const TASKS_AT_ONCE_MAX: usize = 8;

/// A key's value in each partition's task that has it.
pub(crate) async fn get(asking: &Asking, request: StateGetRequest) -> Result<StateGetReply, Error> {
    let (deployment, tasks) = tasks(&asking.context, &request.deployment, request.partition)?;
    let (request, found) = (&request, stream::iter(tasks));
    let found = found.map(|task| get_one(asking, deployment, task, request));
    let found: Vec<Vec<StateEntry>> = found.buffered(TASKS_AT_ONCE_MAX).try_collect().await?;
    Ok(StateGetReply { entries: found.into_iter().flatten().collect() })
}

async fn get_one(
    asking: &Asking,
    deployment: DeploymentId,
    (partition, shard): (PartitionId, ShardId),
    request: &StateGetRequest,
) -> Result<Vec<StateEntry>, Error> {
    let replica = match asking.place(shard)? {
        Place::Here(replica) => replica,
        Place::There => {
            let of_one = StateGetRequest { partition: Some(partition.get()), ..request.clone() };
            let answer = asking.ask_one(shard, request::Body::StateGet(of_one)).await?;
            return body_of!(answer, StateGet).map(|reply| reply.entries);
        }
    };
    replica.read_barrier().await.map_err(|error| errors::barrier(&error, replica.others_vote()))?;
    let (shard, key) = (replica.shard(), request.key.clone());
    let found = blocking(move || shard.state_get(deployment, partition, std::slice::from_ref(&key))).await?;
    let value = found.map_err(|error| errors::state(&error))?.into_iter().next().flatten();
    let entry =
        |value| StateEntry { partition: partition.get(), key: request.key.clone(), value, expires_at: -1 };
    Ok(value.map(entry).into_iter().collect())
}

/// Keys in order, partition by partition.
pub(crate) async fn scan(asking: &Asking, request: StateScanRequest) -> Result<StateScanReply, Error> {
    let (deployment, tasks) = tasks(&asking.context, &request.deployment, request.partition)?;
    let limit = if request.limit == 0 { SCAN_LIMIT_MAX } else { request.limit.min(SCAN_LIMIT_MAX) };
    let mut page = Page { entries: Vec::new(), bytes: 0, limit: usize::try_from(limit).unwrap_or(1) };
    for (partition, shard) in tasks {
        let is_read = match asking.place(shard)? {
            Place::Here(replica) => page.read(&replica, deployment, partition, &request).await?,
            Place::There if page.is_full() => false,
            Place::There => {
                let left = u32::try_from(page.limit - page.entries.len()).unwrap_or(u32::MAX);
                let of_one =
                    StateScanRequest { partition: Some(partition.get()), limit: left, ..request.clone() };
                let answer = asking.ask_one(shard, request::Body::StateScan(of_one)).await?;
                let part = body_of!(answer, StateScan)?;
                part.entries.into_iter().for_each(|entry| page.push(entry));
                !part.more
            }
        };
        if !is_read {
            return Ok(StateScanReply { entries: page.entries, more: true });
        }
    }
    Ok(StateScanReply { entries: page.entries, more: false })
}

/// What one answer has.
struct Page {
    entries: Vec<StateEntry>,
    bytes: usize,
    limit: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit || self.bytes >= SCAN_BYTES_MAX
    }

    fn push(&mut self, entry: StateEntry) {
        self.bytes += entry.key.len() + entry.value.len();
        self.entries.push(entry);
    }

    /// Reads the state of a task that is here; `false` where there may be more of it.
    async fn read(
        &mut self,
        replica: &Replica,
        deployment: DeploymentId,
        partition: PartitionId,
        request: &StateScanRequest,
    ) -> Result<bool, Error> {
        replica.read_barrier().await.map_err(|error| errors::barrier(&error, replica.others_vote()))?;
        let mut start = request.start.clone();
        while !self.is_full() {
            let (shard, from, end) = (replica.shard(), start.clone(), request.end.clone());
            let wanted = self.limit - self.entries.len();
            let page =
                blocking(move || shard.state_scan(deployment, partition, &from, end.as_deref(), wanted))
                    .await?
                    .map_err(|error| errors::state(&error))?;
            for entry in page.entries {
                let expires_at = entry.expires_at.map_or(-1, Timestamp::get);
                self.push(StateEntry {
                    partition: partition.get(),
                    key: entry.key,
                    value: entry.value,
                    expires_at,
                });
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// State may lie on disk.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(read).await.map_err(|_| errors::interrupted("reading the state"))
}

fn tasks(
    context: &Context,
    deployment: &str,
    only: Option<u32>,
) -> Result<(DeploymentId, Vec<(PartitionId, ShardId)>), Error> {
    let view = context.view.now();
    let record = view.deployment_by_name(deployment).ok_or_else(|| errors::unknown_deployment(deployment))?;
    if record.spec.kind != DeploymentKind::Consumer {
        return Err(Error::new(
            ErrorCode::InvalidDeployment,
            format!("'{deployment}' is not a hosted consumer: only these have state"),
        ));
    }
    let shards = record.topics.first().and_then(|topic| view.topic(*topic)).map(|topic| topic.shards.clone());
    let tasks: Vec<_> = (0u32..)
        .zip(shards.unwrap_or_default())
        .filter(|(partition, _)| only.is_none_or(|only| only == *partition))
        .map(|(partition, shard)| (PartitionId::new(partition), shard))
        .collect();
    if tasks.is_empty() {
        return Err(Error::new(
            ErrorCode::UnknownPartition,
            format!("deployment '{deployment}' has no task of that partition"),
        ));
    }
    Ok((record.id, tasks))
}
