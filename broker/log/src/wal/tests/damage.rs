//! Damage to what had been flushed: seen, reported per shard, and remembered until it is answered.

use super::super::block::{self, BLOCK_BYTES};
use super::*;

/// Six writes of one entry each, all flushed, and where each one's block is.
fn log_of_six() -> (MemoryStorage, PathBuf, Vec<usize>) {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    vote(&wal, B, "for B").unwrap();
    for index in 1..7 {
        append(&wal, A, vec![entry(index, 500)]).unwrap();
    }
    let storage = storage.kill();
    let path = segment_paths(&storage)[&1].clone();
    let entries = frames(&storage).into_iter().filter(|frame| frame.kind == FrameKind::Entry);
    let blocks = entries.map(|frame| usize::try_from(frame.block).unwrap() * BLOCK_BYTES).collect();
    (storage, path, blocks)
}

/// Index of A's last entry, 0 for none.
fn last_of(recovery: &Recovery) -> u64 {
    recovery.shards.get(&A).and_then(|shard| shard.last).map_or(0, |last| last.index.get())
}

#[test]
fn any_flipped_bit_in_flushed_bytes_raises_doubt() {
    let (storage, path, blocks) = log_of_six();
    for (number, start) in blocks.iter().enumerate() {
        for bit in (0..540 * 8).step_by(211).chain(block::PAYLOAD_BYTES * 8..BLOCK_BYTES * 8).step_by(3) {
            let flipped = storage.kill();
            flipped.edit(&path, |bytes| bytes[start + bit / 8] ^= 1 << (bit % 8));
            let (_, recovery) = open(&flipped);
            // Nothing follows the last write, so nothing proves that it had been flushed.
            let is_last = number + 1 == blocks.len();
            assert_eq!(recovery.damage.is_some(), !is_last, "entry {number} bit {bit}");
            assert_eq!(last_of(&recovery), number as u64);
            if let Some(damage) = recovery.damage {
                assert_eq!(damage.reason, DoubtReason::Damaged);
                for shard in recovery.shards.values() {
                    assert_eq!(shard.doubtful.as_ref().unwrap().sure_to, shard.last);
                }
                assert!(recovery.shards[&B].doubtful.is_some(), "a vote of B may have been there");
            }
        }
    }
}

#[test]
fn exchanged_frames_are_seen_though_each_is_valid() {
    let (storage, path, blocks) = log_of_six();
    for (first, second) in [(0, 1), (1, 3), (2, 4)] {
        let swapped = storage.kill();
        swapped.edit(&path, |bytes| {
            let (a, b) = (blocks[first], blocks[second]);
            let payload_a = bytes[a..a + block::PAYLOAD_BYTES].to_vec();
            let payload_b = bytes[b..b + block::PAYLOAD_BYTES].to_vec();
            for (at, payload) in [(a, payload_b), (b, payload_a)] {
                let (trailer, _) = block::open(&bytes[at..at + BLOCK_BYTES]).unwrap();
                bytes[at..at + payload.len()].copy_from_slice(&payload);
                let crc = crc32fast::hash(&payload[..usize::from(trailer.used)]);
                block::seal(&mut bytes[at..at + BLOCK_BYTES], &trailer, crc);
                assert!(block::open(&bytes[at..at + BLOCK_BYTES]).is_some());
            }
        });
        let (_, recovery) = open(&swapped);
        assert_eq!(recovery.damage.as_ref().unwrap().reason, DoubtReason::Damaged);
        assert_eq!(last_of(&recovery), first as u64);
    }
}

#[test]
fn doubt_outlives_restarts_until_it_is_answered() {
    let (storage, path, blocks) = log_of_six();
    storage.edit(&path, |bytes| bytes[blocks[3]] ^= 1);
    let is_doubtful =
        |recovery: &Recovery, shard| recovery.shards.get(&shard).is_some_and(|s| s.doubtful.is_some());
    for _ in 0..2 {
        // Whoever refuses to go on finds the same again.
        let (wal, recovery) = open(&storage);
        assert!(recovery.damage.is_some() && is_doubtful(&recovery, A) && is_doubtful(&recovery, B));
        wal.close().unwrap();
    }
    let (wal, _) = open(&storage);
    wait(|done| wal.accept_doubt(B, done)).unwrap();
    wal.close().unwrap();
    for _ in 0..2 {
        let (_, recovery) = open(&storage.crash(5));
        assert!(recovery.damage.is_none(), "the cut is on record: {:?}", recovery.report);
        assert!(is_doubtful(&recovery, A) && !is_doubtful(&recovery, B));
        assert_eq!(recovery.shards[&B].vote.as_deref(), Some(&b"for B"[..]));
    }
    let (wal, _) = open(&storage);
    wait(|done| wal.forget(A, done)).unwrap();
    assert_eq!(wal.range(A), LogRange::default());
    append(&wal, A, vec![entry(1, 5)]).unwrap();
    wal.close().unwrap();
    let (wal, recovery) = open(&storage.crash(6));
    assert!(!is_doubtful(&recovery, A) && recovery.shards[&A].vote.is_none());
    assert_eq!(read_all(&wal, A), [entry(1, 5)]);
}

/// Segments 1 to 4 or so, with nothing purged.
fn log_of_segments() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    vote(&wal, A, "for A").unwrap();
    for index in 1..90 {
        append(&wal, A, vec![entry(index, 5000)]).unwrap();
    }
    storage.kill()
}

#[test]
fn a_missing_segment_raises_doubt() {
    let storage = log_of_segments();
    let paths = segment_paths(&storage);
    assert!(paths.len() >= 4);
    for (number, path) in &paths {
        if *number as usize == paths.len() {
            continue;
        }
        for by_header in [false, true] {
            let damaged = storage.kill();
            if by_header {
                damaged.edit(path, |bytes| bytes[20] ^= 4);
            } else {
                damaged.remove(path).unwrap();
                damaged.sync_dir(Path::new("wal")).unwrap();
            }
            let (wal, recovery) = open(&damaged);
            assert_eq!(
                recovery.damage.as_ref().unwrap().reason,
                DoubtReason::SegmentMissing,
                "segment {number}"
            );
            for shard in recovery.shards.values() {
                assert!(shard.doubtful.is_some());
            }
            drop(wal);
            assert!(open(&damaged).1.damage.is_some(), "and again");
        }
    }
}

#[test]
fn a_damaged_header_of_the_newest_segment_is_no_end_of_the_log() {
    let storage = log_of_segments();
    let paths = segment_paths(&storage);
    let (_, newest) = paths.last_key_value().unwrap();
    let damaged = storage.kill();
    damaged.edit(newest, |bytes| bytes[20] ^= 4);
    let (_, recovery) = open(&damaged);
    assert_eq!(recovery.damage.unwrap().reason, DoubtReason::SegmentMissing);
    let only_one = log_of_six().0;
    let path = segment_paths(&only_one)[&1].clone();
    only_one.edit(&path, |bytes| bytes[20] ^= 4);
    assert!(open(&only_one).1.damage.is_some(), "even where it was the only one");
}

#[test]
fn a_file_of_a_newer_format_is_not_touched() {
    let (storage, path, _) = log_of_six();
    storage.edit(&path, |bytes| {
        let (trailer, _) = block::open(&bytes[..BLOCK_BYTES]).unwrap();
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..usize::from(trailer.used)]);
        block::seal(&mut bytes[..BLOCK_BYTES], &trailer, crc);
    });
    let refused = Wal::open(Arc::new(storage), &config()).unwrap_err();
    assert!(matches!(refused, WalOpenError::Version { version: 9, .. }), "{refused}");
}
