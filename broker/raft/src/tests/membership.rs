//! Members that come, go, and take the lead.

use std::time::Duration;

use tidemill_log::fs::MemoryStorage;
use tidemill_protocol::{BrokerId, NodeId};

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{Broker, commit_position, groups, wal_config};
use crate::config::Begin;
use crate::error::{ChangeError, ReplicaStartError};
use crate::status::ReplicaState;

/// The third broker's second life.
const THIRD_AGAIN: NodeId = NodeId::new(BrokerId::new(3), 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_grows_to_three_by_learners_and_one_joint_change() {
    let mut cluster = Cluster::new(11);
    cluster.start(node(1), Begin::Form(nodes([1]))).await;
    let leader = cluster.commit("before", 0..300).await;
    let second = cluster.start(node(2), Begin::Join).await;
    assert_eq!((second.members().voters.len(), second.status().state), (0, ReplicaState::Learner));
    let stranger = leader.change_voters(nodes([1, 2]), nodes([])).await;
    assert!(matches!(stranger, Err(ChangeError::Refused(_))), "{stranger:?}");

    leader.add_learner(node(2)).await.unwrap();
    leader.add_learner(node(2)).await.unwrap();
    cluster.agree(&leader).await;
    wait_until("it knows that it is a learner", || second.members().learners == nodes([2])).await;
    let third = cluster.start(node(3), Begin::Join).await;
    leader.add_learner(node(3)).await.unwrap();
    leader.change_voters(nodes([1, 2, 3]), nodes([])).await.unwrap();
    let leader = cluster.commit("after", 0..10).await;
    cluster.agree(&leader).await;
    wait_until("all vote", || third.members().voters == nodes([1, 2, 3]) && !third.members().joint).await;

    // And back: one stays as a learner, one is let go.
    leader.change_voters(nodes([1]), nodes([2])).await.unwrap();
    wait_until("two have left", || {
        let members = leader.members();
        (members.voters, members.learners) == (nodes([1]), nodes([2]))
    })
    .await;
    assert!(matches!(leader.remove_learner(node(1)).await, Err(ChangeError::Refused(_))));
    leader.remove_learner(node(2)).await.unwrap();
    wait_until("it is alone", || leader.members().learners.is_empty()).await;
    cluster.commit("alone", 0..3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_and_taken_back_where_nobody_takes_it() {
    let cluster = Cluster::of_three(12).await;
    let leader = cluster.commit("group", 0..20).await;
    let next = nodes([1, 2, 3]).into_iter().find(|node| *node != leader.node()).unwrap();
    leader.transfer_leadership(next).await.unwrap();
    let leader = cluster.leader().await;
    assert_eq!(leader.node(), next);
    let leader = cluster.commit("handed over", 0..5).await;
    let refused = leader.transfer_leadership(node(9)).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))), "{refused:?}");

    let others: Vec<NodeId> = nodes([1, 2, 3]).into_iter().filter(|node| *node != leader.node()).collect();
    nodes([1, 2, 3]).into_iter().for_each(|node| cluster.network.cut(others[0], node));
    let in_vain = leader.transfer_leadership(others[0]).await;
    assert_eq!(in_vain, Err(ChangeError::NotTaken { to: others[0] }));
    let leader = cluster.commit("taken back", 0..5).await;
    cluster.network.heal();
    cluster.agree(&leader).await;
    let not_here = cluster.replica(others[0]).add_learner(node(7)).await;
    assert!(matches!(not_here, Err(ChangeError::NotLeader { .. })), "{not_here:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_while_it_hands_the_lead_over_goes_on() {
    let cluster = Cluster::of_three(14).await;
    let leader = cluster.commit("group", 0..5).await;
    let others: Vec<NodeId> = nodes([1, 2, 3]).into_iter().filter(|node| *node != leader.node()).collect();
    others.iter().for_each(|other| cluster.network.cut(*other, leader.node()));
    let in_vain = leader.transfer_leadership(others[0]).await;
    assert_eq!(in_vain, Err(ChangeError::NotTaken { to: others[0] }));
    cluster.network.heal();
    let now = cluster.commit("healed", 0..5).await;
    assert_eq!(leader.watch().borrow().stopped(), None);
    cluster.agree(&now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_let_itself_go_changes_nothing_any_more_and_lives_on() {
    let cluster = Cluster::of_three(18).await;
    let leader = cluster.commit("three", 0..5).await;
    let gone = leader.node();
    let others = nodes([1, 2, 3]).into_iter().filter(|node| *node != gone).collect();
    leader.change_voters(others, nodes([])).await.unwrap();
    // Until it steps down a moment later it leads a group that it does not belong to.
    let refused = leader.add_learner(gone).await;
    assert!(matches!(refused, Err(ChangeError::NotLeader { .. })), "{refused:?}");
    let next = cluster.leader_among(|node| node != gone).await;
    next.add_learner(gone).await.unwrap();
    wait_until("it is a learner", || leader.members().learners == nodes([gone.broker().get()])).await;
    assert_eq!(leader.watch().borrow().stopped(), None);
}

/// What the third broker lost before it comes back.
#[derive(Clone, Copy)]
enum Lost {
    Log,
    State,
    Nothing,
}

async fn third_comes_back_after_losing(lost: Lost, seed: u64) {
    let mut cluster = Cluster::of_three(seed).await;
    let leader = cluster.commit("before", 0..20).await;
    cluster.agree(&leader).await;
    if leader.node() == node(3) {
        leader.transfer_leadership(node(1)).await.unwrap();
    }
    cluster.replica(node(3)).checkpoint().await.unwrap();
    let applied = cluster.replica(node(3)).status().checkpointed.unwrap();
    drop(leader);
    let leader = cluster.commit("behind the checkpoint", 0..20).await;
    let disk = cluster.kill(node(3));

    let open = || {
        let (log, state) = match lost {
            Lost::Log => (MemoryStorage::new(), disk.clone()),
            Lost::State => (disk.clone(), MemoryStorage::new()),
            Lost::Nothing => (disk.clone(), disk.clone()),
        };
        (
            Broker::open_with(std::sync::Arc::new(log), std::sync::Arc::new(state.clone()), &wal_config()),
            state,
        )
    };
    if !matches!(lost, Lost::Nothing) {
        let (broker, state) = open();
        let refused = cluster.start_broker(node(3), Begin::Existing, broker, state, false).await.unwrap_err();
        assert!(
            matches!(refused, ReplicaStartError::LogLost { .. } | ReplicaStartError::StateLost { .. }),
            "{refused}"
        );
    }
    let (broker, state) = open();
    let third = cluster.start_broker(THIRD_AGAIN, Begin::Join, broker, state, true).await.unwrap();
    let begins_at = third.status();
    assert_eq!(begins_at.state, ReplicaState::Learner);
    match lost {
        Lost::State => assert_eq!((begins_at.last_applied, begins_at.last_entry), (None, None)),
        Lost::Log | Lost::Nothing => {
            assert_eq!((begins_at.last_applied, begins_at.last_entry), (Some(applied), Some(applied)));
        }
    }
    leader.add_learner(THIRD_AGAIN).await.unwrap();
    leader.change_voters([node(1), node(2), THIRD_AGAIN].into(), nodes([])).await.unwrap();
    assert!(!leader.members().voters.contains(&node(3)) && !leader.members().learners.contains(&node(3)));
    let leader = cluster.commit("again", 0..5).await;
    cluster.agree(&leader).await;

    // With one of the others gone, it counts.
    let dead = leader.node();
    drop(leader);
    drop(cluster.kill(dead));
    let leader = cluster.commit("at last", 0..5).await;
    cluster.agree(&leader).await;
    assert_eq!(groups(&third).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_replica_comes_back_although_its_log_is_lost() {
    third_comes_back_after_losing(Lost::Log, 13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_replica_comes_back_although_its_state_is_lost() {
    third_comes_back_after_losing(Lost::State, 14).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_replica_keeps_of_its_log_only_what_its_checkpoint_holds() {
    third_comes_back_after_losing(Lost::Nothing, 15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_contradicts_itself_does_not_start() {
    let mut cluster = Cluster::new(16);
    let strangers = cluster.start_on(node(1), Begin::Form(nodes([2, 3])), MemoryStorage::new(), false).await;
    assert!(matches!(strangers, Err(ReplicaStartError::BadConfig { .. })), "{strangers:?}");
    let retired = cluster.start_on(node(1), Begin::Form(nodes([1, 2])), MemoryStorage::new(), true).await;
    assert!(matches!(retired, Err(ReplicaStartError::BadConfig { .. })), "{retired:?}");
    let missing = cluster.start_on(node(1), Begin::Existing, MemoryStorage::new(), false).await;
    assert!(matches!(missing, Err(ReplicaStartError::Missing { .. })), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_to_be_taken_in_elects_nobody_and_remembers_nothing_it_was_not_told() {
    let mut cluster = Cluster::new(17);
    let waiting = cluster.start(node(4), Begin::Join).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((waiting.status().state, waiting.status().term.get()), (ReplicaState::Learner, 0));
    let refused = waiting.propose(commit_position("group", 1)).await;
    assert!(refused.is_err(), "{refused:?}");
}
