//! One replica goes on alone where the others are lost for good.

use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::MemoryStorage;
use tidemill_protocol::{BrokerId, LogIndex, NodeId, Timestamp};
use tidemill_shard::Entry;

use super::cluster::{Cluster, node, nodes, wait_until};
use super::fixture::{Broker, PATIENCE, SHARD, commit_position, groups};
use crate::config::Begin;
use crate::error::ReplicaStartError;
use crate::recover::{HeldReplica, entries_behind, examine, go_on_alone};

/// The survivor's second life.
const ALONE: NodeId = NodeId::new(BrokerId::new(1), 7);

fn look(storage: &MemoryStorage) -> Result<HeldReplica, ReplicaStartError> {
    let broker = Broker::in_memory(storage);
    examine(&broker.wal, SHARD, &broker.recovered(SHARD), &broker.shard(SHARD))
}

/// As the command does it, on what a power cut left; what there is after another one.
async fn recover(storage: &MemoryStorage, node: NodeId, then: Option<Entry>) -> MemoryStorage {
    let broker = Broker::in_memory(storage);
    let (recovered, shard) = (broker.recovered(SHARD), broker.shard(SHARD));
    go_on_alone(&broker.wal, SHARD, recovered, &shard, node, then).await.unwrap();
    drop((shard, broker));
    storage.crash(99)
}

fn alone(broker: u32) -> NodeId {
    NodeId::new(BrokerId::new(broker), 2)
}

/// Three members, of which the first led when it was cut off: it has what all have, and what nobody else has. Answers its disk.
async fn a_survivor_with_a_tail(cluster: &mut Cluster, tail: i64) -> MemoryStorage {
    let leader = cluster.commit("all", 0..40).await;
    if leader.node() != node(1) {
        leader.transfer_leadership(node(1)).await.unwrap();
    }
    let leader = cluster.leader_among(|member| member == node(1)).await;
    cluster.agree(&leader).await;
    cluster.network.cut(node(1), node(2));
    cluster.network.cut(node(1), node(3));
    let before = leader.status().last_entry;
    for offset in 0..tail {
        let leader = leader.clone();
        tokio::spawn(async move { leader.propose(commit_position("tail", offset)).await });
    }
    wait_until("the tail is in its log", || leader.status().last_entry > before).await;
    let (done, synced) = std::sync::mpsc::channel();
    cluster.wal(node(1)).flush(Box::new(move |result| drop(done.send(result))));
    tokio::task::block_in_place(|| synced.recv()).unwrap().unwrap();
    assert!(!groups(&leader).contains_key("tail"), "nobody else has it: it is not committed");
    drop(leader);
    cluster.kill(node(2));
    cluster.kill(node(3));
    cluster.kill(node(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_the_last_replica_holds_is_committed_and_others_join_again() {
    let mut cluster = Cluster::of_three(31).await;
    let storage = a_survivor_with_a_tail(&mut cluster, 1).await;
    let held = look(&storage).unwrap();
    assert_eq!((held.voters.clone(), held.learners.clone()), (nodes([1, 2, 3]), nodes([])));
    assert!(held.committed < Some(held.last.index) && held.doubt.is_none(), "{held:?}");
    assert_eq!(look(&storage).unwrap(), held, "a look changes nothing");

    let then = Entry { time: Timestamp::new(1_700_000_000_000), units: vec![commit_position("then", 5)] };
    let storage = recover(&storage, ALONE, Some(then)).await;
    let now = look(&storage).unwrap();
    assert_eq!(
        (now.voters.clone(), now.last.index),
        ([ALONE].into(), LogIndex::new(held.last.index.get() + 2))
    );
    assert!(now.term > held.term);

    cluster.network.heal();
    let survivor = cluster.start_on(ALONE, Begin::Existing, storage, false).await.unwrap();
    survivor.wait_leading(PATIENCE).await.unwrap();
    let found = groups(&survivor);
    assert_eq!(found["all"][0].1.offset.get(), 39);
    assert_eq!(found["tail"][0].1.offset.get(), 0, "it may have been acknowledged");
    assert_eq!(found["then"][0].1.offset.get(), 5, "and what was added is applied");
    assert!(survivor.status().term > now.term);

    // New members get all of it: one from the log, one by a snapshot, since the log is cut by then.
    let second = cluster.start(alone(2), Begin::Join).await;
    survivor.add_learner(second.node()).await.unwrap();
    cluster.agree(&survivor).await;
    survivor.checkpoint().await.unwrap();
    let third = cluster.start(alone(3), Begin::Join).await;
    survivor.add_learner(third.node()).await.unwrap();
    survivor.change_voters([ALONE, alone(2), alone(3)].into(), nodes([])).await.unwrap();
    let leader = cluster.commit("after", 0..10).await;
    cluster.agree(&leader).await;
    assert_eq!(groups(&third), groups(&survivor));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_back_of_the_old_group_is_heard_by_nobody() {
    let mut cluster = Cluster::of_three(32).await;
    let leader = cluster.commit("all", 0..10).await;
    cluster.agree(&leader).await;
    drop(leader);
    let lost = cluster.kill(node(2));
    cluster.kill(node(3));
    let storage = cluster.kill(node(1));
    let storage = recover(&storage, ALONE, None).await;
    let survivor = cluster.start_on(ALONE, Begin::Existing, storage, false).await.unwrap();
    survivor.wait_leading(PATIENCE).await.unwrap();
    let term = survivor.status().term;
    let old = cluster.start_on(node(2), Begin::Existing, lost, false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!old.watch().borrow().is_leader());
    assert!(survivor.watch().borrow().is_leader());
    assert_eq!(survivor.status().term, term, "it disturbs nobody");
    assert_eq!(old.members().voters, nodes([1, 2, 3]), "it knows of nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_was_broken_off_is_done_again_under_another_id() {
    let mut cluster = Cluster::of_three(33).await;
    let leader = cluster.commit("all", 0..10).await;
    cluster.agree(&leader).await;
    drop(leader);
    cluster.kill(node(2));
    cluster.kill(node(3));
    let storage = cluster.kill(node(1));
    let storage = recover(&storage, ALONE, None).await;
    let held = look(&storage).unwrap();
    let again = NodeId::new(BrokerId::new(1), 8);
    let storage = recover(&storage, again, None).await;
    assert_eq!(look(&storage).unwrap().voters, [again].into());
    assert!(look(&storage).unwrap().last.index > held.last.index);
    let survivor = cluster.start_on(again, Begin::Existing, storage, false).await.unwrap();
    survivor.wait_leading(PATIENCE).await.unwrap();
    assert_eq!(groups(&survivor)["all"][0].1.offset.get(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_behind_the_checkpoint_are_told_committed_or_not() {
    let mut cluster = Cluster::of_three(34).await;
    let storage = a_survivor_with_a_tail(&mut cluster, 3).await;
    let broker = Broker::in_memory(&storage);
    let (recovered, shard) = (broker.recovered(SHARD), broker.shard(SHARD));
    let mut units = 0;
    entries_behind(&broker.wal, SHARD, &recovered, &shard, |entry| units += entry.units.len()).unwrap();
    assert!(units > 40, "{units}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_nothing_to_go_on_with() {
    let storage = MemoryStorage::new();
    assert!(matches!(look(&storage), Err(ReplicaStartError::Missing { .. })));
    let broker = Broker::open(Arc::new(storage.clone()));
    let shard = broker.shard(SHARD);
    let refused = go_on_alone(&broker.wal, SHARD, broker.recovered(SHARD), &shard, ALONE, None).await;
    assert!(matches!(refused, Err(ReplicaStartError::Missing { .. })), "{refused:?}");
}
