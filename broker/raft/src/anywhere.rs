//! What a replica does for whoever asks it, although another one leads.

use std::time::Duration;

use tidemill_protocol::{LogIndex, NodeId};
use tidemill_shard::{Unit, UnitResult};
use tokio::time::Instant;

use crate::error::{ProposeError, ReadError};
use crate::forward::Slot;
use crate::peer_network::CallError;
use crate::pending::Pending;
use crate::proposer::Permit;
use crate::replica::{Peers, Replica};
use crate::rpc::{Answer, request};
use crate::types::LogId;

/// How many replicas are asked one after the other.
pub(crate) const HOPS_MAX: usize = 8;
/// How long to wait for news of a leader before one is asked again that was wrong, or could not be reached.
pub(crate) const NEWS_PATIENCE: Duration = Duration::from_millis(500);

/// Room for one unit at whoever leads the shard.
#[must_use = "room that is not used is room that others wait for"]
pub struct PermitAnywhere(Place);

enum Place {
    Here(Permit),
    There(Slot),
}

impl PermitAnywhere {
    pub(crate) const fn there(slot: Slot) -> Self {
        Self(Place::There(slot))
    }

    /// Queues the unit, which must not be larger than what was reserved.
    pub fn submit(self, unit: Unit) -> Pending {
        match self.0 {
            Place::Here(permit) => permit.submit(unit),
            Place::There(slot) => slot.submit(unit),
        }
    }
}

impl Replica {
    /// Writes one unit, whoever leads the shard: here, or at the leader.
    ///
    /// # Errors
    /// As of [`Self::propose`]. [`ProposeError::OutcomeUnknown`] where the way to the leader broke off behind the unit,
    /// [`ProposeError::NotLeader`] or [`ProposeError::NoQuorum`] where none was found that leads with a majority.
    pub async fn propose_anywhere(&self, unit: Unit) -> Result<UnitResult, ProposeError> {
        let Some(peers) = &self.inner().peers else { return self.propose(unit).await };
        let deadline = Instant::now() + self.inner().limits.proposal_deadline;
        let (mut hint, mut has_quorum) = (None, true);
        for _ in 0..HOPS_MAX {
            let leader = match hint.take() {
                Some(leader) => leader,
                None => self.known_leader(deadline).await?,
            };
            let outcome = if leader == self.node() {
                self.propose(unit.clone()).await
            } else {
                peers.forwarder.propose(leader, unit.clone(), deadline).await
            };
            match outcome {
                // Where it is the replica here that has stopped, the next look for a leader says so.
                Err(
                    error @ (ProposeError::NotLeader { .. }
                    | ProposeError::NoQuorum
                    | ProposeError::Stopped { others_vote: true, .. }),
                ) => {
                    has_quorum = error != ProposeError::NoQuorum;
                    hint = error.leader().filter(|next| *next != leader);
                    if hint.is_none() {
                        self.news(deadline).await;
                    }
                }
                done => return done,
            }
        }
        match has_quorum {
            true => Err(ProposeError::NotLeader { leader: self.watch().borrow().leader }),
            false => Err(ProposeError::NoQuorum),
        }
    }

    /// As [`Self::reserve`], at whoever leads the shard: units that are submitted to the same leader are written in the order of the
    /// calls.
    ///
    /// # Errors
    /// As of [`Self::reserve`]; [`ProposeError::NotLeader`] where nobody is known to lead just now.
    pub async fn reserve_anywhere(&self, bytes: usize) -> Result<PermitAnywhere, ProposeError> {
        let role = self.watch().borrow().clone();
        match (&self.inner().peers, role.leader) {
            (Some(peers), Some(leader)) if leader != self.node() => {
                peers.forwarder.reserve(leader, bytes).await.map(PermitAnywhere::there)
            }
            (Some(_), None) => Err(ProposeError::NotLeader { leader: None }),
            _ => Ok(PermitAnywhere(Place::Here(self.reserve(bytes).await?))),
        }
    }

    /// Waits until somebody is known to lead.
    async fn known_leader(&self, deadline: Instant) -> Result<NodeId, ProposeError> {
        let mut role = self.watch();
        let known = role.wait_for(|role| role.leader.is_some() || role.stopped().is_some());
        let Ok(known) = tokio::time::timeout_at(deadline, known).await else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        let others_vote = self.others_vote();
        let stopped = |reason| ProposeError::Stopped { reason, others_vote };
        let role = known.map_err(|_gone| stopped("it was shut down".into()))?;
        match (role.stopped(), role.leader) {
            (Some(reason), _) => Err(stopped(reason.clone())),
            (None, leader) => leader.ok_or(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Waits a moment for news of a leader.
    async fn news(&self, deadline: Instant) {
        let mut role = self.watch();
        let until = deadline.min(Instant::now() + NEWS_PATIENCE);
        drop(tokio::time::timeout_at(until, role.changed()).await);
    }

    /// Returns once this replica's state shows everything that was acknowledged before the call, by whichever replica. A
    /// follower asks its leader how far that is.
    ///
    /// # Errors
    /// [`ReadError::NotLeader`] where no leader is known, or in a group without peers; [`ReadError::NoQuorum`] where the leader
    /// can't be reached, has no majority, or this replica does not come that far in time.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        match (self.read_barrier_here().await, &self.inner().peers) {
            (Err(ReadError::NotLeader { leader }), Some(peers)) => self.read_barrier_at(peers, leader).await,
            (done, _) => done,
        }
    }

    async fn read_barrier_at(&self, peers: &Peers, mut hint: Option<NodeId>) -> Result<(), ReadError> {
        let patience = self.inner().limits.reserve_deadline;
        let deadline = Instant::now() + patience;
        for _ in 0..HOPS_MAX {
            let known = hint.take().or_else(|| self.watch().borrow().leader);
            let Some(leader) = known.filter(|leader| *leader != self.node()) else {
                self.news(deadline).await;
                match self.read_barrier_here().await {
                    Err(ReadError::NotLeader { leader }) => hint = leader,
                    done => return done,
                }
                continue;
            };
            let asked = request::read_index(&peers.links.address(leader));
            let left = deadline.saturating_duration_since(Instant::now());
            match peers.links.call(leader, asked, left).await {
                Ok(Answer::ReadIndex(Ok(index))) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    return if self.wait_applied(index, left).await {
                        Ok(())
                    } else {
                        Err(ReadError::NoQuorum)
                    };
                }
                Ok(Answer::ReadIndex(Err(ReadError::NotLeader { leader: next }))) => {
                    hint = next.filter(|next| *next != leader);
                }
                // Its replica ended; another will lead.
                Ok(Answer::ReadIndex(Err(ReadError::Stopped { .. })))
                | Err(CallError::Refused { .. } | CallError::Peer(_)) => {}
                Ok(_) | Err(_) => return Err(ReadError::NoQuorum),
            }
            if Instant::now() >= deadline {
                return Err(ReadError::NoQuorum);
            }
            if hint.is_none() {
                self.news(deadline).await;
            }
        }
        Err(ReadError::NotLeader { leader: self.watch().borrow().leader })
    }

    /// Waits until an entry is applied here; false where it is not within `patience`, or the replica ended.
    pub async fn wait_applied(&self, index: LogIndex, patience: Duration) -> bool {
        let is_applied = |applied: &Option<LogId>| applied.as_ref().is_some_and(|id| id.index >= index.get());
        if self.shard().applied().last.is_some_and(|applied| applied.index >= index) {
            return true;
        }
        let mut progress = self.inner().raft.watch_apply_progress();
        matches!(tokio::time::timeout(patience, progress.wait_until(is_applied)).await, Ok(Ok(_)))
    }
}
