//! Snapshots from one replica to another, over a stream.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::errors::{ReplicationClosed, StreamingError};
use tidemill_log::fs::{Call, Effect, FaultyStorage, MemoryStorage, Storage};
use tidemill_protocol::Offset;
use tidemill_shard::{Fetch, Unit};

use super::fixture::{Broker, PATIENCE, SHARD, record};
use super::store::{
    PARTITIONS, Store, assert_same, cut_after, falsify, opening, partition, transfer, transfer_all,
    transfer_at, vote,
};
use super::wire::{Fate, Tap, clear, pair};
use crate::codec;
use crate::follow::{ShardChanges, ShardHandle};
use crate::peers::PeerMessage;
use crate::shared_log::SharedLog;
use crate::snapshot::{Message, ReceiveError, SnapshotLimiter, WINDOW_BYTES, send};
use crate::state_machine::Machine;
use crate::types::RaftSnapshot;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_replica_gets_everything_and_a_lagging_one_what_it_lacks() {
    let (source, replica) = (Store::filled(40), Store::new());
    let all = transfer_all(&source, &replica).await;
    assert!(all > 3 * 400_000, "{all}");
    assert_same(&source.shard(), &replica.shard());
    assert_eq!(replica.machine.checkpointed(), source.shard().applied().last);
    // It goes on as the source does.
    for store in [&source, &replica] {
        store.more(2);
    }
    source.more(3);
    let lacked = transfer_all(&source, &replica).await;
    assert!(lacked < all / 3, "{lacked} of {all}");
    assert_same(&source.shard(), &replica.shard());
    // And has nothing to ask for where it is as far.
    let (sent, received) = transfer(&source, &replica, cut_after(64 << 10)).await;
    received.unwrap();
    assert_eq!(sent.unwrap().vote, vote(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_cut_is_not_sent_again() {
    let source = Store::filled(60);
    let all = transfer_all(&source, &Store::new()).await;
    let mut replica = Store::new();
    let (sent, received) = transfer(&source, &replica, cut_after(all * 2 / 3)).await;
    assert!(matches!(sent, Err(StreamingError::Unreachable(_))), "{sent:?}");
    assert!(matches!(received, Err(ReceiveError::Peer(_))), "{received:?}");
    // The replica's power goes, too.
    replica = Store::on(replica.storage.crash(7));
    let rest = transfer_all(&source, &replica).await;
    assert!(rest < all / 2, "{rest} of {all}");
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_asks_for_no_more_than_its_window() {
    let (source, replica) = (Store::filled(700), Store::new());
    let outstanding = Arc::new(AtomicI64::new(0));
    let (asked, got) = (Arc::clone(&outstanding), Arc::clone(&outstanding));
    let most = Arc::new(AtomicI64::new(0));
    let peak = Arc::clone(&most);
    let wants: Tap = Arc::new(move |message: &mut PeerMessage| {
        if let Ok(Message::Want(ranges)) = Message::decode(&message.head) {
            let bytes: i64 = ranges.iter().map(|range| i64::from(range.bytes)).sum();
            let now = asked.fetch_add(bytes, Ordering::Relaxed) + bytes;
            peak.fetch_max(now, Ordering::Relaxed);
        }
        Fate::Pass
    });
    let parts: Tap = Arc::new(move |message: &mut PeerMessage| {
        if let Ok(Message::Part { .. }) = Message::decode(&message.head) {
            got.fetch_sub(message.body.len() as i64, Ordering::Relaxed);
        }
        Fate::Pass
    });
    let (sent, received) = transfer_at(&source, &replica, &SnapshotLimiter::new(None), (parts, wants)).await;
    received.unwrap();
    sent.unwrap();
    let most = most.load(Ordering::Relaxed);
    assert!(most <= WINDOW_BYTES as i64 && most > WINDOW_BYTES as i64 / 4, "{most}");
    assert_eq!(outstanding.load(Ordering::Relaxed), 0);
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_is_something_else_is_fetched_again_a_few_times() {
    let is_part = |message: &Message| matches!(message, Message::Part { .. });
    let source = Store::filled(20);
    for times in 1..=2 {
        let replica = Store::new();
        let (sent, received) = transfer(&source, &replica, falsify(times, is_part)).await;
        received.unwrap();
        sent.unwrap();
        assert_same(&source.shard(), &replica.shard());
    }
    let replica = Store::new();
    let (sent, received) = transfer(&source, &replica, falsify(u64::MAX, is_part)).await;
    assert!(matches!(received, Err(ReceiveError::Refused { times: 3, .. })), "{received:?}");
    let told = sent.unwrap_err().to_string();
    assert!(told.contains("another sends them"), "{told}");
    assert!(source.is_unsound.load(Ordering::Relaxed), "so that another leads");
    assert!(replica.shard().applied().last.is_none());
    // Which has the same.
    let other = Store::on(source.storage.kill());
    transfer_all(&other, &replica).await;
    assert!(!other.is_unsound.load(Ordering::Relaxed));
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_shards_manifest_an_older_vote_and_garbage_are_refused() {
    let source = Store::filled(5);
    let replica = Store::new();
    let other = Broker::in_memory(&MemoryStorage::new());
    let shard = tidemill_protocol::ShardId::new(2);
    let log = SharedLog::open(shard, other.wal.clone(), &other.recovered(shard), 1 << 20, 0).unwrap();
    let machine = Machine::open(shard, other.shard(shard), log, &other.limits).unwrap();
    let stranger =
        Store { storage: MemoryStorage::new(), broker: other, machine, is_unsound: AtomicBool::new(false) };
    let (sent, received) = transfer(&source, &stranger, clear()).await;
    assert!(received.unwrap_err().to_string().contains("of shard 1, not of shard 2"));
    assert!(sent.unwrap_err().to_string().contains("of shard 1, not of shard 2"));

    // It follows a newer leader.
    replica.broker.wal.save_vote(SHARD, codec::encode_vote(&vote(9)), Box::new(|_| ()));
    replica.broker.wal.flush(Box::new(|_| ()));
    replica.broker.wal.close().unwrap();
    let replica = Store::on(replica.storage.kill());
    let (sent, received) = transfer(&source, &replica, clear()).await;
    received.unwrap();
    assert_eq!(sent.unwrap().vote, vote(9));
    assert!(replica.shard().applied().last.is_none());

    let replica = Store::new();
    for head in [&b"\x01"[..], b"\x01\x04", b"\x01\x07garbage", b""] {
        let (mut ours, theirs) = pair(clear(), clear());
        let say = async {
            ours.sender.send(opening(Bytes::copy_from_slice(head)), &[]).await.unwrap();
            ours.receiver.next().await
        };
        let (answer, refused) = tokio::join!(say, replica.serve(theirs));
        assert!(refused.is_err());
        let answer = Message::decode(&answer.unwrap().unwrap().head).unwrap();
        assert!(matches!(answer, Message::Failed(_)), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_goes_on_while_it_sends() {
    let (source, replica) = (Store::filled(40), Store::new());
    let (shard, as_it_was) = (source.shard(), Store::on(source.storage.kill()));
    let files = |store: &Store| {
        let dir = Path::new("shard-01").join(partition(0).to_string());
        Storage::list(&store.storage, &dir).unwrap().len()
    };
    let before = files(&source);
    let parts = AtomicU64::new(0);
    let source = Arc::new(source);
    let busy = Arc::clone(&source);
    let meanwhile: Tap = Arc::new(move |message: &mut PeerMessage| {
        let is_part = matches!(Message::decode(&message.head), Ok(Message::Part { .. }));
        if is_part && parts.fetch_add(1, Ordering::Relaxed) == 2 {
            // All that is being sent is let go of, and something new comes.
            let units = (0..PARTITIONS).map(|number| {
                let offset = shard.partition(partition(number)).unwrap().high_watermark;
                Unit::AdvanceLogStart { partition: partition(number), offset }
            });
            busy.apply(units.collect());
            for _ in 0..3 {
                busy.more(3);
            }
        }
        Fate::Pass
    });
    let (sent, received) = transfer(&source, &replica, meanwhile).await;
    received.unwrap();
    sent.unwrap();
    assert_same(&as_it_was.shard(), &replica.shard());
    source.more(1);
    assert!(files(&source) < before, "what was sent is let go of in the end");
    // Next time it is the newer one, whatever openraft was told.
    let stale = as_it_was.snapshot().meta;
    let newer = RaftSnapshot { meta: stale, ..source.snapshot() };
    let (ours, theirs) = pair(clear(), clear());
    let limiter = SnapshotLimiter::new(None);
    let never = std::future::pending::<ReplicationClosed>();
    let (sent, received) = tokio::join!(
        send(ours, vote(1), newer, never, (&limiter, &source.is_unsound), opening),
        replica.serve(theirs)
    );
    received.unwrap();
    sent.unwrap();
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_watchers_of_a_replica_see_the_new_state_without_a_gap() {
    let (source, replica) = (Store::filled(20), Store::new());
    transfer_all(&source, &replica).await;
    source.more(20);
    let handle = ShardHandle::new(&replica.machine);
    let mut changes = ShardChanges::of(&replica.machine);
    let mut watched = handle.watch(partition(1)).unwrap();
    // Reads without a pause, whatever is under way, and follows the end.
    let reader = async {
        let mut next = Offset::ZERO;
        while next < Offset::new(40) {
            assert!(watched.reaches(next).await);
            let batches = match handle.now().unwrap().fetch(partition(1), next, 30_000) {
                Fetch::Memory(batches) => batches,
                Fetch::Disk(disk) => tokio::task::spawn_blocking(|| disk.run()).await.unwrap().unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(batches.first, next, "no gap");
            next = batches.next;
        }
    };
    let transferred = async {
        // While somebody holds the shard, and has a read on its way.
        let held = replica.shard();
        let read = held.fetch(partition(2), Offset::ZERO, 1 << 20);
        transfer_all(&source, &replica).await;
        if let Fetch::Disk(read) = read {
            assert!(!read.run().unwrap().is_empty());
        }
        assert!(held.poisoned().is_none());
        let still = held.fetch(partition(2), Offset::ZERO, 100);
        assert!(matches!(still, Fetch::Memory(_) | Fetch::Disk(_)), "{still:?}");
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(reader, transferred, changes.changed()) })
        .await
        .unwrap();
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_transfer_takes_its_time_until_the_limit_goes() {
    let source = Store::filled(30);
    let all = transfer_all(&source, &Store::new()).await;
    let limiter = SnapshotLimiter::new(Some(all * 2));
    let started = Instant::now();
    let (sent, received) = transfer_at(&source, &Store::new(), &limiter, (clear(), clear())).await;
    received.unwrap();
    sent.unwrap();
    let took = started.elapsed();
    // Half a second for all of it, but for what may go at once and the last piece, which is paid for afterwards.
    assert!(took > Duration::from_millis(200), "{took:?}");

    // At this rate it would take the rest of the day.
    limiter.set(Some(10));
    let replica = Store::new();
    let faster = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(replica.shard().applied().last.is_none());
        limiter.set(None);
    };
    let ((sent, received), ()) =
        tokio::join!(transfer_at(&source, &replica, &limiter, (clear(), clear())), faster);
    received.unwrap();
    sent.unwrap();
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_transfer_takes_over_and_a_cancelled_one_ends() {
    let (source, replica) = (Store::filled(20), Store::new());
    let slow = SnapshotLimiter::new(Some(10));
    let (ours, theirs) = pair(clear(), clear());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let cancel = async {
        drop(stopped.await);
        ReplicationClosed::new("told to")
    };
    let first = async {
        tokio::join!(
            send(ours, vote(1), source.snapshot(), cancel, (&slow, &source.is_unsound), opening),
            replica.serve(theirs)
        )
    };
    let second = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        transfer_all(&source, &replica).await;
        drop(stop);
    };
    let ((sent, received), ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(first, second) }).await.unwrap();
    assert!(matches!(received, Err(ReceiveError::Overtaken)), "{received:?}");
    assert!(matches!(sent, Err(StreamingError::Closed(_))), "{sent:?}");
    assert_same(&source.shard(), &replica.shard());
}

/// A follower may have applied what it has not on its disk yet: it says that it has it when that is so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_needs_no_snapshot_says_so_when_what_it_has_is_durable() {
    let (from, storage) = (Store::filled(3), MemoryStorage::new());
    let faulty = FaultyStorage::new(Arc::new(storage.clone()));
    let to = Store::with(Broker::open(Arc::new(faulty.clone())), storage);
    transfer_all(&from, &to).await;
    from.more(1);
    to.apply((0..PARTITIONS).map(|number| record(partition(number), 10_000)).collect());
    faulty.hold(Call::Sync);
    let (done, written) = tokio::sync::oneshot::channel();
    to.broker.wal.save_vote(
        SHARD,
        Bytes::from_static(b"vote"),
        Box::new(move |result| drop(done.send(result))),
    );
    let device = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        faulty.go_on();
    };
    let asked = async {
        let fetched = transfer_all(&from, &to).await;
        let mut written = written;
        (fetched, written.try_recv().is_ok())
    };
    let ((fetched, is_written), ()) = tokio::join!(asked, device);
    assert!(is_written, "it answered while its log was still writing");
    assert!(fetched < 10_000, "{fetched} bytes were sent of what it had");
}

/// Another may read what this leader can't.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_snapshot_does_not_read_had_better_not_lead() {
    let storage = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(storage.clone()));
    let source = Store::with(Broker::open(Arc::new(faulty.clone())), storage);
    source.fill(20);
    faulty.on_nth(Some(Call::Read), 1, Effect::Fail);
    let replica = Store::new();
    let (sent, received) = transfer(&source, &replica, clear()).await;
    assert!(sent.unwrap_err().to_string().contains("can't be read"));
    received.unwrap_err();
    assert!(source.is_unsound.load(Ordering::Relaxed));
    source.is_unsound.store(false, Ordering::Relaxed);
    transfer_all(&source, &replica).await;
    assert!(!source.is_unsound.load(Ordering::Relaxed));
    assert_same(&source.shard(), &replica.shard());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_checkpoint_there_is_nothing_that_another_would_have() {
    let (source, replica) = (Store::new(), Store::new());
    let (sent, received) = transfer(&source, &replica, clear()).await;
    assert!(sent.unwrap_err().to_string().contains("no checkpoint yet"));
    received.unwrap_err();
    assert!(!source.is_unsound.load(Ordering::Relaxed));
}
