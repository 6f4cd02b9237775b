//! Plays the controller: brings each shard's voters to what is wanted.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_protocol::{LogIndex, NodeId, ShardId};
use tidemill_raft::Replica;

use super::world::World;
use crate::trace::Trace;

const INTERVAL: Duration = Duration::from_millis(250);
/// How far behind a learner may be that becomes a voter.
const BEHIND_MAX: u64 = 100;

/// Works until the simulation is over.
pub(crate) async fn control(world: World, shards: Vec<ShardId>, trace: Trace) {
    while world.violation().is_none() {
        tokio::time::sleep(INTERVAL).await;
        for shard in &shards {
            let Some((running, leader)) = world.leader(*shard) else { continue };
            let wanted = world.wanted(*shard);
            let done = running.until_it_ends(tend(&leader, wanted)).await.flatten();
            if let Some(done) = done {
                trace.note(format_args!("shard {shard}: {done}"));
            }
        }
    }
}

/// Whether a shard's voters are those that are wanted, and keep up.
pub(crate) fn is_settled(world: &World, shard: ShardId) -> bool {
    let Some((_, leader)) = world.leader(shard) else { return false };
    let members = leader.members();
    let wanted = world.wanted(shard);
    members.voters == wanted && !members.joint && keeps_up(&leader, &wanted)
}

fn keeps_up(leader: &Replica, nodes: &BTreeSet<NodeId>) -> bool {
    let applied = leader.shard().applied().last.map_or(0, |last| last.index.get());
    let progress = leader.followers();
    nodes.iter().filter(|node| **node != leader.node()).all(|node| {
        let matched = progress.get(node).and_then(|follower| follower.matched).map(LogIndex::get);
        matched.is_some_and(|matched| matched + BEHIND_MAX >= applied)
    })
}

async fn tend(leader: &Replica, wanted: BTreeSet<NodeId>) -> Option<String> {
    let members = leader.members();
    if wanted.is_empty() || members.index.is_none() {
        return None;
    }
    let known: BTreeSet<NodeId> = members.voters.union(&members.learners).copied().collect();
    if let Some(node) = wanted.difference(&known).next() {
        return Some(format!("takes in {node}: {:?}", leader.add_learner(*node).await));
    }
    if members.joint || members.voters != wanted {
        let new: BTreeSet<NodeId> = wanted.difference(&members.voters).copied().collect();
        if !keeps_up(leader, &new) {
            return None;
        }
        let changed = leader.change_voters(wanted.clone(), BTreeSet::new()).await;
        return Some(format!("is to be kept by {wanted:?}: {changed:?}"));
    }
    let gone = members.learners.difference(&wanted).next().copied()?;
    Some(format!("lets {gone} go: {:?}", leader.remove_learner(gone).await))
}
