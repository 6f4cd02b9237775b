//! Whoever keeps a shard is not left with the old one when a snapshot takes its place.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use tidemill_log::fs::MemoryStorage;
use tidemill_log::wal::EntryId;
use tidemill_protocol::Offset;
use tidemill_shard::{AdoptTopic, Entry, Shard, Unit};

use super::fixture::{Broker, PATIENCE, SHARD, adopt, record};
use crate::follow::ShardHandle;
use crate::shared_log::SharedLog;
use crate::snapshot::Snapshot;
use crate::state_machine::{Machine, StateMachine};
use crate::types::{SnapshotMeta, StoredMembership, log_id};

fn machine_of(broker: &Broker) -> Arc<Machine> {
    let log = SharedLog::open(SHARD, broker.wal.clone(), &broker.recovered(SHARD), 1 << 20, 0).unwrap();
    Machine::open(SHARD, broker.shard(SHARD), log, &broker.limits).unwrap()
}

/// Puts the latest checkpoint of `source` in the place of the machine's shard.
async fn install(machine: &Arc<Machine>, source: Shard) {
    let last_log_id = source.checkpointed().as_ref().map(log_id);
    let meta = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
    let snapshot = Snapshot::source(source, last_log_id);
    StateMachine::new(Arc::clone(machine)).install_snapshot(&meta, snapshot).await.unwrap();
}

async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, awaited).await.expect("woken")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_a_shard_follows_an_installed_snapshot() {
    // Somebody else's replica, ahead of this one.
    let source = Broker::in_memory(&MemoryStorage::new());
    let replica = source.start(SHARD).await;
    let partition = adopt(&replica, 1 << 20).await;
    let five_more = async || {
        for _ in 0..5 {
            replica.propose(record(partition, 100)).await.unwrap();
        }
        replica.checkpoint().await.unwrap();
        replica.shard()
    };

    let broker = Broker::in_memory(&MemoryStorage::new());
    let machine = machine_of(&broker);
    let shard = ShardHandle::new(&machine);
    let mut changes = shard.changes().unwrap();
    assert!(shard.watch(partition).is_none());
    install(&machine, five_more().await).await;
    soon(changes.changed()).await;
    let mut watched = shard.watch(partition).expect("it came with the snapshot");
    assert_eq!((watched.get(), shard.now().unwrap().topics().len()), (Offset::new(5), 1));

    // Somebody waits for what only the next snapshot brings, and somebody else for nothing.
    let mut waiting = watched.clone();
    let (reached, ()) = tokio::join!(soon(waiting.reaches(Offset::new(7))), async {
        install(&machine, five_more().await).await;
    });
    assert!(reached && waiting.get() == Offset::new(10));
    assert_eq!(watched.get(), Offset::new(5), "of the shard before");
    assert!(watched.follow() && watched.get() == Offset::new(10));
    soon(changes.changed()).await;

    // And what the new one applies by itself.
    let last = shard.now().unwrap().applied().last.unwrap();
    let apply = |after: u64, unit: Unit| {
        let id = EntryId { index: tidemill_protocol::LogIndex::new(last.index.get() + after), ..last };
        shard.now().unwrap().apply(id, &Entry { units: vec![unit], ..Entry::default() }).unwrap();
    };
    apply(1, record(partition, 10));
    assert!(soon(watched.reaches(Offset::new(10))).await);
    assert_eq!(watched.get(), Offset::new(11));

    // Gone is gone.
    let topic = shard.now().unwrap().topics().remove(0);
    let deleted = AdoptTopic {
        topic: topic.topic,
        version: topic.version + 1,
        name: topic.name,
        config: tidemill_controller::TopicConfig::default(),
        partitions: Vec::new(),
        deleted: true,
    };
    apply(2, Unit::AdoptTopic(deleted));
    assert!(soon(watched.reaches(Offset::new(99))).await, "it wakes, to find nothing");
    shard.now().unwrap().checkpoint(&|_| Ok(())).unwrap();
    assert!(!watched.follow() && shard.watch(partition).is_none());
    assert!(!soon(watched.reaches(Offset::new(i64::MAX))).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_a_shard_keeps_no_file_of_it_open() {
    let broker = Broker::in_memory(&MemoryStorage::new());
    let replica = broker.start(SHARD).await;
    let partition = adopt(&replica, 1 << 20).await;
    replica.propose(record(partition, 100)).await.unwrap();
    let (handle, still_open) = (replica.handle(), replica.shard().still_open());
    let mut changes = handle.changes().unwrap();
    let mut watched = handle.watch(partition).unwrap();
    let waiting = tokio::spawn({
        let mut watched = watched.clone();
        async move { watched.reaches(Offset::new(1)).await }
    });
    assert!(still_open.is_open());
    replica.stop().await;
    drop(replica);
    soon(async {
        while still_open.is_open() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    // They tell of no change that there is not: that it has ended is told elsewhere.
    assert!(handle.now().is_none() && handle.changes().is_none() && handle.watch(partition).is_none());
    assert!(watched.follow() && watched.get() == Offset::new(1), "its last word stands");
    assert!(!waiting.is_finished());
    let never = tokio::time::timeout(std::time::Duration::from_millis(50), changes.changed()).await;
    assert!(never.is_err());
    waiting.abort();
}
