//! Bringing a replica up: what is refused, what is repaired, what is applied before it takes part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::errors::{InitializeError, RaftError};
use openraft::vote::RaftVote;
use openraft::{EmptyNode, Raft};
use tidemill_log::wal::{EntryId, RecoveredShard, Recovery, Wal, WalError};
use tidemill_protocol::{LogIndex, NodeId, ShardId};
use tidemill_shard::Shard;
use tokio::sync::oneshot;

use crate::codec;
use crate::config::{Begin, ReplicaConfig, openraft_config};
use crate::error::ReplicaStartError;
use crate::log_store::LogStore;
use crate::network::NoPeers;
use crate::peer_network::{PeerLinks, PeerNetworks};
use crate::runtime::blocking;
use crate::shared_log::SharedLog;
use crate::snapshot::take_up_install;
use crate::state_machine::{Machine, StateMachine};
use crate::types::{LeaderId, TypeConfig, Vote};

/// What a running replica consists of.
pub(crate) struct Started {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) log: Arc<SharedLog>,
    pub(crate) links: Option<Arc<PeerLinks>>,
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
    check_begin(config)?;
    check_first(config, &wal, &recovered)?;
    if config.retired {
        recovered = begin_anew(config, &wal, recovered, applied).await?;
    }
    forget_broken_off_forming(config, &mut recovered, applied.as_ref());
    let pristine = applied.is_none() && recovered.last.is_none() && recovered.vote.is_none();
    if pristine && recovered.doubtful.is_none() && config.begin == Begin::Existing && !config.retired {
        return Err(ReplicaStartError::Missing { shard: config.shard });
    }
    take_up_install(&wal, config.shard, &mut recovered, applied)
        .map_err(|error| unreadable(config, "the note of an installed snapshot", error.to_string()))?;
    check_trust(config, &recovered, applied.as_ref())?;
    check_sizes(config, &wal)?;
    if config.accept_data_loss {
        close_gap(config.shard, &wal, &mut recovered, applied);
    }

    let limits = &config.limits;
    let log =
        SharedLog::open(config.shard, wal, &recovered, limits.read_bytes_max, limits.decoded_cache_bytes_max)
            .map_err(|error| unreadable(config, "what recovery found", error.to_string()))?;
    let machine = Machine::open(config.shard, shard, Arc::clone(&log), limits)
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

    let links = config.peers.as_ref().map(|dialer| {
        let (bytes_max, limiter) = (limits.append_in_flight_bytes_max, Arc::clone(&config.snapshot_limiter));
        let kept = Some((log.wal().clone(), limits.log_bytes_high));
        PeerLinks::new(Arc::clone(dialer), config.shard, config.node, bytes_max, limiter, kept)
    });
    let (node, settings) = (config.node, Arc::new(settings));
    let (store, state) = (LogStore::new(Arc::clone(&log)), StateMachine::new(Arc::clone(&machine)));
    let raft = match &links {
        Some(links) => Raft::new(node, settings, PeerNetworks(Arc::clone(links)), store, state).await,
        None => Raft::new(node, settings, NoPeers, store, state).await,
    };
    let raft = raft.map_err(|error| failed(config, error.to_string()))?;
    if let Some(links) = &links {
        // The links are new.
        let _first = links.metrics.set(raft.metrics());
    }
    let started = Started { raft, machine, log, links };
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

fn check_begin(config: &ReplicaConfig) -> Result<(), ReplicaStartError> {
    let bad = |reason: String| Err(ReplicaStartError::BadConfig { shard: config.shard, reason });
    let Begin::Form(members) = &config.begin else { return Ok(()) };
    if !members.contains(&config.node) {
        return bad(format!("node {} is to form a group that it is not a member of", config.node));
    }
    if config.retired {
        return bad(format!("node {} takes the place of a retired one, and can't form a group", config.node));
    }
    if members.len() > 1 && config.peers.is_none() {
        return bad("a group of several nodes needs a way between them".to_owned());
    }
    Ok(())
}

/// What recovery found holds for one start: from then on the replica votes, and who starts it again by what was found before, or by less,
/// would have it break its promises. That shows here where it has voted since and nothing was found; an older vote, or a doubt that was left
/// out, does not.
fn check_first(
    config: &ReplicaConfig,
    wal: &Wal,
    recovered: &RecoveredShard,
) -> Result<(), ReplicaStartError> {
    // Who takes the place of a retired one has promised nothing.
    if config.retired || recovered.vote.is_some() || wal.vote(config.shard).is_none() {
        return Ok(());
    }
    let reason = "the log holds a vote of this replica that recovery did not find: it was started before in this process, and only \
                  another start of the broker finds all that it promised";
    Err(failed(config, reason.to_owned()))
}

/// Forming a group saves a vote of term 0 for oneself, then the first entry. Where a crash came between, the vote promises
/// nothing to anybody, and would only keep the group from being formed.
fn forget_broken_off_forming(
    config: &ReplicaConfig,
    recovered: &mut RecoveredShard,
    applied: Option<&EntryId>,
) {
    let is_empty = applied.is_none() && recovered.last.is_none() && recovered.doubtful.is_none();
    let vote = recovered.vote.as_deref().and_then(|vote| codec::decode_vote(vote).ok());
    if is_empty
        && matches!(config.begin, Begin::Form(_))
        && vote.is_some_and(|vote| vote.leader_id().term == 0)
    {
        recovered.vote = None;
    }
}

/// Cuts the log to what the checkpoint holds, and forgets what the node id before this one promised. What the checkpoint holds
/// was applied, so the group has it; whatever follows comes from the leader.
async fn begin_anew(
    config: &ReplicaConfig,
    wal: &Wal,
    found: RecoveredShard,
    applied: Option<EntryId>,
) -> Result<RecoveredShard, ReplicaStartError> {
    let shard = config.shard;
    tracing::info!(
        %shard, node = %config.node, applied = applied.map(|applied| applied.index.get()),
        last = found.last.map(|last| last.index.get()), doubt = found.doubtful.as_ref().map(ToString::to_string),
        "beginning anew from the checkpoint"
    );
    let (done, synced) = oneshot::channel();
    let done: tidemill_log::wal::Completion = Box::new(move |result| drop(done.send(result)));
    let Some(applied) = applied else {
        wal.forget(shard, done);
        wait_synced(config, synced).await?;
        return Ok(RecoveredShard::default());
    };
    wal.forget(shard, Box::new(|_| ()));
    wal.purge(shard, applied, Box::new(|_| ()));
    // Whoever proposed that entry led: a vote that promises nothing new, and that no leader's is behind.
    let leader = LeaderId { term: applied.term.get(), node_id: NodeId::from_raw(applied.leader_node) };
    let vote = codec::encode_vote(&Vote::from_leader_id(leader, true));
    wal.save_vote(shard, vote.clone(), done);
    wait_synced(config, synced).await?;
    let (last, purged) = (Some(applied), Some(applied));
    Ok(RecoveredShard { last, purged, vote: Some(vote), ..RecoveredShard::default() })
}

/// What recovery knows of one shard. Where the log lost something and says nothing of the shard, that is in doubt too:
/// it may be what was lost. It holds for one start of the shard's replica: then the log
/// knows more.
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
pub(crate) fn close_gap(shard: ShardId, wal: &Wal, recovered: &mut RecoveredShard, applied: Option<EntryId>) {
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
    let replayed = blocking(machine.background(), move || replaying.replay_committed()).await;
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
        return match &config.begin {
            Begin::Form(members) => form(config, raft, members).await,
            Begin::Existing | Begin::Join => Ok(()),
        };
    }
    let members = raft
        .with_raft_state(|state| state.membership_state.effective().membership().clone())
        .await
        .map_err(|error| failed(config, error.to_string()))?;
    if members.get_node(&config.node).is_none() {
        if config.peers.is_some() {
            // To be taken in, or on its way out.
            return Ok(());
        }
        let members = members.nodes().map(|(node, _)| node.to_string()).collect::<Vec<_>>().join(", ");
        return Err(ReplicaStartError::NotAMember { shard: config.shard, node: config.node, members });
    }
    if members.voter_ids().eq([config.node]) {
        // Nobody to ask and nobody to disturb: no reason to wait for an election time-out.
        raft.trigger().elect(false).await.map_err(|error| failed(config, error.to_string()))?;
    }
    Ok(())
}

/// Every member of a new group does this by itself, with the same set: whoever is elected brings the others to its own log.
async fn form(
    config: &ReplicaConfig,
    raft: &Raft<TypeConfig, StateMachine>,
    members: &BTreeSet<NodeId>,
) -> Result<(), ReplicaStartError> {
    let members: BTreeMap<_, _> = members.iter().map(|node| (*node, EmptyNode::new())).collect();
    // Elects at once by itself.
    match raft.initialize(members).await {
        // Another member was faster, and this one voted for it or has its entries already.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(failed(config, error.to_string())),
    }
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
    use tidemill_protocol::Term;

    use super::*;

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
        let range = wal.range(SHARD);
        let mut recovered =
            RecoveredShard { first: range.first, last: range.last, ..RecoveredShard::default() };
        close_gap(SHARD, &wal, &mut recovered, applied.map(id));
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
