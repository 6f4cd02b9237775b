//! From one shard to another.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use tidemill_controller::TopicConfig;
use tidemill_log::fs::{Effect, FaultyStorage, MemoryStorage, Storage};
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_log::wal::EntryId;
use tidemill_protocol::{LogIndex, PartitionId, Term, Timestamp, TopicId, TopicPartition};
use uuid::Uuid;

use super::*;
use crate::testing::{batch, read_all};
use crate::*;

const SHARD: tidemill_protocol::ShardId = tidemill_protocol::ShardId::new(1);

struct Node {
    memory: MemoryStorage,
    faulty: FaultyStorage,
    files: Arc<SegmentFiles>,
}

impl Node {
    fn new() -> Self {
        Self::on(MemoryStorage::new())
    }

    fn on(memory: MemoryStorage) -> Self {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let files = SegmentFiles::new(Arc::new(faulty.clone()), SegmentFilesConfig::default());
        Self { memory, faulty, files }
    }

    fn open(&self) -> Shard {
        Shard::open(ShardConfig::new(SHARD), &self.files).unwrap()
    }

    fn begin(&self, manifest: &SnapshotManifest) -> Result<SnapshotInstall, InstallError> {
        SnapshotInstall::begin(&self.files, &ShardConfig::new(SHARD), manifest.clone())
    }
}

fn partition(number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::new(Uuid::from_u128(1)), PartitionId::new(number))
}

fn apply(shard: &Shard, units: Vec<Unit>) {
    let index = shard.applied().last.map_or(1, |id| id.index.get() + 1);
    let id = EntryId { index: LogIndex::new(index), term: Term::new(1), leader_node: 1 };
    shard.apply(id, &Entry { time: Timestamp::new(1000), units }).unwrap();
}

fn fill(shard: &Shard, batches: usize) {
    for n in 0..batches {
        let batch = batch(3).payload(vec![7; 500]).build();
        apply(shard, vec![Unit::Append { partition: partition(n as u32 % 2), batch, leader_epoch: None }]);
    }
}

/// A shard with records, a group and some state, checkpointed.
fn loaded(node: &Node) -> Shard {
    let shard = node.open();
    apply(
        &shard,
        vec![Unit::AdoptTopic(AdoptTopic {
            topic: partition(0).topic,
            version: 1,
            name: "plays".into(),
            config: TopicConfig { segment_bytes: 2000, ..TopicConfig::default() },
            partitions: vec![PartitionId::new(0), PartitionId::new(1)],
            deleted: false,
        })],
    );
    apply(
        &shard,
        vec![Unit::AdoptDeployment(AdoptDeployment {
            deployment: tidemill_protocol::DeploymentId::new(1),
            version: 1,
            epoch: 1,
            status: AdoptedStatus::Running,
            tasks: vec![TaskAssignment {
                partition: PartitionId::new(0),
                sources: vec![(partition(0), StartAt::Earliest)],
            }],
            state_bytes_max: 100 << 20,
            outbox_bytes_max: 1 << 20,
        })],
    );
    // Enough state for several chunks.
    for n in 0..30_u8 {
        let write =
            StateWrite { key: vec![n].into(), value: Some(vec![n; 100_000].into()), expires_at: None };
        apply(
            &shard,
            vec![Unit::Progress(Progress {
                deployment: tidemill_protocol::DeploymentId::new(1),
                epoch: 1,
                partition: PartitionId::new(0),
                positions: Vec::new(),
                state: vec![write],
                timers: Vec::new(),
                fired: Vec::new(),
                outputs: Vec::new(),
            })],
        );
    }
    fill(&shard, 20);
    shard.checkpoint(&|_| Ok(())).unwrap();
    shard
}

/// Fetches at most `parts` parts; says whether all are there.
fn transfer(from: &Snapshot, to: &mut SnapshotInstall, mut parts: usize) -> Result<bool, InstallError> {
    for number in to.missing_chunks().collect::<Vec<_>>() {
        if parts == 0 {
            return Ok(false);
        }
        parts -= 1;
        to.put_chunk(number, from.chunk(number).unwrap())?;
    }
    for number in to.missing_segments().collect::<Vec<_>>() {
        if parts == 0 {
            return Ok(false);
        }
        parts -= 1;
        let segment = from.manifest().segments[number];
        let mut buffer = [0; 700];
        let mut position = to.received(number)?;
        loop {
            let read =
                from.read_segment(segment.partition, segment.end.base_offset, position, &mut buffer).unwrap();
            if read == 0 {
                break;
            }
            to.put_segment(number, position, &buffer[..read])?;
            position += read as u64;
        }
        to.finish_segment(number)?;
    }
    Ok(true)
}

fn assert_same(a: &Shard, b: &Shard) {
    assert_eq!(a.applied(), b.applied());
    assert_eq!(a.state_hash().unwrap(), b.state_hash().unwrap());
    for (id, view) in a.partitions() {
        assert_eq!(b.partition(id), Some(view));
        assert_eq!(read_all(a, id, 1000), read_all(b, id, 1000));
    }
}

#[test]
fn a_new_replica_gets_everything_and_goes_on() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let snapshot = sender.snapshot().unwrap();
    let manifest = SnapshotManifest::decode(&snapshot.manifest().encode()).unwrap();
    assert_eq!(&manifest, snapshot.manifest());
    assert!(manifest.chunks.len() >= 3, "{}", manifest.chunks.len());
    let mut install = two.begin(&manifest).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    install.finish().unwrap();
    let receiver = two.open();
    assert_same(&sender, &receiver);
    fill(&sender, 5);
    fill(&receiver, 5);
    receiver.checkpoint(&|_| Ok(())).unwrap();
    drop(receiver);
    assert_same(&sender, &two.open());
    let left: Vec<_> = two.memory.list(Path::new("shard-01")).unwrap().into_iter().map(|e| e.name).collect();
    assert!(!left.contains(&"staging".to_owned()), "{left:?}");
}

#[test]
fn a_snapshot_stays_as_it_is_while_the_shard_goes_on() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let twin = Node::on(one.memory.kill());
    let as_it_was = twin.open();
    let snapshot = sender.snapshot().unwrap();
    fill(&sender, 10);
    let all = sender.partition(partition(0)).unwrap().high_watermark;
    apply(&sender, vec![Unit::AdvanceLogStart { partition: partition(0), offset: all }]);
    let gone = Unit::AdoptTopic(AdoptTopic {
        topic: partition(0).topic,
        version: 2,
        name: "plays".into(),
        config: TopicConfig::default(),
        partitions: Vec::new(),
        deleted: true,
    });
    apply(&sender, vec![gone]);
    for _ in 0..2 {
        apply(&sender, vec![Unit::Tick]);
        sender.checkpoint(&|_| Ok(())).unwrap();
    }
    let mut install = two.begin(snapshot.manifest()).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    install.finish().unwrap();
    assert_same(&as_it_was, &two.open());
    drop(snapshot);
    apply(&sender, vec![Unit::Tick]);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let left = one.memory.list(Path::new("shard-01")).unwrap();
    assert_eq!(left.len(), 1, "what was pinned goes when the pin does: {left:?}");
}

#[test]
fn what_is_there_already_is_not_fetched() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let first = sender.snapshot().unwrap();
    let mut install = two.begin(first.manifest()).unwrap();
    transfer(&first, &mut install, usize::MAX).unwrap();
    install.finish().unwrap();
    fill(&sender, 2);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let second = sender.snapshot().unwrap();
    let mut install = two.begin(second.manifest()).unwrap();
    let missing = install.missing_segments().count();
    assert!(missing <= 4 && missing < second.manifest().segments.len() / 2, "{missing}");
    transfer(&second, &mut install, usize::MAX).unwrap();
    install.finish().unwrap();
    assert_same(&sender, &two.open());
}

#[test]
fn an_interrupted_transfer_goes_on_after_a_crash() {
    let one = Node::new();
    let sender = loaded(&one);
    let snapshot = sender.snapshot().unwrap();
    let mut two = Node::new();
    for seed in 0.. {
        let mut install = two.begin(snapshot.manifest()).unwrap();
        let missing = (install.missing_chunks().count(), install.missing_segments().count());
        if transfer(&snapshot, &mut install, 2).unwrap() {
            install.finish().unwrap();
            assert!(seed > 3, "it took several tries");
            break;
        }
        let total = snapshot.manifest().chunks.len() + snapshot.manifest().segments.len();
        assert_eq!(missing.0 + missing.1, total - 2 * seed as usize, "nothing finished is fetched again");
        drop(install);
        two = Node::on(two.memory.crash(seed));
    }
    assert_same(&sender, &two.open());
}

#[test]
fn damage_on_the_way_is_found() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let snapshot = sender.snapshot().unwrap();
    let mut install = two.begin(snapshot.manifest()).unwrap();
    let mut chunk = snapshot.chunk(0).unwrap().to_vec();
    chunk[10] ^= 1;
    assert!(matches!(install.put_chunk(0, chunk.into()), Err(InstallError::Digest(0))));
    assert!(matches!(install.put_chunk(99, Bytes::new()), Err(InstallError::UnknownPart)));
    let segment = snapshot.manifest().segments[0];
    let mut bytes = vec![0; usize::try_from(segment.end.bytes).unwrap()];
    snapshot.read_segment(segment.partition, segment.end.base_offset, 0, &mut bytes).unwrap();
    bytes[300] ^= 1;
    install.put_segment(0, 0, &bytes).unwrap();
    assert!(matches!(install.finish_segment(0), Err(InstallError::Segment(_))));
    assert!(matches!(install.finish(), Err(InstallError::Incomplete { .. })));
    let other = ShardConfig::new(tidemill_protocol::ShardId::new(2));
    let refused = SnapshotInstall::begin(&two.files, &other, snapshot.manifest().clone());
    assert!(matches!(refused, Err(InstallError::OtherShard { .. })));
}

#[test]
fn a_crash_while_it_is_put_in_place_leaves_the_old_or_the_new() {
    let one = Node::new();
    let sender = loaded(&one);
    let snapshot = sender.snapshot().unwrap();
    for nth in 1.. {
        // A receiver that has an older, different state of its own.
        let two = Node::new();
        let old = two.open();
        fill_other(&old);
        let old_hash = old.state_hash().unwrap();
        drop(old);
        let mut install = two.begin(snapshot.manifest()).unwrap();
        transfer(&snapshot, &mut install, usize::MAX).unwrap();
        two.faulty.on_nth(None, nth, Effect::Halt);
        let finished = install.finish();
        if !two.faulty.has_struck() {
            finished.unwrap();
            assert!(nth > 10);
            return;
        }
        for seed in 0..4 {
            let after = Node::on(two.memory.crash(seed));
            let shard = after.open();
            let hash = shard.state_hash().unwrap();
            if hash != old_hash {
                assert_same(&sender, &shard);
            }
        }
    }
}

fn fill_other(shard: &Shard) {
    apply(
        shard,
        vec![Unit::AdoptTopic(AdoptTopic {
            topic: partition(0).topic,
            version: 1,
            name: "plays".into(),
            config: TopicConfig::default(),
            partitions: vec![PartitionId::new(0), PartitionId::new(1)],
            deleted: false,
        })],
    );
    fill(shard, 3);
    shard.checkpoint(&|_| Ok(())).unwrap();
}
