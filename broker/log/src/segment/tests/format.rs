//! The bytes on the disk: what is written is what is drawn, and nothing else is read.

use proptest::prelude::*;

use super::super::frame::{FRAME_BYTES, FrameHead, HEAD_BYTES};
use super::super::header::{FileHeader, FileKind, HEADER_BYTES};
use super::super::index::IndexEntry;
use super::super::key::KeyHasher;
use super::*;

fn frame(batch: &StoredBatch) -> Vec<u8> {
    let (head, _) = FrameHead::encode(&KeyHasher::new(KEY), batch);
    [&head[..], batch.body()].concat()
}

#[test]
fn a_segment_file_is_as_it_always_was() {
    let (storage, store) = fresh();
    store.append(&[batch(7, 2, 1_700_000_000_000, 50), batch(9, 1, 1_700_000_000_001, 300)]).unwrap();
    store.append(&[batch(10, 5, 1_600_000_000_000, 20)]).unwrap();
    store.sync().unwrap();
    let digest =
        |path: std::path::PathBuf| blake3::hash(&storage.contents(&path).unwrap()).to_hex()[..16].to_owned();
    // A change here is a change of format: raise the version, keep the old files readable.
    assert_eq!(digest(log_path(7)), "b0d570a81cefa938");
    assert_eq!(digest(index_path(7)), "335fe42a6f9d9c73");
}

#[test]
fn the_frame_is_the_batch_behind_24_bytes() {
    let batch = batch(42, 3, 99, 10);
    let frame = frame(&batch);
    assert_eq!(&frame[FRAME_BYTES..], kafka(&batch));
    assert_eq!(frame[24..32], 42_i64.to_be_bytes());
    assert_eq!(frame[32..36], (10_i32 + 4).to_be_bytes(), "Kafka's length counts from the leader epoch on");
    assert_eq!(frame[36..40], 3_i32.to_be_bytes());
}

#[test]
fn file_names_are_parsed_strictly() {
    assert_eq!(FileKind::Log.file_name(offset(42)), "00000000000000000042.log");
    for kind in [FileKind::Log, FileKind::Index] {
        assert_eq!(FileKind::parse(&kind.file_name(offset(i64::MAX))), Some((kind, offset(i64::MAX))));
    }
    for name in
        ["42.log", "00000000000000000042", "0000000000000000004x.log", "+0000000000000000042.log", ".log"]
    {
        assert_eq!(FileKind::parse(name), None, "{name}");
    }
    assert_eq!(FileKind::parse("99999999999999999999.log"), None, "beyond the largest offset");
}

#[test]
fn a_header_of_another_version_is_named() {
    let header = FileHeader { kind: FileKind::Log, key: KEY, base_offset: offset(5) };
    let mut bytes = header.encode();
    assert_eq!(FileHeader::decode(&bytes), Ok(header));
    bytes[9] = 2;
    assert_eq!(FileHeader::decode(&bytes), Err(HeaderError::Version(2)));
    assert_eq!(FileHeader::decode(&bytes[..HEADER_BYTES - 1]), Err(HeaderError::NotASegment));
    assert_eq!(FileHeader::decode(&[0; HEADER_BYTES]), Err(HeaderError::NotASegment));
}

#[test]
fn batches_that_can_not_be_stored_are_refused() {
    let make = |base, last| {
        let epoch = LeaderEpoch::new(0);
        StoredBatch::new(offset(base), offset(last), epoch, Timestamp::new(0), Bytes::from_static(b"body"))
    };
    assert!(make(0, 0).is_ok() && make(5, 5 + i64::from(u32::MAX)).is_ok());
    for (base, last) in [(-1, 0), (5, 4), (0, 1 << 32), (i64::MAX, i64::MAX), (i64::MIN, i64::MAX)] {
        let refused = StoredBatchError::Offsets { base: offset(base), last: offset(last) };
        assert_eq!(make(base, last), Err(refused));
    }
}

proptest! {
    #[test]
    fn frames_come_back(base in 0_i64..1 << 40, records in 1_i64..5000, time: i64, epoch: i32, bytes in 0_usize..3000) {
        let last = offset(base + records - 1);
        let made = StoredBatch::new(offset(base), last, LeaderEpoch::new(epoch), Timestamp::new(time), body(base, bytes));
        let made = made.unwrap();
        let bytes = frame(&made);
        let (head, mut hasher) = FrameHead::decode(&KeyHasher::new(KEY), &bytes).unwrap();
        hasher.update(&bytes[HEAD_BYTES..]);
        prop_assert_eq!(hasher.finalize(), head.frame_crc);
        prop_assert_eq!(head.frame_bytes(), bytes.len() as u64);
        prop_assert_eq!((head.base_offset, head.last_offset), (made.base_offset(), made.last_offset()));
        prop_assert_eq!((head.max_timestamp, head.epoch), (made.max_timestamp(), made.epoch()));
    }

    #[test]
    fn a_flipped_bit_of_a_head_is_noticed(bit in 32_usize..HEAD_BYTES * 8) {
        let mut bytes = frame(&batch(77, 4, 5, 60));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(FrameHead::decode(&KeyHasher::new(KEY), &bytes).err(), Some(FrameFault::HeadCrc));
    }

    #[test]
    fn arbitrary_bytes_are_no_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(FrameHead::decode(&KeyHasher::new(KEY), &bytes).is_err());
        prop_assert!(FileHeader::decode(&bytes).is_err());
    }

    #[test]
    fn index_entries_come_back(base in 0_i64..1 << 50, delta in 0_u32.., position: u64, time: i64, number in 0_u64..1 << 40, bit in 0_usize..192) {
        let entry = IndexEntry {
            offset: offset(base).plus(u64::from(delta)),
            position,
            max_before: Timestamp::new(time),
        };
        let mut bytes = entry.encode(offset(base), number).unwrap();
        prop_assert_eq!(IndexEntry::decode(&bytes, offset(base), number), Some(entry));
        prop_assert_eq!(IndexEntry::decode(&bytes, offset(base), number + 1), None);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(IndexEntry::decode(&bytes, offset(base), number), None);
    }
}

#[test]
fn a_frame_of_another_partition_is_no_frame() {
    let bytes = frame(&batch(1, 1, 1, 30));
    let other = KeyHasher::new(StreamKey::new(*b"0123456789abcdef\0\0\0\x08"));
    assert_eq!(FrameHead::decode(&other, &bytes).err(), Some(FrameFault::HeadCrc));
}
