//! Brokers die, and what was acknowledged stays.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tidemill_client::Client;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster};

use crate::load::{Load, Reader, Routed};

/// Three brokers that have settled, and producers of a topic.
async fn under_load() -> Outcome<(TestCluster, Client, Load)> {
    let cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let load = Load::start(&client, "plays", 6).await?;
    Ok((cluster, client, load))
}

/// kill -9 of each broker in turn, under load: producers go on, nothing is lost, doubled or reordered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broker_is_killed_in_turn_and_nothing_is_lost() -> Outcome<()> {
    let (mut cluster, client, mut load) = under_load().await?;
    for broker in 1..=3 {
        load.goes_on().await?;
        cluster.broker(broker).kill().await?;
        load.goes_on().await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(&client).await?;
    }
    load.check(&client).await?;
    Ok(())
}

/// All of them at once, in the middle of it: what was acknowledged is on three disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_brokers_are_killed_at_once_and_nothing_is_lost() -> Outcome<()> {
    let (mut cluster, client, mut load) = under_load().await?;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for broker in 1..=3 {
            cluster.broker(broker).kill().await?;
        }
        for broker in 1..=3 {
            cluster.broker(broker).restart().await?;
        }
        cluster.settled(&client).await?;
        load.goes_on().await?;
    }
    load.check(&client).await?;
    Ok(())
}

/// Brokers are stopped in order and started again, one after the other: their leads are handed over first. Whoever writes, reads, or has
/// the broker place records goes on, also while one of them is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_costs_nothing() -> Outcome<()> {
    let (mut cluster, client, mut load) = under_load().await?;
    let reader = Reader::start(&client, "plays").await?;
    let mut routed = Routed::start(&client, "songs", 6).await?;
    for broker in 1..=3 {
        let placement = cluster.led_as_planned(&client).await?.placement;
        let led = placement.iter().filter(|shard| shard.leader == broker);
        let led: BTreeSet<u32> = led.map(|shard| shard.shard).collect();
        assert!(!led.is_empty(), "broker {broker} has nothing to hand over: {placement:#?}");
        assert!(!notes_a_clean_stop(cluster.broker(broker))?, "broker {broker} still runs");
        let status = cluster.broker(broker).stop().await?;
        assert!(status.success(), "broker {broker} ended with {status}");
        let text = cluster.broker(broker).log_text()?;
        assert!(
            text.contains(r#""message":"stopped","clean":true"#),
            "{}",
            cluster.broker(broker).log_tail()
        );
        assert!(notes_a_clean_stop(cluster.broker(broker))?, "what its log says, its directory does");
        // Nothing else that a broker does is logged in these words.
        let given = handed_over(&text);
        assert!(
            led.is_subset(&given),
            "broker {broker} led {led:?} and handed over {given:?}: {}",
            cluster.broker(broker).log_tail()
        );
        load.goes_on().await?;
        routed.goes_on().await?;
        cluster.broker(broker).restart().await?;
        assert!(!notes_a_clean_stop(cluster.broker(broker))?, "broker {broker} runs again");
        cluster.settled(&client).await?;
    }
    routed.check(&client).await?;
    let acknowledged = load.check(&client).await?;
    reader.has_all(acknowledged).await?;
    Ok(())
}

/// Whether a broker's directory says that its last stop wrote everything down. One that runs says the contrary beforehand.
fn notes_a_clean_stop(broker: &TestBroker) -> Outcome<bool> {
    let meta = std::fs::read_to_string(broker.data_dir().join("meta"))?;
    let noted =
        meta.lines().find_map(|line| line.strip_prefix("clean = ")).ok_or("meta says nothing of it")?;
    Ok(noted.parse()?)
}

/// The shards of which a broker's log says that it handed them over as it stopped.
fn handed_over(log: &str) -> BTreeSet<u32> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let said = lines.filter(|line| line["fields"]["message"] == "the lead is handed over");
    said.filter_map(|line| line["fields"]["shard"].as_str()?.parse().ok()).collect()
}
