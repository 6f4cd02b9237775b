//! Makes shards' groups what the controller planned: done by each shard's leader, one step at a time.
//!
//! ```text
//!   planned replicas, not in the group   -> learner             (it catches up: by the log, or by a snapshot)
//!   a leader that is not to be a voter   -> hands the lead over (a leader that removed itself would lead on without being a member)
//!   all planned ones close to the end    -> one joint change    (old and new majority, then the new one alone)
//!   members that are not planned         -> removed
//!   what the group is now                -> reported to the controller, whenever it changes or somebody else leads
//! ```
//!
//! Every step can be done twice, by this leader or the next: what to do is read off the group itself.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_controller::{Controller, ControllerCommand, ReportedMembers};
use tidemill_protocol::{NodeId, ShardId, Term};
use tidemill_raft::{ChangeError, GroupMembers, Replica};
use tidemill_shard::Unit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handover;
use super::losses::replacement;
use crate::shards::Shards;
use crate::view::ViewReader;

/// What changed unheard is seen at the latest after this.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A step that failed is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// A learner that lacks no more entries than this becomes a voter: it is at the end before the change is through.
const CLOSE_ENTRIES: u64 = 256;
/// Heard of within this time, a learner is there.
const PRESENT_WITHIN: Duration = Duration::from_secs(2);
/// How long the controller may take to answer before the shard's own steps go on: what it is asked is asked again.
const CONTROLLER_PATIENCE: Duration = Duration::from_secs(2);

/// What is to be done next with a group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(NodeId),
    HandOver(NodeId),
    ChangeVoters {
        voters: BTreeSet<NodeId>,
        /// Of those that are voters no longer, who stays as a learner.
        keep: BTreeSet<NodeId>,
    },
    RemoveLearner(NodeId),
}

/// What a group should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
}

/// Follows the plan for one shard, for as long as it is led here.
pub(crate) async fn follow(shards: Shards, shard: ShardId, view: ViewReader, stopping: CancellationToken) {
    let mut view = view;
    let mut pause = LOOK_INTERVAL;
    let mut reported = None;
    loop {
        tokio::select! {
            changed = view.changed() => if changed.is_none() { return },
            () = tokio::time::sleep(pause) => {}
            () = stopping.cancelled() => return,
        }
        pause = LOOK_INTERVAL;
        let Some(replica) = shards.replica(shard).filter(|replica| replica.watch().borrow().is_leader())
        else {
            reported = None;
            continue;
        };
        let now = view.now();
        report(&shards, &replica, now.controller(), &mut reported).await;
        replace_lost(&shards, &replica, now.controller()).await;
        let Some(wanted) = wanted(now.controller(), shard) else { continue };
        let is_close = |node| is_close(&replica, node);
        let Some(step) = next_step(replica.node(), &wanted, &replica.members(), is_close) else { continue };
        tracing::info!(%shard, ?step, "the group changes");
        if let Err(error) = take(&replica, &step).await {
            tracing::info!(%shard, ?step, %error, "the group's change will be tried again");
            pause = RETRY_INTERVAL;
        }
    }
}

/// Has the controller plan another replica in the place of one that lost what it had acknowledged, which its broker can't always know:
/// the end of a log that is damaged may look like one that was never written.
async fn replace_lost(shards: &Shards, replica: &Replica, controller: &Controller) {
    let shard = replica.shard_id();
    let planned = |node: &NodeId| {
        controller
            .shard(shard)
            .is_some_and(|record| record.replicas.contains(node) || record.observers.contains(node))
    };
    for node in replica.lost_followers().into_iter().filter(planned) {
        match tokio::time::timeout(CONTROLLER_PATIENCE, replacement(shards, shard, node)).await {
            Ok(Ok(new)) => {
                tracing::warn!(%shard, old = %node, %new, "a replica that lost what it had acknowledged is replaced")
            }
            Ok(Err(error)) => {
                tracing::info!(%shard, %node, %error, "replacing a replica will be tried again")
            }
            Err(_) => {
                tracing::info!(%shard, %node, "the controller does not answer; replacing a replica will be tried again");
                return;
            }
        }
    }
}

/// The group as planned; `None` where the controller says nothing of it yet.
fn wanted(controller: &Controller, shard: ShardId) -> Option<Wanted> {
    let record = controller.shard(shard)?;
    let voters: BTreeSet<NodeId> = record.replicas.iter().copied().collect();
    let learners = record.observers.iter().copied().collect();
    (!voters.is_empty()).then_some(Wanted { voters, learners })
}

/// What the leader `me` does next.
fn next_step(
    me: NodeId,
    wanted: &Wanted,
    now: &GroupMembers,
    is_close: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    let is_member = |node: &NodeId| now.voters.contains(node) || now.learners.contains(node);
    if !now.voters.contains(&me) {
        // It leads the group through a change in which nobody else could: now somebody can.
        return now.voters.iter().copied().find(|node| is_close(*node)).map(Step::HandOver);
    }
    if now.joint {
        // Begun by this leader or one before it: a change that is under way is finished first, whatever it was for.
        return Some(change_voters(me, wanted, now, is_close));
    }
    let missing = wanted.voters.iter().chain(&wanted.learners).find(|node| !is_member(node));
    if let Some(missing) = missing {
        return Some(Step::AddLearner(*missing));
    }
    if now.voters != wanted.voters {
        let mut new = wanted.voters.difference(&now.voters).copied();
        return new.all(&is_close).then(|| change_voters(me, wanted, now, is_close));
    }
    let stray = now.learners.iter().find(|node| !wanted.learners.contains(node));
    stray.map(|node| Step::RemoveLearner(*node))
}

/// The change of voters; before that, where it would take the vote from the leader itself, somebody who stays is to lead.
fn change_voters(me: NodeId, wanted: &Wanted, now: &GroupMembers, is_close: impl Fn(NodeId) -> bool) -> Step {
    let mut keep = wanted.learners.clone();
    if !wanted.voters.contains(&me) {
        let mut staying = now.voters.intersection(&wanted.voters).copied();
        if let Some(next) = staying.find(|node| is_close(*node)) {
            return Step::HandOver(next);
        }
        // Nobody who stays is there: the leader does not leave before one of the new voters leads.
        keep.insert(me);
    }
    Step::ChangeVoters { voters: wanted.voters.clone(), keep }
}

/// Whether a learner has nearly everything, and is there.
fn is_close(replica: &Replica, node: NodeId) -> bool {
    handover::has_nearly_all(replica, node, CLOSE_ENTRIES, PRESENT_WITHIN)
}

async fn take(replica: &Replica, step: &Step) -> Result<(), ChangeError> {
    match step {
        Step::AddLearner(node) => replica.add_learner(*node).await,
        Step::HandOver(to) => replica.transfer_leadership(*to).await,
        Step::ChangeVoters { voters, keep } => replica.change_voters(voters.clone(), keep.clone()).await,
        Step::RemoveLearner(node) => replica.remove_learner(*node).await,
    }
}

/// Tells the controller what the group is and who leads it, where it does not know.
async fn report(
    shards: &Shards,
    replica: &Replica,
    controller: &Controller,
    reported: &mut Option<(ReportedMembers, Instant)>,
) {
    /// The controller may not have taken the report, or not have told this broker yet.
    const AGAIN_AFTER: Duration = Duration::from_secs(2);
    let shard = replica.shard_id();
    let Some(members) = to_report(replica.node(), replica.status().term, replica.members()) else { return };
    let same = |known: &ReportedMembers| {
        (&known.voters, &known.learners, known.leader, known.term)
            == (&members.voters, &members.learners, members.leader, members.term)
    };
    if controller.shard(shard).and_then(|record| record.members.as_ref()).is_some_and(same) {
        return;
    }
    let asked = reported.as_ref().is_some_and(|(known, at)| same(known) && at.elapsed() < AGAIN_AFTER);
    if asked || controller.identity().is_none() {
        return;
    }
    *reported = Some((members.clone(), Instant::now()));
    let unit = Unit::Control(ControllerCommand::ReportMembers { shard, members });
    match tokio::time::timeout(CONTROLLER_PATIENCE, shards.propose(ShardId::CONTROLLER, unit)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::debug!(%shard, %error, "reporting to the controller will be tried again");
            *reported = None;
        }
        Err(_) => {
            tracing::debug!(%shard, "the controller does not answer; reporting to it will be tried again");
            // Not before others had their turn.
            if let Some((_, at)) = reported {
                *at = Instant::now();
            }
        }
    }
}

/// What the leader `leader` says of its group. Nothing before the first entry about members is known to be committed, which a new leader
/// may learn a moment after it was elected: the group's first members stand at index 0, so a report of none at all under that index would
/// be taken for the one about them, and the true one for a repetition of it.
fn to_report(leader: NodeId, term: Term, now: GroupMembers) -> Option<ReportedMembers> {
    let GroupMembers { voters, learners, index, .. } = now;
    Some(ReportedMembers { voters, learners, leader: Some(leader), term, index: index? })
}

/// Starts following the plan for every shard.
pub(crate) fn start(
    shards: &Shards,
    view: &ViewReader,
    stopping: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    std::iter::once(ShardId::CONTROLLER)
        .chain(shards.numbers())
        .map(|shard| tokio::spawn(follow(shards.clone(), shard, view.clone(), stopping.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{BrokerId, LogIndex};

    use super::*;

    fn node(broker: u32) -> NodeId {
        NodeId::new(BrokerId::new(broker), 1)
    }

    fn nodes<const N: usize>(brokers: [u32; N]) -> BTreeSet<NodeId> {
        brokers.into_iter().map(node).collect()
    }

    fn group<const V: usize, const L: usize>(voters: [u32; V], learners: [u32; L]) -> GroupMembers {
        GroupMembers { voters: nodes(voters), learners: nodes(learners), joint: false, index: None }
    }

    fn wanted<const V: usize, const L: usize>(voters: [u32; V], learners: [u32; L]) -> Wanted {
        Wanted { voters: nodes(voters), learners: nodes(learners) }
    }

    fn change<const V: usize, const K: usize>(voters: [u32; V], keep: [u32; K]) -> Option<Step> {
        Some(Step::ChangeVoters { voters: nodes(voters), keep: nodes(keep) })
    }

    #[test]
    fn a_group_is_reported_once_its_first_members_are_known() {
        let report = |now: GroupMembers| to_report(node(1), Term::new(1), now);
        assert_eq!(report(GroupMembers::default()), None, "it would stand for the first entry's members");
        let known = report(GroupMembers { index: Some(LogIndex::new(0)), ..group([1, 2, 3], [4]) });
        let expected = ReportedMembers {
            voters: nodes([1, 2, 3]),
            learners: nodes([4]),
            leader: Some(node(1)),
            term: Term::new(1),
            index: LogIndex::new(0),
        };
        assert_eq!(known, Some(expected));
    }

    #[test]
    fn a_group_of_one_grows_to_three_by_two_learners_and_one_change() {
        let three = wanted([1, 2, 3], []);
        let step = |group: &GroupMembers, close: bool| next_step(node(1), &three, group, |_| close);
        assert_eq!(step(&group([1], []), true), Some(Step::AddLearner(node(2))));
        assert_eq!(step(&group([1], [2]), true), Some(Step::AddLearner(node(3))));
        assert_eq!(step(&group([1], [2, 3]), false), None, "they catch up first");
        assert_eq!(step(&group([1], [2, 3]), true), change([1, 2, 3], []));
        assert_eq!(step(&group([1, 2, 3], []), true), None);
    }

    #[test]
    fn a_replaced_voter_leaves_with_the_change_and_what_is_left_over_goes() {
        let wanted = wanted([1, 2, 4], [5]);
        let step = |group: &GroupMembers| next_step(node(1), &wanted, group, |_| true);
        assert_eq!(step(&group([1, 2, 3], [5])), Some(Step::AddLearner(node(4))));
        assert_eq!(step(&group([1, 2, 3], [4, 5])), change([1, 2, 4], [5]));
        assert_eq!(step(&group([1, 2, 4], [3, 5])), Some(Step::RemoveLearner(node(3))));
        assert_eq!(step(&group([1, 2, 4], [5])), None);
    }

    #[test]
    fn a_change_that_an_earlier_leader_began_is_finished() {
        let joint = GroupMembers { joint: true, ..group([1, 2, 3, 4], []) };
        let step = next_step(node(1), &wanted([1, 2, 4], []), &joint, |_| false);
        assert_eq!(step, change([1, 2, 4], []));
    }

    #[test]
    fn a_leader_that_is_to_go_hands_the_lead_over_first() {
        let plan = wanted([1, 2, 4], [3]);
        let by = |leader: u32, group: &GroupMembers| next_step(node(leader), &plan, group, |_| true);
        assert_eq!(by(3, &group([1, 2, 3], [4])), Some(Step::HandOver(node(1))));
        assert_eq!(by(1, &group([1, 2, 3], [4])), change([1, 2, 4], [3]), "who leads then does the rest");
        let joint = GroupMembers { joint: true, ..group([1, 2, 3, 4], []) };
        assert_eq!(by(3, &joint), Some(Step::HandOver(node(1))), "also where a change is under way");
    }

    #[test]
    fn a_leader_that_nobody_can_follow_on_stays_a_member_until_one_can() {
        let wanted = wanted([1, 4, 5], []);
        let close = |node_: NodeId| node_ == node(4) || node_ == node(5);
        let step = |group: &GroupMembers| next_step(node(2), &wanted, group, close);
        assert_eq!(step(&group([1, 2, 3], [4, 5])), change([1, 4, 5], [2]), "the first is not there");
        assert_eq!(step(&group([1, 4, 5], [2])), Some(Step::HandOver(node(4))));
        let deserted = next_step(node(2), &wanted, &group([1, 4, 5], [2]), |_| false);
        assert_eq!(deserted, None, "it leads on until there is one");
    }
}
