//! Readers beside the writer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::fs::DiskStorage;

#[test]
fn a_reader_never_sees_a_torn_append() {
    let root = tempfile::tempdir().unwrap();
    let files = files_on(DiskStorage::new(root.path()).unwrap());
    let store = open_at(&files, PartitionEnds::default()).unwrap();
    store.append(&[batch(0, 2, 0, 100)]).unwrap();
    let done = AtomicBool::new(false);
    let follow = |bytes_max| {
        let mut next = offset(0);
        let mut seen = Vec::new();
        loop {
            let last_round = done.load(Ordering::Acquire);
            let read = store.read(next, offset(i64::MAX), bytes_max).unwrap();
            read.parts.iter().for_each(|part| seen.extend_from_slice(part));
            if read.parts.is_empty() && last_round {
                return blake3::hash(&seen);
            }
            if read.parts.is_empty() {
                std::thread::yield_now();
            }
            next = read.next;
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            [100, 3000, 1 << 20].map(|bytes_max| scope.spawn(move || follow(bytes_max))).into();
        let mut batches = vec![batch(0, 2, 0, 100)];
        for round in 1..400 {
            let group: Vec<_> = (0..round % 5 + 1)
                .map(|n| batch(round * 20 + n * 2, 2, round, (round * n) as usize))
                .collect();
            store.append(&group).unwrap();
            batches.extend(group);
            if round % 50 == 0 {
                store.sync().unwrap();
                store.roll(offset(round * 20 + 12)).unwrap();
            }
        }
        done.store(true, Ordering::Release);
        let expected = blake3::hash(&joined(&batches));
        for reader in readers {
            assert_eq!(reader.join().unwrap(), expected);
        }
    });
}
