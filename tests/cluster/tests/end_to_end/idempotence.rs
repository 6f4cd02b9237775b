//! What keeps a batch from being stored twice, seen from a peer that keeps to no rules.

use std::path::{Path, PathBuf};

use tidemill_client::messages::TopicConfig;
use tidemill_client::{
    BatchBuilder, BuilderOptions, Compression, ErrorCode, NewTopic, RecordBatch, Timestamp,
};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome};
use tidemill_protocol::partitioner::partition_for_key;

use crate::kit::{batch_of, broker, broker_with, code, create, metric, numbered, partition_of};
use crate::raw::RawPeer;

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

/// Anybody may make up ids: that costs the controller's log nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_ids_that_are_made_up_write_nothing() -> Outcome<()> {
    const OPENED: u32 = 50;
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let proposals = async || metric(&client, "tidemill_raft_proposals_total{shard=\"0\"}").await;
    let before = proposals().await?;
    for made_up in 0..OPENED {
        let (_, opened) = peer.try_producing(partition, 5_000_000 + i64::from(made_up), 1).await?;
        assert_eq!(code(opened.error), Some(ErrorCode::UnknownProducer));
    }
    let proposed = proposals().await? - before;
    // The broker itself may have had something to say meanwhile.
    assert!(proposed < f64::from(OPENED / 2), "{proposed} proposals");
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

/// Bytes of a record that fills blocks of the write-ahead log with its letter.
const RECORD_BYTES: usize = 20_000;

/// A record for each of two partitions, each of a letter of its own.
fn letters_for_both(letters: [u8; 2]) -> Outcome<RecordBatch> {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    for (partition, letter) in (0..).zip(letters) {
        let lies_there = |key: &u8| partition_for_key(&[*key], 2).get() == partition;
        let key = (0..u8::MAX).find(lies_there).ok_or("a key for each partition")?;
        builder.append(Timestamp::new(1), Some(&[key]), Some(&vec![letter; RECORD_BYTES]), [])?;
    }
    Ok(builder.build_batch()?)
}

/// Where the last record of this letter lies: in which file, and where it ends there.
fn last_of(files: &[(PathBuf, Vec<u8>)], letter: u8) -> Option<(usize, usize)> {
    const RUN: usize = 64;
    files.iter().enumerate().rev().find_map(|(number, (_, bytes))| {
        let mut runs = bytes.windows(RUN);
        let at = runs.rposition(|run| run.iter().all(|byte| *byte == letter))?;
        Some((number, at))
    })
}

/// Damages the later of two records of these letters in the write-ahead log; answers which one that is.
fn damage_the_later(wal: &Path, letters: [u8; 2]) -> Outcome<usize> {
    let entries: Vec<_> = std::fs::read_dir(wal)?.collect::<Result<_, _>>()?;
    let mut paths: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    let mut files = Vec::new();
    for path in paths {
        let bytes = std::fs::read(&path)?;
        files.push((path, bytes));
    }
    let [Some(first), Some(second)] = letters.map(|letter| last_of(&files, letter)) else {
        return Err("both records are in the log".into());
    };
    let (number, at) = first.max(second);
    let (path, mut bytes) = files.swap_remove(number);
    bytes[at] ^= 1;
    std::fs::write(path, bytes)?;
    Ok(usize::from(second > first))
}

/// A shard has forgotten a producer that the others know: here because its part of the log was lost, and somebody said that the broker
/// shall go on without it. The next batch is stored where it can be, and its answer says so. All of them once more fill the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_one_of_its_shards_refuses_is_partly_stored() -> Outcome<()> {
    let options = BrokerOptions::default()
        .set("shards", 2)
        .set("wal.segment_bytes", 4 << 20)
        .argument("--accept-data-loss");
    let (mut broker, client) = broker_with(options).await?;
    create(&client, "t", 2).await?;
    let topic = client.topic_metadata("t").await?.id;
    let batches = [letters_for_both(*b"ab")?, letters_for_both(*b"cd")?];
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let producer = peer.producer_id().await?;
    let (mut stream, told) = peer.routing(topic, producer).await?;
    stream.route(0, 0, &told, batches[0].bytes()).await?;
    let whole = stream.routed_acks().await?.remove(0);
    assert_eq!((whole.error, whole.placements.len()), (None, 2));
    broker.kill().await?;
    let lost = damage_the_later(&broker.data_dir().join("wal"), *b"ab")?;
    broker.restart().await?;

    let (peer, _control) = RawPeer::greeted_without_ids(&broker).await?;
    let (mut stream, _) = peer.routing(topic, producer).await?;
    stream.route(0, 1, &told, batches[1].bytes()).await?;
    let partly = stream.routed_acks().await?.remove(0);
    let error = partly.error.ok_or("one shard does not know the producer")?;
    assert!(!error.retriable && error.message.contains("as the placements say"), "{error:?}");
    assert_eq!(code(Some(error)), Some(ErrorCode::PartlyStored));
    let placed: Vec<_> = partly
        .placements
        .iter()
        .map(|placement| (placement.partition, placement.base_offset, placement.record_count))
        .collect();
    assert_eq!(placed, [(u32::from(lost == 0), 1, 1)], "partition {lost} has lost its record");
    let counted = metric(&client, "tidemill_produce_refused_total{code=\"PARTLY_STORED\"}").await?;
    assert_eq!(counted, 1.0);

    for (sequence, batch) in (0..).zip(&batches) {
        stream.route(sequence + 1, sequence, &told, batch.bytes()).await?;
        let again = stream.routed_acks().await?.remove(0);
        assert_eq!((again.error, again.placements.len()), (None, 2), "the stream goes on: {sequence}");
    }
    let read = read_all(&client, "t").await?;
    for (partition, expected) in [(0, *b"ac"), (1, *b"bd")] {
        let letter = |value: &[u8]| value.first().copied();
        let letters: Vec<u8> =
            read[&partition].iter().filter_map(|record| letter(record.value.as_deref()?)).collect();
        assert_eq!(letters, expected, "partition {partition}: each once, in order");
    }
    Ok(())
}
