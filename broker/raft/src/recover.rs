//! Going on with one replica where most of its group is lost for good: offline, on what its broker has.
//!
//! ```text
//!   before   ... 41 42 | 43 44                                        43 and 44 may have been acknowledged, or not
//!   after    ... 41 42 | 43 44 | 45 members: the new node alone | 46 what the caller adds
//!            vote: for the new node, in a term beyond all that may have been
//! ```
//!
//! openraft goes by the last membership in its log, committed or not, and commits what lies before an entry of its own term. So the
//! replica is started under its new id, elects itself at once, and with its first entry everything that it holds is committed: nothing
//! of the log is judged here, and nothing is cut off.
//!
//! The node id must be new: what its members promised each other under the old ones is over, and whoever comes back of them is
//! refused, since streams name both ends (`serve`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use openraft::EmptyNode;
use openraft::vote::RaftVote;
use tidemill_log::wal::{Completion, EntryBytes, EntryId, RecoveredShard, Wal, WalEntry, WalError};
use tidemill_protocol::{LogIndex, NodeId, ShardId, Term};
use tidemill_shard::{Entry, Shard};
use tokio::sync::oneshot;

use crate::codec;
use crate::error::ReplicaStartError;
use crate::shared_log::SharedLog;
use crate::snapshot::take_up_install;
use crate::start::close_gap;
use crate::types::{
    Command, LeaderId, LogId, Membership, Payload, RaftLogEntry, StoredMembership, Vote, entry_id,
};

/// So many terms are left out: those who are lost may have led in later ones than this replica has heard of, and clients go
/// by the highest term.
const TERMS_LEFT_OUT: u64 = 1_000;
/// Bytes of entries that are read at once.
const READ_BYTES_MAX: usize = 4 << 20;

/// What a stopped broker has of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldReplica {
    /// Which shard.
    pub shard: ShardId,
    /// The last entry that it has: in its log, or in its checkpoint where the log ends before.
    pub last: EntryId,
    /// The last entry of its checkpoint; `None` where there is none.
    pub applied: Option<EntryId>,
    /// The last entry that it knows to be committed. Later ones may have been acknowledged or not.
    pub committed: Option<LogIndex>,
    /// The latest term that it has heard of.
    pub term: Term,
    /// Who votes in its group, by the last membership that it has; of both sides while a joint change is under way.
    pub voters: BTreeSet<NodeId>,
    /// Who only follows there.
    pub learners: BTreeSet<NodeId>,
    /// Why it may have had more than it has, if so.
    pub doubt: Option<String>,
}

/// Looks at what a broker has of a shard, and changes nothing. Blocks while it reads the log.
///
/// # Errors
/// There is nothing ([`ReplicaStartError::Missing`]), or nothing to go on with.
pub fn examine(
    wal: &Wal,
    id: ShardId,
    recovered: &RecoveredShard,
    shard: &Shard,
) -> Result<HeldReplica, ReplicaStartError> {
    let applied = shard.applied().last;
    let usable = usable(recovered, applied);
    let Some(last) = usable.last else { return Err(ReplicaStartError::Missing { shard: id }) };
    if let Some(purged) = recovered.purged
        && applied.is_none_or(|applied| applied.index < purged.index)
    {
        return Err(ReplicaStartError::StateLost { shard: id, purged, applied });
    }
    let unreadable = |what, reason: String| ReplicaStartError::Unreadable { shard: id, what, reason };
    let bad = |error: codec::CodecError| unreadable("what recovery found", error.to_string());
    let vote = recovered.vote.as_deref().map(codec::decode_vote).transpose().map_err(bad)?;
    let committed = recovered.committed.as_deref().map(codec::decode_log_id).transpose().map_err(bad)?;
    let installed =
        recovered.snapshot_installed.as_deref().filter(|note| !note.is_empty()).map(codec::decode_log_id);
    let installed = installed.transpose().map_err(bad)?.map(|note| entry_id(&note));
    let stored = shard.applied().membership;
    let stored = stored.as_deref().map(codec::decode_stored_membership).transpose().map_err(bad)?;
    let mut membership = stored.unwrap_or_default();
    each_behind(wal, id, &usable, |entry| {
        if let Payload::Membership(members) = entry.payload {
            membership = StoredMembership::new(Some(entry.log_id), members);
        }
    })
    .map_err(|error| unreadable("an entry", error.to_string()))?;
    let members = membership.membership();
    let voters: BTreeSet<NodeId> = members.voter_ids().collect();
    let learners = members.nodes().map(|(node, _)| *node).filter(|node| !voters.contains(node)).collect();
    let committed = committed.map(|id| LogIndex::new(id.index)).max(applied.map(|applied| applied.index));
    Ok(HeldReplica {
        shard: id,
        last,
        applied,
        committed: committed.map(|committed| committed.min(last.index)),
        term: Term::new(vote.map_or(0, |vote| vote.leader_id().term)).max(last.term),
        voters,
        learners,
        doubt: doubt(recovered, applied, installed),
    })
}

/// The entries of units behind a shard's checkpoint, in order: what was applied since, and what may yet be. Blocks while it reads.
///
/// # Errors
/// The log does not read.
pub fn entries_behind(
    wal: &Wal,
    id: ShardId,
    recovered: &RecoveredShard,
    shard: &Shard,
    mut each: impl FnMut(&Entry),
) -> io::Result<()> {
    each_behind(wal, id, &usable(recovered, shard.applied().last), |entry| {
        if let Payload::Normal(command) = entry.payload {
            each(command.entry());
        }
    })
}

/// Makes a replica the only member of its group, as `node`, with all entries that it holds, and `then` behind them. It is durable
/// when this returns. The replica is to be started as that node from then on, and as no other.
///
/// Blocks while it reads the log.
///
/// # Errors
/// As [`examine`], or the log can't be written. Broken off, it is only done again, as another node.
pub async fn go_on_alone(
    wal: &Wal,
    id: ShardId,
    mut recovered: RecoveredShard,
    shard: &Shard,
    node: NodeId,
    then: Option<Entry>,
) -> Result<(), ReplicaStartError> {
    let failed = |reason: String| ReplicaStartError::Failed { shard: id, reason };
    let held = examine(wal, id, &recovered, shard)?;
    let applied = shard.applied().last;
    take_up_install(wal, id, &mut recovered, applied).map_err(|error| failed(error.to_string()))?;
    close_gap(id, wal, &mut recovered, applied);
    if recovered.doubtful.is_some() {
        let (done, synced) = completion();
        wal.accept_doubt(id, done);
        durable(synced).await.map_err(failed)?;
    }
    if recovered.last.max(recovered.purged).is_none_or(|last| last.index < held.last.index) {
        // The checkpoint is ahead of what is left of the log, which goes on behind it.
        wal.purge(id, held.last, Box::new(|_| ()));
    }
    let leader = LeaderId { term: held.term.get().saturating_add(TERMS_LEFT_OUT), node_id: node };
    let members = Membership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, EmptyNode::new())]))
        .map_err(|error| failed(error.to_string()))?;
    let mut payloads = vec![Payload::Membership(members)];
    payloads.extend(then.map(|entry| Payload::Normal(Command::new(entry))));
    let entries = (held.last.index.get() + 1..).zip(payloads).map(|(index, payload)| WalEntry {
        id: entry_id(&LogId::new(leader, index)),
        payload: EntryBytes::from_pieces(codec::encode_payload(&payload)),
    });
    let (voted, vote_synced) = completion();
    wal.save_vote(id, codec::encode_vote(&Vote::from_leader_id(leader, false)), voted);
    let (appended, entries_synced) = completion();
    wal.append(id, entries.collect(), appended);
    // Under a durability that does not wait for the device, this does.
    let (flushed, all_synced) = completion();
    wal.flush(flushed);
    for synced in [vote_synced, entries_synced, all_synced] {
        durable(synced).await.map_err(failed)?;
    }
    Ok(())
}

/// Where the entries lie that can be applied one after the other behind the checkpoint.
struct Usable {
    /// The first such index.
    from: u64,
    /// The last entry, the checkpoint's where there is none behind it.
    last: Option<EntryId>,
}

/// Behind a gap nothing can ever be applied, as [`close_gap`] has it.
fn usable(recovered: &RecoveredShard, applied: Option<EntryId>) -> Usable {
    let from = applied.map_or(0, |applied| applied.index.get() + 1);
    let begin = recovered.purged.map_or(0, |purged| purged.index.get() + 1).max(from);
    let held = recovered.last.filter(|_| recovered.first.is_some_and(|first| first.get() <= begin));
    let last = held.filter(|last| last.index.get() >= from);
    Usable { from, last: last.or(applied).or(recovered.purged) }
}

fn doubt(recovered: &RecoveredShard, applied: Option<EntryId>, installed: Option<EntryId>) -> Option<String> {
    if let Some(doubt) = &recovered.doubtful {
        return Some(doubt.to_string());
    }
    let last = recovered.last.max(recovered.purged).map(|last| last.index);
    let lost = applied.filter(|applied| last < Some(applied.index) && Some(*applied) != installed)?;
    Some(format!("the checkpoint holds entries up to {}, and the log ends before", lost.index))
}

fn each_behind(
    wal: &Wal,
    id: ShardId,
    usable: &Usable,
    mut each: impl FnMut(RaftLogEntry),
) -> io::Result<()> {
    let mut next = usable.from;
    let end = usable.last.map_or(0, |last| last.index.get() + 1);
    while next < end {
        let found = wal
            .read(id, LogIndex::new(next), LogIndex::new(end), READ_BYTES_MAX)
            .map_err(|error| io::Error::other(format!("write-ahead log: {error}")))?;
        if found.is_empty() {
            return Err(io::Error::other(format!("entry {next} is missing from the log")));
        }
        for entry in found {
            each(SharedLog::decode(id, &entry, next)?);
            next += 1;
        }
    }
    Ok(())
}

fn completion() -> (Completion, oneshot::Receiver<Result<(), WalError>>) {
    let (done, synced) = oneshot::channel();
    (Box::new(move |result| drop(done.send(result))), synced)
}

async fn durable(synced: oneshot::Receiver<Result<(), WalError>>) -> Result<(), String> {
    match synced.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_closed) => Err("the write-ahead log was closed".to_owned()),
    }
}
