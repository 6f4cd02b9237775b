//! What belongs to something that was deleted goes with it, wherever it lies.

use std::path::Path;
use std::sync::Arc;

use tidemill_client::{Commit, NewDeployment, Offset, Position, Record};
use tidemill_cluster_tests::reading::read_all;
use tidemill_cluster_tests::waiting::{caught_up, eventually};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, plugins};
use tidemill_hostile as hostile;
use tidemill_log::fs::DiskStorage;
use tidemill_log::segment::{SegmentFiles, SegmentFilesConfig};
use tidemill_protocol::ShardId;
use tidemill_shard::{AdoptedStatus, Shard, ShardConfig};

use crate::kit::{PATIENCE, broker, broker_with, create, partition_of};

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Components, and what was compiled of them.
fn kept(broker: &TestBroker) -> (usize, usize) {
    let artifacts = broker.data_dir().join("artifacts");
    (files(&artifacts.join("components")), files(&artifacts.join("compiled")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_goes_with_the_last_that_names_it() -> Outcome<()> {
    let (mut broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let component = plugins::component("json-filter")?;
    for name in ["first", "second"] {
        client.plugins().upload(name, "1", component.clone()).await?;
    }
    plugins::upload(&client, "key-hash").await?;
    assert_eq!(kept(&broker), (2, 2), "the same component under two names is kept once");
    client.plugins().delete("key-hash", "1").await?;
    eventually("the other one goes", PATIENCE, async || (kept(&broker) == (1, 1)).then_some(())).await?;
    client.plugins().delete("first", "1").await?;
    broker.kill().await?;
    broker.restart().await?;
    let client = broker.client().await?;
    let filter = NewDeployment::subscription_filter("f", "second").set("where", "a == 1");
    client.deployments().create(filter).await?;
    assert_eq!(kept(&broker), (1, 1), "another version still names it");
    client.deployments().delete("f").await?;
    client.plugins().delete("second", "1").await?;
    eventually("it goes", PATIENCE, async || (kept(&broker) == (0, 0)).then_some(())).await?;
    client.plugins().upload("first", "1", component).await?;
    assert_eq!(kept(&broker), (1, 1), "and comes again");
    Ok(())
}

/// A group's positions live in the shard that its name points to, which may hold nothing of the topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_of_a_deleted_topic_go_in_every_shard() -> Outcome<()> {
    let (_broker, client) = broker().await?;
    create(&client, "gone", 1).await?;
    create(&client, "stays", 1).await?;
    let (gone, stays) = (partition_of(&client, "gone", 0).await?, partition_of(&client, "stays", 0).await?);
    let groups: Vec<String> = (0..12).map(|number| format!("group-{number}")).collect();
    for group in &groups {
        let commits = [gone, stays].map(|partition| Commit::new(partition, Offset::new(0)));
        client.groups().commit(group, &commits).await?;
    }
    client.topics().delete("gone").await?;
    for group in &groups {
        eventually(group, PATIENCE, async || {
            let positions = client.groups().positions(group).await.ok()?;
            (positions.into_keys().collect::<Vec<_>>() == [stays]).then_some(())
        })
        .await?;
    }
    Ok(())
}

const SHARDS: u16 = 4;

/// What the shards of a stopped broker hold of deployments.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    tasks: usize,
    /// Shards that have outputs of a deployment that nobody told them of.
    untold: usize,
    /// Shards that know of one that is not deleted.
    alive: usize,
}

fn held(broker: &TestBroker) -> Outcome<Held> {
    let mut held = Held::default();
    for shard in 1..=SHARDS {
        let files =
            SegmentFiles::new(Arc::new(DiskStorage::new(broker.data_dir())?), SegmentFilesConfig::default());
        let shard = Shard::open(ShardConfig::new(ShardId::new(shard)), &files)?;
        held.tasks += shard.tasks().len();
        held.untold += usize::from(!shard.strange_senders().is_empty());
        held.alive +=
            shard.deployments().iter().filter(|known| known.status != AdoptedStatus::Deleted).count();
    }
    Ok(held)
}

/// A hosted consumer's task lives in one shard, and how far its outputs came in those of its targets: all of them hear that it is gone,
/// though the broker dies the moment that it says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_shard_keeps_what_belongs_to_a_deleted_deployment() -> Outcome<()> {
    let (mut broker, client) = broker_with(BrokerOptions::default().set("shards", SHARDS)).await?;
    create(&client, "in", 1).await?;
    create(&client, "out", 8).await?;
    client.plugins().upload("relay", "1", hostile::relay()).await?;
    let relay = NewDeployment::consumer("relay", "relay").topic("in").target("out").start(Position::Earliest);
    client.deployments().create(relay).await?;
    let producer = client.producer("in").build().await?;
    for number in 0..100 {
        producer.send_and_forget(Record::new(b"relayed").key(&format!("key-{number}"))).await?;
    }
    producer.flush().await?;
    caught_up(&client, "relay", 1, PATIENCE).await?;
    eventually("all outputs arrive", PATIENCE, async || {
        let read = read_all(&client, "out").await.ok()?;
        (read.values().map(Vec::len).sum::<usize>() >= 100).then_some(())
    })
    .await?;
    broker.stop().await?;
    let before = held(&broker)?;
    assert_eq!((before.tasks, before.alive), (1, 1), "{before:?}");
    assert!(before.untold >= 2, "its outputs went to shards that run nothing of it: {before:?}");

    broker.restart().await?;
    broker.client().await?.deployments().delete("relay").await?;
    broker.kill().await?;
    broker.restart().await?;
    // Each start finishes what the one before did not come to.
    let mut after = Held { alive: usize::MAX, ..Held::default() };
    for _ in 0..10 {
        let client = broker.client().await?;
        assert!(client.deployments().list().await?.is_empty(), "it is not there again");
        broker.stop().await?;
        after = held(&broker)?;
        if after == Held::default() {
            break;
        }
        broker.restart().await?;
    }
    assert_eq!(after, Held::default());
    Ok(())
}
