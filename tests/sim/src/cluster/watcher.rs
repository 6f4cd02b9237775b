//! What must hold at every moment, looked at all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, NodeId, ShardId, Term};
use tidemill_raft::Replica;

use super::world::{Running, World};
use crate::ledger::Violation;
use crate::trace::Trace;

const INTERVAL: Duration = Duration::from_millis(50);
/// States are hashed with each so many looks.
const HASH_EVERY: u64 = 8;
const READ_BYTES: usize = 256 << 10;

/// How often was what looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Applied entries compared.
    pub entries: u64,
    /// States compared.
    pub states: u64,
    /// Roles of leaders looked at.
    pub leaders: u64,
}

/// What was seen so far.
pub(crate) struct Watcher {
    world: World,
    trace: Trace,
    pub(crate) checks: Checks,
    entries: BTreeMap<(ShardId, LogIndex), (EntryId, blake3::Hash)>,
    states: BTreeMap<(ShardId, LogIndex), blake3::Hash>,
    /// Which life led in a term. A term may have several leaders, one after the other, by the order of their ids; but none is
    /// elected twice in one.
    leaders: BTreeMap<(ShardId, Term, NodeId), u64>,
    /// Of a life, an entry about members that it goes by and does not have in its log: it must be within the snapshot that it came by.
    ahead: BTreeMap<(u64, ShardId), LogIndex>,
    /// Of a life whose log has failed, how much of it is on the disk.
    failed: BTreeMap<(u64, ShardId), Option<EntryId>>,
    /// Up to where a life's entries were looked at.
    seen: BTreeMap<(u64, ShardId), LogIndex>,
}

impl Watcher {
    pub(crate) fn new(world: &World, trace: &Trace) -> Self {
        Self {
            world: world.clone(),
            trace: trace.clone(),
            checks: Checks::default(),
            entries: BTreeMap::new(),
            states: BTreeMap::new(),
            leaders: BTreeMap::new(),
            ahead: BTreeMap::new(),
            failed: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Looks until all is over.
    pub(crate) async fn run(mut self) -> Self {
        let mut looks = 0;
        while !self.world.is_ending() && self.world.violation().is_none() {
            tokio::time::sleep(INTERVAL).await;
            looks += 1;
            self.look(looks % HASH_EVERY == 0);
        }
        self
    }

    /// Looks at everything once.
    pub(crate) fn look(&mut self, hashes: bool) {
        for running in self.world.running() {
            for (shard, replica) in &*running.replicas {
                let looked = self.look_at(&running, *shard, replica, hashes);
                if let Err(what) = looked {
                    let (broker, node) = (running.broker, replica.node());
                    let told = format!("shard {shard} at {broker}, node {node}: {what}");
                    return self.world.broken(Violation::Cluster(told));
                }
            }
        }
    }

    fn look_at(
        &mut self,
        running: &Running,
        shard: ShardId,
        replica: &Replica,
        hashes: bool,
    ) -> Result<(), String> {
        let role = replica.watch().borrow().clone();
        if role.is_leader() {
            self.checks.leaders += 1;
            let led = self.leaders.entry((shard, role.term, replica.node())).or_insert(running.life);
            if *led != running.life {
                return Err(format!("leads in term {}, which an earlier life of it has led", role.term));
            }
        }
        if running.wal.poisoned().is_some() {
            let flushed = running.wal.flushed(shard);
            let known = *self.failed.entry((running.life, shard)).or_insert(flushed);
            if known != flushed {
                return Err(format!("goes on with a log that failed: it had {known:?}, and now {flushed:?}"));
            }
        }
        let Some(applied) = replica.shard().applied().last else { return Ok(()) };
        self.look_at_members(running, shard, replica, applied)?;
        self.look_at_entries(running, shard, replica, applied)?;
        if hashes && replica.shard().poisoned().is_none() {
            self.look_at_state(shard, replica)?;
        }
        Ok(())
    }

    /// Members are learned from the log, or from a snapshot, which must be one of no later entry than it says. They count as soon as their
    /// entry is taken, though the log may still have to wait with it.
    fn look_at_members(
        &mut self,
        running: &Running,
        shard: ShardId,
        replica: &Replica,
        applied: EntryId,
    ) -> Result<(), String> {
        let life = (running.life, shard);
        let (status, members) = (replica.status(), replica.members().index);
        if let Some(members) = members
            && status.last_taken.is_none_or(|last| last < members)
        {
            self.ahead.insert(life, members);
        }
        // Its snapshot is in place.
        if let Some(members) = self.ahead.get(&life).copied().filter(|members| *members <= applied.index) {
            self.ahead.remove(&life);
            if status.checkpointed.is_none_or(|checkpoint| checkpoint.index < members) {
                let checkpoint = status.checkpointed.map(|checkpoint| checkpoint.index);
                return Err(format!(
                    "had its members of entry {members}, and a snapshot of what is before, up to {checkpoint:?}"
                ));
            }
        }
        Ok(())
    }

    fn look_at_entries(
        &mut self,
        running: &Running,
        shard: ShardId,
        replica: &Replica,
        applied: EntryId,
    ) -> Result<(), String> {
        let range = running.wal.range(shard);
        let Some(first) = range.first else { return Ok(()) };
        // What came by a snapshot was not applied here: until it is purged, the log may hold what it contradicts.
        let first =
            first.max(replica.status().checkpointed.map_or(first, |checkpoint| checkpoint.index.next()));
        let seen = self.seen.get(&(running.life, shard)).map_or(first, |seen| seen.next());
        let (mut from, to) = (seen.max(first), applied.index.next());
        while from < to {
            // What was purged or truncated meanwhile is not there.
            let Ok(entries) = running.wal.read(shard, from, to, READ_BYTES) else { break };
            let Some(last) = entries.last() else { break };
            let upto = last.id.index;
            for entry in entries {
                let mut hasher = blake3::Hasher::new();
                for piece in entry.payload.pieces() {
                    hasher.update(piece);
                }
                let found = (entry.id, hasher.finalize());
                self.checks.entries += 1;
                let known = self.entries.entry((shard, entry.id.index)).or_insert(found);
                if *known != found {
                    return Err(format!("has applied entry {:?}, and others {:?}", found.0, known.0));
                }
            }
            from = upto.next();
        }
        self.seen.insert((running.life, shard), applied.index);
        Ok(())
    }

    fn look_at_state(&mut self, shard: ShardId, replica: &Replica) -> Result<(), String> {
        let state = replica.shard();
        let Some(applied) = state.applied().last else { return Ok(()) };
        // Its disk may have lost its power just now.
        let Ok(hash) = state.state_hash().map(blake3::Hash::from) else { return Ok(()) };
        self.checks.states += 1;
        let known = self.states.entry((shard, applied.index)).or_insert(hash);
        if *known != hash {
            return Err(format!("has another state than others after entry {}", applied.index));
        }
        let short = hash.to_hex();
        self.trace.note(format_args!("{}: state {} at {}", replica.node(), &short[..16], applied.index));
        Ok(())
    }
}
