//! An installed snapshot and the log: together they are the old replica or the new one, wherever the power goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use openraft::Raft;
use openraft::errors::ReplicationClosed;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::vote::RaftVote;
use tidemill_log::fs::{Effect, FaultyStorage, MemoryStorage, Storage};
use tidemill_protocol::{NodeId, Timestamp};

use super::fixture::{Broker, PATIENCE, SHARD, commit_all, groups};
use super::wire::{clear, pair};
use crate::config::{ReplicaConfig, openraft_config};
use crate::log_store::LogStore;
use crate::network::NoPeers;
use crate::replica::Replica;
use crate::shared_log::SharedLog;
use crate::snapshot::{Snapshot, SnapshotLimiter, receive, send};
use crate::state_machine::{Machine, StateMachine};
use crate::types::{
    LeaderId, LogId, Payload, RaftLogEntry, RaftSnapshot, SnapshotMeta, TypeConfig, Vote, log_id,
};

const LEADER: NodeId = NodeId::from_raw(2 << 32 | 1);

/// The source's latest checkpoint, as openraft hands it around.
fn snapshot_of(replica: &Replica) -> RaftSnapshot {
    let shard = replica.shard();
    let pinned = shard.snapshot().unwrap();
    let membership = pinned.manifest().membership().unwrap().to_vec();
    let last = shard.checkpointed().as_ref().map(log_id);
    let last_membership = crate::codec::decode_stored_membership(&membership).unwrap();
    let meta = SnapshotMeta { last_log_id: last, last_membership };
    RaftSnapshot { meta, snapshot: Snapshot::source(shard, last) }
}

/// Log and machine of a replica, without openraft.
fn parts(broker: &Broker) -> (Arc<SharedLog>, Arc<Machine>) {
    let log = SharedLog::open(SHARD, broker.wal.clone(), &broker.recovered(SHARD), 1 << 20, 0).unwrap();
    let machine = Machine::open(SHARD, broker.shard(SHARD), Arc::clone(&log), &broker.limits).unwrap();
    machine.replay_committed().unwrap();
    (log, machine)
}

/// Both ends run in tasks.
fn in_a_task<F: Future + Send>(future: F) -> F {
    future
}

/// What openraft does with a snapshot: the state machine first, then the log.
async fn install(
    (log, machine): (Arc<SharedLog>, Arc<Machine>),
    snapshot: RaftSnapshot,
) -> std::io::Result<()> {
    let last = snapshot.meta.last_log_id.unwrap();
    StateMachine::new(machine).install_snapshot(&snapshot.meta, snapshot.snapshot).await?;
    LogStore::new(log).purge(last).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_leaves_the_old_replica_or_the_new_one() {
    let storage = MemoryStorage::new();
    let broker = Broker::in_memory(&storage);
    let source = broker.start(SHARD).await;
    commit_all(&source, "early", 0..10).await;
    source.checkpoint().await.unwrap();
    commit_all(&source, "early", 10..20).await;
    // The one that lags is the same replica as it was a while ago.
    let lagging = storage.kill();
    let old = groups(&Broker::in_memory(&lagging.kill()).start(SHARD).await);
    commit_all(&source, "late", 0..30).await;
    source.checkpoint().await.unwrap();
    let new = groups(&source);

    let (mut found_old, mut found_new, mut cut_short) = (0, 0, 0);
    for nth in 1.. {
        let memory = lagging.kill();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let receiver = Broker::open(Arc::new(faulty.clone()));
        let parts = parts(&receiver);
        faulty.on_nth(None, nth, Effect::Halt);
        let installed = install(parts, snapshot_of(&source)).await;
        let done = !faulty.has_struck();
        for seed in 0..3 {
            let after = Broker::in_memory(&memory.crash(seed * 1000 + nth));
            let recovered = after.recovered(SHARD);
            let applied = after.shard(SHARD).applied().last;
            cut_short += usize::from(recovered.last.max(recovered.purged) < applied);
            let replica = after.start(SHARD).await;
            let state = groups(&replica);
            if state == new {
                found_new += 1;
                assert!(replica.status().purged >= applied);
            } else {
                assert_eq!(state, old, "after step {nth}");
                assert!(!done);
                found_old += 1;
            }
            commit_all(&replica, "afterwards", 0..2).await;
            let again = groups(&replica);
            drop((replica, after));
            assert_eq!(again["afterwards"].len(), 1);
        }
        if done {
            installed.unwrap();
            break;
        }
    }
    assert!(found_old > 20 && found_new > 10 && cut_short > 5, "{found_old}, {found_new}, {cut_short}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_of_an_install_that_never_was_is_forgotten() {
    let storage = MemoryStorage::new();
    let broker = Broker::in_memory(&storage);
    let source = broker.start(SHARD).await;
    commit_all(&source, "early", 0..10).await;
    let ahead = source.shard().applied().last.unwrap();
    let ahead = LogId { index: ahead.index.get() + 50, ..log_id(&ahead) };
    let wal = broker.wal.clone();
    let noted = tokio::task::spawn_blocking(move || crate::snapshot::note_install(&wal, SHARD, &ahead));
    noted.await.unwrap().unwrap();
    drop((source, broker));
    let storage = storage.kill();
    let broker = Broker::in_memory(&storage);
    assert!(broker.recovered(SHARD).snapshot_installed.is_some());
    let replica = broker.start(SHARD).await;
    commit_all(&replica, "early", 10..12).await;
    drop((replica, broker));
    let broker = Broker::in_memory(&storage.kill());
    assert_eq!(broker.recovered(SHARD).snapshot_installed, None);
    assert_eq!(groups(&broker.start(SHARD).await)["early"].len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_installs_what_was_received_and_purges_the_log() {
    over_a_log_of(0).await;
}

/// What a leader that was deposed wrote here and never committed, under a later term than what the snapshot has under higher indexes: by the
/// order of log ids the snapshot goes back. openraft's own assertion against that (`LogIdList::purge`) is too strict, and not in the builds
/// that run (see the profiles in Cargo.toml).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_the_place_of_a_log_that_ends_in_a_later_term() {
    over_a_log_of(3).await;
}

/// A snapshot is received by a replica that has so many entries that were not committed.
async fn over_a_log_of(uncommitted: u64) {
    let broker = Broker::in_memory(&MemoryStorage::new());
    let source = broker.start(SHARD).await;
    commit_all(&source, "group", 0..30).await;
    source.checkpoint().await.unwrap();
    let (leads, snapshot) = (source.status().term, snapshot_of(&source));
    let last = snapshot.meta.last_log_id.unwrap();

    let storage = MemoryStorage::new();
    let receiver = Broker::in_memory(&storage);
    let (log, machine) = parts(&receiver);
    let node = NodeId::from_raw(3 << 32 | 1);
    let config = ReplicaConfig::new(SHARD, node, Arc::new(|| Timestamp::new(0)));
    let raft = Raft::<TypeConfig, StateMachine>::new(
        node,
        Arc::new(openraft_config(&config).unwrap()),
        NoPeers,
        LogStore::new(Arc::clone(&log)),
        StateMachine::new(Arc::clone(&machine)),
    )
    .await
    .unwrap();
    if uncommitted > 0 {
        let deposed = LeaderId { term: leads.get() + 1, node_id: source.node() };
        let blank = |index| RaftLogEntry { log_id: LogId::new(deposed, index), payload: Payload::Blank };
        let vote = Vote::from_leader_id(deposed, true);
        let entries = (0..uncommitted).map(blank).collect();
        let append = AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None };
        assert!(raft.append_entries(append).await.unwrap().is_success());
        let ends_at = log.ends().last.unwrap();
        assert!(ends_at > last && ends_at.index < last.index, "{ends_at}, {last}");
    }
    let (ours, mut theirs) = pair(clear(), clear());
    let vote = Vote::from_leader_id(LeaderId { term: leads.get() + 2, node_id: LEADER }, true);
    let (limiter, is_unsound) = (SnapshotLimiter::new(None), AtomicBool::new(false));
    let never = std::future::pending::<ReplicationClosed>();
    let receiving = async {
        let first = theirs.receiver.next().await.unwrap().unwrap();
        in_a_task(receive(&machine, &raft, LEADER, first, theirs)).await
    };
    let both = async {
        tokio::join!(
            in_a_task(send(ours, vote, snapshot, never, (&limiter, &is_unsound), |offer| offer)),
            receiving
        )
    };
    let (sent, received) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    received.unwrap();
    assert_eq!(sent.unwrap().vote, vote);
    let state = |machine: &Machine| -> BTreeMap<_, _> {
        let shard = machine.shard();
        shard.group_names().into_iter().map(|name| (name.clone(), shard.group(&name).unwrap())).collect()
    };
    assert_eq!(state(&machine), groups(&source));
    assert_eq!((machine.vote(), machine.applied().as_ref().map(log_id)), (Some(vote), Some(last)));
    let purged = async {
        while log.ends().purged != Some(last) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, purged).await.unwrap();
    assert_eq!(receiver.wal.range(SHARD).purged, machine.applied());
    assert_eq!(log.ends().last, Some(last));
    let snapshot = raft.get_snapshot().await.unwrap().unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(last), "and offers it to others");
    raft.shutdown().await.unwrap();
    let names = Storage::list(&storage, "shard-01".as_ref()).unwrap();
    assert!(names.iter().all(|entry| entry.name != "staging"), "{names:?}");
}
