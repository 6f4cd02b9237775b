//! Batches of an independent implementation, the `kafka-protocol` crate, both ways.

use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{self as kafka, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions};

use super::*;

const BASE_OFFSET: i64 = 40;

fn kafka_compression(compression: Compression) -> kafka::Compression {
    match compression {
        Compression::None => kafka::Compression::None,
        Compression::Gzip => kafka::Compression::Gzip,
        Compression::Snappy => kafka::Compression::Snappy,
        Compression::Lz4 => kafka::Compression::Lz4,
        Compression::Zstd => kafka::Compression::Zstd,
    }
}

fn to_kafka(record: &Owned) -> kafka::Record {
    let headers: IndexMap<StrBytes, Option<Bytes>> = record
        .headers
        .iter()
        .map(|(key, value)| (StrBytes::from_string(key.clone()), value.clone().map(Bytes::from)))
        .collect();
    kafka::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 6,
        producer_id: 77,
        producer_epoch: 3,
        timestamp_type: kafka::TimestampType::Creation,
        offset: BASE_OFFSET + i64::from(record.delta),
        sequence: 100 + record.delta.cast_signed(),
        timestamp: record.timestamp,
        key: record.key.clone().map(Bytes::from),
        value: record.value.clone().map(Bytes::from),
        headers,
    }
}

fn from_kafka(record: &kafka::Record) -> Owned {
    Owned {
        delta: u32::try_from(record.offset - BASE_OFFSET).unwrap(),
        timestamp: record.timestamp,
        key: record.key.as_deref().map(<[u8]>::to_vec),
        value: record.value.as_deref().map(<[u8]>::to_vec),
        headers: record
            .headers
            .iter()
            .map(|(key, value)| (key.to_string(), value.as_deref().map(<[u8]>::to_vec)))
            .collect(),
    }
}

#[test]
fn their_batches_are_read_here() {
    let records = sample(1_500);
    for compression in Compression::ALL {
        let theirs: Vec<_> = records.iter().map(to_kafka).collect();
        let options = RecordEncodeOptions { version: 2, compression: kafka_compression(compression) };
        let mut encoded = BytesMut::new();
        RecordBatchEncoder::encode(&mut encoded, &theirs, &options).unwrap();

        let batch = RecordBatch::decode(encoded.freeze(), &limits()).unwrap();
        batch.validate_records(&limits()).unwrap();
        assert_eq!(read(&batch), records, "{compression}");
        let header = batch.header();
        assert_eq!(header.attributes.compression, compression);
        assert_eq!(header.base_offset, Offset::new(BASE_OFFSET));
        assert_eq!(header.leader_epoch, LeaderEpoch::new(6));
        assert_eq!(header.producer_id, ProducerId::new(77));
        assert_eq!(header.producer_epoch, ProducerEpoch::new(3));
        assert_eq!(header.base_sequence, Sequence::new(100));
        assert_eq!(header.last_sequence(), Sequence::new(1_599));
    }
}

#[test]
fn our_batches_are_read_there() {
    let records = sample(1_500);
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new(BuilderOptions {
            compression,
            base_offset: Offset::new(BASE_OFFSET),
            leader_epoch: LeaderEpoch::new(6),
            ..BuilderOptions::default()
        });
        builder.set_producer(ProducerId::new(77), ProducerEpoch::new(3), Sequence::new(100));
        for record in &records {
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            builder.append(Timestamp::new(record.timestamp), key, value, record.headers()).unwrap();
        }
        let mut bytes = builder.build().unwrap();
        let decoded = RecordBatchDecoder::decode(&mut bytes).unwrap();
        assert_eq!(decoded.compression, kafka_compression(compression));
        assert_eq!(decoded.records.iter().map(from_kafka).collect::<Vec<_>>(), records, "{compression}");
        assert!(decoded.records.iter().zip(&records).all(|(theirs, ours)| *theirs == to_kafka(ours)));
    }
}

#[test]
fn what_is_filtered_and_split_is_read_there() {
    let records = sample(64);
    let batch = build(&records, Compression::Lz4).placed_at(Offset::new(BASE_OFFSET), LeaderEpoch::new(6));
    let view = batch.records(&limits()).unwrap();
    let mut filtered = view.filter(&[0b1010_0001; 8], Compression::Zstd).unwrap().unwrap().into_bytes();
    let decoded = RecordBatchDecoder::decode(&mut filtered).unwrap();
    let expected: Vec<_> =
        records.iter().filter(|record| [0, 5, 7].contains(&(record.delta % 8))).cloned().collect();
    assert_eq!(decoded.records.iter().map(from_kafka).collect::<Vec<_>>(), expected);

    let placement: Vec<u32> = (0..64).map(|ordinal| ordinal % 3).collect();
    let parts = view.split(&placement, 3, Compression::Gzip, |_, _| ProducerFields::NONE).unwrap();
    assert_eq!(parts.len(), 3);
    for (partition, part) in parts {
        let mut bytes = part.placed_at(Offset::new(BASE_OFFSET), LeaderEpoch::new(6)).into_bytes();
        let decoded = RecordBatchDecoder::decode(&mut bytes).unwrap();
        let values =
            records.iter().skip(partition.get() as usize).step_by(3).map(|record| record.value.clone());
        let seen = decoded.records.iter().map(|record| record.value.as_deref().map(<[u8]>::to_vec));
        assert!(seen.eq(values));
    }
}
