//! The keyed state of hosted consumers: reading it from outside.

use std::sync::Arc;

use tidemill_controller::DeploymentKind;
use tidemill_protocol::messages::{
    Error, StateEntry, StateGetReply, StateGetRequest, StateScanReply, StateScanRequest,
};
use tidemill_protocol::{DeploymentId, ErrorCode, PartitionId, Timestamp};
use tidemill_raft::Replica;

use crate::context::Context;
use crate::errors;

const SCAN_LIMIT_MAX: u32 = 10_000;
/// Bytes of keys and values in one answer.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// A key's value in each partition's task that has it.
pub(crate) async fn get(context: &Arc<Context>, request: StateGetRequest) -> Result<StateGetReply, Error> {
    let (deployment, tasks) = tasks(context, &request.deployment, request.partition)?;
    let mut entries = Vec::new();
    for (partition, replica) in tasks {
        replica.read_barrier().await.map_err(|error| errors::barrier(&error))?;
        let (shard, key) = (replica.shard().clone(), request.key.clone());
        let found =
            blocking(move || shard.state_get(deployment, partition, std::slice::from_ref(&key))).await?;
        let value = found.map_err(|error| errors::state(&error))?.into_iter().next().flatten();
        entries.extend(value.map(|value| StateEntry {
            partition: partition.get(),
            key: request.key.clone(),
            value,
            expires_at: -1,
        }));
    }
    Ok(StateGetReply { entries })
}

/// Keys in order, partition by partition.
pub(crate) async fn scan(context: &Arc<Context>, request: StateScanRequest) -> Result<StateScanReply, Error> {
    let (deployment, tasks) = tasks(context, &request.deployment, request.partition)?;
    let limit = if request.limit == 0 { SCAN_LIMIT_MAX } else { request.limit.min(SCAN_LIMIT_MAX) };
    let limit = usize::try_from(limit).unwrap_or(1);
    let mut entries: Vec<StateEntry> = Vec::new();
    let mut bytes = 0;
    for (partition, replica) in tasks {
        replica.read_barrier().await.map_err(|error| errors::barrier(&error))?;
        let mut start = request.start.clone();
        loop {
            if entries.len() >= limit || bytes >= SCAN_BYTES_MAX {
                return Ok(StateScanReply { entries, more: true });
            }
            let (shard, from, end) = (replica.shard().clone(), start.clone(), request.end.clone());
            let wanted = limit - entries.len();
            let page =
                blocking(move || shard.state_scan(deployment, partition, &from, end.as_deref(), wanted))
                    .await?
                    .map_err(|error| errors::state(&error))?;
            for entry in page.entries {
                bytes += entry.key.len() + entry.value.len();
                let expires_at = entry.expires_at.map_or(-1, Timestamp::get);
                entries.push(StateEntry {
                    partition: partition.get(),
                    key: entry.key,
                    value: entry.value,
                    expires_at,
                });
            }
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
    }
    Ok(StateScanReply { entries, more: false })
}

/// State may lie on disk.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(read).await.map_err(|_| errors::interrupted("reading the state"))
}

fn tasks(
    context: &Context,
    deployment: &str,
    only: Option<u32>,
) -> Result<(DeploymentId, Vec<(PartitionId, Replica)>), Error> {
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
        .filter_map(|(partition, shard)| Some((PartitionId::new(partition), context.shards.replica(shard)?)))
        .collect();
    if tasks.is_empty() {
        return Err(Error::new(
            ErrorCode::UnknownPartition,
            format!("deployment '{deployment}' has no task of that partition"),
        ));
    }
    Ok((record.id, tasks))
}
