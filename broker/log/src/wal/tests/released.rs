//! Damage before the frame that released segments whose files are gone: what is before the damage is there all the same.

use super::super::block::{self, BLOCK_BYTES, PAYLOAD_BYTES};
use super::super::frame::{FRAME_OVERHEAD_BYTES, FrameAssembler, FrameHeader, NO_ENTRY, NO_SHARD};
use super::*;
use crate::fs::{Call, FaultyStorage};

const C: ShardId = ShardId::new(3);
const SEGMENT: u64 = 128 << 10;
/// The segment that has the release in it.
const NEWEST: u64 = 4;

/// A log of which the first segments are released, by a frame in the newest one, and erased.
struct Log {
    storage: MemoryStorage,
    frames: Vec<InspectedFrame>,
    release: InspectedFrame,
    /// The released segments' files as they were.
    released: BTreeMap<u64, (PathBuf, Vec<u8>)>,
}

/// A has entries in the segments from `first_live` on, B and C in all of them. B has purged before, C has not; just before
/// the release both purge what they have before `first_live`. The release begins a write, and others follow; or it ends the
/// last one, behind a large entry, where `together` is set.
fn released_log(first_live: u64, together: bool) -> Log {
    let memory = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    let (wal, _) = Wal::open(Arc::new(faulty.clone()), &config()).unwrap();
    for (shard, text) in [(A, "for A"), (B, "for B"), (C, "for C")] {
        vote(&wal, shard, text).unwrap();
    }
    append(&wal, B, (0..5).map(|index| entry(index, 100)).collect()).unwrap();
    purge(&wal, B, 3).unwrap();
    for segment in 1..=NEWEST {
        while wal.bytes() < segment * SEGMENT {
            append_next(&wal, B, 5000);
        }
        append_next(&wal, C, 100);
        if segment >= first_live {
            append_next(&wal, A, 100);
        }
    }
    append_next(&wal, B, 20_000);
    let seen = frames(&memory);
    let last_before = |shard: ShardId| {
        let is_its = |frame: &&InspectedFrame| {
            frame.kind == FrameKind::Entry && frame.shard == Some(shard) && frame.segment < first_live
        };
        seen.iter().filter(is_its).map(|frame| frame.id.index.get()).max().unwrap()
    };
    let as_it_is = |(number, path): (u64, PathBuf)| {
        let bytes = memory.contents(&path).unwrap();
        (number, (path, bytes))
    };
    let released =
        segment_paths(&memory).into_iter().filter(|(number, _)| *number < first_live).map(as_it_is).collect();

    purge(&wal, B, last_before(B)).unwrap();
    append_next(&wal, A, 100);
    if together {
        // While the purge waits for the device, an entry is queued; the release comes behind it.
        faulty.hold(Call::Sync);
        let (done, results) = mpsc::channel();
        let purged = done.clone();
        wal.purge(C, id(last_before(C)), Box::new(move |result| drop(purged.send(result))));
        let is_purge = |frame: &InspectedFrame| frame.kind == FrameKind::Purge && frame.shard == Some(C);
        while !frames(&memory).iter().any(is_purge) {
            std::thread::yield_now();
        }
        let last = entry(next_of(&wal, A), 10_000);
        wal.append(A, vec![last], Box::new(move |result| drop(done.send(result))));
        faulty.go_on();
        (0..2).for_each(|_| results.recv().unwrap().unwrap());
    } else {
        purge(&wal, C, last_before(C)).unwrap();
        append_next(&wal, A, 100);
        append_next(&wal, B, 5000);
    }
    while segment_paths(&memory).keys().any(|number| *number < first_live) {
        std::thread::yield_now();
    }
    let storage = memory.kill();
    let frames = frames(&storage);
    let releases: Vec<_> = frames.iter().filter(|frame| frame.kind == FrameKind::Release).copied().collect();
    let [release] = releases[..] else { panic!("{releases:?}") };
    assert_eq!((release.segment, release.id.index.get()), (NEWEST, first_live));
    Log { storage, frames, release, released }
}

fn next_of(wal: &Wal, shard: ShardId) -> u64 {
    wal.range(shard).last.map_or(0, |last| last.index.get() + 1)
}

fn append_next(wal: &Wal, shard: ShardId, bytes: usize) {
    append(wal, shard, vec![entry(next_of(wal, shard), bytes)]).unwrap();
}

fn ids(wal: &Wal, shard: ShardId) -> Vec<EntryId> {
    read_all(wal, shard).iter().map(|entry| entry.id).collect()
}

fn flip(storage: &MemoryStorage, path: &Path, block: u64) {
    let start = usize::try_from(block).unwrap() * BLOCK_BYTES;
    storage.edit(path, |bytes| bytes[start + 8] ^= 1);
}

/// The block behind a frame's last one.
fn end_block(frame: &InspectedFrame) -> u64 {
    let bytes = usize::from(frame.offset) + FRAME_OVERHEAD_BYTES + frame.payload_bytes;
    frame.block + bytes.div_ceil(PAYLOAD_BYTES) as u64
}

/// What is left of a shard.
#[derive(Default)]
struct Left {
    purged: Option<EntryId>,
    ids: Vec<EntryId>,
}

impl Left {
    /// Nothing behind a gap is sure.
    fn sure_to(&self) -> Option<EntryId> {
        let begin = self.purged.map_or(0, |purged| purged.index.get() + 1);
        match self.ids.first() {
            Some(first) if first.index.get() > begin => self.purged,
            _ => self.ids.last().copied().or(self.purged),
        }
    }
}

impl Log {
    /// What is left where nothing from this block on can be read.
    fn left(&self, segment: u64, block: u64) -> BTreeMap<ShardId, Left> {
        let mut shards = BTreeMap::<ShardId, Left>::new();
        let is_before = |frame: &&InspectedFrame| (frame.segment, end_block(frame)) <= (segment, block);
        for frame in self.frames.iter().filter(is_before) {
            let Some(shard) = frame.shard else { continue };
            let left = shards.entry(shard).or_default();
            match frame.kind {
                FrameKind::Entry => left.ids.push(frame.id),
                FrameKind::Purge => {
                    left.purged = Some(frame.id);
                    left.ids.retain(|id| id.index > frame.id.index);
                }
                _ => {}
            }
        }
        assert_eq!(shards.len(), 3, "each has at least its vote");
        shards
    }

    /// The block behind the last one of a segment that is read before the release.
    fn end_in(&self, segment: u64) -> u64 {
        if segment == self.release.segment {
            return self.release.block;
        }
        let of_segment = self.frames.iter().filter(|frame| frame.segment == segment);
        of_segment.map(end_block).max().unwrap()
    }

    /// The same, but that a released segment's file was not erased.
    fn with_segment(&self, number: u64) -> MemoryStorage {
        let storage = self.storage.kill();
        let (path, bytes) = &self.released[&number];
        storage.edit(path, |file| file.clone_from(bytes));
        storage
    }
}

/// All that is left is there, what is sure is, and the log goes on with that once the loss is accepted.
fn check(storage: &MemoryStorage, left: &BTreeMap<ShardId, Left>, what: &str) -> DoubtReason {
    for _ in 0..2 {
        // Whoever refuses to go on finds the same again.
        let (wal, recovery) = open(storage);
        for (shard, left) in left {
            let found = &recovery.shards[shard];
            let expected = (left.purged, left.ids.clone());
            assert_eq!((found.purged, ids(&wal, *shard)), expected, "{what}, shard {shard}");
            assert!(found.vote.is_some(), "{what}, shard {shard}");
            let doubt = found.doubtful.as_ref().unwrap();
            assert_eq!(doubt.sure_to, left.sure_to(), "{what}, shard {shard}");
        }
        wal.assert_counts();
        wal.close().unwrap();
    }
    let (wal, recovery) = open(storage);
    let reason = recovery.damage.as_ref().unwrap().reason;
    for shard in left.keys() {
        wait(|done| wal.accept_doubt(*shard, done)).unwrap();
    }
    let accepted = storage.kill();
    for shard in left.keys() {
        append_next(&wal, *shard, 300);
    }
    let gone_on = storage.kill();
    wal.close().unwrap();
    for (storage, has_gone_on) in [(accepted, false), (gone_on, true), (storage.kill(), true)] {
        let (wal, recovery) = open(&storage);
        assert!(recovery.damage.is_none(), "{what}: {:?}", recovery.report);
        for (shard, left) in left {
            assert!(recovery.shards[shard].doubtful.is_none(), "{what}: {:?}", recovery.report);
            let mut found = ids(&wal, *shard);
            if has_gone_on {
                assert!(found.pop().is_some(), "{what}, shard {shard}");
            }
            assert_eq!(found, left.ids, "{what}, shard {shard}");
        }
        wal.assert_counts();
    }
    reason
}

#[test]
fn damage_before_a_release_leaves_what_is_before_the_damage() {
    let log = released_log(2, false);
    let mut struck = 0;
    for segment in inspect(&log.storage, Path::new("wal"), &mut |_| {}).unwrap().segments {
        // Of the time before the first one nothing but its own preamble tells.
        let begin = if segment.number == 2 { 1 + u64::from(segment.preamble_blocks) } else { 1 };
        for block in begin..log.end_in(segment.number) {
            let damaged = log.storage.kill();
            flip(&damaged, &segment.path, block);
            let what = format!("segment {} block {block}", segment.number);
            let reason = check(&damaged, &log.left(segment.number, block), &what);
            assert_eq!(reason, DoubtReason::Damaged, "{what}");
            struck += 1;
        }
    }
    assert!(struck > 60, "{struck} blocks");
}

#[test]
fn a_release_counts_though_the_header_of_its_segment_is_damaged() {
    for together in [false, true] {
        let log = released_log(2, together);
        flip(&log.storage, &segment_paths(&log.storage)[&NEWEST], 0);
        check(&log.storage, &log.left(NEWEST, 0), "a header");
    }
}

#[test]
fn a_file_that_is_gone_proves_that_its_release_was_flushed() {
    let log = released_log(2, true);
    let path = segment_paths(&log.storage)[&NEWEST].clone();
    let entry = log.frames.iter().rfind(|frame| frame.kind == FrameKind::Entry).unwrap();
    assert!(entry.segment == NEWEST && entry.block < log.release.block);
    for block in entry.block..log.release.block {
        let damaged = log.storage.kill();
        flip(&damaged, &path, block);
        let reason = check(&damaged, &log.left(NEWEST, block), "the last write");
        assert_eq!(reason, DoubtReason::Damaged);
        // Nothing else does: with the file there it is a torn write like any other.
        let torn = log.with_segment(1);
        flip(&torn, &path, block);
        let (_, recovery) = open(&torn);
        assert!(recovery.damage.is_none(), "{:?}", recovery.report);
    }
}

#[test]
fn a_released_segment_that_is_still_there_is_read() {
    let log = released_log(2, false);
    let storage = log.with_segment(1);
    flip(&storage, &segment_paths(&storage)[&NEWEST], 2);
    let (_, recovery) = open(&storage);
    assert_eq!(recovery.damage.as_ref().unwrap().reason, DoubtReason::Damaged);
    for (shard, first) in [(A, 0), (B, 4), (C, 0)] {
        let found = &recovery.shards[&shard];
        assert_eq!(found.first, Some(LogIndex::new(first)), "shard {shard}");
        assert_eq!(found.doubtful.as_ref().unwrap().sure_to, found.last, "shard {shard}");
    }
}

#[test]
fn released_segments_may_be_erased_in_any_order() {
    let log = released_log(3, false);
    let storage = log.with_segment(1);
    flip(&storage, &segment_paths(&storage)[&NEWEST], 2);
    let reason = check(&storage, &log.left(NEWEST, 2), "the second before the first");
    assert_eq!(reason, DoubtReason::Damaged);
}

#[test]
fn a_segment_that_was_not_released_is_missing() {
    let log = released_log(2, false);
    let paths = segment_paths(&log.storage);
    for is_damaged in [false, true] {
        let storage = log.storage.kill();
        storage.remove(&paths[&2]).unwrap();
        storage.sync_dir(Path::new("wal")).unwrap();
        if is_damaged {
            flip(&storage, &paths[&NEWEST], 2);
        }
        let (_, recovery) = open(&storage);
        assert_eq!(recovery.damage.as_ref().unwrap().reason, DoubtReason::SegmentMissing);
        assert!(recovery.shards.values().all(|shard| shard.doubtful.is_some()));
    }
}

#[test]
fn what_leads_up_to_a_missing_segment_stays_though_its_front_was_released_behind_it() {
    let log = released_log(2, false);
    log.storage.remove(&segment_paths(&log.storage)[&3]).unwrap();
    log.storage.sync_dir(Path::new("wal")).unwrap();
    let reason = check(&log.storage, &log.left(3, 0), "segment 3 is missing");
    assert_eq!(reason, DoubtReason::SegmentMissing);
}

#[test]
fn an_entry_made_of_releases_releases_nothing() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append_next(&wal, A, 100);
    while wal.bytes() < 3 * SEGMENT {
        append_next(&wal, A, 5000);
    }
    let header = FrameHeader {
        payload_bytes: 0,
        kind: FrameKind::Release,
        shard: NO_SHARD,
        id: EntryId { index: LogIndex::new(3), ..NO_ENTRY },
        previous_crc: 0,
    };
    let header = header.encode();
    let release = [&header[..], &crc32fast::hash(&header).to_le_bytes()].concat();
    // So that the second block of the entry begins with one.
    let mut payload = vec![0; (PAYLOAD_BYTES - header.len()) % release.len()];
    payload.extend(release.repeat(500));
    let forged = id(next_of(&wal, A));
    append(&wal, A, vec![WalEntry { id: forged, payload: Bytes::from(payload).into() }]).unwrap();
    append_next(&wal, A, 100);
    let storage = storage.kill();
    let paths = segment_paths(&storage);
    let forged = frames(&storage).into_iter().find(|frame| frame.id == forged).unwrap();
    assert_eq!((forged.segment, forged.offset), (3, 0));

    let start = usize::try_from(forged.block + 1).unwrap() * BLOCK_BYTES;
    let bytes = storage.contents(&paths[&3]).unwrap();
    let (trailer, payload) = block::open(&bytes[start..start + BLOCK_BYTES]).unwrap();
    let mut careless = FrameAssembler::new(1 << 20);
    careless.push(trailer.sequence, 0, payload);
    assert_eq!(careless.next().unwrap().unwrap().header.kind, FrameKind::Release);

    for number in [1, 2] {
        storage.remove(&paths[&number]).unwrap();
    }
    storage.sync_dir(Path::new("wal")).unwrap();
    flip(&storage, &paths[&3], forged.block);
    let (_, recovery) = open(&storage);
    assert_eq!(recovery.damage.as_ref().unwrap().reason, DoubtReason::SegmentMissing);
    assert!(recovery.shards.is_empty());
}
