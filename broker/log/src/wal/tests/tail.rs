//! The end of the log: cut anywhere, torn anyhow, followed by an earlier life.

use super::super::block::BLOCK_BYTES;
use super::*;

/// A log of three writes; the last one's bytes are not acknowledged as far as the tests are concerned.
fn log_with_a_tail() -> (MemoryStorage, PathBuf, usize, usize) {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, vec![entry(1, 6000)]).unwrap();
    append(&wal, B, vec![entry(1, 100), entry(2, 200)]).unwrap();
    append(&wal, A, vec![entry(2, 300), entry(3, 5000), entry(4, 10)]).unwrap();
    let storage = storage.kill();
    let path = segment_paths(&storage)[&1].clone();
    let seen = frames(&storage);
    let block_of = |shard, index: u64| {
        let found = seen.iter().find(|frame| frame.shard == Some(shard) && frame.id.index.get() == index);
        usize::try_from(found.unwrap().block).unwrap()
    };
    let (start, last) = (block_of(A, 2), block_of(A, 4));
    (storage, path, start * BLOCK_BYTES, (last + 1) * BLOCK_BYTES)
}

fn last_of(recovery: &Recovery, shard: ShardId) -> u64 {
    recovery.shards.get(&shard).and_then(|shard| shard.last).map_or(0, |last| last.index.get())
}

#[test]
fn cut_after_every_byte_of_the_tail() {
    let (storage, path, start, end) = log_with_a_tail();
    let mut lasts = std::collections::BTreeSet::new();
    for cut in start..=end {
        let torn = storage.kill();
        torn.edit(&path, |bytes| bytes[cut..end].fill(0));
        let (wal, recovery) = open(&torn);
        assert!(recovery.damage.is_none(), "cut at {cut}: {:?}", recovery.report);
        assert_eq!(last_of(&recovery, B), 2, "acknowledged, cut at {cut}");
        let last = last_of(&recovery, A);
        assert!((1..=4).contains(&last) && (last == 4) == (cut == end), "cut at {cut}: {last}");
        lasts.insert(last);
        assert_eq!(read_all(&wal, A).len() as u64, last);
        append(&wal, A, vec![entry(last + 1, 77)]).unwrap();
        drop(wal);
        let (wal, recovery) = open(&torn.crash(cut as u64));
        assert!(recovery.damage.is_none(), "second start, cut at {cut}: {:?}", recovery.report);
        assert_eq!(read_all(&wal, A).last(), Some(&entry(last + 1, 77)));
    }
    assert_eq!(lasts.into_iter().collect::<Vec<_>>(), [1, 2, 4], "entry 3 ends in the block of entry 4");
}

#[test]
fn a_torn_write_may_lack_any_of_its_blocks() {
    let (storage, path, start, end) = log_with_a_tail();
    let blocks = (end - start) / BLOCK_BYTES;
    for missing in 1..1_u32 << blocks {
        let torn = storage.kill();
        torn.edit(&path, |bytes| {
            for block in (0..blocks).filter(|block| missing & 1 << block != 0) {
                bytes[start + block * BLOCK_BYTES..][..BLOCK_BYTES].fill(0xEE);
            }
        });
        let (wal, recovery) = open(&torn);
        assert!(recovery.damage.is_none());
        let last = last_of(&recovery, A);
        // What is left of the torn write must not become the continuation of what is written now.
        append(&wal, A, vec![entry_of(id_of_term(last + 1, 9), 9)]).unwrap();
        drop(wal);
        let (wal, recovery) = open(&torn.kill());
        assert!(recovery.damage.is_none(), "{:?}", recovery.report);
        assert_eq!(wal.range(A).last, Some(id_of_term(last + 1, 9)));
    }
}

#[test]
fn a_shortened_file_ends_the_log() {
    let (storage, path, start, _) = log_with_a_tail();
    storage.edit(&path, |bytes| bytes.truncate(start + 100));
    let (_, recovery) = open(&storage);
    assert!(recovery.damage.is_none());
    assert_eq!((last_of(&recovery, A), last_of(&recovery, B)), (1, 2));
}

/// A recycled file, with all of its old life behind the new one's end.
#[test]
fn an_old_life_never_comes_back() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    let mut old_life = BTreeMap::new();
    for index in 1..200 {
        append(&wal, A, vec![entry(index, 3000)]).unwrap();
        if index == 20 {
            for path in segment_paths(&storage).into_values() {
                old_life.insert(path.clone(), storage.contents(&path).unwrap());
            }
        }
        purge(&wal, A, index.saturating_sub(2)).unwrap();
    }
    let storage = storage.kill();
    let paths = segment_paths(&storage);
    let (newest, path) = paths.last_key_value().unwrap();
    assert!(*newest > 3 && !old_life.is_empty());
    // Everything behind the end of the newest segment, from each file's first life.
    let end = frames(&storage).last().unwrap().block;
    let end = (usize::try_from(end).unwrap() + 2) * BLOCK_BYTES;
    for bytes in old_life.values() {
        for shift in [0, BLOCK_BYTES] {
            let replayed = storage.kill();
            replayed.edit(path, |file| {
                let count = file.len() - end;
                file[end..].copy_from_slice(&bytes[end - shift..][..count]);
            });
            let (wal, recovery) = open(&replayed);
            assert!(recovery.damage.is_none(), "{:?}", recovery.report);
            assert_eq!(wal.range(A).last, Some(id(199)));
            assert_eq!(wal.range(A).purged, Some(id(197)));
        }
    }
    // The whole file of an earlier life in place of an erased one.
    for (path, bytes) in &old_life {
        let replayed = storage.kill();
        if !segment_paths(&replayed).values().any(|used| used == path) {
            replayed.edit(path, |file| file.clone_from(bytes));
        }
        let (wal, recovery) = open(&replayed);
        assert!(recovery.damage.is_none(), "{:?}", recovery.report);
        assert_eq!(wal.range(A).last, Some(id(199)));
    }
}
