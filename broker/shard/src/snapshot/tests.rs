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
}

fn begin(live: &Shard, manifest: &SnapshotManifest) -> Result<SnapshotInstall, InstallError> {
    SnapshotInstall::begin(live, manifest.clone())
}

/// Puts what is staged in the place of the shard that is open.
fn finish(install: SnapshotInstall, live: &Shard) -> Result<Shard, InstallError> {
    let closed = live.close().unwrap();
    let opened = install.finish(&closed)?;
    closed.give_way(&opened);
    Ok(opened)
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
    let (sender, empty) = (loaded(&one), two.open());
    let snapshot = sender.snapshot().unwrap();
    let manifest = SnapshotManifest::decode(&snapshot.manifest().encode()).unwrap();
    assert_eq!(&manifest, snapshot.manifest());
    assert!(manifest.chunks.len() >= 3, "{}", manifest.chunks.len());
    let mut install = begin(&empty, &manifest).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    let receiver = finish(install, &empty).unwrap();
    drop(empty);
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
    let empty = two.open();
    let mut install = begin(&empty, snapshot.manifest()).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    assert_same(&as_it_was, &finish(install, &empty).unwrap());
    drop(snapshot);
    apply(&sender, vec![Unit::Tick]);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let left = one.memory.list(Path::new("shard-01")).unwrap();
    assert_eq!(left.len(), 1, "what was pinned goes when the pin does: {left:?}");
}

/// A receiver with everything up to the source's checkpoint.
fn copied(from: &Shard, to: &Node) -> Shard {
    let (live, snapshot) = (to.open(), from.snapshot().unwrap());
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    finish(install, &live).unwrap()
}

#[test]
fn what_is_there_already_is_not_fetched() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let live = copied(&sender, &two);
    fill(&sender, 2);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let second = sender.snapshot().unwrap();
    let mut install = begin(&live, second.manifest()).unwrap();
    let missing: Vec<_> = install.missing_segments().collect();
    assert!(missing.len() <= 4 && missing.len() < second.manifest().segments.len() / 2, "{missing:?}");
    let began: Vec<_> = missing.iter().map(|number| install.received(*number).unwrap()).collect();
    assert!(began.iter().any(|bytes| *bytes > 0), "of the last segment its beginning is there");
    transfer(&second, &mut install, usize::MAX).unwrap();
    assert_same(&sender, &finish(install, &live).unwrap());
}

#[test]
fn the_shard_goes_on_while_it_is_staged() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let live = copied(&sender, &two);
    fill(&sender, 8);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let snapshot = sender.snapshot().unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    let reused = snapshot.manifest().segments.len() - install.missing_segments().count();
    assert!(reused > 4, "{reused}");
    transfer(&snapshot, &mut install, 3).unwrap();
    // It applies what the sender did, further than its segments that are used again, lets records go that the snapshot
    // names, and makes checkpoints.
    fill(&live, 5);
    let gone = live.partition(partition(0)).unwrap().high_watermark;
    apply(&live, vec![Unit::AdvanceLogStart { partition: partition(0), offset: gone }]);
    for _ in 0..3 {
        apply(&live, vec![Unit::Tick]);
        live.checkpoint(&|_| Ok(())).unwrap();
    }
    assert!(live.has_files_to_let_go(), "pinned");
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    let receiver = finish(install, &live).unwrap();
    assert_same(&sender, &receiver);
    fill(&receiver, 4);
    fill(&sender, 4);
    receiver.checkpoint(&|_| Ok(())).unwrap();
    drop((live, receiver));
    assert_same(&sender, &Node::on(two.memory.crash(3)).open());
}

#[test]
fn what_was_begun_is_not_put_over_what_the_shard_came_to_have_by_itself() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let live = copied(&sender, &two);
    fill(&sender, 8);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let snapshot = sender.snapshot().unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    let missing: Vec<_> = install.missing_segments().collect();
    for number in &missing {
        install.received(*number).unwrap();
    }
    drop(install);
    // The transfer broke off; meanwhile the log brought what the sender had applied.
    fill(&live, 8);
    live.checkpoint(&|_| Ok(())).unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    assert_eq!(install.missing_segments().count(), 0, "of {}", missing.len());
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    let receiver = finish(install, &live).unwrap();
    drop(live);
    assert_same(&sender, &receiver);
    drop(receiver);
    assert_same(&sender, &Node::on(two.memory.crash(5)).open());
}

#[test]
fn what_was_to_be_used_again_is_not_remembered_over_a_restart() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let live = copied(&sender, &two);
    fill(&sender, 2);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let snapshot = sender.snapshot().unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    let first = install.missing_segments().count();
    assert_eq!(first, 0);
    drop((install, live));
    // All of a partition goes, with its files.
    let two = Node::on(two.memory.kill());
    let live = two.open();
    let end = live.partition(partition(0)).unwrap().high_watermark;
    apply(&live, vec![Unit::AdvanceLogStart { partition: partition(0), offset: end }]);
    for _ in 0..2 {
        apply(&live, vec![Unit::Tick]);
        live.checkpoint(&|_| Ok(())).unwrap();
    }
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    assert_eq!(install.missing_chunks().count(), 0);
    assert!(install.missing_segments().count() >= 2);
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    assert_same(&sender, &finish(install, &live).unwrap());
}

#[test]
fn a_newer_manifest_keeps_the_segments_that_were_fetched() {
    let (one, two) = (Node::new(), Node::new());
    let (sender, live) = (loaded(&one), two.open());
    let first = sender.snapshot().unwrap();
    let mut install = begin(&live, first.manifest()).unwrap();
    transfer(&first, &mut install, usize::MAX).unwrap();
    drop(install);
    drop(first);
    fill(&sender, 3);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let second = sender.snapshot().unwrap();
    let mut install = begin(&live, second.manifest()).unwrap();
    assert_eq!(install.missing_chunks().count(), second.manifest().chunks.len(), "the state is fetched anew");
    let missing: Vec<_> = install.missing_segments().collect();
    assert!(missing.len() <= 4, "{missing:?}");
    assert!(missing.iter().any(|number| install.received(*number).unwrap() > 0), "the last one goes on");
    transfer(&second, &mut install, usize::MAX).unwrap();
    assert_same(&sender, &finish(install, &live).unwrap());
}

#[test]
fn a_segment_that_was_fetched_open_may_be_sealed_in_a_newer_manifest() {
    // Somewhere among these is the moment in which a segment is full, and the next batch seals it.
    for batches in (0..8).step_by(2) {
        let (one, two) = (Node::new(), Node::new());
        let (sender, live) = (loaded(&one), two.open());
        fill(&sender, batches);
        sender.checkpoint(&|_| Ok(())).unwrap();
        let first = sender.snapshot().unwrap();
        let mut install = begin(&live, first.manifest()).unwrap();
        transfer(&first, &mut install, usize::MAX).unwrap();
        drop((install, first));
        fill(&sender, 2);
        sender.checkpoint(&|_| Ok(())).unwrap();
        let second = sender.snapshot().unwrap();
        let mut install = begin(&live, second.manifest()).unwrap();
        transfer(&second, &mut install, usize::MAX).unwrap();
        assert_same(&sender, &finish(install, &live).unwrap());
    }
}

#[test]
fn an_interrupted_transfer_goes_on_after_a_crash() {
    let one = Node::new();
    let sender = loaded(&one);
    let snapshot = sender.snapshot().unwrap();
    let mut two = Node::new();
    drop(two.open());
    for seed in 0.. {
        let live = two.open();
        let mut install = begin(&live, snapshot.manifest()).unwrap();
        let missing = (install.missing_chunks().count(), install.missing_segments().count());
        if transfer(&snapshot, &mut install, 2).unwrap() {
            assert_same(&sender, &finish(install, &live).unwrap());
            assert!(seed > 3, "it took several tries");
            return;
        }
        let total = snapshot.manifest().chunks.len() + snapshot.manifest().segments.len();
        assert_eq!(missing.0 + missing.1, total - 2 * seed as usize, "nothing finished is fetched again");
        drop((install, live));
        two = Node::on(two.memory.crash(seed));
    }
}

#[test]
fn damage_on_the_way_is_found_and_fetched_again() {
    let (one, two) = (Node::new(), Node::new());
    let (sender, live) = (loaded(&one), two.open());
    let snapshot = sender.snapshot().unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    let mut chunk = snapshot.chunk(0).unwrap().to_vec();
    chunk[10] ^= 1;
    let refused = install.put_chunk(0, chunk.into()).unwrap_err();
    assert!(matches!(refused, InstallError::Digest(0)) && refused.is_of_part());
    assert!(matches!(install.put_chunk(99, Bytes::new()), Err(InstallError::UnknownPart)));
    let segment = snapshot.manifest().segments[0];
    let mut bytes = vec![0; usize::try_from(segment.end.bytes).unwrap()];
    snapshot.read_segment(segment.partition, segment.end.base_offset, 0, &mut bytes).unwrap();
    for at in [5, 300] {
        bytes[at] ^= 1;
        assert_eq!(install.received(0).unwrap(), 0);
        install.put_segment(0, 0, &bytes).unwrap();
        let refused = install.finish_segment(0).unwrap_err();
        assert!(refused.is_of_part(), "{refused}");
        bytes[at] ^= 1;
    }
    let (closed, other) = (Node::new().open().close().unwrap(), two.open());
    assert!(matches!(install.finish(&closed), Err(InstallError::Incomplete { .. })));
    let mut install = begin(&other, snapshot.manifest()).unwrap();
    assert!(transfer(&snapshot, &mut install, usize::MAX).unwrap());
    assert!(matches!(install.finish(&closed), Err(InstallError::Replaced)));
    drop(other);
    let install = begin(&live, snapshot.manifest()).unwrap();
    assert_same(&sender, &finish(install, &live).unwrap());
    let other = Shard::open(ShardConfig::new(tidemill_protocol::ShardId::new(2)), &two.files).unwrap();
    let refused = begin(&other, snapshot.manifest());
    assert!(matches!(refused, Err(InstallError::OtherShard { .. })));
}

#[test]
fn a_manifest_that_can_not_be_is_refused() {
    let sender = loaded(&Node::new());
    let snapshot = sender.snapshot().unwrap();
    let refused = |change: &dyn Fn(&mut SnapshotManifest)| {
        let mut manifest = snapshot.manifest().clone();
        change(&mut manifest);
        matches!(SnapshotManifest::decode(&manifest.encode()), Err(ManifestError::Contradiction(_)))
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|manifest| manifest.chunks.clear()));
    assert!(refused(&|manifest| manifest.chunks[0].bytes = u64::MAX));
    assert!(refused(&|manifest| manifest.segments.reverse()));
    assert!(refused(&|manifest| manifest.segments[0].end.batches = 0));
    assert!(refused(&|manifest| manifest.segments[1] = manifest.segments[0]));
}

#[test]
fn who_follows_the_old_shard_is_told_and_who_reads_it_finishes() {
    let (one, two) = (Node::new(), Node::new());
    let sender = loaded(&one);
    let live = copied(&sender, &two);
    let before = read_all(&live, partition(1), 1000);
    let Fetch::Disk(on_its_way) = live.fetch(partition(1), tidemill_protocol::Offset::ZERO, 100_000) else {
        panic!("its records are in segments")
    };
    let (watched, changes) = (live.watch(partition(1)).unwrap(), live.changes());
    let gone = sender.partition(partition(0)).unwrap().high_watermark;
    apply(&sender, vec![Unit::AdvanceLogStart { partition: partition(0), offset: gone }]);
    fill(&sender, 4);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let snapshot = sender.snapshot().unwrap();
    let mut install = begin(&live, snapshot.manifest()).unwrap();
    transfer(&snapshot, &mut install, usize::MAX).unwrap();
    let closed = live.close().unwrap();
    let next = live.applied().last.unwrap();
    let next = EntryId { index: next.index.next(), ..next };
    assert!(live.apply(next, &Entry::default()).is_err(), "closed");
    assert!(live.checkpoint(&|_| Ok(())).is_err() && live.snapshot().is_err());
    assert_eq!(read_all(&live, partition(1), 1000), before, "and read all the same");
    let opened = install.finish(&closed).unwrap();
    assert!(
        watched.has_changed().is_ok() && changes.has_changed().is_ok(),
        "until there is another to turn to"
    );
    closed.give_way(&opened);
    assert!(watched.has_changed().is_err() && changes.has_changed().is_err());
    assert!(live.watch(partition(1)).unwrap().has_changed().is_err());
    assert!(live.poisoned().is_none());
    assert!(!on_its_way.run().unwrap().is_empty());
    assert_eq!(read_all(&live, partition(1), 1000), before);
    let gone = live.fetch(partition(0), tidemill_protocol::Offset::ZERO, 100);
    assert!(matches!(gone, Fetch::OutOfRange { .. }), "{gone:?}");
    assert_same(&sender, &opened);
}

#[test]
fn a_crash_while_it_is_put_in_place_leaves_the_old_or_the_new() {
    let one = Node::new();
    let sender = loaded(&one);
    // A receiver with a state of its own, some segments of which stay where they are.
    let behind = Node::new();
    drop(copied(&sender, &behind));
    fill(&sender, 6);
    sender.checkpoint(&|_| Ok(())).unwrap();
    let snapshot = sender.snapshot().unwrap();
    let (mut old, mut new) = (0, 0);
    for nth in 1.. {
        let two = Node::on(behind.memory.kill());
        let live = two.open();
        let old_hash = live.state_hash().unwrap();
        let mut install = begin(&live, snapshot.manifest()).unwrap();
        transfer(&snapshot, &mut install, usize::MAX).unwrap();
        two.faulty.on_nth(None, nth, Effect::Halt);
        let finished = finish(install, &live);
        if !two.faulty.has_struck() {
            finished.unwrap();
            assert!(nth > 10 && old > 10 && new > 10, "{nth} steps, {old} old, {new} new");
            return;
        }
        assert!(finished.is_err() && live.poisoned().is_some());
        for seed in 0..4 {
            let after = Node::on(two.memory.crash(seed));
            let shard = after.open();
            if shard.state_hash().unwrap() == old_hash {
                old += 1;
                // What was staged is still good for something, and the next try goes through.
                let mut again = begin(&shard, snapshot.manifest()).unwrap();
                transfer(&snapshot, &mut again, usize::MAX).unwrap();
                assert_same(&sender, &finish(again, &shard).unwrap());
            } else {
                new += 1;
                assert_same(&sender, &shard);
            }
        }
    }
}
