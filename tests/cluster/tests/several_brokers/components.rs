//! Components of plugins, on brokers that lack them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tidemill_client::{Client, NewTopic, Record, Start};
use tidemill_cluster_tests::reading::{count, drain};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, plugins};

/// Whoever wants to use a plugin at a broker without its component gets to: the others have it. Where nobody does, the answer says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_is_not_here_comes_for_who_wants_to_use_it() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    plugins::upload(&client, "json-filter").await?;
    client.topics().create(NewTopic::new("plays", 2)).await?;
    let producer = client.producer("plays").build().await?;
    for number in 0..10 {
        producer.send(Record::new(&format!(r#"{{"number":{number}}}"#))).await?.await?;
    }
    begin_anew(&mut cluster, &client).await?;
    for broker in 1..=2 {
        forget(&cluster.broker(broker).data_dir())?;
    }
    assert_eq!(small_numbers(&client).await?, 5, "the third one has it");

    begin_anew(&mut cluster, &client).await?;
    for broker in 1..=3 {
        forget(&cluster.broker(broker).data_dir())?;
    }
    let refused = small_numbers(&client).await.expect_err("nobody has it").to_string();
    assert!(refused.contains("upload the plugin again"), "{refused}");
    Ok(())
}

/// From the disks of all brokers, and not only of the one that it was uploaded to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_goes_from_every_broker_with_the_last_that_names_it() -> Outcome<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let kept = || -> Vec<(usize, usize)> {
        let artifacts = cluster.brokers().iter().map(|broker| broker.data_dir().join("artifacts"));
        artifacts.map(|path| (files(&path.join("components")), files(&path.join("compiled")))).collect()
    };
    plugins::upload(&client, "json-filter").await?;
    eventually("all of them have it", PATIENCE, async || (kept() == [(1, 1); 3]).then_some(())).await?;
    // Time for each to hear of its name before that goes: whoever hears of both at once keeps it for some minutes more.
    client.topics().create(NewTopic::new("meanwhile", 2)).await?;
    cluster.settled(&client).await?;
    client.plugins().delete("json-filter", "1").await?;
    eventually("it goes from all of them", PATIENCE, async || (kept() == [(0, 0); 3]).then_some(())).await
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Restarts all brokers, one after the other: in a new life nothing is loaded yet.
async fn begin_anew(cluster: &mut TestCluster, client: &Client) -> Outcome<()> {
    for broker in 1..=3 {
        cluster.broker(broker).stop().await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(client).await?;
    }
    Ok(())
}

/// How many records have a number below five.
async fn small_numbers(client: &Client) -> Outcome<usize> {
    let consumer = client.consumer().topic("plays").from(Start::Earliest);
    let consumer = consumer.filter("json-filter", [("where", "number < 5")]).stop_at_end().build().await?;
    Ok(count(&drain(consumer).await?))
}

/// Takes the components, and what was compiled of them, from a broker's disk.
fn forget(data_dir: &Path) -> Outcome<()> {
    let mut removed = BTreeSet::new();
    for kind in ["components", "compiled"] {
        for entry in std::fs::read_dir(data_dir.join("artifacts").join(kind))? {
            let path = entry?.path();
            std::fs::remove_file(&path)?;
            removed.insert(path);
        }
    }
    assert!(!removed.is_empty(), "there was none in {}", data_dir.display());
    Ok(())
}
