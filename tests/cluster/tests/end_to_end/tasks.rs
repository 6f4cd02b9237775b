//! Hosted consumers: state, outputs, failures, pauses.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_client::messages::{DeploymentStatus, FailurePolicy};
use tidemill_client::{
    Client, ErrorCode, NewDeployment, NewTopic, PartitionId, Position, Record, StateRange,
};
use tidemill_cluster_tests::fixtures::Random;
use tidemill_cluster_tests::plays::Play;
use tidemill_cluster_tests::reading::read_all;
use tidemill_cluster_tests::waiting::{caught_up, eventually};
use tidemill_cluster_tests::{Outcome, plugins};

use crate::kit::{PATIENCE, broker, create, refused, values};

async fn send_plays(client: &Client, topic: &str, seed: u64, count: i64) -> Outcome<BTreeMap<String, u64>> {
    let producer = client.producer(topic).build().await?;
    let mut random = Random::new(seed);
    let mut songs = BTreeMap::new();
    for number in 0..count {
        let play = Play::random(&mut random, 50, 20, number);
        // By the song, so that one task counts all of a song's plays.
        producer.send_and_forget(Record::new(&play.to_json()).key(&play.song_id)).await?;
        *songs.entry(play.song_id).or_default() += 1;
    }
    producer.flush().await?;
    Ok(songs)
}

async fn state_of(client: &Client, deployment: &str) -> Outcome<BTreeMap<String, u64>> {
    let mut state = BTreeMap::new();
    for entry in client.state(deployment).scan(StateRange::default()).await?.entries {
        let key = String::from_utf8(entry.key.to_vec())?;
        let song = key.strip_prefix("total:").ok_or("no total")?.trim_matches('"').to_owned();
        state.insert(song, std::str::from_utf8(&entry.value)?.parse()?);
    }
    Ok(state)
}

#[derive(serde::Deserialize)]
struct Count {
    song_id: String,
    count: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_go_on_where_they_were() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "plays", 3).await?;
    create(&client, "counts", 4).await?;
    plugins::upload(&client, "count-by-field").await?;
    let mut expected = send_plays(&client, "plays", 1, 1_000).await?;
    let counter = NewDeployment::consumer("songs", "count-by-field")
        .topic("plays")
        .target("counts")
        .set("field", "song_id")
        .start(Position::Earliest);
    client.deployments().create(counter).await?;
    caught_up(&client, "songs", 3, PATIENCE).await?;
    assert_eq!(state_of(&client, "songs").await?, expected);
    broker.kill().await?;
    broker.restart().await?;
    for (song, plays) in send_plays(&client, "plays", 2, 1_000).await? {
        *expected.entry(song).or_default() += plays;
    }
    let seen = caught_up(&client, "songs", 3, PATIENCE).await?;
    assert_eq!(state_of(&client, "songs").await?, expected);
    assert!(seen.counters.get("plugin_counted").is_some_and(|counted| *counted > 0), "{:?}", seen.counters);
    let one = client.state("songs").get("total:\"song-0\"", None).await?;
    assert_eq!(one.len(), 1, "a song is counted by one task");
    let mut last = BTreeMap::new();
    for record in read_all(&client, "counts").await?.values().flatten() {
        let count: Count = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
        let before = last.insert(count.song_id.clone(), count.count);
        assert!(before.is_none_or(|before| before < count.count), "totals of {} rise", count.song_id);
    }
    assert_eq!(last, expected);
    client.deployments().delete("songs").await?;
    assert_eq!(refused(client.state("songs").get("x", None).await), ErrorCode::UnknownDeployment);
    Ok(())
}

/// Windows close by the log's time, also where no further record comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_close_by_themselves() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "plays", 1).await?;
    create(&client, "counts", 1).await?;
    plugins::upload(&client, "count-by-field").await?;
    let counter = NewDeployment::consumer("songs", "count-by-field")
        .topic("plays")
        .target("counts")
        .set("field", "song_id")
        .set("window", "1s")
        .set("grace", "100ms")
        .start(Position::Earliest);
    client.deployments().create(counter).await?;
    let producer = client.producer("plays").build().await?;
    for _ in 0..5 {
        producer.send(Record::new(r#"{"song_id":"s-1"}"#)).await?.await?;
    }
    let counted = eventually("the window's counts", PATIENCE, async || {
        let read = read_all(&client, "counts").await.ok()?;
        let counts = read.values().flatten().filter_map(|record| {
            serde_json::from_slice::<Count>(record.value.as_deref()?).ok().map(|count| count.count)
        });
        // The five may lie in two windows.
        let counts: Vec<u64> = counts.collect();
        (counts.iter().sum::<u64>() == 5).then_some(counts)
    })
    .await?;
    assert!(counted.len() <= 2, "{counted:?}");
    Ok(())
}

async fn router(client: &Client) -> Outcome<NewDeployment> {
    create(client, "plays", 2).await?;
    for topic in ["phones", "tablets", "failed"] {
        create(client, topic, 1).await?;
    }
    plugins::upload(client, "route-by-field").await?;
    Ok(NewDeployment::consumer("by-device", "route-by-field")
        .topic("plays")
        .target("phones")
        .target("tablets")
        .set("field", "device")
        .set("routes", "phone=phones,tablet=tablets")
        .start(Position::Earliest))
}

async fn send_to(client: &Client, partition: u32, values: &[&str]) -> Outcome<()> {
    let producer = client.producer("plays").build().await?;
    for value in values {
        producer.send_and_forget(Record::new(value).key("k").partition(PartitionId::new(partition))).await?;
    }
    Ok(producer.flush().await?)
}

const PHONE: &str = r#"{"device":"phone"}"#;
const TABLET: &str = r#"{"device":"tablet"}"#;
const RADIO: &str = r#"{"device":"radio"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_goes_to_the_dead_letters_with_its_reason() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let deployment = router(&client).await?.dead_letter("failed");
    client.deployments().create(deployment).await?;
    send_to(&client, 1, &[PHONE, RADIO, TABLET, "no JSON", PHONE]).await?;
    caught_up(&client, "by-device", 2, PATIENCE).await?;
    assert_eq!(values(&read_all(&client, "phones").await?[&0]), [PHONE, PHONE]);
    assert_eq!(values(&read_all(&client, "tablets").await?[&0]), [TABLET]);
    let failed = read_all(&client, "failed").await?;
    assert_eq!(values(&failed[&0]), [RADIO, "no JSON"]);
    let header = |name: &str| -> Option<String> {
        let found = failed[&0][0].headers().iter().find(|header| header.key == name)?;
        Some(String::from_utf8_lossy(found.value?).into_owned())
    };
    assert_eq!(header("tidemill-deployment").as_deref(), Some("by-device"));
    assert!(
        header("tidemill-source").is_some_and(|source| source.contains("plays")),
        "{:?}",
        header("tidemill-source")
    );
    assert_eq!(header("tidemill-offset").as_deref(), Some("1"));
    assert!(header("tidemill-reason").is_some_and(|reason| reason.contains("radio")));
    assert_eq!(failed[&0][0].key.as_deref(), Some(&b"k"[..]));
    let logs = client.deployments().logs("by-device", 0, 100).await?;
    assert!(logs.lines.iter().any(|line| line.message.contains("radio")), "{:?}", logs.lines);
    assert_eq!(refused(client.topics().delete("failed").await), ErrorCode::TopicInUse, "it is needed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skip_goes_past_what_fails() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let deployment = router(&client).await?.policy(FailurePolicy::Skip);
    client.deployments().create(deployment).await?;
    send_to(&client, 0, &[RADIO, PHONE, RADIO]).await?;
    let seen = caught_up(&client, "by-device", 2, PATIENCE).await?;
    assert_eq!(values(&read_all(&client, "phones").await?[&0]), [PHONE]);
    assert_eq!(seen.counters.get("skipped"), Some(&2), "{:?}", seen.counters);
    Ok(())
}

/// One task stops before the record, and says so; the other goes on. Mended, it goes on with that very record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_stops_one_task_before_what_fails() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    let deployment = router(&client).await?.policy(FailurePolicy::Pause);
    client.deployments().create(deployment).await?;
    send_to(&client, 0, &[PHONE, RADIO, PHONE]).await?;
    send_to(&client, 1, &[TABLET]).await?;
    let stopped = async || {
        let seen = client.deployments().describe("by-device").await.ok()?;
        let task = seen.tasks.iter().find(|task| task.partition == 0)?;
        (task.status() == DeploymentStatus::Paused).then(|| (task.reason.clone(), task.positions[0].position))
    };
    let (reason, position) = eventually("the task to stop", PATIENCE, stopped).await?;
    assert_eq!(position, 1, "the record before it is done");
    assert!(reason.contains("offset 1") && reason.contains("radio"), "{reason}");
    // Other partitions go on, and a restart changes nothing.
    broker.kill().await?;
    broker.restart().await?;
    send_to(&client, 1, &[TABLET]).await?;
    eventually("the other task", PATIENCE, async || {
        let tablets = read_all(&client, "tablets").await.ok()?;
        (tablets.get(&0)?.len() == 2).then_some(())
    })
    .await?;
    assert_eq!(eventually("still stopped", PATIENCE, stopped).await?.1, 1);
    // Resumed, it meets the same record again, and stops again.
    client.deployments().resume("by-device").await?;
    let again = eventually("the task to stop again", PATIENCE, stopped).await?;
    assert_eq!(again.1, 1);
    assert_eq!(values(&read_all(&client, "phones").await?[&0]), [PHONE]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_deployment_waits_and_loses_nothing() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    let deployment = router(&client).await?;
    client.deployments().create(deployment).await?;
    send_to(&client, 0, &[PHONE]).await?;
    caught_up(&client, "by-device", 2, PATIENCE).await?;
    let paused = client.deployments().pause("by-device").await?;
    assert_eq!(paused.status(), DeploymentStatus::Paused);
    send_to(&client, 0, &[PHONE, TABLET]).await?;
    broker.kill().await?;
    broker.restart().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(read_all(&client, "phones").await?[&0].len(), 1);
    client.deployments().resume("by-device").await?;
    caught_up(&client, "by-device", 2, PATIENCE).await?;
    assert_eq!(read_all(&client, "phones").await?[&0].len(), 2);
    assert_eq!(read_all(&client, "tablets").await?[&0].len(), 1);
    Ok(())
}

/// Topics of one deployment must be placed alike; a deployment may start at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_that_can_not_work_are_refused() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    let deployment = router(&client).await?;
    create(&client, "other", 3).await?;
    client.topics().create(NewTopic::new("beside", 2).with("plays")).await?;
    let creating = async |deployment: NewDeployment| client.deployments().create(deployment).await;
    assert_eq!(refused(creating(deployment.clone().topic("other")).await), ErrorCode::InvalidDeployment);
    assert_eq!(refused(creating(deployment.clone().target("nowhere")).await), ErrorCode::UnknownTopic);
    assert_eq!(
        refused(creating(deployment.clone().set("routes", "phone=radios")).await),
        ErrorCode::BadPluginConfig
    );
    assert_eq!(
        refused(creating(deployment.clone().memory_bytes_max(1 << 40)).await),
        ErrorCode::InvalidDeployment
    );
    send_to(&client, 0, &[PHONE]).await?;
    creating(deployment.topic("beside").start(Position::Latest)).await?;
    send_to(&client, 0, &[TABLET]).await?;
    let producer = client.producer("beside").build().await?;
    producer.send(Record::new(TABLET).partition(PartitionId::new(1))).await?.await?;
    caught_up(&client, "by-device", 2, PATIENCE).await?;
    assert_eq!(read_all(&client, "tablets").await?[&0].len(), 2);
    assert_eq!(read_all(&client, "phones").await?.len(), 0, "what was there before is not read");
    assert_eq!(refused(client.topics().delete("beside").await), ErrorCode::TopicInUse);
    Ok(())
}
