//! The bytes on the disk: a log of every kind of frame is written as it always was.

use super::*;
use crate::wal::doubt::Doubt;

#[test]
fn a_log_is_as_it_always_was() {
    let storage = MemoryStorage::new();
    let (wal, _) = open(&storage);
    append(&wal, A, vec![entry(1, 10), entry(2, 9000)]).unwrap();
    append(&wal, B, (1..18).map(|index| entry(index, 14_000)).collect()).unwrap();
    purge(&wal, B, 17).unwrap();
    // What A has is carried on, so that the first segments are released, and from here on there is one.
    let mut count = 0;
    wait(|done| count = wal.carry_forward(A, 1 << 20, done).unwrap()).unwrap();
    assert_eq!(count, 2);
    wait(|done| wal.flush(done)).unwrap();
    append(&wal, B, vec![entry(18, 100), entry(19, 0), entry(20, 40)]).unwrap();
    vote(&wal, A, "vote").unwrap();
    wal.save_committed(A, Bytes::from("committed"));
    wait(|done| wal.snapshot_installed(B, Bytes::from("snapshot"), done)).unwrap();
    wait(|done| wal.truncate_after(A, Some(id(1)), done)).unwrap();
    append(&wal, A, vec![entry_of(id_of_term(2, 2), 500)]).unwrap();
    wait(|done| wal.truncate_after(B, None, done)).unwrap();
    wait(|done| wal.forget(ShardId::new(9), done)).unwrap();
    wait(|done| wal.accept_doubt(B, done)).unwrap();
    assert_eq!(wal.bytes(), config().segment_bytes);
    wal.close().unwrap();

    let (number, path) = segment_paths(&storage).pop_last().unwrap();
    let frames = frames(&storage).into_iter().filter(|frame| frame.segment == number);
    let kinds: std::collections::BTreeSet<_> = frames.map(|frame| frame.kind).collect();
    let every = FrameKind::ALL.into_iter().filter(|kind| *kind != FrameKind::Doubtful);
    assert_eq!(kinds, every.collect());
    let digest = blake3::hash(&storage.contents(&path).unwrap()).to_hex()[..16].to_owned();
    // A change here is a change of format: raise the version, keep the old files readable.
    assert_eq!((number, &*digest), (3, "64b4029f1e1ee6f2"));
}

#[test]
fn a_doubt_is_as_it_always_was() {
    let doubt = Doubt { reason: DoubtReason::Damaged, segment: 5, block_sequence: 300, sure_to: Some(id(7)) };
    let encoded = doubt.encode();
    assert_eq!(encoded[..], [1, 1, 5, 0, 0, 0, 0, 0, 0, 0, 44, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Doubt::decode(&encoded, id(7)), Some(doubt));
}
