//! A replica without openraft around it, and snapshots from one to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use openraft::errors::{ReplicationClosed, StreamingError};
use openraft::raft::SnapshotResponse;
use openraft::storage::RaftStateMachine;
use openraft::vote::RaftVote;
use tidemill_controller::TopicConfig;
use tidemill_log::fs::MemoryStorage;
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, NodeId, PartitionId, Term, Timestamp, TopicId, TopicPartition};
use tidemill_shard::{AdoptTopic, Entry, Shard, Unit};

use super::fixture::{Broker, NODE, PATIENCE, SHARD, record, records};
use super::wire::{Fate, Tap, clear, pair};
use crate::peers::PeerMessage;
use crate::shared_log::SharedLog;
use crate::snapshot::{Message, ReceiveError, Snapshot, SnapshotLimiter, receive_with, send};
use crate::state_machine::{Machine, StateMachine};
use crate::types::{LeaderId, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote, log_id};

pub(super) const PEER: NodeId = NodeId::from_raw(2 << 32 | 1);
pub(super) const SEGMENT_BYTES: u64 = 64 << 10;
pub(super) const PARTITIONS: u32 = 3;

/// What the stream is for.
pub(super) const OPENING: &[u8] = b"snapshot ";

pub(super) fn opening(offer: Bytes) -> Bytes {
    Bytes::from([OPENING, &offer[..]].concat())
}

pub(super) fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::from_slice(&[9; 16]).unwrap(), PartitionId::new(number))
}

pub(super) fn vote(term: u64) -> Vote {
    Vote::from_leader_id(LeaderId { term, node_id: NODE }, true)
}

/// A replica without openraft around it.
pub(super) struct Store {
    pub(super) storage: MemoryStorage,
    pub(super) broker: Broker,
    pub(super) machine: Arc<Machine>,
    pub(super) is_unsound: AtomicBool,
}

impl Store {
    pub(super) fn new() -> Self {
        Self::on(MemoryStorage::new())
    }

    pub(super) fn on(storage: MemoryStorage) -> Self {
        Self::with(Broker::in_memory(&storage), storage)
    }

    pub(super) fn with(broker: Broker, storage: MemoryStorage) -> Self {
        let log = SharedLog::open(SHARD, broker.wal.clone(), &broker.recovered(SHARD), 1 << 20, 0).unwrap();
        let machine = Machine::open(SHARD, broker.shard(SHARD), log, &broker.limits).unwrap();
        Self { storage, broker, machine, is_unsound: AtomicBool::new(false) }
    }

    pub(super) fn shard(&self) -> Shard {
        self.machine.shard()
    }

    pub(super) fn apply(&self, units: Vec<Unit>) {
        let shard = self.shard();
        let index = shard.applied().last.map_or(1, |id| id.index.get() + 1);
        let id = EntryId { index: LogIndex::new(index), term: Term::new(1), leader_node: NODE.get() };
        shard.apply(id, &Entry { time: Timestamp::new(1_000), units }).unwrap();
    }

    /// A source: three partitions of small segments, `records` of 10 kB in each.
    pub(super) fn filled(records: usize) -> Self {
        let store = Self::new();
        store.fill(records);
        store
    }

    pub(super) fn fill(&self, records: usize) {
        let config = TopicConfig { segment_bytes: SEGMENT_BYTES, ..TopicConfig::default() };
        self.apply(vec![Unit::AdoptTopic(AdoptTopic {
            topic: partition(0).topic,
            version: 1,
            name: "t".to_owned(),
            config,
            partitions: (0..PARTITIONS).map(PartitionId::new).collect(),
            deleted: false,
        })]);
        self.more(records);
    }

    /// That many more records in each partition, and a checkpoint.
    pub(super) fn more(&self, records: usize) {
        for _ in 0..records {
            self.apply((0..PARTITIONS).map(|number| record(partition(number), 10_000)).collect());
        }
        self.checkpoint();
    }

    pub(super) fn checkpoint(&self) {
        self.shard().checkpoint(&|_| Ok(())).unwrap();
    }

    pub(super) fn snapshot(&self) -> RaftSnapshot {
        let last = self.shard().checkpointed().as_ref().map(log_id);
        let meta = SnapshotMeta { last_log_id: last, last_membership: StoredMembership::default() };
        RaftSnapshot { meta, snapshot: Snapshot::source(self.shard(), last) }
    }

    pub(super) async fn serve(&self, stream: crate::peers::PeerStream) -> Result<(), ReceiveError> {
        let mut stream = stream;
        let mut first = stream.receiver.next().await?.ok_or(ReceiveError::Ended)?;
        assert!(first.head.starts_with(OPENING), "said before the offer");
        first.head.advance(OPENING.len());
        let install = async |vote, snapshot: RaftSnapshot| {
            let mut machine = StateMachine::new(Arc::clone(&self.machine));
            let installed = machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await;
            installed.map_err(|error| ReceiveError::Stopped(error.to_string()))?;
            Ok(SnapshotResponse::<TypeConfig>::new(vote))
        };
        receive_with(&self.machine, PEER, first, stream, install).await
    }
}

pub(super) type Sent = Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

pub(super) async fn transfer_at(
    from: &Store,
    to: &Store,
    limiter: &SnapshotLimiter,
    taps: (Tap, Tap),
) -> (Sent, Result<(), ReceiveError>) {
    let (ours, theirs) = pair(taps.0, taps.1);
    let never = std::future::pending::<ReplicationClosed>();
    let both = async {
        tokio::join!(
            send(ours, vote(1), from.snapshot(), never, (limiter, &from.is_unsound), opening),
            to.serve(theirs)
        )
    };
    tokio::time::timeout(PATIENCE, both).await.expect("it ends")
}

pub(super) async fn transfer(from: &Store, to: &Store, tap: Tap) -> (Sent, Result<(), ReceiveError>) {
    transfer_at(from, to, &SnapshotLimiter::new(None), (tap, clear())).await
}

pub(super) async fn transfer_all(from: &Store, to: &Store) -> u64 {
    let (bytes, tap) = counting();
    let (sent, received) = transfer(from, to, tap).await;
    received.unwrap();
    assert_eq!(sent.unwrap().vote, vote(1));
    bytes.load(Ordering::Relaxed)
}

/// Counts the bodies' bytes.
pub(super) fn counting() -> (Arc<AtomicU64>, Tap) {
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&bytes);
    let tap = Arc::new(move |message: &mut PeerMessage| {
        counted.fetch_add(message.body.len() as u64, Ordering::Relaxed);
        Fate::Pass
    });
    (bytes, tap)
}

/// Cuts the stream after so many bytes.
pub(super) fn cut_after(bytes: u64) -> Tap {
    let left = AtomicI64::new(bytes as i64);
    Arc::new(move |message: &mut PeerMessage| {
        let before = left.fetch_sub(message.body.len() as i64, Ordering::Relaxed);
        if before < message.body.len() as i64 { Fate::Cut } else { Fate::Pass }
    })
}

/// Flips a bit in the first `times` parts that `which` says.
pub(super) fn falsify(times: u64, which: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Tap {
    let left = AtomicU64::new(times);
    Arc::new(move |message: &mut PeerMessage| {
        let hit =
            Message::decode(&message.head).is_ok_and(|head| which(&head)) && left.load(Ordering::Relaxed) > 0;
        if hit {
            left.fetch_sub(1, Ordering::Relaxed);
            let mut body = message.body.to_vec();
            let middle = body.len() / 2;
            body[middle] ^= 4;
            message.body = Bytes::from(body);
        }
        Fate::Pass
    })
}

pub(super) fn read_all(shard: &Shard, id: TopicPartition) -> Vec<u8> {
    records(shard, id, shard.partition(id).unwrap().log_start)
}

pub(super) fn assert_same(a: &Shard, b: &Shard) {
    assert_eq!(a.applied(), b.applied());
    assert_eq!(a.state_hash().unwrap(), b.state_hash().unwrap());
    for (id, view) in a.partitions() {
        assert_eq!(b.partition(id), Some(view));
        assert_eq!(read_all(a, id), read_all(b, id));
    }
}
