use super::*;

/// Changes bytes of a batch and, as someone who means it would, makes the checksum right again.
fn forged(batch: &RecordBatch, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.bytes().to_vec();
    change(&mut bytes);
    let crc = header::covered_crc(&bytes);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// A batch of `count` records whose section is what is given.
fn with_section(compression: Compression, count: i32, section: &[u8]) -> RecordBatch {
    let mut header = *build(&sample(1), Compression::None).header();
    header.attributes.compression = compression;
    header.record_count = count;
    header.last_offset_delta = count - 1;
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(section);
    header.seal(&mut bytes);
    RecordBatch::decode(bytes.into(), &limits()).unwrap()
}

#[track_caller]
fn refused(bytes: impl Into<Bytes>, limits: &BatchLimits) -> BatchError {
    let bytes: Bytes = bytes.into();
    let error = RecordBatch::decode(bytes.clone(), limits).unwrap_err();
    assert!(!error.to_string().is_empty());
    let mut rest = bytes.clone();
    if RecordBatch::split_first(&mut rest, limits).is_err() {
        assert_eq!(rest, bytes, "an error must leave the bytes as they were");
    }
    error
}

#[test]
fn every_flipped_bit_behind_the_prefix_is_found() {
    let batch = build(&sample(3), Compression::None);
    for at in 16..batch.bytes().len() {
        for bit in 0..8 {
            let mut bytes = batch.bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let error = refused(bytes, &limits());
            let expected = if at == 16 { ErrorCode::InvalidBatch } else { ErrorCode::CorruptBatch };
            assert_eq!(error.error_code(), expected, "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn a_cut_at_every_byte_is_found() {
    let batch = build(&sample(3), Compression::None);
    for end in 0..batch.bytes().len() {
        let error = refused(batch.bytes().slice(..end), &limits());
        assert!(matches!(error, BatchError::Truncated { .. }), "{end}: {error}");
    }
    let mut longer = batch.bytes().to_vec();
    longer.push(0);
    assert_eq!(refused(longer, &limits()), BatchError::TrailingBytes { bytes: 1 });
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_allocated() {
    let batch = build(&sample(3), Compression::None);
    for (length, code) in [
        (i32::MIN, ErrorCode::CorruptBatch),
        (-1, ErrorCode::CorruptBatch),
        (0, ErrorCode::CorruptBatch),
        (48, ErrorCode::CorruptBatch),
        (1 << 20, ErrorCode::CorruptBatch),
        (i32::MAX, ErrorCode::BatchTooLarge),
    ] {
        let bytes = forged(&batch, |bytes| bytes[8..12].copy_from_slice(&length.to_be_bytes()));
        let error = refused(bytes, &limits());
        assert_eq!(error.error_code(), code, "{length}: {error}");
    }
    let limits = BatchLimits { batch_bytes_max: 100, ..limits() };
    assert!(matches!(refused(batch.bytes().clone(), &limits), BatchError::TooLarge { limit: 100, .. }));
}

#[test]
fn header_fields_that_contradict_each_other_are_refused() {
    let batch = build(&sample(3), Compression::None);
    let refuse = |change: fn(&mut Vec<u8>)| refused(forged(&batch, change), &limits());
    assert!(matches!(refuse(|bytes| bytes[16] = 1), BatchError::Magic(1)));
    assert_eq!(refuse(|bytes| bytes[22] = 5), BatchError::UnknownCompression(5));
    assert_eq!(refuse(|bytes| bytes[22] = 0x40), BatchError::ReservedAttributes(0x40));
    assert_eq!(refuse(|bytes| bytes[21] = 0x01), BatchError::ReservedAttributes(0x100));
    assert_eq!(refuse(|bytes| bytes[60] = 2), BatchError::Count { count: 2, last_offset_delta: 2 });
    assert_eq!(
        refuse(|bytes| bytes[57] = 0x80),
        BatchError::Count { count: i32::MIN + 3, last_offset_delta: 2 }
    );
    assert_eq!(
        refuse(|bytes| bytes[23..27].fill(0xff)),
        BatchError::Count { count: 3, last_offset_delta: -1 }
    );
    let base_offset = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&(i64::MAX - 1).to_be_bytes());
    assert_eq!(refuse(base_offset), BatchError::BaseOffset(i64::MAX - 1));
    assert_eq!(
        refuse(|bytes| bytes[..8].copy_from_slice(&(-2_i64).to_be_bytes())),
        BatchError::BaseOffset(-2)
    );
    let few = BatchLimits { records_max: 2, ..limits() };
    assert_eq!(refused(batch.bytes().clone(), &few), BatchError::TooManyRecords { count: 3, limit: 2 });
    let gaps = limits().allowing_gaps();
    let negative = forged(&batch, |bytes| bytes[57..61].fill(0xff));
    assert!(matches!(refused(negative, &gaps), BatchError::Count { .. }));
}

#[test]
fn malformed_records_are_named() {
    for (section, count, problem) in [
        (&[][..], 1, RecordProblem::Length),
        (&[0x10, 0], 1, RecordProblem::Length),
        (&[1], 1, RecordProblem::Length),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1, RecordProblem::Length),
        (&[0], 1, RecordProblem::Field),
        (&[12, 4, 0, 0, 1, 1, 0], 1, RecordProblem::Attributes(4)),
        (&[12, 0, 0, 2, 1, 1, 0], 1, RecordProblem::OffsetDelta(1)),
        (&[12, 0, 0, 1, 1, 1, 0], 1, RecordProblem::OffsetDelta(-1)),
        (&[12, 0, 0, 0, 3, 1, 0], 1, RecordProblem::Field),
        (&[12, 0, 0, 0, 20, 1, 0], 1, RecordProblem::Field),
        (&[12, 0, 0, 0, 1, 1, 1], 1, RecordProblem::Headers),
        (&[12, 0, 0, 0, 1, 1, 2], 1, RecordProblem::Headers),
        (&[14, 0, 0, 0, 1, 1, 2, 1], 1, RecordProblem::Headers),
        (&[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1], 1, RecordProblem::Headers),
        (&[14, 0, 0, 0, 1, 1, 0, 0], 1, RecordProblem::TrailingBytes),
        (&[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f], 1, RecordProblem::Headers),
    ] {
        let error = with_section(Compression::None, count, section).validate_records(&limits()).unwrap_err();
        assert_eq!(error, BatchError::Record { ordinal: 0, problem }, "{section:x?}");
        assert_eq!(error.error_code(), ErrorCode::InvalidBatch);
    }
    let good = [12, 0, 0, 0, 1, 1, 0];
    with_section(Compression::None, 1, &good).validate_records(&limits()).unwrap();
    let twice = with_section(Compression::None, 1, &[good, good].concat());
    assert_eq!(twice.validate_records(&limits()), Err(BatchError::BytesAfterRecords { bytes: 7 }));
    let once = with_section(Compression::None, 2, &good).validate_records(&limits());
    assert_eq!(once, Err(BatchError::Record { ordinal: 1, problem: RecordProblem::Length }));
}

#[test]
fn a_record_over_the_limit_and_a_wrong_largest_timestamp_are_refused() {
    let batch = build(&sample(3), Compression::None);
    let small = BatchLimits { record_bytes_max: 20, ..limits() };
    let error = batch.validate_records(&small).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::RecordTooLarge);
    for change in [1_i64, -1] {
        let stored = batch.header().max_timestamp.get() + change;
        let bytes = forged(&batch, |bytes| bytes[35..43].copy_from_slice(&stored.to_be_bytes()));
        let lying = RecordBatch::decode(bytes, &limits()).unwrap();
        let actual = stored - change;
        assert_eq!(lying.validate_records(&limits()), Err(BatchError::MaxTimestamp { stored, actual }));
        assert_eq!(lying.validate_records(&limits().allowing_gaps()).is_ok(), change > 0);
    }
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let zeros = vec![0; 16 << 20];
    let limits = BatchLimits { decompressed_bytes_max: 1 << 20, ..limits() };
    for compression in Compression::ALL {
        let mut section = Vec::new();
        compression::compress(compression, None, &zeros, &mut section).unwrap();
        section.truncate(limits.batch_bytes_max - HEADER_BYTES);
        let error = with_section(compression, 1, &section).validate_records(&limits).unwrap_err();
        assert_eq!(error, BatchError::DecompressedTooLarge { limit: 1 << 20 }, "{compression}");
        assert_eq!(error.error_code(), ErrorCode::BatchTooLarge);
    }
}

/// Without a content size zstd decodes as a stream, with a window of its own.
#[test]
fn zstd_without_a_content_size_is_read_and_bounded() {
    let records = sample(3_000);
    let plain = build(&records, Compression::None);
    let section = plain.decompressed(&limits()).unwrap();
    let stream = zstd::stream::encode_all(std::io::Cursor::new(&section), 3).unwrap();
    let two_frames = {
        let (a, b) = section.split_at(section.len() / 3);
        [zstd::bulk::compress(a, 1).unwrap(), zstd::stream::encode_all(b, 1).unwrap()].concat()
    };
    for (name, compressed) in [("stream", stream), ("two frames", two_frames)] {
        let data = Bytes::from(compressed);
        let exact = compression::decompress(Compression::Zstd, &data, section.len()).unwrap();
        assert_eq!(exact, section, "{name}");
        let limit = section.len() - 1;
        let error = compression::decompress(Compression::Zstd, &data, limit).unwrap_err();
        assert_eq!(error, BatchError::DecompressedTooLarge { limit }, "{name}");
        let cut =
            compression::decompress(Compression::Zstd, &data.slice(..data.len() - 1), 1 << 20).unwrap_err();
        assert!(matches!(cut, BatchError::Decompress { .. }), "{name}: {cut}");
    }
}

#[test]
fn concatenated_frames_are_read_and_what_follows_is_refused() {
    for compression in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
        let mut data = Vec::new();
        compression::compress(compression, None, &[7; 300], &mut data).unwrap();
        compression::compress(compression, None, &[8; 300], &mut data).unwrap();
        let out = compression::decompress(compression, &Bytes::from(data.clone()), 1000).unwrap();
        assert_eq!(out, [[7; 300], [8; 300]].concat(), "{compression}");
        data.extend_from_slice(b"garbage behind");
        let error = compression::decompress(compression, &Bytes::from(data), 1000).unwrap_err();
        assert!(matches!(error, BatchError::Decompress { .. }), "{compression}: {error}");
    }
}

#[test]
fn a_claimed_size_is_not_believed() {
    // Raw snappy that claims 4 GiB - 1, and a zstd frame that claims 2^62.
    let snappy = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    zstd.extend_from_slice(&(1_u64 << 62).to_le_bytes());
    zstd.extend_from_slice(&[1, 0, 0]);
    for (compression, data) in [(Compression::Snappy, &snappy[..]), (Compression::Zstd, &zstd)] {
        let error = compression::decompress(compression, &Bytes::copy_from_slice(data), 1 << 20).unwrap_err();
        assert_eq!(error, BatchError::DecompressedTooLarge { limit: 1 << 20 }, "{compression}");
    }
}

/// Whole in its framing, and broken inside the first block: who began with it would call it broken.
#[test]
fn what_says_that_it_is_too_large_is_not_begun_with() {
    let raw = vec![0; 16 << 20];
    let info = lz4_flex::frame::FrameInfo::new().content_size(Some(raw.len() as u64));
    let mut lz4 = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    std::io::Write::write_all(&mut lz4, &raw).unwrap();
    let mut snappy = Vec::new();
    compression::compress(Compression::Snappy, None, &raw, &mut snappy).unwrap();
    let limit = 1 << 20;
    for (compression, mut section, first_block) in [
        (Compression::Lz4, lz4.finish().unwrap(), 19),
        // The header, the block's length, and the size that it begins with.
        (Compression::Snappy, snappy, 16 + 4 + 3),
    ] {
        section.get_mut(first_block + 1..first_block + 9).unwrap().fill(0xff);
        let data = Bytes::from(section);
        let error = compression::decompress(compression, &data, limit).unwrap_err();
        assert_eq!(error, BatchError::DecompressedTooLarge { limit }, "{compression}");
        let begun = compression::decompress(compression, &data, raw.len()).unwrap_err();
        assert!(matches!(begun, BatchError::Decompress { .. }), "{compression}: {begun}");
    }
}

#[test]
fn a_snappy_block_that_claims_what_it_cannot_hold_is_refused_before_memory_is_cleared_for_it() {
    // 1 MiB - 1 in 8 bytes.
    let block = [0xff, 0xff, 0x3f, 0, 0, 0, 0, 0];
    let error =
        compression::decompress(Compression::Snappy, &Bytes::copy_from_slice(&block), 4 << 20).unwrap_err();
    assert!(matches!(error, BatchError::Decompress { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        crate::testing::record_batch(&bytes);
    }

    #[test]
    fn a_garbled_batch_never_panics(
        records in batch_of_owned(),
        compression in compression(),
        garble in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = build(&records, compression).bytes().to_vec();
        for (at, byte) in garble {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        crate::testing::record_batch(&bytes);
        bytes.truncate(cut.index(bytes.len()).max(HEADER_BYTES));
        crate::testing::record_batch(&bytes);
    }

    #[test]
    fn garbled_compressed_bytes_never_panic(
        compression in compression(),
        garble in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut data = Vec::new();
        compression::compress(compression, None, b"some bytes, some bytes, some bytes, some", &mut data).unwrap();
        for (at, byte) in garble {
            let at = at.index(data.len());
            data[at] = byte;
        }
        if let Ok(out) = compression::decompress(compression, &Bytes::from(data), 4096) {
            prop_assert!(out.len() <= 4096);
        }
    }
}
