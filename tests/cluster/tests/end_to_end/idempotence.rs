//! What keeps a batch from being stored twice, seen from a peer that keeps to no rules.

use tidemill_client::messages::{Error, TopicConfig};
use tidemill_client::{
    BatchBuilder, BuilderOptions, Compression, ErrorCode, NewTopic, RecordBatch, Timestamp,
};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence};

use crate::kit::{batch_of, broker, create, partition_of};
use crate::raw::RawPeer;

fn code(error: Option<Error>) -> Option<ErrorCode> {
    error.and_then(|error| ErrorCode::from_code(error.code))
}

fn numbered(producer: i64, sequence: i32) -> RecordBatch {
    batch_of(&["a record"]).with_producer(ProducerFields {
        id: ProducerId::new(producer),
        epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::new(sequence),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_over_an_older_stream_is_dropped_once_a_newer_one_is_open() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let id = peer.producer_id().await?;

    let (mut older, opened) = peer.try_producing(partition, id, 1).await?;
    assert_eq!(opened.error, None);
    assert_eq!(older.produce(0, numbered(id, 0).bytes()).await?.base_offset, 0);
    let (mut newer, opened) = peer.try_producing(partition, id, 2).await?;
    assert_eq!(opened.error, None);
    let dropped = older.produce(1, numbered(id, 1).bytes()).await?;
    assert_eq!(code(dropped.error), Some(ErrorCode::StaleGeneration));
    let stored = newer.produce(0, numbered(id, 1).bytes()).await?;
    assert_eq!((stored.error, stored.base_offset, stored.duplicate), (None, 1, false));
    for generation in [2, 1] {
        let (_, opened) = peer.try_producing(partition, id, generation).await?;
        assert_eq!(code(opened.error), Some(ErrorCode::StaleGeneration), "generation {generation}");
    }
    assert_eq!(newer.produce(1, numbered(id, 2).bytes()).await?.base_offset, 2, "it goes on");
    assert_eq!(count(&read_all(&client, "t").await?), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_ids_that_were_never_given_out_are_refused() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (_, opened) = peer.try_producing(partition, 5_000_000, 1).await?;
    assert_eq!(code(opened.error), Some(ErrorCode::UnknownProducer));
    let id = peer.producer_id().await?;
    let (mut stream, opened) = peer.try_producing(partition, id, 1).await?;
    assert_eq!(opened.error, None);
    assert_eq!(stream.produce(0, numbered(id, 0).bytes()).await?.base_offset, 0);

    // Those that were given out before stand after a restart.
    broker.kill().await?;
    broker.restart().await?;
    let peer = RawPeer::greeted_without_ids(&broker).await?;
    let (mut stream, opened) = peer.0.try_producing(partition, id, 2).await?;
    assert_eq!(opened.error, None);
    assert!(stream.produce(0, numbered(id, 0).bytes()).await?.duplicate);
    Ok(())
}

/// Text of few words in no order, which takes effort to compress well.
fn words(random: &mut u64) -> String {
    let mut text = String::new();
    for _ in 0..20 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("word{} ", (*random >> 40) % 400));
    }
    text
}

/// A client may compress better than the broker does. Of what the broker makes of its batch every part must fit, or none is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routed_batch_with_a_part_that_is_too_large_is_refused_as_a_whole() -> Outcome<()> {
    let (broker, client) = broker().await?;
    let mut builder = BatchBuilder::new(BuilderOptions {
        compression: Compression::Zstd,
        compression_level: Some(19),
        ..BuilderOptions::default()
    });
    let mut random = 1;
    for number in 0..2_000 {
        // One record in another partition than all the rest.
        let key: &[u8] = if number == 0 { b"b" } else { b"a" };
        builder.append(Timestamp::new(1), Some(key), Some(words(&mut random).as_bytes()), [])?;
    }
    let batch = builder.build_batch()?;
    let limit = u32::try_from(batch.bytes().len())?;
    let config = TopicConfig { batch_bytes_max: Some(limit), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 16).config(config)).await?;
    let topic = client.topic_metadata("t").await?.id;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let id = peer.producer_id().await?;
    let (mut stream, told) = peer.routing(topic, id).await?;
    stream.route(0, 0, &told, batch.bytes()).await?;
    let refused = stream.routed_acks().await?.remove(0);
    assert_eq!(code(refused.error), Some(ErrorCode::BatchTooLarge));
    assert!(refused.placements.is_empty());
    // It has used its place everywhere: what is pipelined behind it stands.
    stream.route(1, 1, &told, batch_of(&["small"]).bytes()).await?;
    let stored = stream.routed_acks().await?.remove(0);
    assert_eq!((stored.error, stored.placements.len()), (None, 1));
    assert_eq!(count(&read_all(&client, "t").await?), 1);
    Ok(())
}
