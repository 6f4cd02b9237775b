//! What a new replica gets as entries, at the rate of snapshots.

use std::time::Duration;

use tidemill_protocol::{NodeId, TopicPartition};
use tidemill_shard::UnitResult;

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{PATIENCE, adopt, record};
use crate::config::{Begin, ReplicaLimits};
use crate::replica::Replica;

/// More than one append has.
const BACKLOG_RECORDS: usize = 40;
const RECORD_BYTES: usize = 64 << 10;

/// Whoever waits for a piece at that rate waits for days.
const STANDSTILL: Option<u64> = Some(1);

async fn append(leader: &Replica, partition: TopicPartition, records: usize) {
    for _ in 0..records {
        let appended = leader.propose(record(partition, RECORD_BYTES)).await.unwrap();
        assert!(matches!(appended, UnitResult::Appended { .. }), "{appended:?}");
    }
}

fn lacks(leader: &Replica, follower: NodeId) -> u64 {
    let last = leader.status().last_entry.map_or(0, |last| last.index.get());
    let matched = leader.followers().get(&follower).and_then(|progress| progress.matched);
    last - matched.map_or(0, |matched| matched.get())
}

/// One member that has so many records.
async fn alone_with(cluster: &mut Cluster, records: usize) -> (Replica, TopicPartition) {
    cluster.start(node(1), Begin::Form(nodes([1]))).await;
    let leader = cluster.leader().await;
    let partition = adopt(&leader, 16 << 20).await;
    append(&leader, partition, records).await;
    (leader, partition)
}

/// A second one that learns them at a rate that is none.
async fn learns_at_a_standstill(cluster: &mut Cluster, leader: &Replica) {
    cluster.snapshot_limiter.set(STANDSTILL);
    cluster.start(node(2), Begin::Join).await;
    leader.add_learner(node(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_waits_its_turn_but_never_for_good_and_a_voter_waits_for_nothing() {
    let mut cluster = Cluster::new(71);
    let limiter = cluster.snapshot_limiter.clone();
    let (leader, partition) = alone_with(&mut cluster, BACKLOG_RECORDS).await;
    learns_at_a_standstill(&mut cluster, &leader).await;
    let backlog = BACKLOG_RECORDS as u64;
    wait_until("it is a learner", || leader.members().learners == nodes([2])).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lacks(&leader, node(2)) > backlog / 4, "the rest comes at the rate");
    // Where entries are committed meanwhile, it gets more than these.
    let arrives = async {
        while lacks(&leader, node(2)) > 1 {
            append(&leader, partition, 1).await;
            // As fast as it can, the leader is faster than anybody who follows.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrives).await.expect("it arrives, whatever the rate");

    // A voter that was away gets what it lacks at once.
    limiter.set(None);
    leader.change_voters(nodes([1, 2]), nodes([])).await.unwrap();
    cluster.start(node(3), Begin::Join).await;
    leader.add_learner(node(3)).await.unwrap();
    leader.change_voters(nodes([1, 2, 3]), nodes([])).await.unwrap();
    let disk = cluster.kill(node(3));
    append(&leader, partition, BACKLOG_RECORDS).await;
    limiter.set(STANDSTILL);
    cluster.start_on(node(3), Begin::Existing, disk, false).await.unwrap();
    wait_until("it has all", || lacks(&leader, node(3)) == 0).await;
}

/// Longer than somebody waits who gets an append every few seconds.
const LONG_BACKLOG_RECORDS: usize = 320;

/// What it lacks would keep all that the broker's other shards write in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_log_is_large_a_learner_does_not_wait() {
    let mut cluster = Cluster::new(73);
    cluster.limits = |limits| ReplicaLimits { log_bytes_high: 0, ..limits };
    let (leader, _partition) = alone_with(&mut cluster, LONG_BACKLOG_RECORDS).await;
    learns_at_a_standstill(&mut cluster, &leader).await;
    wait_until("it has all", || leader.members().learners == nodes([2]) && lacks(&leader, node(2)) == 0)
        .await;
}
