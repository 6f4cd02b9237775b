//! The shipped plugins on real-shaped records, each compared with what a few lines of serde_json say of the same records:
//! Unicode, escapes, tombstones, empty values, text that is no JSON, bytes that are no text, large headers, values of 1 MiB.

use std::collections::BTreeMap;

use serde_json::Value;
use tidemill_client::{
    Client, NewDeployment, PartitionId, Position, Receipt, Record, Start, StateRange, Timestamp,
};
use tidemill_cluster_tests::fixtures::{self, Fixture, LARGE_VALUE_BYTES};
use tidemill_cluster_tests::reading::{ByPartition, count, drain, read_all};
use tidemill_cluster_tests::waiting::caught_up;
use tidemill_cluster_tests::{Outcome, plugins};
use tidemill_protocol::partitioner::partition_for_key;

use crate::kit::{PATIENCE, as_fixture, broker, create, header_views};

const PARTITIONS: u32 = 4;
/// Room for values of 1 MiB with their headers.
const BATCH_BYTES: usize = 4 << 20;

fn fixtures() -> Vec<Fixture> {
    fixtures::records(3, 3_000)
}

/// Sends all of them, for the broker to place.
async fn send_routed(client: &Client, topic: &str, fixtures: &[Fixture]) -> Outcome<()> {
    let producer = client.producer(topic).routed().batch_bytes(BATCH_BYTES).build().await?;
    for fixture in fixtures {
        let headers = header_views(fixture);
        let mut record = fixture.value.as_ref().map_or_else(Record::default, Record::new);
        if let Some(key) = &fixture.key {
            record = record.key(key);
        }
        producer
            .send_and_forget(record.headers(&headers).timestamp(Timestamp::new(fixture.timestamp)))
            .await?;
    }
    Ok(producer.close().await?)
}

/// A topic that the plugin places, with all fixtures in it.
async fn placed_by(
    client: &Client,
    plugin: &str,
    config: &[(&str, &str)],
    fixtures: &[Fixture],
) -> Outcome<ByPartition> {
    create(client, "t", PARTITIONS).await?;
    plugins::upload(client, plugin).await?;
    let mut deployment = NewDeployment::partitioner("places", plugin, "t");
    for (key, value) in config {
        deployment = deployment.set(*key, *value);
    }
    client.deployments().create(deployment).await?;
    send_routed(client, "t", fixtures).await?;
    read_all(client, "t").await
}

/// Every record is there once, unchanged, in the order of sending; those for which `expected` knows a partition are in it.
#[track_caller]
fn check_places(read: &ByPartition, fixtures: &[Fixture], expected: impl Fn(&Fixture) -> Option<u32>) {
    let mut all: Vec<Fixture> = Vec::new();
    for partition in 0..PARTITIONS {
        let records: Vec<Fixture> = read.get(&partition).into_iter().flatten().map(as_fixture).collect();
        let known: Vec<&Fixture> = records.iter().filter(|record| expected(record).is_some()).collect();
        let of_partition: Vec<&Fixture> =
            fixtures.iter().filter(|fixture| expected(fixture) == Some(partition)).collect();
        assert!(of_partition.len() > 300, "partition {partition} gets {}", of_partition.len());
        assert!(known == of_partition, "partition {partition} has what belongs there, in order");
        all.extend(records);
    }
    assert!(sorted(all) == sorted(fixtures.to_vec()), "all are there once, unchanged");
}

fn sorted(mut fixtures: Vec<Fixture>) -> Vec<Fixture> {
    fixtures.sort();
    fixtures
}

/// The value as JSON, where it is.
fn json(fixture: &Fixture) -> Option<Value> {
    serde_json::from_slice(fixture.value.as_deref()?).ok()
}

/// A field as text, as plugins compare and hash it: what is no text, number, true or false is none. Fields are read up to the
/// one that is asked for, so that a value which breaks off behind it still has it.
fn field(fixture: &Fixture, name: &str) -> Option<Value> {
    let value = fixture.value.as_deref()?;
    let broken_off = || serde_json::from_slice::<Value>(&[value, b"null}"].concat()).ok();
    let found = json(fixture).or_else(broken_off)?.get(name)?.clone();
    (found.is_string() || found.is_number() || found.is_boolean()).then_some(found)
}

fn text(field: &Value) -> String {
    field.as_str().map_or_else(|| field.to_string(), str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_hash_places_as_a_key_of_the_field_would_be() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let fixtures = fixtures();
    let config = [("field", "user_id"), ("missing", "key")];
    let read = placed_by(&client, "field-hash", &config, &fixtures).await?;
    check_places(&read, &fixtures, |fixture| {
        let by_field = field(fixture, "user_id").map(|user| text(&user).into_bytes());
        let hashed = by_field.or_else(|| fixture.key.clone())?;
        Some(partition_for_key(&hashed, PARTITIONS).get())
    });
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_hash_places_as_kafka_does() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let fixtures = fixtures();
    let read = placed_by(&client, "key-hash", &[], &fixtures).await?;
    check_places(&read, &fixtures, |fixture| {
        Some(partition_for_key(fixture.key.as_deref()?, PARTITIONS).get())
    });
    // A reader who gets another answer would know: the same with refusals instead of any partition.
    let guarded = NewDeployment::partitioner("guards", "key-hash", "guarded").set("null", "reject");
    create(&client, "guarded", PARTITIONS).await?;
    client.deployments().create(guarded).await?;
    let producer = client.producer("guarded").routed().build().await?;
    let receipt = producer.send(Record::new("v").key("")).await?.await?;
    assert!(matches!(receipt, Receipt::Routed { .. }), "an empty key is a key");
    producer.send(Record::new("v")).await?.await.expect_err("a null key is refused");
    Ok(())
}

/// What a subscription with a filter gets of a topic where the fixtures lie by their keys.
async fn filtered(client: &Client, plugin: &str, config: &[(&str, &str)]) -> Outcome<ByPartition> {
    plugins::upload(client, plugin).await?;
    let builder = client.consumer().topic("t").from(Start::Earliest).filter(plugin, config.to_vec());
    drain(builder.stop_at_end().build().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_filter_passes_what_serde_json_would() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let all = placed_by(&client, "key-hash", &[], &fixtures()).await?;
    let holds = |fixture: &Fixture| -> bool {
        if fixture.value.is_none() {
            return true;
        }
        let Some(value) = json(fixture) else { return false };
        let is_mobile = ["phone", "car"].contains(&value["device"].as_str().unwrap_or_default());
        let is_old = value["song_id"].as_str().is_some_and(|song| song.starts_with("s-1"))
            || value["song_id"].as_u64().is_some_and(|song| song < 100);
        let is_named = value["user"]["name"].as_str().is_none_or(|name| !name.is_empty());
        is_mobile && is_old && is_named || value["title"].as_str() == Some("夜に駆ける")
    };
    let condition = "device in [\"phone\", \"car\"] && (song_id starts_with \"s-1\" || song_id < 100) \
                     && user.name != \"\" || title == \"夜に駆ける\"";
    let config = [("where", condition), ("null", "keep"), ("strict", "true")];
    let passed = filtered(&client, "json-filter", &config).await?;
    let expected: ByPartition = all
        .iter()
        .map(|(partition, records)| {
            (*partition, records.iter().filter(|record| holds(&as_fixture(record))).cloned().collect())
        })
        .collect();
    assert!(count(&expected) > 300 && count(&expected) < 1_500, "{}", count(&expected));
    assert!(passed == expected, "{} passed, {} should", count(&passed), count(&expected));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redact_replaces_fields_and_nothing_else() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let all = placed_by(&client, "key-hash", &[], &fixtures()).await?;
    let config = [("fields", "user.name,user.address.geo,plan,**.city"), ("malformed", "drop")];
    let read = filtered(&client, "redact", &config).await?;
    let mut replaced = 0;
    for (partition, records) in &all {
        let expected = records.iter().filter(|record| {
            let fixture = as_fixture(record);
            fixture.value.is_none() || json(&fixture).is_some()
        });
        let read = read.get(partition).map(Vec::as_slice).unwrap_or_default();
        assert_eq!(read.len(), expected.clone().count(), "what is no JSON could hide something");
        for (record, original) in read.iter().zip(expected) {
            assert_eq!((record.offset, record.timestamp), (original.offset, original.timestamp));
            let (mut fixture, original) = (as_fixture(record), as_fixture(original));
            let mut document = json(&original);
            if let Some(user) = document.as_mut().and_then(|value| value.get_mut("user")) {
                user["name"] = "***".into();
                user["address"]["geo"] = "***".into();
                user["address"]["city"] = "***".into();
                replaced += 1;
            }
            // `plan` is there as null only, and null stays.
            assert_eq!(json(&fixture), document);
            // Key, headers and time are as they were; so is every value without the fields, byte for byte.
            if document.as_ref().is_none_or(|document| document.get("user").is_none()) {
                assert!(fixture.value == original.value);
            }
            fixture.value.clone_from(&original.value);
            assert!(fixture == original);
        }
    }
    assert!(replaced > 2_500, "{replaced}");
    let large = |record: &&tidemill_client::ConsumerRecord| {
        record.value.as_ref().is_some_and(|value| value.len() == LARGE_VALUE_BYTES)
    };
    assert_eq!(read.values().flatten().filter(large).count(), 2, "those of 1 MiB that are JSON");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn count_by_field_counts_as_serde_json_would() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let all = placed_by(&client, "key-hash", &[], &fixtures()).await?;
    create(&client, "counts", PARTITIONS).await?;
    plugins::upload(&client, "count-by-field").await?;
    let deployment = NewDeployment::consumer("songs", "count-by-field")
        .topic("t")
        .target("counts")
        .set("field", "song_id")
        .start(Position::Earliest);
    client.deployments().create(deployment).await?;
    let seen = caught_up(&client, "songs", PARTITIONS as usize, PATIENCE).await?;
    let mut expected: BTreeMap<(u32, String), u64> = BTreeMap::new();
    for (partition, records) in &all {
        // Text and number of the same digits are two songs: the key is the JSON.
        let songs = records.iter().filter_map(|record| field(&as_fixture(record), "song_id"));
        for song in songs {
            *expected.entry((*partition, format!("total:{song}"))).or_default() += 1;
        }
    }
    let mut state = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let mut start = bytes::Bytes::new();
        loop {
            let partition = Some(PartitionId::new(partition));
            let range = StateRange { start: start.clone(), partition, limit: 200, ..StateRange::default() };
            let page = client.state("songs").scan(range).await?;
            for entry in &page.entries {
                let count: u64 = std::str::from_utf8(&entry.value)?.parse()?;
                state.insert((entry.partition, String::from_utf8(entry.key.to_vec())?), count);
            }
            match page.entries.last() {
                // The least key beyond the last one.
                Some(last) if page.more => start = [&last.key[..], &[0]].concat().into(),
                _ => break,
            }
        }
    }
    assert!(expected.keys().any(|(_, song)| !song.contains('"')), "numbers are among them");
    assert_eq!(state, expected);
    let counted = expected.values().sum::<u64>();
    assert_eq!(seen.counters.get("plugin_counted"), Some(&counted), "{:?}", seen.counters);
    assert_eq!(seen.counters.get("plugin_missing"), Some(&(3_000 - counted)), "{:?}", seen.counters);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn route_by_field_sends_each_record_as_it_is() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let fixtures = fixtures();
    placed_by(&client, "key-hash", &[], &fixtures).await?;
    for topic in ["phones", "tablets", "others"] {
        create(&client, topic, 3).await?;
    }
    plugins::upload(&client, "route-by-field").await?;
    let deployment = NewDeployment::consumer("by-device", "route-by-field")
        .topic("t")
        .target("phones")
        .target("tablets")
        .target("others")
        .set("field", "device")
        .set("routes", "phone=phones,tablet=tablets")
        .set("default", "others")
        .start(Position::Earliest);
    client.deployments().create(deployment).await?;
    caught_up(&client, "by-device", PARTITIONS as usize, PATIENCE).await?;
    let target = |fixture: &Fixture| match field(fixture, "device").as_ref().and_then(Value::as_str) {
        Some("phone") => "phones",
        Some("tablet") => "tablets",
        _ => "others",
    };
    for topic in ["phones", "tablets", "others"] {
        let read = read_all(&client, topic).await?;
        let expected: Vec<Fixture> =
            fixtures.iter().filter(|fixture| target(fixture) == topic).cloned().collect();
        assert!(expected.len() > 300, "{topic}: {}", expected.len());
        let arrived: Vec<Fixture> = read.values().flatten().map(as_fixture).collect();
        assert!(sorted(arrived) == sorted(expected.clone()), "{topic}: each once, unchanged");
        // Records of a key come from one task, in order, and stay together.
        for (partition, records) in &read {
            let keyed = records.iter().map(as_fixture).filter(|record| record.key.is_some());
            let mut of_key: BTreeMap<Vec<u8>, Vec<Fixture>> = BTreeMap::new();
            for record in keyed {
                of_key.entry(record.key.clone().unwrap_or_default()).or_default().push(record);
            }
            for (key, records) in of_key {
                assert_eq!(partition_for_key(&key, 3).get(), *partition);
                let sent = expected.iter().filter(|fixture| fixture.key.as_ref() == Some(&key));
                assert!(records.iter().eq(sent), "{topic}: the order of a key's records");
            }
        }
    }
    Ok(())
}
