//! What belongs to something that was deleted goes with it, wherever it lies.

use std::path::Path;

use tidemill_client::{Commit, NewDeployment, Offset};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, TestBroker, plugins};

use crate::kit::{PATIENCE, broker, create, partition_of};

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
