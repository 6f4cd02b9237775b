use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_built_is_read(records in batch_of_owned(), compression in compression()) {
        let batch = build(&records, compression);
        let decoded = RecordBatch::decode(batch.bytes().clone(), &limits()).unwrap();
        prop_assert_eq!(&decoded, &batch);
        prop_assert_eq!(decoded.header().record_count(), records.len() as u32);
        decoded.validate_records(&limits()).unwrap();
        prop_assert_eq!(read(&decoded), records);
    }

    #[test]
    fn an_iteration_goes_on_where_another_one_was(records in batch_of_owned(), compression in compression()) {
        let records = build(&records, compression).records(&limits()).unwrap();
        let mut whole = records.iter();
        loop {
            let rest = whole.clone().collect::<Result<Vec<_>, _>>().unwrap();
            let resumed = records.iter_from(whole.mark()).collect::<Result<Vec<_>, _>>().unwrap();
            prop_assert_eq!(resumed, rest);
            if whole.next().is_none() {
                break;
            }
        }
    }

    #[test]
    fn batches_stand_one_after_the_other(batches in prop::collection::vec((batch_of_owned(), compression()), 1..5)) {
        let mut joined = BytesMut::new();
        for (records, compression) in &batches {
            joined.extend_from_slice(build(records, *compression).bytes());
        }
        let mut rest = joined.freeze();
        for (records, _) in &batches {
            let batch = RecordBatch::split_first(&mut rest, &limits()).unwrap().unwrap();
            prop_assert_eq!(&read(&batch), records);
        }
        prop_assert_eq!(RecordBatch::split_first(&mut rest, &limits()).unwrap(), None);
    }
}

#[test]
fn every_compression_makes_a_sample_smaller_and_gives_it_back() {
    let records = sample(2_000);
    let plain = build(&records, Compression::None);
    for compression in Compression::ALL {
        let batch = build(&records, compression);
        assert_eq!(batch.header().attributes.compression, compression);
        assert!(compression == Compression::None || batch.bytes().len() < plain.bytes().len() / 2);
        batch.validate_records(&limits()).unwrap();
        assert_eq!(batch.decompressed(&limits()).unwrap(), plain.decompressed(&limits()).unwrap());
        assert_eq!(read(&batch), records);
        assert_eq!(compression.name().parse(), Ok(compression));
    }
    assert!("lzma".parse::<Compression>().is_err());
}

#[test]
fn what_does_not_become_smaller_stays_as_it_is() {
    let batch = build(&sample(1), Compression::Gzip);
    assert_eq!(batch.header().attributes.compression, Compression::None);
    assert_eq!(read(&batch), sample(1));
}

#[test]
fn a_builder_is_used_again() {
    let mut builder = builder(Compression::None);
    assert!(matches!(builder.build(), Err(BuildError::Empty)));
    builder.set_producer(ProducerId::new(7), ProducerEpoch::new(2), Sequence::new(40));
    builder.append(Timestamp::new(5), None, Some(b"one"), []).unwrap();
    let estimate = builder.size_estimate();
    let first = builder.build_batch().unwrap();
    assert_eq!(estimate, first.bytes().len());
    assert_eq!(first.header().producer_id, ProducerId::new(7));
    assert_eq!(first.header().last_sequence(), Sequence::new(40));
    assert!(first.header().has_producer());
    assert!(builder.is_empty());

    builder.append(Timestamp::new(9), None, Some(b"two"), []).unwrap();
    let second = builder.build_batch().unwrap();
    assert!(!second.header().has_producer());
    assert_eq!(second.header().base_timestamp, Timestamp::new(9));
    assert_eq!(read(&first)[0].value.as_deref(), Some(&b"one"[..]));
    assert_eq!(read(&second)[0].value.as_deref(), Some(&b"two"[..]));
}

#[test]
fn a_full_batch_and_a_record_too_large_are_told_apart() {
    let options = BuilderOptions { batch_bytes_max: 200, ..BuilderOptions::default() };
    let mut builder = BatchBuilder::new(options);
    builder.append(Timestamp::new(0), None, Some(&[0; 100]), []).unwrap();
    let full = builder.append(Timestamp::new(0), None, Some(&[0; 100]), []).unwrap_err();
    assert!(matches!(full, AppendError::Full { limit: 200, .. }), "{full}");
    let large = builder.append(Timestamp::new(0), None, Some(&[0; 150]), []).unwrap_err();
    assert!(matches!(large, AppendError::RecordTooLarge { limit: 200, .. }), "{large}");
    assert!(builder.build().unwrap().len() <= 200);
}

#[test]
fn timestamps_and_offsets_out_of_range_are_refused() {
    let mut builder = builder(Compression::None);
    builder.append_at(3, Timestamp::new(-1), None, None, []).unwrap();
    let error = builder.append(Timestamp::new(i64::MAX), None, None, []).unwrap_err();
    assert_eq!(error, AppendError::Timestamp(Timestamp::new(i64::MAX)));
    for delta in [0, 3, u32::MAX] {
        let error = builder.append_at(delta, Timestamp::new(0), None, None, []).unwrap_err();
        assert_eq!(error, AppendError::OffsetDelta { delta });
    }
    builder.append(Timestamp::new(0), None, None, []).unwrap();
    let batch = builder.build_batch().unwrap();
    assert_eq!(batch.header().last_offset_delta, 4);
    assert!(RecordBatch::decode(batch.bytes().clone(), &limits()).is_err());
    let deltas: Vec<_> = read(&batch).iter().map(|record| record.delta).collect();
    assert_eq!(deltas, [3, 4]);
}

#[test]
fn headers_pass_through_encoded() {
    let records = sample(10);
    let batch = build(&records, Compression::None);
    let mut copy = builder(Compression::None);
    for record in &batch.records(&limits()).unwrap() {
        let record = record.unwrap();
        assert_eq!(HeadersView::parse(record.headers.as_bytes()), Ok(record.headers));
        copy.append_encoded(record.timestamp, record.key, record.value, record.headers).unwrap();
    }
    assert_eq!(copy.build().unwrap(), batch.bytes());
    let records = batch.records(&limits()).unwrap();
    let first = records.iter().next().unwrap().unwrap();
    assert_eq!(first.headers.get("trace"), Some(Some(&[1, 2, 3][..])));
    assert_eq!(first.headers.get("märz"), Some(None));
    assert_eq!(first.headers.get("other"), None);
}

#[test]
fn prefix_and_body_are_the_batch() {
    let batch = build(&sample(5), Compression::Lz4);
    let prefix = stored_prefix(Offset::new(77), batch.body().len(), LeaderEpoch::new(3));
    let stored: Bytes = [&prefix[..], &batch.body()].concat().into();
    let stored = RecordBatch::decode(stored, &limits()).unwrap();
    assert_eq!(stored.header().base_offset, Offset::new(77));
    assert_eq!(stored.header().leader_epoch, LeaderEpoch::new(3));
    assert_eq!(stored.header().next_offset(), Offset::new(82));
    assert_eq!(batch.clone().placed_at(Offset::new(77), LeaderEpoch::new(3)), stored);
    assert_eq!(read(&stored), read(&batch));
}

#[test]
fn rewriting_keeps_records_and_makes_a_new_checksum() {
    let batch = build(&sample(30), Compression::Zstd);
    let fields = ProducerFields {
        id: ProducerId::new(9),
        epoch: ProducerEpoch::new(1),
        base_sequence: Sequence::new(4),
    };
    let at = Timestamp::new(1_800_000_000_000);
    let other = batch.clone().with_producer(fields).with_log_append_time(at);
    assert_eq!(RecordBatch::decode(other.bytes().clone(), &limits()).unwrap(), other);
    assert_eq!(ProducerFields::of(other.header()), fields);
    other.validate_records(&limits()).unwrap();
    assert!(read(&other).iter().all(|record| record.timestamp == at.get()));
    assert_ne!(other.bytes(), batch.bytes());
}

#[test]
fn parts_of_records_are_found_and_owned_without_a_copy() {
    let batch = build(&sample(20), Compression::None);
    let records = batch.records(&limits()).unwrap();
    assert_eq!(records.len(), 20);
    for record in &records {
        let Some(key) = record.unwrap().key else { continue };
        let at = records.offset_of(key).unwrap();
        assert_eq!(&records.data()[at..at + key.len()], key);
        assert_eq!(records.slice_of(key).as_ptr(), key.as_ptr());
    }
    assert_eq!(records.offset_of(b"elsewhere"), None);
    assert_eq!(records.slice_of(b"elsewhere"), b"elsewhere"[..]);
}
