//! Whether the replicas of a group have the same state.
//!
//! ```text
//!  leader, now and then   TakeStateHash ---> in the log: every replica marks its state as of that very entry
//!  each replica           its next checkpoint writes the marked state; its hash is read off the state file, beside apply
//!                         ReportStateHash --> in the log: every replica sees every report
//!  each replica           a majority reported another hash than this one did: it has gone astray, and stops
//! ```
//! Reports change no state. What is gathered of them is memory of the replicas that run: one that starts meanwhile misses a round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tidemill_protocol::{LogIndex, NodeId, ShardId};
use tidemill_shard::{MarkedState, StateHash, Unit};
use tokio::time::Instant;

use crate::config::ReplicaLimits;
use crate::replica::Replica;
use crate::runtime::blocking;

/// A shard in which so little happens that the bound of bytes is not reached is compared after so many intervals.
const QUIET_INTERVALS: u32 = 6;
/// And not at all where no more than about the reports themselves was applied.
const QUIET_BYTES: u64 = 64 << 10;
/// Nodes whose reports of one round are kept: more than any group has members.
const REPORTS_MAX: usize = 64;
/// Rounds whose reports are kept: a replica may still read its state while the others are at the next round.
const ROUNDS_MAX: usize = 4;

type Reports = BTreeMap<NodeId, [u8; 32]>;

/// What a replica knows of the rounds.
pub(crate) struct Comparison {
    bytes: u64,
    interval: Duration,
    known: Mutex<Known>,
}

struct Known {
    /// Which replica this is; `None` while entries are no news, but what the log brings again at a start.
    own: Option<NodeId>,
    bytes_since: u64,
    last: Instant,
    /// By the entry that the hashes are of: the newest ones that somebody reported.
    rounds: BTreeMap<LogIndex, Round>,
    /// What this replica found, until it is in the log.
    unreported: Option<StateHash>,
}

#[derive(Default)]
struct Round {
    reports: Reports,
    /// What it came to is said.
    told: bool,
}

/// What the reports of a round come to, for one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not enough reports yet, or this replica's is missing.
    Open,
    /// This replica's hash is that of a majority; others may differ.
    Agreed,
    /// A majority has another hash than this replica.
    Astray { own: [u8; 32], majority: [u8; 32] },
    /// Hashes differ, and none can come to a majority any more.
    Undecided,
}

/// What is to be done about a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// Others differ: for people to know.
    Told(String),
    /// This replica stops.
    Stops(String),
}

impl Comparison {
    pub(crate) fn new(limits: &ReplicaLimits) -> Self {
        let known = Known {
            own: None,
            bytes_since: 0,
            last: Instant::now(),
            rounds: BTreeMap::new(),
            unreported: None,
        };
        Self {
            bytes: limits.state_hash_bytes,
            interval: limits.state_hash_interval,
            known: Mutex::new(known),
        }
    }

    /// From here on what the replica `own` applies is news.
    pub(crate) fn begin(&self, own: NodeId) {
        self.known.lock().own = Some(own);
    }

    /// An entry of so many bytes was applied. Says whether the state is to be marked.
    pub(crate) fn applied(&self, bytes: usize, units: &[Unit]) -> bool {
        let takes = units.iter().any(|unit| matches!(unit, Unit::TakeStateHash));
        let mut known = self.known.lock();
        known.bytes_since = if takes { 0 } else { known.bytes_since.saturating_add(bytes as u64) };
        if takes {
            known.last = Instant::now();
        }
        takes && known.own.is_some()
    }

    /// How long ago the last round began, or this replica started.
    fn since(&self) -> Duration {
        self.known.lock().last.elapsed()
    }

    /// Whether it is time for the leader to have the replicas compared, so long after the last round.
    fn is_due(&self, elapsed: Duration) -> bool {
        let known = self.known.lock();
        let quiet =
            elapsed >= self.interval.saturating_mul(QUIET_INTERVALS) && known.bytes_since >= QUIET_BYTES;
        quiet || (elapsed >= self.interval && known.bytes_since >= self.bytes)
    }

    /// Takes a report that is in the log, in an entry that `leader` proposed.
    pub(crate) fn report(
        &self,
        shard: ShardId,
        report: &StateHash,
        leader: NodeId,
        voters: &BTreeSet<NodeId>,
    ) -> Option<Alarm> {
        let mut known = self.known.lock();
        let own = known.own?;
        let round = known.rounds.entry(report.index).or_default();
        if round.reports.len() < REPORTS_MAX {
            round.reports.insert(NodeId::from_raw(report.node), report.hash);
        }
        let verdict = judge(own, voters, &round.reports);
        let alarm = if verdict == Verdict::Open || round.told {
            None
        } else {
            alarm(shard, own, report.index, leader, voters, (verdict, &round.reports))
        };
        round.told |= alarm.is_some();
        // Maybe this one itself, when it is older than all of them.
        while known.rounds.len() > ROUNDS_MAX {
            known.rounds.pop_first();
        }
        alarm
    }
}

/// What the reports come to for the replica `own`.
fn judge(own: NodeId, voters: &BTreeSet<NodeId>, reports: &Reports) -> Verdict {
    let majority = voters.len() / 2 + 1;
    let mut votes = BTreeMap::<[u8; 32], usize>::new();
    for (_, hash) in reports.iter().filter(|(node, _)| voters.contains(node)) {
        *votes.entry(*hash).or_default() += 1;
    }
    let most = votes.iter().max_by_key(|(_, count)| **count);
    let Some((hash, count)) = most else { return Verdict::Open };
    if *count >= majority {
        return match reports.get(&own) {
            Some(reported) if reported == hash => Verdict::Agreed,
            Some(reported) => Verdict::Astray { own: *reported, majority: *hash },
            None => Verdict::Open,
        };
    }
    let silent = voters.len() - votes.values().sum::<usize>();
    if votes.len() > 1 && count + silent < majority { Verdict::Undecided } else { Verdict::Open }
}

fn alarm(
    shard: ShardId,
    own: NodeId,
    index: LogIndex,
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
    (verdict, reports): (Verdict, &Reports),
) -> Option<Alarm> {
    const ADVICE: &str = "stop its broker, keep a copy of the data directory, and bring it back with an empty one and a token of \
                          `tidemill cluster add --broker N`; report it, with what is logged";
    match verdict {
        Verdict::Open => None,
        Verdict::Agreed => {
            let ours = reports.get(&own)?;
            let other = reports.iter().find(|(_, hash)| *hash != ours);
            let (node, hash) = other?;
            Some(Alarm::Told(format!(
                "the state of replica {node} of shard {shard} as of entry {index} has hash {}, and a majority, this replica among them, has {}: \
                 it stops; {ADVICE}",
                short(hash),
                short(ours)
            )))
        }
        Verdict::Astray { own: ours, majority } => Some(Alarm::Stops(format!(
            "the state of this replica ({own}) of shard {shard} as of entry {index} has hash {}, and a majority of its group has {}: it went \
             astray, and acknowledges nothing any more; {ADVICE}",
            short(&ours),
            short(&majority)
        ))),
        Verdict::Undecided => {
            let all: Vec<_> = reports.iter().map(|(node, hash)| format!("{node}: {}", short(hash))).collect();
            let what = format!(
                "the replicas of shard {shard} have different states as of entry {index}, and no majority has the same ({}): it is not known \
                 which of them is right; compare what they hold before you trust either",
                all.join(", ")
            );
            // Of two, the one that leads goes on: the other has only what that gave it.
            let stops = voters.len() == 2 && own != leader && reports.contains_key(&own);
            Some(if stops { Alarm::Stops(what) } else { Alarm::Told(what) })
        }
    }
}

/// Enough of a hash to tell it from another.
fn short(hash: &[u8; 32]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Replica {
    /// Takes this replica's part in comparing the states of its group: reports what its state was found to be, and where it leads, begins a
    /// round when one is due. To be called now and then, every second or so; reads the whole state file once a round.
    pub async fn compare_states(&self) {
        if self.watch().borrow().stopped().is_some() {
            return;
        }
        self.report_state().await;
        let members = self.members();
        let comparison = self.inner().machine.comparison();
        let is_alone = members.voters.len() + members.learners.len() < 2;
        if !is_alone
            && self.watch().borrow().is_leader()
            && comparison.is_due(comparison.since())
            && let Err(error) = self.propose(Unit::TakeStateHash).await
        {
            tracing::debug!(shard = %self.shard_id(), %error, "the replicas' states will be compared later");
        }
    }

    async fn report_state(&self) {
        let shard = self.shard_id();
        let comparison = self.inner().machine.comparison();
        if let Some(marked) = self.shard().take_marked_state()
            && let Some(report) = self.hash(marked).await
        {
            comparison.known.lock().unreported = Some(report);
        }
        let unreported = comparison.known.lock().unreported;
        let Some(report) = unreported else { return };
        match self.propose_anywhere(Unit::ReportStateHash(report)).await {
            Ok(_done) => comparison.known.lock().unreported = None,
            Err(error) => {
                tracing::debug!(%shard, %error, "the hash of this replica's state will be reported later");
            }
        }
    }

    /// Reads the whole of a marked state.
    async fn hash(&self, marked: MarkedState) -> Option<StateHash> {
        let shard = self.shard_id();
        let index = marked.applied().index;
        let started = Instant::now();
        let hashed = blocking(self.inner().machine.background(), move || marked.hash()).await;
        let hash = match hashed {
            Ok(Ok(hash)) => hash,
            Ok(Err(error)) => {
                tracing::error!(%shard, %error, "the state of this replica can't be read to be compared with the others'");
                return None;
            }
            Err(_panicked) => return None,
        };
        metrics::counter!("tidemill_state_hashes_total", "shard" => shard.to_string()).increment(1);
        metrics::histogram!("tidemill_state_hash_seconds", "shard" => shard.to_string())
            .record(started.elapsed());
        Some(StateHash { index, node: self.node().get(), hash })
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
