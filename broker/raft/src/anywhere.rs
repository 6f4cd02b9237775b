//! What a replica does for whoever asks it, although another one leads.

use std::time::Duration;

use tidemill_protocol::{LogIndex, NodeId};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{ProposeError, ReadError};
use crate::forward::Slot;
use crate::gate::Held;
use crate::peer_network::CallError;
use crate::pending::Pending;
use crate::proposer::Permit;
use crate::replica::{Peers, Replica};
use crate::rpc::{Answer, request};
use crate::status::ReplicaRole;
use crate::types::LogId;

/// How many replicas are asked one after the other before there must be news of a leader.
const HOPS_MAX: usize = 8;
/// How often news of a leader are waited for, at the most.
const NEWS_MAX: usize = 8;
/// How long to wait for news of a leader before one is asked again that was wrong, or could not be reached.
const NEWS_PATIENCE: Duration = Duration::from_millis(500);

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
        self.submit_with(unit, None)
    }

    /// The same for a unit that something is held for, whether anybody waits for its answer or not: as of
    /// [`Permit::submit_held`] where this replica leads; else until the leader answers, or the way to it breaks off.
    pub fn submit_held(self, unit: Unit, held: Held) -> Pending {
        self.submit_with(unit, Some(held))
    }

    fn submit_with(self, unit: Unit, held: Option<Held>) -> Pending {
        match self.0 {
            Place::Here(permit) => permit.submit_with(unit, held),
            Place::There(slot) => slot.submit(unit, held),
        }
    }
}

/// Who looks for a shard's leader: a replica that may be another one's follower, or whoever has none.
pub(crate) trait Seeker: Send {
    /// Who leads, as far as is known; waits until the deadline at the most for somebody to, where that can be heard.
    fn leader(
        &mut self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<NodeId>, ProposeError>> + Send;

    /// Has a unit written by who is taken for the leader.
    fn ask(
        &mut self,
        leader: NodeId,
        unit: Unit,
        deadline: Instant,
    ) -> impl Future<Output = Result<UnitResult, ProposeError>> + Send;

    /// Waits for news of a leader.
    fn news(&mut self, until: Instant) -> impl Future<Output = ()> + Send;

    /// Who led at last, as far as is known.
    fn last_heard(&self) -> Option<NodeId>;
}

/// Looks for the leader, and has the unit written there.
///
/// # Errors
/// As of [`Replica::propose_anywhere`].
pub(crate) async fn propose_at_leader<S: Seeker>(
    seeker: &mut S,
    unit: Unit,
    deadline: Instant,
) -> Result<UnitResult, ProposeError> {
    let (mut search, mut hint) = (Search::default(), None);
    loop {
        let known = match hint.take() {
            Some(leader) => Some(leader),
            None => seeker.leader(deadline).await?,
        };
        let mut error = ProposeError::NotLeader { leader: None };
        if let Some(leader) = known {
            error = match seeker.ask(leader, unit.clone(), deadline).await {
                // Where it is the replica here that has stopped, the next look for a leader says so.
                Err(
                    error @ (ProposeError::NotLeader { .. }
                    | ProposeError::NoQuorum
                    | ProposeError::Stopped { others_vote: true, .. }),
                ) => error,
                done => return done,
            };
            hint = search.next(leader, error.leader());
        }
        let mut goes_on = hint.is_some();
        if !goes_on {
            seeker.news(news_until(deadline)).await;
            goes_on = search.begin_anew();
        }
        if !goes_on || Instant::now() >= deadline {
            return Err(match error {
                ProposeError::NoQuorum => error,
                _ => ProposeError::NotLeader { leader: seeker.last_heard() },
            });
        }
    }
}

fn news_until(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + NEWS_PATIENCE)
}

/// Waits a moment for news that `role` has not seen.
async fn news(role: &mut watch::Receiver<ReplicaRole>, until: Instant) {
    drop(tokio::time::timeout_at(until, role.changed()).await);
}

/// A look for the leader. It knows who was asked since there was news of one: where each of two takes the other for it, nobody is sent to and fro between them.
#[derive(Default)]
struct Search {
    since_news: Vec<NodeId>,
    waits: usize,
}

impl Search {
    /// Whom to ask next, where `asked` was no leader and named another one; none where there must be news first.
    fn next(&mut self, asked: NodeId, named: Option<NodeId>) -> Option<NodeId> {
        self.since_news.push(asked);
        named.filter(|next| self.since_news.len() < HOPS_MAX && !self.since_news.contains(next))
    }

    /// Begins anew; false where that was often enough.
    fn begin_anew(&mut self) -> bool {
        self.since_news.clear();
        self.waits += 1;
        self.waits <= NEWS_MAX
    }

    /// Waits a moment for news that `role` has not seen; false where that was often enough.
    async fn may_wait(&mut self, role: &mut watch::Receiver<ReplicaRole>, deadline: Instant) -> bool {
        news(role, news_until(deadline)).await;
        self.begin_anew()
    }
}

/// A replica that looks for its shard's leader.
struct Member {
    replica: Replica,
    role: watch::Receiver<ReplicaRole>,
}

impl Seeker for Member {
    async fn leader(&mut self, deadline: Instant) -> Result<Option<NodeId>, ProposeError> {
        self.replica.known_leader(&mut self.role, deadline).await.map(Some)
    }

    async fn ask(
        &mut self,
        leader: NodeId,
        unit: Unit,
        deadline: Instant,
    ) -> Result<UnitResult, ProposeError> {
        match &self.replica.inner().peers {
            Some(peers) if leader != self.replica.node() => {
                peers.forwarder.propose(leader, unit, deadline).await
            }
            _ => self.replica.propose(unit).await,
        }
    }

    async fn news(&mut self, until: Instant) {
        news(&mut self.role, until).await;
    }

    fn last_heard(&self) -> Option<NodeId> {
        self.role.borrow().leader
    }
}

impl Replica {
    /// Writes one unit, whoever leads the shard: here, or at the leader.
    ///
    /// # Errors
    /// As of [`Self::propose`]. [`ProposeError::OutcomeUnknown`] where the way to the leader broke off behind the unit,
    /// [`ProposeError::NotLeader`] or [`ProposeError::NoQuorum`] where none was found that leads with a majority.
    pub async fn propose_anywhere(&self, unit: Unit) -> Result<UnitResult, ProposeError> {
        if self.inner().peers.is_none() {
            return self.propose(unit).await;
        }
        let deadline = Instant::now() + self.inner().limits.proposal_deadline;
        let mut member = Member { replica: self.clone(), role: self.watch() };
        propose_at_leader(&mut member, unit, deadline).await
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

    /// Waits until somebody is known to lead. News from then on are news to `role`.
    async fn known_leader(
        &self,
        role: &mut watch::Receiver<ReplicaRole>,
        deadline: Instant,
    ) -> Result<NodeId, ProposeError> {
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
        let (mut search, mut role) = (Search::default(), self.watch());
        loop {
            let known = hint.take().or_else(|| role.borrow_and_update().leader);
            let Some(leader) = known.filter(|leader| *leader != self.node()) else {
                if !search.may_wait(&mut role, deadline).await {
                    break;
                }
                match self.read_barrier_here().await {
                    Err(ReadError::NotLeader { leader }) => hint = leader,
                    done => return done,
                }
                continue;
            };
            let mut told = None;
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
                    told = next;
                }
                // Its replica ended; another will lead.
                Ok(Answer::ReadIndex(Err(ReadError::Stopped { .. })))
                | Err(CallError::Refused { .. } | CallError::Peer(_)) => {}
                Ok(_) | Err(_) => return Err(ReadError::NoQuorum),
            }
            if Instant::now() >= deadline {
                return Err(ReadError::NoQuorum);
            }
            hint = search.next(leader, told);
            if hint.is_none() && !search.may_wait(&mut role, deadline).await {
                break;
            }
        }
        Err(ReadError::NotLeader { leader: role.borrow().leader })
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tidemill_protocol::Term;

    use super::*;
    use crate::status::ReplicaState;

    const NODES: [NodeId; 3] = [NodeId::from_raw(1), NodeId::from_raw(2), NodeId::from_raw(3)];

    /// Takes the first one for the leader, and has its answers from a list; behind that there is no majority.
    #[derive(Default)]
    struct Scripted {
        answers: VecDeque<Result<UnitResult, ProposeError>>,
        asked: Vec<NodeId>,
        waits: usize,
    }

    impl Seeker for Scripted {
        async fn leader(&mut self, _deadline: Instant) -> Result<Option<NodeId>, ProposeError> {
            Ok(Some(NODES[0]))
        }

        async fn ask(
            &mut self,
            leader: NodeId,
            _unit: Unit,
            _deadline: Instant,
        ) -> Result<UnitResult, ProposeError> {
            self.asked.push(leader);
            self.answers.pop_front().unwrap_or(Err(ProposeError::NoQuorum))
        }

        async fn news(&mut self, until: Instant) {
            self.waits += 1;
            tokio::time::sleep_until(until).await;
        }

        fn last_heard(&self) -> Option<NodeId> {
            Some(NODES[0])
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_lacks_a_majority_does_not_end_the_search() {
        let [one, two, _] = NODES;
        let names = |leader| Err(ProposeError::NotLeader { leader: Some(leader) });
        let answers = [Err(ProposeError::NoQuorum), names(two), names(one), Ok(UnitResult::Done)];
        let mut seeker = Scripted { answers: answers.into(), ..Scripted::default() };
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(propose_at_leader(&mut seeker, Unit::Tick, deadline).await, Ok(UnitResult::Done));
        assert_eq!((seeker.asked, seeker.waits), (vec![one, one, two, one], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn but_it_ends_and_says_so() {
        let mut patient = Scripted::default();
        let deadline = Instant::now() + Duration::from_secs(60);
        let refused = propose_at_leader(&mut patient, Unit::Tick, deadline).await;
        assert_eq!((refused, patient.asked.len()), (Err(ProposeError::NoQuorum), NEWS_MAX + 1));
        let mut hasty = Scripted::default();
        let deadline = Instant::now() + NEWS_PATIENCE * 2;
        let refused = propose_at_leader(&mut hasty, Unit::Tick, deadline).await;
        assert_eq!((refused, hasty.asked.len()), (Err(ProposeError::NoQuorum), 2), "nobody waits any more");
    }

    #[test]
    fn two_that_take_each_other_for_the_leader_are_asked_once() {
        let [one, two, three] = NODES;
        let mut search = Search::default();
        assert_eq!(search.next(one, Some(two)), Some(two));
        assert_eq!(search.next(two, Some(one)), None, "it was asked");
        assert_eq!(search.next(two, Some(two)), None, "nobody is sent to where the word comes from");
        assert_eq!(search.next(two, Some(three)), Some(three));
        assert!(search.begin_anew());
        assert_eq!(search.next(two, Some(one)), Some(one), "there may have been news");
    }

    #[test]
    fn a_look_for_the_leader_has_an_end() {
        let mut search = Search::default();
        let named = (1..).map(NodeId::from_raw);
        let hops = named
            .zip((2..).map(NodeId::from_raw))
            .take_while(|(one, two)| search.next(*one, Some(*two)).is_some());
        assert_eq!(hops.count(), HOPS_MAX - 1, "the one after the last is not asked");
        assert_eq!((0..100).take_while(|_| search.begin_anew()).count(), NEWS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_not_seen_is_news() {
        let role_under =
            |leader| ReplicaRole { state: ReplicaState::Follower, term: Term::default(), leader };
        let (sender, kept) = watch::channel(role_under(None));
        sender.send(role_under(Some(NODES[0]))).unwrap();
        let (mut search, mut role) = (Search::default(), kept.clone());
        role.borrow_and_update();
        let begun = Instant::now();
        let deadline = begun + NEWS_PATIENCE * 3;
        assert!(search.may_wait(&mut role, deadline).await);
        assert_eq!(begun.elapsed(), NEWS_PATIENCE, "there were none");
        sender.send(role_under(Some(NODES[1]))).unwrap();
        assert!(search.may_wait(&mut role, deadline).await);
        assert_eq!(begun.elapsed(), NEWS_PATIENCE, "they came while nobody waited");
    }
}
