//! A follower that has lost the end of its log, where nothing on its disk tells: its leader knows what it acknowledged.

use std::sync::Arc;

use openraft::vote::RaftVote;
use tidemill_protocol::NodeId;

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{SHARD, groups};
use super::network::Network;
use crate::config::Begin;
use crate::peer_network::PeerLinks;
use crate::replica::Replica;
use crate::snapshot::SnapshotLimiter;
use crate::types::{LeaderId, LogId, Vote};

/// A busy machine may change its leader at any time, and the next one knows nothing of what was acknowledged to the one before.
const ATTEMPTS: u64 = 5;

const fn leader(term: u64) -> LeaderId {
    LeaderId { term, node_id: node(1) }
}

#[tokio::test]
async fn what_was_acknowledged_under_this_leader_and_is_missing_is_lost() {
    let dialer = Network::new(1).dialer(node(1));
    let limiter = Arc::new(SnapshotLimiter::new(None));
    let links = PeerLinks::new(dialer, SHARD, node(1), 1 << 20, limiter, None);
    let [now, later] = [3, 4].map(|term| Vote::from_leader_id(leader(term), true));
    let entry = |index| LogId::new(leader(3), index);
    assert!(!links.has_lost(node(2), now, &entry(1)), "it has said nothing yet");
    links.acknowledged(node(2), now, entry(10));
    // An answer that speaks of less takes nothing back.
    links.acknowledged(node(2), now, entry(8));
    assert!(!links.has_lost(node(2), now, &entry(11)), "it never had that");
    assert!(!links.has_lost(node(2), later, &entry(10)), "another leader may have cut it off");
    assert!(!links.has_lost(node(3), now, &entry(10)), "somebody else had it");
    assert_eq!(links.lost(), nodes([]));
    assert!(links.has_lost(node(2), now, &entry(10)));
    assert_eq!(links.lost(), nodes([2]));

    links.acknowledged(node(3), now, entry(10));
    links.acknowledged(node(3), later, entry(5));
    assert!(!links.has_lost(node(3), later, &entry(6)), "under the next leader it begins anew");
    assert!(links.has_lost(node(3), later, &entry(5)));
}

/// An older copy of a disk is what is left where the end of a log looks as if it had never been written: who has it goes on under its id, and does
/// not know what it has promised. Entries may be committed by that promise alone, so its leader gives it nothing any more. It comes back as a new
/// replica, and gets everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lacks_what_it_acknowledged_is_found_out_fed_no_more_and_replaced() {
    for seed in 0..ATTEMPTS {
        if is_found_out_and_replaced(40 + seed).await {
            return;
        }
    }
    panic!("in {ATTEMPTS} attempts no leader stayed one");
}

/// Whether the same replica led all the time, so that the rest was to be seen.
async fn is_found_out_and_replaced(seed: u64) -> bool {
    let mut cluster = Cluster::of_three(seed).await;
    let leader = cluster.commit("before", 0..5).await;
    cluster.agree(&leader).await;
    let follower = other_than(&leader);
    let older = cluster.disk(follower);
    let term = leader.watch().borrow().term;
    let leads_on = |leader: &Replica| {
        let role = leader.watch().borrow().clone();
        role.is_leader() && role.term == term
    };
    cluster.commit("acknowledged", 0..20).await;
    let upto = leader.status().last_entry.map(|last| last.index);
    let has_heard = || leader.followers().get(&follower).is_some_and(|progress| progress.matched >= upto);
    wait_until("its leader hears that it has all", || has_heard() || !leads_on(&leader)).await;
    drop(cluster.kill(follower));

    let back = cluster.start_on(follower, Begin::Existing, older, false).await.unwrap();
    let had = back.status().last_entry;
    cluster.commit("after", 0..5).await;
    let is_found_out = || leader.lost_followers() == nodes([follower.broker().get()]);
    wait_until("its leader finds out", || is_found_out() || !leads_on(&leader)).await;
    if !leads_on(&leader) {
        return false;
    }
    assert!(is_found_out(), "{:?}", leader.lost_followers());
    assert!(had.map(|last| last.index) < upto, "{had:?} of {upto:?}");
    assert_eq!(back.status().last_entry, had, "it is fed no more");
    drop(back);

    let again = NodeId::new(follower.broker(), follower.incarnation() + 1);
    let disk = cluster.kill(follower);
    let third = cluster.start_on(again, Begin::Join, disk, true).await.unwrap();
    let mut voters = nodes([1, 2, 3]);
    voters.remove(&follower);
    voters.insert(again);
    if leader.add_learner(again).await.is_err() || leader.change_voters(voters, nodes([])).await.is_err() {
        assert!(!leads_on(&leader), "a leader takes it in");
        return false;
    }
    assert_eq!(leader.lost_followers(), nodes([]), "who is no member any more is nobody's concern");
    let leader = cluster.commit("again", 0..5).await;
    cluster.agree(&leader).await;
    assert_eq!(groups(&third).len(), 4);
    true
}

fn other_than(leader: &Replica) -> NodeId {
    let mut nodes = nodes([1, 2, 3]).into_iter();
    nodes.find(|node| *node != leader.node()).expect("there are three")
}
