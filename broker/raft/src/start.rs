//! Bringing a replica up: what is refused, what is repaired, what is applied before it takes part.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::vote::RaftVote;
use openraft::{EmptyNode, Raft};
use tidemill_log::wal::{EntryId, RecoveredShard, Recovery, Wal, WalError};
use tidemill_protocol::{LogIndex, ShardId};
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
    mut recovered: RecoveredShard,
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
    if config.accept_data_loss {
        close_gap(config, &wal, &mut recovered, applied);
    }

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

/// After a loss the log may begin behind what it was purged to. Where the checkpoint reaches up to there, all before is as
/// good as purged. Else nothing that it holds can ever be applied, and it goes on where it was purged to. Written with what
/// follows: the acceptance of the doubt, which waits for the device, if there is one.
fn close_gap(config: &ReplicaConfig, wal: &Wal, recovered: &mut RecoveredShard, applied: Option<EntryId>) {
    let shard = config.shard;
    let begin = recovered.purged.map_or(0, |purged| purged.index.get() + 1);
    let Some(first) = recovered.first.map(LogIndex::get).filter(|first| *first > begin) else {
        return;
    };
    match applied.filter(|applied| applied.index.get() + 1 >= first) {
        Some(applied) => {
            wal.purge(shard, applied, Box::new(|_| ()));
            let behind = recovered.last.filter(|last| last.index > applied.index);
            recovered.purged = Some(applied);
            recovered.first = behind.map(|_| applied.index.next());
            recovered.last = behind.or(Some(applied));
        }
        None => {
            tracing::warn!(%shard, missing = begin, first, "going on without entries behind missing ones, as told");
            wal.truncate_after(shard, None, Box::new(|_| ()));
            recovered.first = None;
            recovered.last = recovered.purged;
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemill_log::fs::MemoryStorage;
    use tidemill_log::wal::{LogRange, WalConfig, WalEntry};
    use tidemill_protocol::{Term, Timestamp};

    use super::*;
    use crate::node::NodeId;

    const SHARD: ShardId = ShardId::new(1);

    fn id(index: u64) -> EntryId {
        EntryId { term: Term::new(1), leader_node: 1, index: LogIndex::new(index) }
    }

    /// What is left of a log that holds `first` to 9 and was never purged, with a checkpoint at `applied`.
    fn closed(first: u64, applied: Option<u64>) -> LogRange {
        let storage = Arc::new(MemoryStorage::new());
        let settings =
            WalConfig { segment_bytes: 1 << 20, write_bytes_max: 64 << 10, ..WalConfig::new("wal") };
        let (wal, _) = Wal::open(storage.clone(), &settings).unwrap();
        let entries =
            (first..10).map(|index| WalEntry { id: id(index), payload: Bytes::from("entry").into() });
        wal.append(SHARD, entries.collect(), Box::new(|_| ()));
        let config = ReplicaConfig::new(SHARD, NodeId::from_raw(1 << 32 | 1), Arc::new(|| Timestamp::new(0)));
        let range = wal.range(SHARD);
        let mut recovered =
            RecoveredShard { first: range.first, last: range.last, ..RecoveredShard::default() };
        close_gap(&config, &wal, &mut recovered, applied.map(id));
        let told = LogRange { purged: recovered.purged, first: recovered.first, last: recovered.last };
        assert_eq!(told, wal.range(SHARD));
        wal.close().unwrap();
        let (wal, _) = Wal::open(storage, &settings).unwrap();
        assert_eq!(told, wal.range(SHARD), "for good");
        told
    }

    #[test]
    fn a_log_behind_a_gap_is_kept_if_the_checkpoint_reaches_it() {
        let range = |purged: Option<u64>, first: Option<u64>, last: Option<u64>| LogRange {
            purged: purged.map(id),
            first: first.map(LogIndex::new),
            last: last.map(id),
        };
        assert_eq!(closed(0, None), range(None, Some(0), Some(9)), "no gap");
        assert_eq!(closed(5, None), range(None, None, None));
        assert_eq!(closed(5, Some(3)), range(None, None, None));
        assert_eq!(closed(5, Some(4)), range(Some(4), Some(5), Some(9)));
        assert_eq!(closed(5, Some(7)), range(Some(7), Some(8), Some(9)));
        assert_eq!(closed(5, Some(20)), range(Some(20), None, Some(20)));
    }
}
