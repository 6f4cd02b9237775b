//! Brokers come and go while everything else happens: another one joins with a token, and a while later one of them all is drained,
//! removed, ended, and its data deleted, so that there are as many as before.
//!
//! ```text
//!   Whole -> Invited <-> Joining -> More -> Leaving -> Whole
//! ```
//!
//! The siege takes a step whenever it looks, and strikes in between: the broker that joins starts beside it, and what it waits for
//! the cluster does by itself. What is refused or not answered while other faults hold is tried again later. A change that takes too
//! long under fire is left in peace until it has come to its end, which it must.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_client::messages::{ClusterStatus, ShardPlacement, ShardReplica};
use tidemill_client::{BrokerId, ErrorCode, RequestError};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::faults::FaultKind;
use super::lives::PANICKED;
use super::siege::Siege;
use crate::{Outcome, TestBroker, WorldError};

/// For so long a broker that has joined is one more, before one goes.
const MORE_MS: std::ops::Range<u64> = 3_000..25_000;
/// Tokens that have expired before anybody can use them.
const SHORT_PERCENT: u64 = 10;
const SHORT_VALID: Duration = Duration::from_millis(1);
/// For an answer of the cluster.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// After a refusal.
const AGAIN_AFTER: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A change may take so long under fire; then it is left in peace, and comes to its end within the other.
const CHANGE_PATIENCE: Duration = Duration::from_secs(180);
const END_DEADLINE: Duration = Duration::from_secs(300);
/// Attempts at a removal whose outcome is not known.
const REMOVALS_MAX: usize = 20;
/// A broker hears that it was removed, and ends by itself, unless it hears nothing.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Replicas of each shard, where there are brokers enough.
const REPLICAS: usize = 3;
/// The controller's shard, which every broker follows.
const CONTROLLER: u32 = 0;

type Starting = JoinHandle<Result<TestBroker, WorldError>>;

/// Who comes and goes, and how far that is.
#[derive(Debug, Default)]
pub(super) struct Members {
    stage: Stage,
    /// When the change began that is under way.
    begun: Option<Instant>,
    /// Nothing is waited for that need not be.
    is_ending: bool,
}

#[derive(Debug, Default)]
enum Stage {
    /// As many as at first.
    #[default]
    Whole,
    /// This one is to be asked in then.
    Invited { id: u32, again: Instant },
    /// It starts, with a token.
    Joining { id: u32, starting: Starting },
    /// One more than at first, until then.
    More { until: Instant },
    /// This one is to be drained and removed; it is looked at then.
    Leaving { id: u32, again: Instant },
}

impl Members {
    /// Whether such a fault can be survived, or be done at all, as far as a change is.
    pub(super) const fn allow(&self, kind: FaultKind) -> bool {
        match kind {
            FaultKind::Members => matches!(self.stage, Stage::Whole),
            // Damage needs all others whole and up to date, and replicas that move are not.
            FaultKind::WalDamage | FaultKind::SegmentDamage => {
                matches!(self.stage, Stage::Whole | Stage::More { .. })
            }
            _ => true,
        }
    }

    /// Whether a broker is to be drained and removed, or may have been removed.
    pub(super) const fn is_leaving(&self, broker: u32) -> bool {
        matches!(self.stage, Stage::Leaving { id, .. } if id == broker)
    }

    fn is_overdue(&self) -> bool {
        self.begun.is_some_and(|begun| begun.elapsed() >= CHANGE_PATIENCE)
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // Who starts must not outlive the directory that it starts in.
        if let Stage::Joining { starting, .. } = &self.stage {
            starting.abort();
        }
    }
}

/// What came of something that the cluster was asked for.
enum Answer<T> {
    Done(T),
    /// Nothing changed.
    Refused,
    /// It may have been done.
    Unknown,
}

/// What is next for a broker that is to leave.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Drain,
    Wait,
    Remove,
    Gone,
}

impl Siege<'_> {
    /// Another broker is to join, and one of them all to leave after it.
    pub(super) async fn begin_member_change(&mut self) -> Outcome<()> {
        let id = self.several.make_room().await?;
        self.members.stage = Stage::Invited { id, again: Instant::now() };
        self.members.begun = Some(Instant::now());
        self.step().await
    }

    /// Goes on with a change that is under way, if there is something to do.
    pub(super) async fn tend_members(&mut self) -> Outcome<()> {
        self.step().await?;
        if self.members.is_overdue() {
            return self.end_member_change().await;
        }
        Ok(())
    }

    /// With fair weather and no other fault, brings a change that is under way to its end, and waits until the brokers that are
    /// left hold everything.
    pub(super) async fn end_member_change(&mut self) -> Outcome<()> {
        self.fair_weather();
        self.members.is_ending = true;
        let begun = Instant::now();
        while !matches!(self.members.stage, Stage::Whole) {
            if begun.elapsed() >= END_DEADLINE {
                let (stage, logs) = (&self.members.stage, self.log_tails());
                return Err(format!(
                    "brokers don't come and go within {END_DEADLINE:?}, though all run and hear each other: {stage:?}; {logs}"
                )
                .into());
            }
            self.step().await?;
            sleep(LOOK_INTERVAL).await;
        }
        self.members.is_ending = false;
        if self.fires.members.joined > 0 {
            let ids: BTreeSet<u32> = self.several.ids().into_iter().collect();
            let cluster = &self.several.cluster;
            let spread = |status: &ClusterStatus| is_spread(status, &ids);
            cluster.until(&self.client, "bring everything to the brokers that stayed", spread).await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Outcome<()> {
        let now = Instant::now();
        let next = match std::mem::take(&mut self.members.stage) {
            Stage::Invited { id, again } if now >= again => self.ask_in(id).await?,
            Stage::Joining { id, starting } if starting.is_finished() => self.come(id, starting).await?,
            Stage::More { until } if self.members.is_ending || now >= until => {
                let id = self.any();
                self.recording.note(format!("broker {id} is to leave"));
                Stage::Leaving { id, again: now }
            }
            Stage::Leaving { id, again } if now >= again => self.leave(id).await?,
            waits => waits,
        };
        if matches!(next, Stage::Whole) {
            self.members.begun = None;
        }
        self.members.stage = next;
        Ok(())
    }

    async fn ask_in(&mut self, id: u32) -> Outcome<Stage> {
        let client = self.client.clone();
        let is_short = self.random.chance(SHORT_PERCENT) && !self.members.is_ending;
        let asking = client.create_join_token(Some(BrokerId::new(id)), is_short.then_some(SHORT_VALID));
        let Answer::Done(token) = self.answer(&format!("a token for broker {id}"), asking).await? else {
            return Ok(Stage::Invited { id, again: Instant::now() + AGAIN_AFTER });
        };
        let options = self.several.joining(id, &token.token);
        Ok(Stage::Joining { id, starting: tokio::spawn(TestBroker::start(options)) })
    }

    async fn come(&mut self, id: u32, starting: Starting) -> Outcome<Stage> {
        let why = match starting.await? {
            Ok(broker) => {
                self.several.welcome(id, broker);
                self.fires.members.joined += 1;
                self.recording.note(format!("broker {id} has joined"));
                return Ok(Stage::More { until: Instant::now() + self.some(MORE_MS) });
            }
            Err(WorldError::Ended { log, .. }) if !log.contains(PANICKED) => {
                log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
            }
            Err(WorldError::TimedOut { .. }) => "it does not serve in time".to_owned(),
            Err(error) => return Err(error.into()),
        };
        self.again_later(&format!("broker {id} joins"), &why);
        Ok(Stage::Invited { id, again: Instant::now() + AGAIN_AFTER })
    }

    async fn leave(&mut self, id: u32) -> Outcome<Stage> {
        let client = self.client.clone();
        let soon = || Ok(Stage::Leaving { id, again: Instant::now() + LOOK_INTERVAL });
        let status = timeout(ANSWER_DEADLINE, client.cluster_status()).await;
        let Ok(Ok(status)) = status else { return soon() };
        match next_of(&status, id) {
            Next::Wait => soon(),
            Next::Drain => {
                let asking = client.drain_broker(BrokerId::new(id), false);
                match self.answer(&format!("broker {id} is drained"), asking).await? {
                    Answer::Done(()) => soon(),
                    Answer::Refused | Answer::Unknown => {
                        Ok(Stage::Leaving { id, again: Instant::now() + AGAIN_AFTER })
                    }
                }
            }
            Next::Remove => self.remove(id).await,
            Next::Gone => self.end(id).await,
        }
    }

    async fn remove(&mut self, id: u32) -> Outcome<Stage> {
        let client = self.client.clone();
        for _ in 0..REMOVALS_MAX {
            let asking = client.remove_broker(BrokerId::new(id));
            match self.answer(&format!("broker {id} is removed"), asking).await? {
                Answer::Done(()) => return self.end(id).await,
                Answer::Refused => {
                    return Ok(Stage::Leaving { id, again: Instant::now() + AGAIN_AFTER });
                }
                // If it is removed, it does not start any more when the next fault wants it to.
                Answer::Unknown => {
                    self.fair_weather();
                    sleep(LOOK_INTERVAL).await;
                }
            }
        }
        Err(format!("whether broker {id} is removed is not to be heard; {}", self.log_tails()).into())
    }

    /// It is removed: its process ends, and its data goes.
    async fn end(&mut self, id: u32) -> Outcome<Stage> {
        let broker = self.several.cluster.broker(id);
        if broker.ended(ENDS_WITHIN).await.is_err() {
            broker.kill().await?;
        }
        self.several.part_with(id)?;
        self.fires.members.removed += 1;
        self.recording.note(format!("broker {id} is gone"));
        Ok(Stage::Whole)
    }

    /// What the cluster answers. An error is what it may not say, whatever else goes on.
    async fn answer<T>(
        &mut self,
        what: &str,
        asking: impl Future<Output = Result<T, RequestError>>,
    ) -> Outcome<Answer<T>> {
        let (answer, why) = match timeout(ANSWER_DEADLINE, asking).await {
            Ok(Ok(done)) => return Ok(Answer::Done(done)),
            Ok(Err(error)) if error.is(ErrorCode::ClusterChangeRefused) => {
                (Answer::Refused, error.to_string())
            }
            Ok(Err(error)) if is_uncertain(&error) => (Answer::Unknown, error.to_string()),
            Ok(Err(error)) => return Err(format!("{what}: {error}").into()),
            Err(_) => (Answer::Unknown, format!("no answer within {ANSWER_DEADLINE:?}")),
        };
        self.again_later(what, &why);
        Ok(answer)
    }

    fn again_later(&mut self, what: &str, why: &str) {
        self.fires.members.tried_again += 1;
        self.recording.note(format!("{what}: again later, for: {why}"));
    }
}

/// Whether a request may have been done, or may be done later. Where disks fail, the leader that was asked may have stopped.
fn is_uncertain(error: &RequestError) -> bool {
    matches!(error, RequestError::Connect(_)) || error.retriable() || error.is(ErrorCode::StorageFailed)
}

fn next_of(status: &ClusterStatus, id: u32) -> Next {
    let record = status.brokers.iter().find(|record| record.broker_id == id);
    // Whoever was asked may just be starting.
    let Some(record) = record.filter(|_| !status.placement.is_empty()) else { return Next::Wait };
    match record.state.as_str() {
        "removed" => Next::Gone,
        "active" => Next::Drain,
        _ if status.placement.iter().any(|shard| is_held(shard, id)) => Next::Wait,
        _ => Next::Remove,
    }
}

/// Whether a broker has a replica, or is to have one. It follows the controller as long as it belongs to the cluster.
fn is_held(shard: &ShardPlacement, id: u32) -> bool {
    let counts = |replica: &ShardReplica| replica.voter || shard.shard != CONTROLLER;
    shard.planned.contains(&id)
        || shard.leader == id
        || shard.replicas.iter().any(|replica| replica.broker_id == id && counts(replica))
}

/// Whether each shard has all of its replicas, and nobody else has any.
fn is_spread(status: &ClusterStatus, ids: &BTreeSet<u32>) -> bool {
    let is_whole = |shard: &ShardPlacement| {
        let voters: BTreeSet<u32> =
            shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.broker_id).collect();
        voters.len() == REPLICAS.min(ids.len())
            && shard.replicas.iter().all(|replica| ids.contains(&replica.broker_id))
    };
    !status.placement.is_empty() && status.placement.iter().all(is_whole)
}

#[cfg(test)]
mod tests {
    use tidemill_client::messages::BrokerStatus;

    use super::*;

    fn shard(number: u32, voters: &[u32], planned: &[u32]) -> ShardPlacement {
        let voter = |id: &u32| ShardReplica { broker_id: *id, voter: true, ..ShardReplica::default() };
        ShardPlacement {
            shard: number,
            replicas: voters.iter().map(voter).collect(),
            planned: planned.to_vec(),
            ..ShardPlacement::default()
        }
    }

    fn status(state: &str, placement: Vec<ShardPlacement>) -> ClusterStatus {
        let broker = BrokerStatus { broker_id: 4, state: state.to_owned(), ..BrokerStatus::default() };
        ClusterStatus { brokers: vec![broker], placement, ..ClusterStatus::default() }
    }

    #[test]
    fn a_broker_leaves_in_steps_and_each_may_be_taken_again() {
        let stay = [1, 2, 3];
        let next = |state: &str, placement: Vec<ShardPlacement>| next_of(&status(state, placement), 4);
        assert_eq!(next("active", vec![shard(1, &stay, &stay)]), Next::Drain);
        assert_eq!(next("draining", vec![shard(1, &[1, 2, 4], &stay)]), Next::Wait);
        assert_eq!(next("draining", vec![shard(1, &stay, &[1, 2, 4])]), Next::Wait);
        let mut controller = shard(CONTROLLER, &stay, &stay);
        controller.replicas.push(ShardReplica { broker_id: 4, ..ShardReplica::default() });
        assert_eq!(next("draining", vec![controller, shard(1, &stay, &stay)]), Next::Remove);
        assert_eq!(next("removed", vec![shard(1, &stay, &stay)]), Next::Gone);
        assert_eq!(next("draining", Vec::new()), Next::Wait, "who knows nothing says nothing");
        assert_eq!(next_of(&status("draining", vec![shard(1, &stay, &stay)]), 5), Next::Wait);
    }

    #[test]
    fn everything_is_where_it_should_be_or_it_is_not() {
        let ids = BTreeSet::from([1, 3, 4]);
        let spread = |placement: Vec<ShardPlacement>| is_spread(&status("active", placement), &ids);
        assert!(spread(vec![shard(0, &[3, 1, 4], &[]), shard(1, &[1, 3, 4], &[])]));
        assert!(!spread(vec![shard(0, &[3, 1, 4], &[]), shard(1, &[1, 3], &[])]), "one is missing");
        assert!(!spread(vec![shard(1, &[1, 2, 3], &[])]), "one is with somebody else");
        let mut more = shard(1, &[1, 3, 4], &[]);
        more.replicas.push(ShardReplica { broker_id: 2, ..ShardReplica::default() });
        assert!(!spread(vec![more]), "somebody else still learns");
        assert!(!spread(Vec::new()));
    }

    #[test]
    fn what_other_faults_excuse_is_tried_again() {
        let after = Duration::from_secs(1);
        assert!(is_uncertain(&RequestError::Deadline { after, last: None }));
        assert!(is_uncertain(&RequestError::OutcomeUnknown("cut".to_owned())));
        assert!(!is_uncertain(&RequestError::BadAnswer("what".to_owned())));
    }

    #[test]
    fn one_change_at_a_time_and_no_damage_while_replicas_move() {
        let again = Instant::now();
        let allowed = |stage: Stage| {
            let members = Members { stage, begun: None, is_ending: false };
            [FaultKind::Members, FaultKind::WalDamage, FaultKind::Kill].map(|kind| members.allow(kind))
        };
        assert_eq!(allowed(Stage::Whole), [true, true, true]);
        assert_eq!(allowed(Stage::Invited { id: 4, again }), [false, false, true]);
        assert_eq!(allowed(Stage::More { until: again }), [false, true, true]);
        assert_eq!(allowed(Stage::Leaving { id: 2, again }), [false, false, true]);
    }
}
