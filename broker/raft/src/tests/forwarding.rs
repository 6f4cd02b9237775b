//! Units on their way to a leader elsewhere: their answers, and what is held for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tidemill_log::fs::{Call, FaultyStorage, MemoryStorage};
use tidemill_protocol::{NodeId, ShardId};
use tidemill_shard::Unit;

use super::cluster::{node, wait_until};
use super::fixture::{Broker, NODE, PATIENCE, SHARD, commit_position, groups, wal_config};
use super::network::Network;
use super::wire::{Fate, Tap, clear, pair};
use crate::config::ReplicaLimits;
use crate::error::ProposeError;
use crate::gate::{Gate, Held};
use crate::peers::{PeerDialer, PeerError, PeerMessage, PeerStream};
use crate::pending::Pending;
use crate::remote::RemoteShard;
use crate::replica::Replica;

/// Somebody without a replica, who takes the fixture's node for the leader.
fn stranger(dialer: Arc<dyn PeerDialer>, limits: &ReplicaLimits) -> RemoteShard {
    RemoteShard::new(SHARD, node(4), dialer, limits, || Some(NODE))
}

async fn submit(to: &RemoteShard, group: &str) -> Pending {
    let unit = commit_position(group, 1);
    to.reserve(unit.bytes()).await.unwrap().submit(unit)
}

/// Takes a second to open a stream on which nobody ever answers.
struct SlowDialer {
    tap: Tap,
    far_ends: Arc<Mutex<Vec<PeerStream>>>,
}

impl PeerDialer for SlowDialer {
    fn open(&self, _to: NodeId, _shard: ShardId) -> BoxFuture<'static, Result<PeerStream, PeerError>> {
        let (near, far) = pair(Arc::clone(&self.tap), clear());
        let far_ends = Arc::clone(&self.far_ends);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            far_ends.lock().push(far);
            Ok(near)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_an_unknown_outcome_by_the_deadline() {
    let sent = Arc::new(AtomicUsize::new(0));
    let tap: Tap = {
        let sent = Arc::clone(&sent);
        Arc::new(move |_: &mut PeerMessage| {
            sent.fetch_add(1, Ordering::SeqCst);
            Fate::Pass
        })
    };
    let dialer = SlowDialer { tap, far_ends: Arc::default() };
    let limits = ReplicaLimits { proposal_deadline: Duration::from_millis(500), ..ReplicaLimits::default() };
    let stranger = stranger(Arc::new(dialer), &limits);
    let late = submit(&stranger, "late").await;
    assert_eq!(tokio::time::timeout(PATIENCE, late).await.unwrap(), Err(ProposeError::OutcomeUnknown));
    // By now the stream is open.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(sent.load(Ordering::SeqCst), 0, "it does not go out long after");
    let unanswered = submit(&stranger, "unanswered").await;
    assert_eq!(tokio::time::timeout(PATIENCE, unanswered).await.unwrap(), Err(ProposeError::OutcomeUnknown));
    assert_eq!(sent.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_wait_for_the_answer_takes_nothing_back() {
    let broker = Broker::in_memory(&MemoryStorage::new());
    let leader = broker.start(SHARD).await;
    let network = Network::new(51);
    network.serve(leader.clone());
    let stranger = stranger(network.dialer(node(4)), &ReplicaLimits::default());
    // The first of them is submitted while the stream is being opened.
    for group in ["one", "two"] {
        drop(submit(&stranger, group).await);
    }
    wait_until("both are written", || groups(&leader).len() == 2).await;
}

/// Has room for all, and counts for whom.
#[derive(Default)]
struct Counting(Arc<()>);

impl Counting {
    fn held(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Gate for Counting {
    fn admit<'a>(&'a self, _to: &'a Replica, _unit: &'a Unit) -> BoxFuture<'a, Result<Held, ProposeError>> {
        Box::pin(std::future::ready(Ok::<Held, ProposeError>(Box::new(Arc::clone(&self.0)))))
    }
}

/// Whoever brought a unit may be gone before it is written: it is under way all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_over_a_stream_is_counted_until_it_is_written_although_the_stream_broke_off() {
    let disk = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    let mut broker = Broker::open_with(Arc::new(disk.clone()), Arc::new(MemoryStorage::new()), &wal_config());
    let gate = Arc::new(Counting::default());
    broker.gate = Some(Arc::clone(&gate) as Arc<dyn Gate>);
    let leader = broker.start(SHARD).await;
    let network = Network::new(52);
    network.serve(leader.clone());
    let stranger = stranger(network.dialer(node(4)), &ReplicaLimits::default());
    let before = leader.status().last_taken;
    disk.hold(Call::Write);
    let answer = submit(&stranger, "there").await;
    wait_until("the leader has taken it", || leader.status().last_taken > before).await;
    assert_eq!(gate.held(), 1);

    network.cut(node(4), NODE);
    assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap(), Err(ProposeError::OutcomeUnknown));
    // Long enough for the leader to notice, too.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(gate.held(), 1, "nobody waits for it there, and it is not written yet");
    disk.go_on();
    wait_until("its room is given back", || gate.held() == 0).await;
    assert!(groups(&leader).contains_key("there"));
}
