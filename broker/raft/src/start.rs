//! Bringing a replica up: what is refused, what is repaired, what is applied before it takes part.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::vote::RaftVote;
use openraft::{EmptyNode, Raft};
use tidemill_log::wal::{EntryId, RecoveredShard, Recovery, Wal, WalError};
use tidemill_protocol::ShardId;
use tidemill_shard::Shard;
use tokio::sync::oneshot;

use crate::codec;
use crate::config::{ReplicaConfig, openraft_config};
use crate::error::ReplicaStartError;
use crate::log_store::LogStore;
use crate::network::NoPeers;
use crate::shared_log::SharedLog;
use crate::state_machine::{Machine, StateMachine};
use crate::types::{LeaderId, TypeConfig, Vote};

/// What a running replica consists of.
pub(crate) struct Started {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) log: Arc<SharedLog>,
}

pub(crate) async fn start(
    config: &ReplicaConfig,
    wal: Wal,
    recovered: RecoveredShard,
    shard: Shard,
) -> Result<Started, ReplicaStartError> {
    let settings = openraft_config(config)
        .map_err(|error| ReplicaStartError::BadConfig { shard: config.shard, reason: error.to_string() })?;
    let applied = shard.applied().last;
    let pristine = applied.is_none() && recovered.last.is_none() && recovered.vote.is_none();
    if pristine && recovered.doubtful.is_none() && !config.init {
        return Err(ReplicaStartError::Missing { shard: config.shard });
    }
    check_trust(config, &recovered, applied.as_ref())?;
    check_sizes(config, &wal)?;

    let limits = &config.limits;
    let log =
        SharedLog::open(config.shard, wal, &recovered, limits.read_bytes_max, limits.decoded_cache_bytes_max)
            .map_err(|error| unreadable(config, "what recovery found", error.to_string()))?;
    let machine = Machine::open(config.shard, shard, config.home.clone(), Arc::clone(&log), limits)
        .map_err(|error| unreadable(config, "the shard's membership", error.to_string()))?;
    if config.accept_data_loss {
        if recovered.doubtful.is_some() {
            let (done, synced) = oneshot::channel();
            log.wal().accept_doubt(config.shard, Box::new(move |result| drop(done.send(result))));
            wait_synced(config, synced).await?;
        }
        restore_vote(config, &log, applied.as_ref()).await?;
    }
    let behind = log.wal().bytes_behind(config.shard, applied.map(|applied| applied.index));
    metrics::gauge!("tidemill_raft_replayed_bytes", "shard" => config.shard.to_string()).set(behind as f64);
    replay(config, &machine, behind).await?;

    let raft = Raft::<TypeConfig, StateMachine>::new(
        config.node,
        Arc::new(settings),
        NoPeers,
        LogStore::new(Arc::clone(&log)),
        StateMachine::new(Arc::clone(&machine)),
    )
    .await
    .map_err(|error| failed(config, error.to_string()))?;
    let started = Started { raft, machine, log };
    match take_part(config, &started.raft, pristine).await {
        Ok(()) => Ok(started),
        Err(error) => {
            drop(started.raft.shutdown().await);
            Err(error)
        }
    }
}

/// An entry's encoding adds a head to its units' bodies; what a unit counts for covers it with this much to spare.
const ENTRY_OVERHEAD_BYTES: usize = 64 << 10;

fn check_sizes(config: &ReplicaConfig, wal: &Wal) -> Result<(), ReplicaStartError> {
    let needed =
        config.limits.unit_bytes_max.max(config.limits.entry_bytes_max).saturating_add(ENTRY_OVERHEAD_BYTES);
    if needed <= wal.entry_bytes_max() {
        return Ok(());
    }
    let reason = format!(
        "units of {} bytes do not fit into the write-ahead log, whose entries have at most {} bytes",
        config.limits.unit_bytes_max,
        wal.entry_bytes_max()
    );
    Err(ReplicaStartError::BadConfig { shard: config.shard, reason })
}

/// What recovery knows of one shard. Where the log lost something and says nothing of the shard, that is in doubt too:
/// it may be what was lost.
#[must_use]
pub fn recovered_shard(recovery: &Recovery, shard: ShardId) -> RecoveredShard {
    let mut recovered = recovery.shards.get(&shard).cloned().unwrap_or_default();
    if recovered.doubtful.is_none() && !recovery.shards.contains_key(&shard) {
        recovered.doubtful = recovery.damage.clone();
    }
    recovered
}

/// Refuses what was once acknowledged and may be gone, unless told to go on without it.
fn check_trust(
    config: &ReplicaConfig,
    recovered: &RecoveredShard,
    applied: Option<&EntryId>,
) -> Result<(), ReplicaStartError> {
    let shard = config.shard;
    if let Some(doubt) = &recovered.doubtful {
        let doubt = doubt.to_string();
        if !config.accept_data_loss {
            return Err(ReplicaStartError::DoubtfulTail { shard, doubt });
        }
        tracing::warn!(%shard, %doubt, "going on without the damaged part of the log, as told");
    }
    let last = recovered.last.max(recovered.purged);
    if let Some(applied) =
        applied.copied().filter(|applied| last.is_none_or(|last| last.index < applied.index))
    {
        if !config.accept_data_loss {
            return Err(ReplicaStartError::LogLost { shard, applied, last });
        }
        tracing::warn!(%shard, applied = %applied.index, "going on from the checkpoint without a log, as told");
    }
    match recovered.purged {
        // No override: without its state the rest of the log means nothing.
        Some(purged) if applied.is_none_or(|applied| applied.index < purged.index) => {
            Err(ReplicaStartError::StateLost { shard, purged, applied: applied.copied() })
        }
        _ => Ok(()),
    }
}

/// After a loss the vote may be gone or older than the last entry. A term must never be used twice, so the replica
/// takes up at least the term of what it holds; its election then begins a new one.
async fn restore_vote(
    config: &ReplicaConfig,
    log: &Arc<SharedLog>,
    applied: Option<&EntryId>,
) -> Result<(), ReplicaStartError> {
    let last = log.ends().last.map_or(0, |id| id.leader_id.term);
    let term = applied.map_or(0, |id| id.term.get()).max(last);
    if term == 0 || log.vote().is_some_and(|vote| vote.leader_id().term >= term) {
        return Ok(());
    }
    let vote = Vote::from_leader_id(LeaderId { term, node_id: config.node }, false);
    let (done, synced) = oneshot::channel();
    log.wal().save_vote(
        config.shard,
        codec::encode_vote(&vote),
        Box::new(move |result| drop(done.send(result))),
    );
    wait_synced(config, synced).await?;
    log.set_vote(vote);
    Ok(())
}

async fn wait_synced(
    config: &ReplicaConfig,
    synced: oneshot::Receiver<Result<(), WalError>>,
) -> Result<(), ReplicaStartError> {
    match synced.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(config, error.to_string())),
        Err(_closed) => Err(failed(config, "the write-ahead log was closed".to_owned())),
    }
}

/// Applies what is known to be committed. openraft would do it too, 64 entries at a time whatever their size.
///
/// `behind` are the bytes behind the checkpoint: those of the last entries may be committed only once the shard leads.
async fn replay(
    config: &ReplicaConfig,
    machine: &Arc<Machine>,
    behind: u64,
) -> Result<(), ReplicaStartError> {
    let replaying = Arc::clone(machine);
    let replayed = tokio::task::spawn_blocking(move || replaying.replay_committed()).await;
    match replayed {
        Ok(Ok(entries)) => {
            tracing::info!(shard = %config.shard, entries, bytes_behind_checkpoint = behind, "replayed the log");
            Ok(())
        }
        Ok(Err(error)) => Err(failed(config, error.to_string())),
        Err(panicked) => Err(failed(config, panicked.to_string())),
    }
}

/// Forms the group if it is new, and leads it at once if it has no other voter.
async fn take_part(
    config: &ReplicaConfig,
    raft: &Raft<TypeConfig, StateMachine>,
    pristine: bool,
) -> Result<(), ReplicaStartError> {
    if pristine {
        if !config.init {
            return Err(ReplicaStartError::Missing { shard: config.shard });
        }
        let alone = BTreeMap::from([(config.node, EmptyNode::new())]);
        // Elects at once by itself.
        return raft.initialize(alone).await.map_err(|error| failed(config, error.to_string()));
    }
    let members = raft
        .with_raft_state(|state| state.membership_state.effective().membership().clone())
        .await
        .map_err(|error| failed(config, error.to_string()))?;
    if members.get_node(&config.node).is_none() {
        let members = members.nodes().map(|(node, _)| node.to_string()).collect::<Vec<_>>().join(", ");
        return Err(ReplicaStartError::NotAMember { shard: config.shard, node: config.node, members });
    }
    if members.voter_ids().all(|voter| voter == config.node) {
        // Nobody to ask and nobody to disturb: no reason to wait for an election time-out.
        raft.trigger().elect(false).await.map_err(|error| failed(config, error.to_string()))?;
    }
    Ok(())
}

fn unreadable(config: &ReplicaConfig, what: &'static str, reason: String) -> ReplicaStartError {
    ReplicaStartError::Unreadable { shard: config.shard, what, reason }
}

fn failed(config: &ReplicaConfig, reason: String) -> ReplicaStartError {
    ReplicaStartError::Failed { shard: config.shard, reason }
}
