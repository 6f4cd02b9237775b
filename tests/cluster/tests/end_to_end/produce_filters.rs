//! Produce filters and what may come between: partitioners, retries, kills, and filters that are exchanged meanwhile.

use std::collections::BTreeSet;

use tidemill_client::messages::RoutedOpened;
use tidemill_client::{Client, ErrorCode, NewDeployment, RecordBatch};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{Outcome, plugins};
use tidemill_protocol::partitioner::partition_for_key;
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence};

use crate::kit::{batch_of, broker, code, create, offsets, partition_of, values};
use crate::raw::{RawPeer, RawStream};

fn good(number: u32) -> String {
    format!("{{\"ok\":true,\"n\":{number}}}")
}

/// `json-filter` before a topic: passes what is ok, rejects what is no JSON.
fn guard(name: &str, topic: &str) -> NewDeployment {
    NewDeployment::produce_filter(name, "json-filter", topic)
        .set("where", "ok == true")
        .set("malformed", "reject")
}

/// The partitioner sees what the filter made of the records, and is not asked about those that it left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_partitioner_sees_what_the_filter_left() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 5).await?;
    plugins::upload(&client, "redact").await?;
    plugins::upload(&client, "field-hash").await?;
    let hide =
        NewDeployment::produce_filter("hide", "redact", "t").set("fields", "user").set("malformed", "drop");
    client.deployments().create(hide).await?;
    let place = NewDeployment::partitioner("place", "field-hash", "t").set("field", "user");
    client.deployments().create(place.set("missing", "reject")).await?;
    let producer = client.producer("t").routed().build().await?;
    let batch = batch_of(&[r#"{"user":"a"}"#, "no JSON", r#"{"user":"b"}"#, r#"{"user":"c"}"#]);
    producer.send_batch(None, batch).await?.await?;
    let read = read_all(&client, "t").await?;
    let hidden = partition_for_key(b"***", 5).get();
    assert_eq!(read.keys().copied().collect::<Vec<_>>(), [hidden]);
    assert_eq!(values(&read[&hidden]), [r#"{"user":"***"}"#; 3]);
    assert_eq!(offsets(&read[&hidden]), [0, 1, 2], "there are fewer records, and no gap");
    Ok(())
}

/// In `drop` mode too: whoever refuses a record names it by its place in the batch that the client sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejections_name_the_clients_ordinals() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 5).await?;
    plugins::upload(&client, "json-filter").await?;
    plugins::upload(&client, "field-hash").await?;
    client.deployments().create(guard("drops", "t").drop_rejected()).await?;
    let place =
        NewDeployment::partitioner("place", "field-hash", "t").set("field", "n").set("missing", "reject");
    client.deployments().create(place).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let topic = client.topic_metadata("t").await?.id;
    let (mut stream, told) = peer.routing(topic, 9).await?;
    let batch =
        batch_of(&["no JSON", &good(1), "{\"ok\":true}", "nor this", "{\"ok\":false}", "{\"ok\":true}"]);
    assert_eq!(routed(&mut stream, 0, &told, &batch).await?, Err((ErrorCode::RecordsRejected, vec![2, 5])));
    let batch = batch_of(&["no JSON", "{\"ok\":false}"]);
    assert_eq!(
        routed(&mut stream, 1, &told, &batch).await?,
        Ok((0, false)),
        "nothing is left, nobody objects"
    );
    let batch = batch_of(&["no JSON", &good(3)]);
    assert_eq!(routed(&mut stream, 2, &told, &batch).await?, Ok((1, false)));
    assert_eq!(count(&read_all(&client, "t").await?), 1);
    Ok(())
}

/// Sends one batch: how many records were placed, and whether they had been before; or the code and the ordinals.
async fn routed(
    stream: &mut RawStream,
    sequence: u64,
    told: &RoutedOpened,
    batch: &RecordBatch,
) -> Outcome<Result<(u32, bool), (ErrorCode, Vec<u32>)>> {
    routed_as(stream, sequence, sequence, told, batch).await
}

async fn routed_as(
    stream: &mut RawStream,
    request_id: u64,
    sequence: u64,
    told: &RoutedOpened,
    batch: &RecordBatch,
) -> Outcome<Result<(u32, bool), (ErrorCode, Vec<u32>)>> {
    stream.route(request_id, sequence, told, batch.bytes()).await?;
    let ack = stream.routed_acks().await?.remove(0);
    assert_eq!(ack.request_id, request_id);
    let placed = ack.placements.iter().map(|placement| placement.record_count).sum();
    Ok(match ack.error {
        None => Ok((placed, ack.duplicate)),
        Some(error) => {
            let ordinals = error.rejections.iter().map(|rejection| rejection.ordinal).collect();
            Err((ErrorCode::from_code(error.code).ok_or("an unknown code")?, ordinals))
        }
    })
}

/// A batch that was stored stays stored, one that was refused stays refused, whatever filter is there when it comes again; what is new
/// passes today's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_answered_as_its_first_attempt_was() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "t", 4).await?;
    plugins::upload(&client, "json-filter").await?;
    let topic = client.topic_metadata("t").await?.id;
    let mixed = batch_of(&[&good(0), "no JSON", &good(2)]);
    let rejected = Err((ErrorCode::RecordsRejected, vec![1]));

    client.deployments().create(guard("drops", "t").drop_rejected()).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (mut stream, told) = peer.routing(topic, 9).await?;
    assert_eq!(routed(&mut stream, 0, &told, &mixed).await?, Ok((2, false)));
    client.deployments().delete("drops").await?;
    client.deployments().create(guard("refuses", "t")).await?;
    broker.kill().await?;
    broker.restart().await?;

    let client = broker.client().await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (mut stream, _) = peer.routing(topic, 9).await?;
    assert_eq!(routed(&mut stream, 0, &told, &mixed).await?, Ok((2, true)));
    assert_eq!(
        routed(&mut stream, 1, &told, &mixed).await?,
        rejected,
        "no old epoch leads around the filter"
    );
    client.deployments().delete("refuses").await?;
    broker.kill().await?;
    broker.restart().await?;

    let client = broker.client().await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let (mut stream, _) = peer.routing(topic, 9).await?;
    assert_eq!(routed(&mut stream, 0, &told, &mixed).await?, Ok((2, true)));
    assert_eq!(routed(&mut stream, 1, &told, &mixed).await?, rejected, "it was refused then");
    assert_eq!(routed(&mut stream, 2, &told, &mixed).await?, Ok((3, false)));
    assert_eq!(count(&read_all(&client, "t").await?), 5);
    // The plugin is needed for as long as a retry may come; the topic takes it along when it goes.
    client.topics().delete("t").await?;
    client.plugins().delete("json-filter", "1").await?;
    Ok(())
}

/// The same in produce to a named partition, where the shard alone remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_to_a_partition_is_answered_as_its_first_attempt_was() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    plugins::upload(&client, "json-filter").await?;
    let partition = partition_of(&client, "t", 0).await?;
    let (peer, _control) = RawPeer::greeted(&broker).await?;
    let numbered = |batch: RecordBatch, sequence| {
        batch.with_producer(ProducerFields {
            id: ProducerId::new(9),
            epoch: ProducerEpoch::new(0),
            base_sequence: Sequence::new(sequence),
        })
    };
    let stored = numbered(batch_of(&[&good(0), "no JSON"]), 0);
    let refused = numbered(batch_of(&["no JSON", &good(1)]), 2);

    let mut stream = peer.producing_as(partition, 9).await?;
    assert_eq!(stream.produce(0, stored.bytes()).await?.base_offset, 0);
    client.deployments().create(guard("refuses", "t")).await?;
    let again = stream.produce(1, stored.bytes()).await?;
    assert_eq!((again.error, again.base_offset, again.duplicate), (None, 0, true), "it was stored before");
    let rejected = Some(ErrorCode::RecordsRejected);
    assert_eq!(code(stream.produce(2, refused.bytes()).await?.error), rejected);
    client.deployments().delete("refuses").await?;
    assert_eq!(code(stream.produce(3, refused.bytes()).await?.error), rejected, "it was refused before");
    assert_eq!(count(&read_all(&client, "t").await?), 2);

    // Without a producer id there is no place to keep: the answer is the same.
    client.deployments().create(guard("refuses", "t")).await?;
    let mut stream = peer.producing(partition).await?;
    let bad = stream.produce(0, batch_of(&["no JSON"]).bytes()).await?.error.ok_or("it was stored")?;
    assert_eq!((ErrorCode::from_code(bad.code), bad.rejections.len()), (rejected, 1));
    let nothing = stream.produce(1, batch_of(&["{}"]).bytes()).await?;
    assert_eq!((nothing.error, nothing.base_offset), (None, -1));
    Ok(())
}

const BATCHES: u64 = 24;
const RECORDS: u64 = 60;

/// Batches of which a crash leaves parts, in some of the shards: the retry fills the gaps, with the filter of the first attempt,
/// although another is there now which would send the records elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_a_kill_fills_the_gaps_as_the_first_attempt_would_have() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "t", 4).await?;
    plugins::upload(&client, "redact").await?;
    plugins::upload(&client, "field-hash").await?;
    let place = NewDeployment::partitioner("place", "field-hash", "t").set("field", "user");
    client.deployments().create(place).await?;
    let topic = client.topic_metadata("t").await?.id;
    let mut duplicates = 0;
    for round in 0..6_u64 {
        let batches: Vec<RecordBatch> = (0..BATCHES).map(|batch| plays(round * BATCHES + batch)).collect();
        let producer = 100 + i64::try_from(round)?;
        let (peer, _control) = RawPeer::greeted(&broker).await?;
        let (mut stream, told) = peer.routing(topic, producer).await?;
        for (sequence, batch) in (0..).zip(&batches) {
            stream.route(sequence, sequence, &told, batch.bytes()).await?;
        }
        let mut heard = 0;
        while heard <= round * 3 {
            heard += stream.routed_acks().await?.len() as u64;
        }
        broker.kill().await?;
        broker.restart().await?;
        let client = broker.client().await?;
        exchange(&client, round).await?;

        let (peer, _control) = RawPeer::greeted(&broker).await?;
        let (mut stream, _) = peer.routing(topic, producer).await?;
        for (sequence, batch) in (0..).zip(&batches) {
            let outcome = routed(&mut stream, sequence, &told, batch).await?;
            let (placed, duplicate) = outcome.map_err(|refused| format!("{refused:?}"))?;
            assert_eq!(u64::from(placed), RECORDS, "round {round}, batch {sequence}");
            duplicates += u64::from(duplicate);
        }
        let read = read_all(&client, "t").await?;
        let mut seen = BTreeSet::new();
        for record in read.values().flatten() {
            let play: serde_json::Value =
                serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
            assert!(seen.insert(play["n"].as_u64()), "twice, in round {round}: {}", play["n"]);
            let user = play["user"].as_str().unwrap_or_default();
            assert_eq!(record.partition, partition_for_key(user.as_bytes(), 4));
        }
        assert_eq!(seen.len() as u64, (round + 1) * BATCHES * RECORDS, "round {round}");
    }
    assert!(duplicates > 0, "what was acknowledged was there already");
    Ok(())
}

/// Puts a filter in front of the topic that sends all records to one partition, or takes it away.
async fn exchange(client: &Client, round: u64) -> Outcome<()> {
    if round % 2 == 1 {
        client.deployments().delete("hide").await?;
    } else {
        let hide = NewDeployment::produce_filter("hide", "redact", "t").set("fields", "user");
        client.deployments().create(hide).await?;
    }
    Ok(())
}

/// Half a megabyte of plays by many users, numbered.
fn plays(batch: u64) -> RecordBatch {
    let padding = "x".repeat(8_000);
    let plays: Vec<String> = (batch * RECORDS..(batch + 1) * RECORDS)
        .map(|n| format!("{{\"user\":\"user-{}\",\"n\":{n},\"padding\":\"{padding}\"}}", n % 37))
        .collect();
    batch_of(&plays.iter().map(String::as_str).collect::<Vec<_>>())
}
