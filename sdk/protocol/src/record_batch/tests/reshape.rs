use super::*;

fn bitmap(kept: &[bool]) -> Vec<u8> {
    kept.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

fn loose() -> BatchLimits {
    limits().allowing_gaps()
}

fn reread(batch: &RecordBatch, limits: &BatchLimits) -> Vec<Owned> {
    assert_eq!(&RecordBatch::decode(batch.bytes().clone(), limits).unwrap(), batch);
    batch.validate_records(limits).unwrap();
    read(batch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_filter_keeps_what_it_is_told(
        records in batch_of_owned(),
        kept in prop::collection::vec(any::<bool>(), 60),
        from in compression(),
        to in compression(),
    ) {
        let kept = &kept[..records.len()];
        let batch = build(&records, from).placed_at(Offset::new(500), LeaderEpoch::new(2));
        let filtered = batch.records(&limits()).unwrap().filter(&bitmap(kept), to).unwrap();
        let expected: Vec<_> =
            records.iter().zip(kept).filter(|(_, kept)| **kept).map(|(record, _)| record.clone()).collect();
        let Some(filtered) = filtered else {
            prop_assert!(expected.is_empty());
            return Ok(());
        };
        prop_assert_eq!(reread(&filtered, &loose()), expected);
        prop_assert_eq!(filtered.header().base_offset, Offset::new(500));
        prop_assert_eq!(filtered.header().leader_epoch, LeaderEpoch::new(2));
        prop_assert_eq!(filtered.header().next_offset(), batch.header().next_offset());
    }

    #[test]
    fn filters_compose(
        records in batch_of_owned(),
        first in prop::collection::vec(any::<bool>(), 60),
        second in prop::collection::vec(any::<bool>(), 60),
    ) {
        let batch = build(&records, Compression::None);
        let first = &first[..records.len()];
        let Some(once) =
            batch.records(&limits()).unwrap().filter(&bitmap(first), Compression::None).unwrap()
        else { return Ok(()) };
        let second = &second[..once.header().record_count as usize];
        let twice = once.records(&loose()).unwrap().filter(&bitmap(second), Compression::Zstd).unwrap();
        let expected: Vec<_> =
            read(&once).into_iter().zip(second).filter(|(_, kept)| **kept).map(|(record, _)| record).collect();
        prop_assert_eq!(twice.map(|batch| reread(&batch, &loose())).unwrap_or_default(), expected);
    }

    #[test]
    fn a_split_places_each_record_in_order(
        records in batch_of_owned(),
        placement in prop::collection::vec(0_u32..5, 60),
        from in compression(),
        to in compression(),
    ) {
        let placement = &placement[..records.len()];
        let batch = build(&records, from);
        let fields = |partition: PartitionId, count: u32| ProducerFields {
            id: ProducerId::new(8),
            epoch: ProducerEpoch::new(1),
            base_sequence: Sequence::new((partition.get() * 1000 + count).cast_signed()),
        };
        let parts = batch.records(&limits()).unwrap().split(placement, 5, to, fields).unwrap();
        prop_assert!(parts.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut total = 0;
        for (partition, part) in parts {
            let mut expected: Vec<_> = records
                .iter()
                .zip(placement)
                .filter(|(_, place)| **place == partition.get())
                .map(|(record, _)| record.clone())
                .collect();
            for (record, delta) in expected.iter_mut().zip(0..) {
                record.delta = delta;
            }
            total += expected.len();
            let count = part.header().record_count();
            prop_assert_eq!(ProducerFields::of(part.header()), fields(partition, count));
            prop_assert_eq!(reread(&part, &limits()), expected);
        }
        prop_assert_eq!(total, records.len());
    }
}

#[test]
fn a_filter_that_keeps_all_answers_the_same_batch() {
    let batch = build(&sample(16), Compression::None);
    let same = batch.records(&limits()).unwrap().filter(&[0xff, 0xff], Compression::None).unwrap().unwrap();
    assert_eq!(same.bytes().as_ptr(), batch.bytes().as_ptr());
}

#[test]
fn a_bitmap_or_a_placement_of_another_size_is_refused() {
    let batch = build(&sample(9), Compression::None);
    let records = batch.records(&limits()).unwrap();
    for size in [0, 1, 3] {
        let error = records.filter(&vec![0xff; size], Compression::None).unwrap_err();
        assert!(matches!(error, ReshapeError::Bitmap { expected: 2, .. }), "{error}");
    }
    let none = |_, _| ProducerFields::NONE;
    let error = records.split(&[0; 8], 3, Compression::None, none).unwrap_err();
    assert!(matches!(error, ReshapeError::Placements { records: 9, actual: 8 }), "{error}");
    let error = records.split(&[0, 0, 0, 0, 3, 0, 0, 0, 0], 3, Compression::None, none).unwrap_err();
    assert_eq!(error.to_string(), "record 4 is placed in partition 3, and there are 3");
}

#[test]
fn bits_behind_the_last_record_mean_nothing() {
    let batch = build(&sample(9), Compression::None);
    let records = batch.records(&limits()).unwrap();
    let kept = records.filter(&[0, 0xff], Compression::None).unwrap().unwrap();
    assert_eq!(reread(&kept, &loose()).len(), 1);
    assert!(records.filter(&[0, 0xfe], Compression::None).unwrap().is_none());
}

#[test]
fn a_batch_replaced_record_by_record_keeps_its_frame() {
    let at = Timestamp::new(1_800_000_000_000);
    for log_append_time in [false, true] {
        let mut batch = build(&sample(10), Compression::Lz4).placed_at(Offset::new(30), LeaderEpoch::new(1));
        if log_append_time {
            batch = batch.with_log_append_time(at);
        }
        let mut builder = BatchBuilder::replacing(batch.header(), Compression::None);
        for record in &batch.records(&limits()).unwrap() {
            let record = record.unwrap();
            if record.ordinal % 3 == 1 {
                let timestamp = record.timestamp;
                builder
                    .append_encoded_at(
                        record.offset_delta,
                        timestamp,
                        record.key,
                        Some(b"***"),
                        record.headers,
                    )
                    .unwrap();
            }
        }
        let replaced = builder.build_batch().unwrap();
        let seen = reread(&replaced, &loose());
        assert_eq!(seen.iter().map(|record| record.delta).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!(replaced.header().next_offset(), Offset::new(40));
        assert_eq!(seen[0].timestamp, if log_append_time { at.get() } else { sample(10)[1].timestamp });
    }
}

#[test]
fn a_lying_section_is_refused_not_copied() {
    let batch = build(&sample(3), Compression::None);
    let mut bytes = batch.bytes().to_vec();
    let last = bytes.len() - 1;
    bytes.truncate(last);
    let mut header = *batch.header();
    header.seal(&mut bytes);
    let batch = RecordBatch::decode(bytes.into(), &limits()).unwrap();
    let records = batch.records(&limits()).unwrap();
    assert!(matches!(records.filter(&[7], Compression::None), Err(ReshapeError::Batch(_))));
    let split = records.split(&[0, 1, 0], 2, Compression::None, |_, _| ProducerFields::NONE);
    assert!(matches!(split, Err(ReshapeError::Batch(_))));
}

#[test]
fn a_batch_in_another_compression_has_the_same_records() {
    let records = sample(300);
    for from in [Compression::None, Compression::Zstd] {
        for to in Compression::ALL {
            let batch = build(&records, from);
            let other = batch.records(&limits()).unwrap().recompressed(to).unwrap();
            assert_eq!(other.header().attributes.compression, to);
            let (a, b) = (batch.decompressed(&limits()).unwrap(), other.decompressed(&limits()).unwrap());
            assert_eq!(a, b, "{from} to {to}");
            let again = RecordBatch::decode(other.bytes().clone(), &limits()).unwrap();
            again.validate_records(&limits()).unwrap();
        }
    }
}
