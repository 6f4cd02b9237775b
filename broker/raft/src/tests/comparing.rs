//! Three replicas compare their states, and one whose state is not what the log made of it stops.

use std::path::Path;
use std::time::Duration;

use tidemill_coordinator::{GroupCommand, PositionCommit};
use tidemill_log::fs::MemoryStorage;
use tidemill_protocol::{LogIndex, NodeId, Offset, PartitionId, TopicId, TopicPartition};
use tidemill_shard::Unit;

use super::cluster::{Cluster, node};
use super::fixture::{PATIENCE, commit_position, groups};
use crate::config::Begin;
use crate::replica::Replica;

const NOTE: &str = "a note that stands in the state file as it is";
const ALTERED: &str = "a note that stood in the state file as it was";

fn noted() -> Unit {
    let partition = TopicPartition::new(TopicId::from_slice(&[7; 16]).unwrap(), PartitionId::new(0));
    let position =
        PositionCommit { partition, offset: Some(Offset::new(1)), leader_epoch: None, note: NOTE.to_owned() };
    Unit::Group(GroupCommand::Commit { group: "noted".to_owned(), positions: vec![position] })
}

/// What the disk does to a state file that nobody has open.
fn alter(storage: &MemoryStorage) {
    let mut found = 0;
    storage.edit(Path::new("shard-01/state"), |bytes| {
        while let Some(at) = bytes.windows(NOTE.len()).position(|window| window == NOTE.as_bytes()) {
            bytes[at..at + NOTE.len()].copy_from_slice(ALTERED.as_bytes());
            found += 1;
        }
    });
    assert!(found > 0, "the note is in the file");
}

fn stopped(replica: &Replica) -> Option<String> {
    replica.watch().borrow().stopped().map(ToString::to_string)
}

/// One round: every replica takes its part, as brokers have them do, until `is_over`.
async fn compare(cluster: &Cluster, mut is_over: impl FnMut(&Cluster) -> bool) -> LogIndex {
    let leader = cluster.propose(Unit::TakeStateHash).await;
    let taken = leader.shard().applied().last.unwrap().index;
    let rounds = async {
        while !is_over(cluster) {
            for replica in cluster.replicas().filter(|replica| stopped(replica).is_none()) {
                if replica.shard().has_marked_state() {
                    // One that stops meanwhile makes none.
                    let _checkpoint = replica.checkpoint().await;
                }
                replica.compare_states().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rounds).await.expect("the replicas are compared");
    taken
}

/// Whether all that were asked have said what they have, by the entries that the log got for it.
fn has_entries_after(cluster: &Cluster, taken: LogIndex, reports: u64) -> bool {
    cluster.replicas().filter(|replica| stopped(replica).is_none()).all(|replica| {
        replica.shard().applied().last.is_some_and(|last| last.index.get() >= taken.get() + reports)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_the_same_state_go_on() {
    let cluster = Cluster::of_three(71).await;
    cluster.propose(noted()).await;
    // Checkpoints at different entries change nothing of it.
    cluster.commit("g", 0..5).await;
    cluster.replica(node(2)).checkpoint().await.unwrap();
    let leader = cluster.commit("g", 5..9).await;
    cluster.agree(&leader).await;
    for _ in 0..2 {
        let before = leader.shard().applied().last.unwrap().index;
        compare(&cluster, |cluster| has_entries_after(cluster, before, 4)).await;
    }
    assert!(cluster.replicas().all(|replica| stopped(replica).is_none()));
    let leader = cluster.commit("g", 9..12).await;
    cluster.agree(&leader).await;
}

async fn one_of_three_is_altered(seed: u64, which: impl FnOnce(NodeId) -> NodeId) {
    let mut cluster = Cluster::of_three(seed).await;
    cluster.propose(noted()).await;
    let leader = cluster.commit("g", 0..5).await;
    cluster.agree(&leader).await;
    for replica in cluster.replicas() {
        replica.checkpoint().await.unwrap();
    }
    let altered = which(leader.node());
    drop(leader);
    let storage = cluster.kill(altered);
    alter(&storage);
    cluster.start_on(altered, Begin::Existing, storage, false).await.unwrap();
    let leader = cluster.commit("g", 5..7).await;
    let upto = leader.shard().applied().last.unwrap().index;
    assert!(cluster.replica(altered).wait_applied(upto, PATIENCE).await, "nobody has noticed");

    compare(&cluster, |cluster| stopped(cluster.replica(altered)).is_some()).await;
    let reason = stopped(cluster.replica(altered)).unwrap();
    assert!(reason.contains("astray") && reason.contains("cluster add"), "{reason}");
    let lost = cluster.replica(altered).propose(commit_position("g", 99)).await;
    assert!(lost.is_err(), "it acknowledges nothing any more: {lost:?}");

    // The others go on without it.
    let healthy = cluster.leader_among(|node| node != altered).await;
    for offset in 7..10 {
        healthy.propose(commit_position("g", offset)).await.unwrap();
    }
    let upto = healthy.shard().applied().last.unwrap().index;
    for other in cluster.replicas().filter(|replica| replica.node() != altered) {
        assert_eq!(stopped(other), None);
        assert!(other.wait_applied(upto, PATIENCE).await);
        assert_eq!(groups(other), groups(&healthy));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_state_was_altered_stops_and_the_others_go_on() {
    let follower = |leader| (1..=3).map(node).find(|node| *node != leader).unwrap();
    one_of_three_is_altered(72, follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_that_led() {
    one_of_three_is_altered(73, |leader| leader).await;
}
