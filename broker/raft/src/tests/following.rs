//! Whoever keeps a shard is not left with the old one when a snapshot takes its place, and keeps nothing of a replica that has ended.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openraft::storage::RaftStateMachine;
use tidemill_log::fs::MemoryStorage;
use tidemill_log::wal::EntryId;
use tidemill_protocol::Offset;
use tidemill_shard::{AdoptTopic, Entry, Shard, Unit};

use super::fixture::{Broker, PATIENCE, SHARD, adopt, record};
use crate::follow::{ShardChanges, ShardHandle};
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
    let now = || shard.now().expect("its replica is there");
    let mut changes = ShardChanges::of(&machine);
    assert!(shard.watch(partition).is_none());
    install(&machine, five_more().await).await;
    soon(changes.changed()).await;
    let mut watched = shard.watch(partition).expect("it came with the snapshot");
    assert_eq!((watched.get(), now().topics().len()), (Offset::new(5), 1));

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
    let last = now().applied().last.unwrap();
    let apply = |after: u64, unit: Unit| {
        let id = EntryId { index: tidemill_protocol::LogIndex::new(last.index.get() + after), ..last };
        now().apply(id, &Entry { units: vec![unit], ..Entry::default() }).unwrap();
    };
    apply(1, record(partition, 10));
    assert!(soon(watched.reaches(Offset::new(10))).await);
    assert_eq!(watched.get(), Offset::new(11));

    // Gone is gone.
    let topic = now().topics().remove(0);
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
    now().checkpoint(&|_| Ok(())).unwrap();
    assert!(!watched.follow() && shard.watch(partition).is_none());
    assert!(!soon(watched.reaches(Offset::new(i64::MAX))).await);
}

/// A reader may wait for its client for days, and the shard's next replica opens what this one had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_a_shard_holds_nothing_open_once_its_replica_has_ended() {
    let broker = Broker::in_memory(&MemoryStorage::new());
    let replica = broker.start(SHARD).await;
    let partition = adopt(&replica, 1 << 20).await;
    replica.propose(record(partition, 100)).await.unwrap();
    let (shard, mut changes) = (replica.handle(), replica.changes());
    let mut watched = shard.watch(partition).expect("it is here");
    let state_file = replica.shard().still_open();
    assert!(state_file.is_open() && shard.now().is_some());
    assert_eq!(shard.ended().now_or_never(), None);

    replica.stop().await;
    drop(replica);
    let closed = async {
        while state_file.is_open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(closed).await;
    soon(shard.ended()).await;
    assert!(shard.now().is_none() && shard.watch(partition).is_none());
    // That is not the partition's end: what was seen last stays, and nothing comes any more.
    assert!(watched.follow() && watched.get() == Offset::new(1));
    assert_eq!(watched.reaches(Offset::new(0)).now_or_never(), Some(true));
    assert_eq!(watched.reaches(Offset::new(1)).now_or_never(), None);
    assert_eq!(changes.changed().now_or_never(), None);
}
