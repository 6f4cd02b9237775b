//! Groups of several replicas: forming, replicating, electing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_coordinator::GroupCommand;
use tidemill_protocol::{BrokerId, NodeId};
use tidemill_shard::Unit;

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{PATIENCE, SHARD, commit_position, groups};
use crate::config::{Begin, ReplicaLimits};
use crate::error::{ProposeError, ReadError};
use crate::gate::{Gate, Held};
use crate::remote::RemoteShard;
use crate::replica::Replica;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_form_a_group_at_once_and_replicate() {
    let cluster = Cluster::of_three(1).await;
    let leader = cluster.commit("group", 0..50).await;
    cluster.agree(&leader).await;
    for replica in cluster.replicas() {
        let members = replica.members();
        assert_eq!((members.voters, members.joint), (nodes([1, 2, 3]), false));
    }
    wait_until("followers answer", || {
        let followers = leader.followers();
        let recently = Some(Duration::from_secs(1));
        followers.len() == 2
            && followers.values().all(|progress| progress.matched.is_some() && progress.last_ack < recently)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::of_three(2).await;
    let leader = cluster.commit("before", 0..20).await;
    let (dead, before) = (leader.node(), groups(&leader));
    drop(leader);
    let disk = cluster.kill(dead);
    let next = cluster.leader().await;
    assert_ne!(next.node(), dead);
    assert_eq!(groups(&next), before);
    cluster.commit("after", 0..20).await;

    // It comes back with what it has, and is brought up to date by the log.
    let back = cluster.start_on(dead, Begin::Existing, disk, false).await.unwrap();
    let next = cluster.commit("with it", 0..5).await;
    cluster.agree(&next).await;
    assert!(!back.watch().borrow().is_leader());
    assert_eq!(cluster.leader().await.node(), next.node(), "who comes back deposes nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_comes_back_from_its_disks() {
    let mut cluster = Cluster::of_three(3).await;
    let leader = cluster.commit("before", 0..20).await;
    let before = groups(&leader);
    drop(leader);
    let disks = [1, 2, 3].map(|broker| (node(broker), cluster.kill(node(broker))));
    for (node, disk) in disks {
        let started = std::time::Instant::now();
        let replica = cluster.start_on(node, Begin::Existing, disk, false).await.unwrap();
        assert!(!replica.watch().borrow().is_leader() || started.elapsed() > Duration::from_millis(500));
    }
    let leader = cluster.leader().await;
    assert_eq!(groups(&leader), before);
    let leader = cluster.commit("after", 0..5).await;
    cluster.agree(&leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_what_it_wrote_vanishes() {
    let mut cluster = Cluster::new(4);
    cluster.limits = |limits| ReplicaLimits {
        // Whoever waits for it waits in vain.
        proposal_deadline: Duration::from_secs(3600),
        reserve_deadline: Duration::from_secs(1),
        ..limits
    };
    for broker in 1..=3 {
        cluster.start(node(broker), Begin::Form(nodes([1, 2, 3]))).await;
    }
    let old = cluster.commit("before", 0..5).await;
    let others: Vec<NodeId> = nodes([1, 2, 3]).into_iter().filter(|node| *node != old.node()).collect();
    others.iter().for_each(|other| cluster.network.cut(old.node(), *other));

    let last = old.status().last_entry;
    let many = (0..20).map(|offset| old.propose(commit_position("lost", offset)));
    let outcomes =
        tokio::time::timeout(PATIENCE, futures::future::join_all(many)).await.expect("long before");
    let (unknown, refused): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| *outcome == Err(ProposeError::OutcomeUnknown));
    assert!(!unknown.is_empty() && old.status().last_entry > last, "they are in its log all the same");
    assert!(
        refused.iter().all(|outcome| *outcome == Err(ProposeError::NoQuorum)),
        "never written: {refused:?}"
    );
    assert_eq!(old.propose(commit_position("lost", 99)).await, Err(ProposeError::NoQuorum), "at once");
    assert!(old.watch().borrow().is_leader(), "it has not heard of another");
    let read = old.read_barrier().await;
    assert!(matches!(read, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })), "{read:?}");

    cluster.commit("meanwhile", 0..5).await;
    cluster.network.heal();
    wait_until("the old leader follows", || !old.watch().borrow().is_leader()).await;
    let leader = cluster.commit("healed", 0..5).await;
    cluster.agree(&leader).await;
    assert!(!groups(&old).contains_key("lost"));
    assert_eq!(groups(&old).len(), 3);
    // Refusing ends with the silence.
    old.propose_anywhere(commit_position("again", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_takes_units_and_serves_current_reads() {
    let cluster = Cluster::of_three(5).await;
    let leader = cluster.leader().await;
    let followers: Vec<_> =
        cluster.replicas().filter(|other| other.node() != leader.node()).cloned().collect();
    for (number, follower) in followers.iter().enumerate() {
        let group = format!("group-{number}");
        let refused = follower.propose(commit_position(&group, 1)).await;
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(leader.node()) }));
        let many = (0..200).map(|offset| follower.propose_anywhere(commit_position(&group, offset)));
        for outcome in futures::future::join_all(many).await {
            assert!(matches!(outcome, Ok(tidemill_shard::UnitResult::Group(_))), "{outcome:?}");
        }
        // What was acknowledged is seen here and elsewhere, once the barrier is passed.
        for reader in &followers {
            reader.read_barrier().await.unwrap();
            assert!(groups(reader).contains_key(&group));
        }
    }
    leader.propose_anywhere(commit_position("here", 1)).await.unwrap();
    cluster.agree(&leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_find_the_next_leader() {
    let mut cluster = Cluster::of_three(6).await;
    let leader = cluster.leader().await;
    let follower = cluster.replicas().find(|other| other.node() != leader.node()).unwrap().clone();
    follower.propose_anywhere(commit_position("group", 0)).await.unwrap();
    let dead = leader.node();
    drop(leader);
    drop(cluster.kill(dead));
    let mut outcome = follower.propose_anywhere(commit_position("group", 1)).await;
    while matches!(
        outcome,
        Err(ProposeError::NotLeader { .. } | ProposeError::NoQuorum | ProposeError::OutcomeUnknown)
    ) {
        outcome = follower.propose_anywhere(commit_position("group", 1)).await;
    }
    outcome.unwrap();
    let leader = cluster.leader().await;
    cluster.agree(&leader).await;
}

/// Whoever got room before the way to the leader broke off may use it long after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_on_a_stream_that_has_ended_is_room_for_a_refusal() {
    let mut cluster = Cluster::of_three(9).await;
    let leader = cluster.leader().await;
    let follower = cluster.replicas().find(|other| other.node() != leader.node()).unwrap().clone();
    let dead = leader.node();
    drop(leader);
    let unit = || commit_position("late", 1);
    let rooms =
        [follower.reserve_anywhere(unit().bytes()).await, follower.reserve_anywhere(unit().bytes()).await];
    drop(cluster.kill(dead));
    let forwarder = &follower.inner().peers.as_ref().unwrap().forwarder;
    wait_until("the stream ends", || forwarder.has_ended(dead)).await;
    for room in rooms {
        let answer = tokio::time::timeout(PATIENCE, room.unwrap().submit(unit())).await;
        assert_eq!(answer.expect("it is answered"), Err(ProposeError::NotLeader { leader: None }));
    }
    let next = cluster.commit("after", 0..1).await;
    cluster.agree(&next).await;
    assert!(!groups(&next).contains_key("late"), "it was not written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_replica_writes_at_the_leader() {
    let mut cluster = Cluster::of_three(8).await;
    let leader = cluster.leader().await;
    let follower = cluster.replicas().find(|other| other.node() != leader.node()).unwrap().node();
    // It was told of a leader that is none any more; that one knows better.
    let told = Arc::new(Mutex::new(Some(follower)));
    let stranger =
        RemoteShard::new(SHARD, node(4), cluster.network.dialer(node(4)), &ReplicaLimits::default(), {
            let told = Arc::clone(&told);
            move || *told.lock()
        });
    stranger.propose(commit_position("one", 0)).await.unwrap();
    *told.lock() = Some(leader.node());
    let mut answers = Vec::new();
    for offset in 0..100 {
        let unit = commit_position("many", offset);
        answers.push(stranger.reserve(unit.bytes()).await.unwrap().submit(unit));
    }
    for answer in answers {
        assert!(matches!(answer.await, Ok(tidemill_shard::UnitResult::Group(_))));
    }
    assert_eq!(groups(&leader).len(), 2);
    cluster.agree(&leader).await;

    *told.lock() = None;
    let refused = stranger.reserve(100).await.map(drop);
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }), "nobody is known to lead");
    *told.lock() = Some(leader.node());
    let dead = leader.node();
    drop(leader);
    drop(cluster.kill(dead));
    let next = cluster.leader().await;
    *told.lock() = Some(next.node());
    stranger.propose(commit_position("three", 0)).await.unwrap();
    cluster.agree(&next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_delays_but_loses_and_reorders_nothing() {
    let mut cluster = Cluster::of_three(7).await;
    drop(cluster.leader().await);
    cluster.network.is_bad(Duration::from_millis(10), 40);
    let writer = cluster.replica(node(1)).clone();
    let mut acknowledged = Vec::new();
    for offset in 0..60 {
        let group = format!("group-{offset}");
        if writer.propose_anywhere(commit_position(&group, offset)).await.is_ok() {
            acknowledged.push(group);
        }
        if offset == 30 {
            let restarted = cluster.restart(node(2)).await;
            assert_eq!(restarted.node(), node(2));
        }
    }
    cluster.network.is_bad(Duration::from_millis(1), 0);
    let leader = cluster.leader().await;
    let there = groups(&leader);
    assert!(acknowledged.len() >= 10, "only {} of 60 came through", acknowledged.len());
    acknowledged.iter().for_each(|group| assert!(there.contains_key(group), "{group} is lost"));
    cluster.agree(&leader).await;
}

/// Has room for units of one group of consumers only, and counts what it holds.
#[derive(Default)]
struct Doorman {
    held: Arc<AtomicUsize>,
    asked: AtomicUsize,
}

struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate for Doorman {
    fn admit<'a>(&'a self, leader: &'a Replica, unit: &'a Unit) -> BoxFuture<'a, Result<Held, ProposeError>> {
        assert_eq!(leader.shard_id(), SHARD);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let admitted = match unit {
            Unit::Group(GroupCommand::Commit { group, .. }) if group == "full" => {
                Err(ProposeError::DiskFull { broker: BrokerId::new(9) })
            }
            _ => {
                self.held.fetch_add(1, Ordering::SeqCst);
                Ok(Box::new(Place(Arc::clone(&self.held))) as Held)
            }
        };
        Box::pin(std::future::ready(admitted))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_of_other_brokers_pass_the_leaders_gate() {
    let gate = Arc::new(Doorman::default());
    let mut cluster = Cluster::new(8);
    cluster.gate = Some(Arc::clone(&gate) as Arc<dyn Gate>);
    for broker in 1..=3 {
        cluster.start(node(broker), Begin::Form(nodes([1, 2, 3]))).await;
    }
    let leader = cluster.commit("here", 0..3).await;
    assert_eq!(gate.asked.load(Ordering::SeqCst), 0, "what is proposed here was looked at before");
    let follower = cluster.replicas().find(|other| other.node() != leader.node()).unwrap().clone();
    follower.propose_anywhere(commit_position("there", 1)).await.unwrap();
    assert!(gate.asked.load(Ordering::SeqCst) > 0);
    wait_until("room is given back with the answer", || gate.held.load(Ordering::SeqCst) == 0).await;
    let refused = follower.propose_anywhere(commit_position("full", 1)).await;
    assert_eq!(refused, Err(ProposeError::DiskFull { broker: BrokerId::new(9) }));
    follower.propose_anywhere(commit_position("there", 2)).await.unwrap();
    let leader = cluster.leader().await;
    cluster.agree(&leader).await;
    assert!(!groups(&leader).contains_key("full"));
}
