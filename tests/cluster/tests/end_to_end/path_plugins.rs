//! Plugins on the path of records: partitioners, produce filters, subscription filters.

use std::time::Duration;

use tidemill_client::{
    Client, DeliveryError, ErrorCode, NewDeployment, Receipt, Record, SendError, ServerError, Start,
};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::plays::Play;
use tidemill_cluster_tests::reading::{ByPartition, count, drain, read_all};
use tidemill_cluster_tests::{Outcome, plugins};
use tidemill_protocol::partitioner::partition_for_key;

use crate::kit::{batch_of, broker, create, not_stored, offsets, refused, values};

/// Users stay together, in order, where the hash of their id says; through a kill in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_places_records_by_a_field() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "plays", 5).await?;
    plugins::upload(&client, "field-hash").await?;
    let by_user = NewDeployment::partitioner("by-user", "field-hash", "plays").set("field", "user_id");
    client.deployments().create(by_user).await?;
    let producer = client.producer("plays").routed().batch_bytes(20_000).build().await?;
    let mut random = Random::new(11);
    let mut deliveries = Vec::new();
    for number in 0..3_000i64 {
        let play = Play::random(&mut random, 100, 50, number);
        deliveries.push(producer.send(Record::new(&play.to_json())).await?);
        if number == 1_500 {
            broker.kill().await?;
            broker.restart().await?;
        }
    }
    let mut placed = 0;
    let mut last = None;
    for delivery in deliveries {
        let Receipt::Routed { placements } = delivery.await? else { return Err("it is routed".into()) };
        // All records of a batch have the same receipt.
        if last.as_ref() != Some(&placements) {
            placed += placements.iter().map(|placement| placement.record_count).sum::<u32>();
            last = Some(placements);
        }
    }
    assert_eq!(placed, 3_000);
    let read = read_all(&client, "plays").await?;
    assert_eq!(count(&read), 3_000);
    for (partition, records) in &read {
        let mut before = i64::MIN;
        for record in records {
            let play: Play = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
            assert_eq!(partition_for_key(play.user_id.as_bytes(), 5).get(), *partition);
            assert!(play.ts > before, "in the order in which they were sent");
            before = play.ts;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_partitioner_the_broker_places_as_kafka_does() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 4).await?;
    let producer = client.producer("t").routed().build().await?;
    for number in 0..200 {
        producer.send_and_forget(Record::new("v").key(&format!("key-{number}"))).await?;
    }
    producer.flush().await?;
    let read = read_all(&client, "t").await?;
    assert_eq!(count(&read), 200);
    for record in read.values().flatten() {
        let key = record.key.as_deref().unwrap_or_default();
        assert_eq!(partition_for_key(key, 4), record.partition);
    }
    let named = Record::new("v").partition(tidemill_client::PartitionId::new(1));
    assert!(matches!(producer.send(named).await, Err(SendError::Routed)));
    Ok(())
}

async fn guard(client: &Client, topic: &str, drops: bool) -> Outcome<()> {
    create(client, topic, 1).await?;
    plugins::upload(client, "json-filter").await?;
    let deployment = NewDeployment::produce_filter(format!("guard-{topic}"), "json-filter", topic)
        .set("where", "ok == true")
        .set("malformed", "reject");
    let deployment = if drops { deployment.drop_rejected() } else { deployment };
    client.deployments().create(deployment).await?;
    Ok(())
}

fn good(number: u32) -> String {
    format!("{{\"ok\":true,\"n\":{number}}}")
}

/// One record that the filter refuses: the batch is refused, with the record's place and the plugin's words. What was sent behind it
/// stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_filter_refuses_a_batch_and_those_behind_it_stand() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    guard(&client, "t", false).await?;
    let producer = client.producer("t").build().await?;
    let bad = batch_of(&[&good(0), "no JSON", &good(2), "{"]);
    let mut deliveries = Vec::new();
    for number in 10..14 {
        deliveries.push(
            producer.send_batch(tidemill_client::PartitionId::new(0), batch_of(&[&good(number)])).await?,
        );
    }
    let refused = producer.send_batch(tidemill_client::PartitionId::new(0), bad).await?;
    for number in 14..18 {
        deliveries.push(
            producer.send_batch(tidemill_client::PartitionId::new(0), batch_of(&[&good(number)])).await?,
        );
    }
    for delivery in deliveries {
        delivery.await?;
    }
    match refused.await {
        Err(DeliveryError::Refused(error)) => {
            assert!(error.is(ErrorCode::RecordsRejected), "{error}");
            let ordinals: Vec<u32> = error.rejections.iter().map(|rejection| rejection.ordinal).collect();
            assert_eq!(ordinals, [1, 3]);
            assert!(error.rejections[0].reason.contains("JSON"), "{error:?}");
        }
        other => return Err(format!("the batch must be refused: {other:?}").into()),
    }
    let expected: Vec<String> = (10..18).map(good).collect();
    assert_eq!(values(&read_all(&client, "t").await?[&0]), expected);
    // Its place among the producer's batches is kept in the log: nothing is asked for again after a crash.
    broker.kill().await?;
    broker.restart().await?;
    producer.send(Record::new(&good(18))).await?.await?;
    assert_eq!(read_all(&client, "t").await?[&0].len(), 9);
    assert_eq!(producer.stats().failed_batches, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_filter_may_drop_instead() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    guard(&client, "t", true).await?;
    let producer = client.producer("t").build().await?;
    let partition = tidemill_client::PartitionId::new(0);
    let mixed = batch_of(&[&good(0), "no JSON", "{\"ok\":false}", &good(3)]);
    producer.send_batch(partition, mixed).await?.await?;
    producer.send_batch(partition, batch_of(&["no JSON", "nor this"])).await?.await?;
    producer.send(Record::new(&good(4))).await?.await?;
    let read = read_all(&client, "t").await?;
    assert_eq!(values(&read[&0]), [good(0), good(3), good(4)]);
    assert_eq!(offsets(&read[&0])[..2], [0, 3], "what was dropped leaves a gap");
    Ok(())
}

/// There is no way around a topic's filter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_filter_sees_routed_records_too() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    guard(&client, "t", false).await?;
    let producer = client.producer("t").routed().build().await?;
    let refused = not_stored(producer.send_batch(None, batch_of(&["no JSON"])).await?.await);
    assert_eq!(refused, ErrorCode::RecordsRejected);
    producer.send_batch(None, batch_of(&[&good(1)])).await?.await?;
    assert_eq!(values(&read_all(&client, "t").await?[&0]), [good(1)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_gets_what_its_filter_passes() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "plays", 2).await?;
    plugins::upload(&client, "json-filter").await?;
    let cars = NewDeployment::subscription_filter("cars", "json-filter").set("where", "device == \"car\"");
    client.deployments().create(cars).await?;
    let producer = client.producer("plays").build().await?;
    let mut random = Random::new(5);
    for number in 0..5_000i64 {
        let play = Play::random(&mut random, 100, 50, number);
        producer.send_and_forget(Record::new(&play.to_json()).key(&play.user_id)).await?;
    }
    producer.flush().await?;
    let all = read_all(&client, "plays").await?;
    let expected = only_cars(&all);
    let none: [(&str, &str); 0] = [];
    let by_name = client.consumer().topic("plays").from(Start::Earliest).filter("cars", none).stop_at_end();
    assert_eq!(drain(by_name.build().await?).await?, expected);

    let mut consumer = client
        .consumer()
        .topic("plays")
        .from(Start::Earliest)
        .filter("json-filter", [("where", "device == \"car\"")])
        .build()
        .await?;
    let mut seen = ByPartition::new();
    while count(&seen) < count(&expected) {
        let record = consumer.next().await.ok_or("it never ends")??;
        seen.entry(record.partition.get()).or_default().push(record);
    }
    assert_eq!(seen, expected);
    let stats = consumer.stats();
    assert!(stats.received_bytes * 10 < stats.scanned_bytes, "{stats:?}");
    // After a crash it goes on behind what it saw, with the same filter.
    broker.kill().await?;
    broker.restart().await?;
    let car = Play { device: "car".to_owned(), ..Play::random(&mut random, 100, 50, 9_000) };
    let phone = Play { device: "phone".to_owned(), ..car.clone() };
    for play in [&phone, &car, &phone] {
        producer.send(Record::new(&play.to_json()).key(&play.user_id)).await?.await?;
    }
    let next = consumer.next().await.ok_or("it never ends")??;
    assert_eq!(next.value.as_deref(), Some(&car.to_json()[..]));
    Ok(())
}

fn only_cars(all: &ByPartition) -> ByPartition {
    let is_car = |value: Option<&[u8]>| {
        serde_json::from_slice::<Play>(value.unwrap_or_default()).is_ok_and(|play| play.device == "car")
    };
    all.iter()
        .map(|(partition, records)| {
            let cars = records.iter().filter(|record| is_car(record.value.as_deref()));
            (*partition, cars.cloned().collect())
        })
        .collect()
}

/// A filter that replaces fields: the record keeps its offset, key and headers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_filter_may_replace_what_is_secret() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    plugins::upload(&client, "redact").await?;
    let producer = client.producer("t").build().await?;
    producer.send(Record::new(r#"{"mail":"a@b.c","n":1}"#).key("k")).await?.await?;
    producer.send(Record::new(r#"{"n":2}"#)).await?.await?;
    let redacted = client
        .consumer()
        .topic("t")
        .from(Start::Earliest)
        .filter("redact", [("fields", "mail")])
        .stop_at_end();
    let read = drain(redacted.build().await?).await?;
    assert_eq!(values(&read[&0]), [r#"{"mail":"***","n":1}"#, r#"{"n":2}"#]);
    assert_eq!(offsets(&read[&0]), [0, 1]);
    assert_eq!(read[&0][0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(
        values(&read_all(&client, "t").await?[&0])[0],
        r#"{"mail":"a@b.c","n":1}"#,
        "the log has it all"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_filters_and_deployments_are_refused() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    plugins::upload(&client, "json-filter").await?;
    plugins::upload(&client, "field-hash").await?;
    let subscribing = async |name: &str, condition: &str| -> Outcome<ServerError> {
        let builder = client.consumer().topic("t").from(Start::Earliest).filter(name, [("where", condition)]);
        let mut consumer = builder.build().await?;
        match tokio::time::timeout(Duration::from_secs(20), consumer.next()).await? {
            Some(Err(tidemill_client::ConsumeError::Refused(error))) => Ok(error),
            other => Err(format!("it must be refused: {other:?}").into()),
        }
    };
    assert!(subscribing("nobody", "x == 1").await?.is(ErrorCode::UnknownPlugin));
    let error = subscribing("json-filter", "x ==").await?;
    assert!(error.is(ErrorCode::BadPluginConfig) && error.message.contains("where"), "{error}");
    assert!(subscribing("field-hash", "x == 1").await?.is(ErrorCode::WrongWorld));

    let deployments = client.deployments();
    let create = async |deployment: NewDeployment| refused(deployments.create(deployment).await);
    let filter = |name: &str| NewDeployment::subscription_filter(name, "json-filter");
    assert_eq!(create(filter("f")).await, ErrorCode::BadPluginConfig, "where is required");
    assert_eq!(create(filter("f").set("where", "x == 1").set("were", "x")).await, ErrorCode::BadPluginConfig);
    assert_eq!(
        create(NewDeployment::partitioner("p", "json-filter", "t").set("where", "x == 1")).await,
        ErrorCode::WrongWorld
    );
    assert_eq!(
        create(NewDeployment::partitioner("p", "field-hash", "nowhere").set("field", "x")).await,
        ErrorCode::UnknownTopic
    );
    assert_eq!(create(NewDeployment::partitioner("p", "nothing", "t")).await, ErrorCode::UnknownPlugin);
    assert_eq!(create(filter("f").version("9").set("where", "x == 1")).await, ErrorCode::UnknownPlugin);
    deployments.create(filter("f").set("where", "x == 1")).await?;
    assert_eq!(refused(client.plugins().delete("json-filter", "1").await), ErrorCode::PluginInUse);
    deployments.delete("f").await?;
    assert_eq!(refused(deployments.describe("f").await), ErrorCode::UnknownDeployment);
    client.plugins().delete("json-filter", "1").await?;
    Ok(())
}

/// So a client whose answer got lost may ask again; and nobody takes another's deployment for his own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_deployment_again_is_answered_and_another_of_its_name_is_refused() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    plugins::upload(&client, "json-filter").await?;
    plugins::upload(&client, "redact").await?;
    let deployments = client.deployments();
    let guard = || NewDeployment::produce_filter("f", "json-filter", "t").set("where", "x == 1");
    let first = deployments.create(guard()).await?;
    let again = deployments.create(guard()).await?;
    assert_eq!((again.deployment_id, again.created_at), (first.deployment_id, first.created_at));
    assert_eq!(deployments.create(guard().version("1")).await?.deployment_id, first.deployment_id);
    for (part, other) in [
        ("configuration", guard().version("1").set("where", "x == 2")),
        ("way with rejected", guard().version("1").drop_rejected()),
        ("limit on memory", guard().version("1").memory_bytes_max(32 << 20)),
        ("kind", NewDeployment::subscription_filter("f", "json-filter").version("1").set("where", "x == 1")),
        ("plugin", NewDeployment::produce_filter("f", "redact", "t").set("fields", "x")),
    ] {
        let error = deployments.create(other).await.expect_err(part);
        assert_eq!(error.code().and_then(ErrorCode::from_code), Some(ErrorCode::DeploymentExists), "{error}");
        assert!(error.to_string().contains(&format!("another {part}")), "{error}");
        // Both sides; of a configuration the key alone, since a value may be a secret.
        let sides = if part == "configuration" { "`where` is not the same" } else { "asked for was `" };
        assert!(error.to_string().contains(sides), "{error}");
    }
    assert_eq!(deployments.list().await?.len(), 1);
    assert_eq!(deployments.describe("f").await?.config["where"], "x == 1");
    // Without a version the newest is meant, which may be another one by now.
    client.plugins().upload("keep", "1", tidemill_hostile::keep_all()).await?;
    let newest = || NewDeployment::subscription_filter("g", "keep");
    deployments.create(newest()).await?;
    client.plugins().upload("keep", "2", tidemill_hostile::keep_even()).await?;
    let error = deployments.create(newest()).await.expect_err("there is a newer version");
    assert!(error.to_string().contains("another plugin version"), "{error}");
    assert_eq!(deployments.create(newest().version("1")).await?.plugin_version, "1");
    Ok(())
}
