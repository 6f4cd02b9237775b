//! Who leads: leads are spread as planned, leave a broker whose disk is full or fails or whose snapshots are not taken, and are handed over
//! before a broker stops.
//!
//! A disk is full until twice the least is free, one whose shard has stopped has failed until the broker is started anew, and every lead
//! rests after it was handed over: so nothing goes to and fro.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tidemill_controller::Controller;
use tidemill_log::wal::EntryId;
use tidemill_protocol::{BrokerId, LogIndex, NodeId, ShardId};
use tidemill_raft::{FollowerProgress, Replica};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::room::Room;
use crate::shards::Shards;
use crate::view::ViewReader;

/// How often it is looked whether another should lead.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So long the next leader must have been fit to lead: one that comes and goes is left alone.
const FIT_FOR: Duration = Duration::from_secs(5);
/// After a lead was handed over, or could not be, so long nothing is tried with its shard.
const REST: Duration = Duration::from_secs(15);
/// A follower that lacks no more entries is fit to lead; the transfer waits for the rest.
const CLOSE_ENTRIES: u64 = 1024;
/// Heard of within this time, it is there.
const PRESENT_WITHIN: Duration = Duration::from_secs(1);
/// How long a stop waits for others to lead.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);

/// Hands leads over to the planned leaders, or away from here.
pub(crate) async fn spread(shards: Shards, view: ViewReader, room: Room, stopping: CancellationToken) {
    let mut fit_since: BTreeMap<ShardId, (NodeId, Instant)> = BTreeMap::new();
    let mut rests_until: BTreeMap<ShardId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopping.cancelled() => return,
        }
        let (now, failed) = (view.now(), shards.any_stopped());
        for (shard, replica) in shards.iter() {
            let Some(next) = next_leader(now.controller(), &replica, |broker| room.may_lead(broker, failed))
            else {
                fit_since.remove(&shard);
                continue;
            };
            let since = *fit_since.entry(shard).or_insert_with(|| (next, Instant::now()));
            let rests = rests_until.get(&shard).is_some_and(|until| Instant::now() < *until);
            if since.0 != next || since.1.elapsed() < FIT_FOR || rests {
                if since.0 != next {
                    fit_since.insert(shard, (next, Instant::now()));
                }
                continue;
            }
            rests_until.insert(shard, Instant::now() + REST);
            match replica.transfer_leadership(next).await {
                Ok(()) => {
                    // Whoever takes the lead sends its own.
                    replica.forget_unsound_snapshots();
                    tracing::info!(%shard, to = %next, "the lead goes to another broker");
                }
                Err(error) => tracing::info!(%shard, to = %next, %error, "the lead stays"),
            }
        }
    }
}

/// The one that should lead a shard instead of this broker, if that does, and is fit to.
fn next_leader(
    controller: &Controller,
    replica: &Replica,
    may_lead: impl Fn(BrokerId) -> bool,
) -> Option<NodeId> {
    if !replica.watch().borrow().is_leader() {
        return None;
    }
    let planned = &controller.shard(replica.shard_id())?.replicas;
    let (voters, me) = (replica.members().voters, replica.node());
    let snapshots =
        Snapshots { are_unsound: replica.sends_unsound_snapshots(), are_sent: replica.sends_snapshots() };
    let is_fit =
        |node: NodeId| voters.contains(&node) && has_nearly_all(replica, node, CLOSE_ENTRIES, PRESENT_WITHIN);
    successor(planned, me, snapshots, may_lead, is_fit)
}

/// What becomes of the snapshots that this leader sends.
#[derive(Debug, Clone, Copy, Default)]
struct Snapshots {
    /// One could not be read here, or was not taken.
    are_unsound: bool,
    /// One is on its way.
    are_sent: bool,
}

/// The first of those planned where this one may lead on; else whichever of them may, and is fit to, in the order of the plan, by which
/// leads that leave a broker are spread over the others. Nobody before a snapshot has arrived that this one sends: the planned leader may
/// be the one whose snapshots can't be read.
fn successor(
    planned: &[NodeId],
    me: NodeId,
    snapshots: Snapshots,
    may_lead: impl Fn(BrokerId) -> bool,
    is_fit: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let leads_on = may_lead(me.broker()) && !snapshots.are_unsound;
    if leads_on && snapshots.are_sent {
        return None;
    }
    let candidates = if leads_on { 1 } else { planned.len() };
    let others = planned.iter().copied().take(candidates).filter(|node| *node != me);
    others.into_iter().find(|node| may_lead(node.broker()) && is_fit(*node))
}

/// Whether another member lacks no more than so many entries, and was heard of so recently, as the leader here sees it.
pub(super) fn has_nearly_all(
    replica: &Replica,
    node: NodeId,
    lacking_max: u64,
    heard_within: Duration,
) -> bool {
    let status = replica.status();
    let index = |id: Option<EntryId>| id.map_or(0, |id| id.index.get());
    replica.followers().get(&node).is_some_and(|progress| {
        let matched = progress.matched.map_or(0, LogIndex::get);
        // However few the entries are: what the log holds no more comes by a snapshot, which may take hours.
        let lacks_more = matched < index(status.purged);
        let lacking = index(status.last_entry).saturating_sub(matched);
        !lacks_more && lacking <= lacking_max && is_there(progress, heard_within)
    })
}

fn is_there(progress: &FollowerProgress, heard_within: Duration) -> bool {
    progress.last_ack.is_some_and(|ago| ago <= heard_within)
}

/// Hands every lead over to whoever is closest to it, and waits a while until others lead: before this broker stops.
pub(crate) async fn hand_over_all(shards: &Shards) {
    let leads: Vec<_> = shards.iter().filter(|(_, replica)| replica.watch().borrow().is_leader()).collect();
    let handing = join_all(leads.iter().map(|(shard, replica)| hand_over(*shard, replica)));
    let _ = tokio::time::timeout(HAND_OVER_PATIENCE, handing).await;
}

async fn hand_over(shard: ShardId, replica: &Replica) {
    /// A follower that just answered may be asked for the same again.
    const AGAIN_AFTER: Duration = Duration::from_millis(300);
    let mut role = replica.watch();
    loop {
        let Some(to) = fittest(replica) else {
            // Alone, or none is there: whoever comes back leads then.
            return;
        };
        if let Err(error) = replica.transfer_leadership(to).await {
            tracing::info!(%shard, %to, %error, "the lead is not handed over");
            return;
        }
        let given = async { role.wait_for(|role| !role.is_leader()).await.is_ok() };
        if tokio::time::timeout(AGAIN_AFTER, given).await.is_ok() {
            tracing::info!(%shard, %to, "the lead is handed over");
            return;
        }
    }
}

/// The voter that has most of the log, of those that are there.
fn fittest(replica: &Replica) -> Option<NodeId> {
    let members = replica.members();
    let followers = replica.followers();
    let there = followers
        .into_iter()
        .filter(|(node, progress)| members.voters.contains(node) && is_there(progress, PRESENT_WITHIN));
    there.max_by_key(|(_, progress)| progress.matched).map(|(node, _)| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 2;

    fn next<const N: usize>(planned: [u32; N], unwell: &[u32], unfit: &[u32]) -> Option<u32> {
        next_by(Snapshots::default(), planned, unwell, unfit)
    }

    fn next_by<const N: usize>(
        snapshots: Snapshots,
        planned: [u32; N],
        unwell: &[u32],
        unfit: &[u32],
    ) -> Option<u32> {
        let node = |broker| NodeId::new(BrokerId::new(broker), 1);
        let planned = planned.map(node);
        let is_in = |brokers: &[u32], broker: BrokerId| brokers.contains(&broker.get());
        let next = successor(
            &planned,
            node(ME),
            snapshots,
            |broker| !is_in(unwell, broker),
            |node| !is_in(unfit, node.broker()),
        );
        next.map(|node| node.broker().get())
    }

    #[test]
    fn a_broker_that_is_well_hands_over_to_the_planned_leader_alone() {
        assert_eq!(next([2, 3, 1], &[], &[]), None, "it is the one");
        assert_eq!(next([1, 2, 3], &[], &[]), Some(1));
        assert_eq!(next([1, 2, 3], &[], &[1]), None, "not there yet");
        assert_eq!(next([1, 2, 3], &[1], &[]), None, "it would come back at once");
        assert_eq!(next([1, 3], &[], &[]), Some(1), "this one is on its way out");
    }

    #[test]
    fn leads_leave_a_broker_that_is_not_for_those_that_are() {
        assert_eq!(next([2, 3, 1], &[2], &[]), Some(3));
        assert_eq!(next([2, 1, 3], &[2], &[]), Some(1), "each shard has an order of its own");
        assert_eq!(next([1, 2, 3], &[2], &[1]), Some(3));
        assert_eq!(next([2, 3, 1], &[2, 3], &[]), Some(1));
        assert_eq!(next([2, 3, 1], &[1, 2, 3], &[]), None, "nowhere to go");
    }

    #[test]
    fn whose_snapshots_are_not_taken_leads_no_more_and_whose_are_on_their_way_leads_on() {
        let unsound = Snapshots { are_unsound: true, ..Snapshots::default() };
        assert_eq!(next_by(unsound, [2, 3, 1], &[], &[]), Some(3));
        assert_eq!(next_by(unsound, [2, 3, 1], &[], &[3]), Some(1));
        let sent = Snapshots { are_sent: true, ..Snapshots::default() };
        assert_eq!(
            next_by(sent, [1, 2, 3], &[], &[]),
            None,
            "the planned leader takes its turn when that has arrived"
        );
        assert_eq!(next_by(sent, [1, 2, 3], &[2], &[]), Some(1), "whose disk is full leads no more");
        assert_eq!(next_by(Snapshots { are_sent: true, ..unsound }, [2, 3, 1], &[], &[]), Some(3));
    }
}
