//! Whole replicas: writing, restarting, failing, checkpointing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_log::fs::{Call, Effect, FaultyStorage, MemoryStorage, Storage};
use tidemill_protocol::{NodeId, ShardId};
use tidemill_shard::{Unit, UnitResult};
use tokio::sync::watch;

use super::fixture::{Broker, PATIENCE, SHARD, bulk, commit_all, commit_position, groups};
use crate::config::ReplicaLimits;
use crate::driver::{CheckpointConfig, CheckpointDriver};
use crate::error::{CheckpointFailed, ProposeError, ReplicaStartError};
use crate::status::ReplicaState;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_and_replay_makes_the_same_state() {
    let mut storage = MemoryStorage::new();
    let mut fastest_start = Duration::MAX;
    for life in 0..6 {
        let broker = Broker::in_memory(&storage);
        let started = Instant::now();
        let replica = broker.start(SHARD).await;
        fastest_start = fastest_start.min(started.elapsed());
        commit_all(&replica, &format!("group-{life}"), 0..20).await;
        if life % 3 == 1 {
            replica.checkpoint().await.unwrap();
            commit_all(&replica, "after", 0..5).await;
        }
        let (groups_before, applied) = (groups(&replica), replica.shard().applied().last.unwrap());

        // What the power cut leaves, with what was never synced gone.
        storage = storage.crash(life);
        let again = Broker::in_memory(&storage);
        let replayed = again.start(SHARD).await;
        assert!(replayed.shard().applied().last.unwrap().index > applied.index);
        assert_eq!(groups(&replayed), groups_before);
        drop((replica, replayed));
        storage = storage.kill();
    }
    // One of six: a busy machine may hold up any of them.
    assert!(fastest_start < Duration::from_millis(900), "a group of one waits for no election time-out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_are_written_in_order_whoever_waits_first() {
    let broker = Broker::in_memory(&MemoryStorage::new());
    let replica = broker.start(SHARD).await;
    let mut pending = Vec::new();
    for offset in 0..500 {
        let unit = commit_position("ordered", offset);
        pending.push(replica.reserve(unit.bytes()).await.unwrap().submit(unit));
    }
    for unit in pending.into_iter().rev() {
        unit.await.unwrap();
    }
    let entries = replica.shard().applied().last.unwrap().index.get();
    assert!(entries < 400, "{entries} entries for 500 units: they should have been gathered");
    let last = replica.propose(commit_position("ordered", 500)).await.unwrap();
    assert!(matches!(last, UnitResult::Group(_)), "{last:?}");
    replica.read_barrier().await.unwrap();
    replica.stop().await;
    assert!(matches!(replica.propose(Unit::Tick).await, Err(ProposeError::Stopped { .. })));
    assert!(matches!(replica.status().state, ReplicaState::Stopped { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_durable_write_there_is_no_answer() {
    let storage = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(storage.clone()));
    let broker = Broker::open(Arc::new(faulty.clone()));
    let replica = broker.start(SHARD).await;
    commit_all(&replica, "before", 0..10).await;
    let groups_before = groups(&replica);
    faulty.on_nth(Some(Call::Sync), 1, Effect::Fail);
    let lost = replica.propose(commit_position("lost", 1)).await;
    assert_eq!(lost, Err(ProposeError::OutcomeUnknown));
    let mut role = replica.watch();
    tokio::time::timeout(PATIENCE, role.wait_for(|role| role.stopped().is_some())).await.unwrap().unwrap();
    let Err(ProposeError::Stopped { reason, others_vote: false }) = replica.propose(Unit::Tick).await else {
        panic!("it goes on")
    };
    assert!(reason.contains("write-ahead log"), "{reason}");
    assert!(replica.checkpoint().await.is_err());
    assert!(replica.read_barrier().await.is_err());
    drop(replica);
    faulty.heal();
    let again = Broker::in_memory(&storage.crash(1)).start(SHARD).await;
    let mut groups_after = groups(&again);
    groups_after.remove("lost");
    assert_eq!(groups_after, groups_before, "what was acknowledged is there; what was not may be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_free_the_log() {
    let storage = MemoryStorage::new();
    let broker = Broker::in_memory(&storage);
    let replica = broker.start(SHARD).await;
    for _ in 0..40 {
        replica.propose(bulk(100 << 10)).await.unwrap();
    }
    let before = broker.wal.bytes();
    assert!(before > 3 << 20, "{before}");
    let done = replica.checkpoint().await.unwrap();
    assert_eq!(replica.status().checkpointed, done.applied);
    wait_until(|| replica.status().purged == done.applied).await;
    commit_all(&replica, "after", 0..3).await;
    wait_until(|| broker.wal.bytes() < 3 << 20).await;
    replica.checkpoint().await.unwrap();
    let groups_before = groups(&replica);
    drop(replica);
    let again = Broker::in_memory(&storage.kill()).start(SHARD).await;
    assert_eq!(groups(&again), groups_before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_keeps_the_log_bounded_by_bytes() {
    let mut broker = Broker::in_memory(&MemoryStorage::new());
    broker.limits.checkpoint_bytes = 1 << 20;
    let (busy, idle) = (broker.start(SHARD).await, broker.start(ShardId::new(2)).await);
    let config = CheckpointConfig {
        wal_bytes_max: 4 << 20,
        interval: Duration::from_millis(10),
        ..CheckpointConfig::default()
    };
    let replicas = vec![busy.clone(), idle.clone()];
    let (_room, short_of_room) = watch::channel(false);
    let _driver =
        CheckpointDriver::start(config, broker.wal.clone(), move || replicas.clone(), short_of_room);
    for _ in 0..100 {
        busy.propose(bulk(100 << 10)).await.unwrap();
    }
    // Nothing more is written: whoever wants to write may be waiting for just this.
    wait_until(|| broker.wal.bytes() <= 4 << 20).await;
    assert!(busy.status().purged.is_some());
    assert!(idle.status().purged.is_some(), "its few entries held the oldest segment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_the_log_stop_at_their_limit() {
    let storage = MemoryStorage::new();
    let mut broker = Broker::in_memory(&storage);
    broker.limits = ReplicaLimits { read_bytes_max: 150 << 10, decoded_cache_bytes_max: 0, ..broker.limits };
    let replica = broker.start(SHARD).await;
    for _ in 0..20 {
        replica.propose(bulk(100 << 10)).await.unwrap();
    }
    let applied = replica.shard().applied().last.unwrap();
    drop(replica);
    let mut again = Broker::in_memory(&storage.kill());
    again.limits = broker.limits;
    let replayed = again.start(SHARD).await;
    assert!(replayed.shard().applied().last.unwrap().index >= applied.index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn groups_share_the_syncs_of_one_log() {
    const GROUPS: u16 = 20;
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let broker = Broker::open(Arc::new(faulty.clone()));
    let mut replicas = BTreeMap::new();
    for shard in 0..GROUPS {
        replicas.insert(shard, broker.start(ShardId::new(shard)).await);
    }
    let before = faulty.count(Call::Sync);
    let rounds = 10;
    for round in 0..rounds {
        // The log's writer is held up, as if its last sync took its time.
        let (release, held) = std::sync::mpsc::channel::<()>();
        broker.wal.flush(Box::new(move |_| {
            let _released = held.recv();
        }));
        let mut pending = Vec::new();
        for replica in replicas.values() {
            let unit = commit_position("shared", round);
            let last = replica.status().last_entry;
            pending.push(replica.reserve(unit.bytes()).await.unwrap().submit(unit));
            wait_until(|| replica.status().last_entry > last).await;
        }
        drop(release);
        for unit in pending {
            unit.await.unwrap();
        }
    }
    let syncs = faulty.count(Call::Sync) - before;
    let rounds = u64::try_from(rounds).unwrap();
    // One for what held the writer up, one for all that came meanwhile, and one for a straggler.
    assert!(syncs <= 3 * rounds, "{syncs} syncs for {rounds} rounds of {GROUPS} entries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_trusted_does_not_start() {
    let storage = MemoryStorage::new();
    let mut broker = Broker::in_memory(&storage);
    broker.init = false;
    assert!(matches!(broker.try_start(SHARD).await, Err(ReplicaStartError::Missing { .. })));
    broker.init = true;
    let replica = broker.start(SHARD).await;
    commit_all(&replica, "kept", 0..5).await;
    replica.checkpoint().await.unwrap();
    wait_until(|| replica.status().purged.is_some()).await;
    let groups_before = groups(&replica);
    let term = replica.status().term;
    drop((replica, broker));

    // The log's directory is lost, the state is not.
    let lost = storage.kill();
    Storage::remove_dir_all(&lost, Path::new("wal")).unwrap();
    let mut broker = Broker::in_memory(&lost);
    let refused = broker.try_start(SHARD).await.unwrap_err();
    assert!(matches!(refused, ReplicaStartError::LogLost { .. }), "{refused}");
    assert!(refused.to_string().contains("--accept-data-loss"), "{refused}");
    broker.accept_data_loss = true;
    let replica = broker.start(SHARD).await;
    assert_eq!(groups(&replica), groups_before);
    assert!(replica.status().term > term, "a term is never used twice");
    commit_all(&replica, "goes on", 0..3).await;
    drop((replica, broker));

    // The state is lost, the log begins after it.
    let storage = storage.kill();
    Storage::remove_dir_all(&storage, Path::new("shard-01")).unwrap();
    let purged = Broker::in_memory(&storage).try_start(SHARD).await;
    assert!(matches!(purged, Err(ReplicaStartError::StateLost { .. })), "{:?}", purged.err());
}

/// What recovery found knows nothing of how the replica voted since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_recovery_found_is_good_for_one_start() {
    let storage = MemoryStorage::new();
    let broker = Broker::in_memory(&storage);
    let replica = broker.start(SHARD).await;
    commit_all(&replica, "group", 0..3).await;
    replica.stop().await;
    drop(replica);
    let refused = broker.try_start(SHARD).await.unwrap_err();
    assert!(matches!(refused, ReplicaStartError::Failed { .. }), "{refused}");
    assert!(refused.to_string().contains("started before in this process"), "{refused}");
    drop(broker);
    let replica = Broker::in_memory(&storage.kill()).start(SHARD).await;
    assert_eq!(groups(&replica).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_log_is_refused_until_the_loss_is_accepted() {
    let storage = MemoryStorage::new();
    let replica = Broker::in_memory(&storage).start(SHARD).await;
    commit_all(&replica, "group", 0..40).await;
    drop(replica);
    let storage = storage.kill();
    // Each commit was a write of at least a block of its own, so the 20th is one of them. Segments that are only
    // prepared are all zeros.
    for segment in Storage::list(&storage, Path::new("wal")).unwrap() {
        storage.edit(&Path::new("wal").join(segment.name), |bytes| {
            let block = &mut bytes[20 * 4096..21 * 4096];
            block[48] ^= u8::from(block.iter().any(|byte| *byte != 0));
        });
    }

    let refused = Broker::in_memory(&storage).try_start(SHARD).await.unwrap_err();
    assert!(matches!(refused, ReplicaStartError::DoubtfulTail { .. }), "{refused}");
    assert!(refused.to_string().contains("--accept-data-loss"), "{refused}");
    let mut broker = Broker::in_memory(&storage);
    broker.accept_data_loss = true;
    let replica = broker.start(SHARD).await;
    let kept = groups(&replica)["group"][0].1.offset;
    assert!(kept < tidemill_protocol::Offset::new(39), "{kept}");
    commit_all(&replica, "later", 0..3).await;
    drop((replica, broker));
    let replica = Broker::in_memory(&storage.kill()).start(SHARD).await;
    assert_eq!(groups(&replica)["group"][0].1.offset, kept, "accepted once, it is settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_group_and_units_beyond_the_log_are_refused() {
    let storage = MemoryStorage::new();
    drop(Broker::in_memory(&storage).start(SHARD).await);
    let mut broker = Broker::in_memory(&storage.kill());
    broker.node = NodeId::from_raw(9 << 32 | 1);
    let refused = broker.try_start(SHARD).await.unwrap_err();
    assert!(refused.to_string().contains("node 9.1 is not a member of its group (1.1)"), "{refused}");
    broker.limits.unit_bytes_max = 1 << 20;
    let refused = broker.try_start(SHARD).await.unwrap_err();
    assert!(matches!(refused, ReplicaStartError::BadConfig { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_shard_ends_an_idle_replica() {
    let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let broker = Broker::open(Arc::new(faulty.clone()));
    let replica = broker.start(SHARD).await;
    commit_all(&replica, "group", 0..3).await;
    faulty.on_nth(Some(Call::Sync), 1, Effect::Halt);
    let failed = replica.checkpoint().await;
    assert!(matches!(failed, Err(CheckpointFailed::NotWritten { .. })), "{failed:?}");
    let mut role = replica.watch();
    let ended = tokio::time::timeout(PATIENCE, role.wait_for(|role| role.stopped().is_some())).await;
    let reason = ended.unwrap().unwrap().stopped().cloned().unwrap();
    assert!(reason.contains("restart the broker"), "it says what to do: {reason}");
    assert!(matches!(replica.propose(Unit::Tick).await, Err(ProposeError::Stopped { .. })));
}

/// Many call while the log fails and openraft's core ends, and some of them do not wait for what comes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_calls_while_a_replica_ends_is_answered() {
    for nth in 1..=20 {
        let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
        let broker = Broker::open(Arc::new(faulty.clone()));
        let replica = broker.start(SHARD).await;
        let callers = (0..8_u64).map(|caller| {
            let replica = replica.clone();
            tokio::spawn(async move {
                for call in 0_u64.. {
                    let unit = Unit::Tick;
                    let pending = match replica.reserve(unit.bytes()).await {
                        Ok(permit) => permit.submit(unit),
                        Err(ProposeError::Stopped { .. }) => return,
                        Err(_) => continue,
                    };
                    let wait = Duration::from_micros((caller + call) % 4 * 50);
                    let _given_up = tokio::time::timeout(wait, replica.read_barrier()).await;
                    let _given_up = tokio::time::timeout(wait, pending).await;
                }
            })
        });
        let callers: Vec<_> = callers.collect();
        tokio::task::yield_now().await;
        faulty.on_nth(Some(Call::Sync), nth, Effect::Halt);
        for caller in callers {
            let ended = tokio::time::timeout(PATIENCE, caller).await;
            ended.expect("it ends").expect("it does not panic");
        }
    }
}

async fn wait_until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let came = tokio::time::timeout(PATIENCE, waiting).await;
    came.expect("it should have come to that");
}
