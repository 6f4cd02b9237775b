//! Reads at a follower that is behind: what it shows is true, and old; that it is all it does not say.

use std::time::{Duration, Instant};

use tidemill_protocol::NodeId;

use super::cluster::{Cluster, node, nodes};
use super::fixture::{PATIENCE, groups};
use crate::config::{Begin, ReplicaLimits};
use crate::error::ReadError;

/// A reader who has seen more elsewhere goes by the barrier: it must not pass before what was acknowledged is here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_passes_no_barrier_until_it_shows_what_it_missed() {
    let mut cluster = Cluster::new(19);
    cluster.limits = |limits| ReplicaLimits { reserve_deadline: Duration::from_secs(1), ..limits };
    for broker in 1..=3 {
        cluster.start(node(broker), Begin::Form(nodes([1, 2, 3]))).await;
    }
    let leader = cluster.commit("before", 0..5).await;
    cluster.agree(&leader).await;
    let follower = cluster.replicas().find(|other| other.node() != leader.node()).unwrap().clone();
    let others: Vec<NodeId> = nodes([1, 2, 3]).into_iter().filter(|node| *node != follower.node()).collect();
    others.iter().for_each(|other| cluster.network.cut(follower.node(), *other));
    cluster.commit("meanwhile", 0..5).await;

    for _ in 0..2 {
        let read = follower.read_barrier().await;
        assert!(matches!(read, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })), "{read:?}");
    }
    assert_eq!(groups(&follower).into_keys().collect::<Vec<_>>(), ["before"], "it shows what it has");

    cluster.network.heal();
    let healed = Instant::now();
    while follower.read_barrier().await.is_err() {
        assert!(healed.elapsed() < PATIENCE, "it hears of the others again");
    }
    assert_eq!(groups(&follower).into_keys().collect::<Vec<_>>(), ["before", "meanwhile"]);
}
