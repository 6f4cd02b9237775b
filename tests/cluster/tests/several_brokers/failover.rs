//! Brokers die, and what was acknowledged stays.

use std::time::Duration;

use tidemill_client::Client;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::load::Load;

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
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.broker(broker).kill().await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        load.goes_on().await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(&client).await?;
    }
    let acknowledged = load.check(&client).await?;
    assert!(acknowledged > 500, "only {acknowledged} records were acknowledged");
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

/// Brokers are stopped in order and started again, one after the other: their leads are handed over first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_costs_nothing() -> Outcome<()> {
    let (mut cluster, client, mut load) = under_load().await?;
    for broker in 1..=3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = cluster.broker(broker).stop().await?;
        assert!(status.success(), "broker {broker} ended with {status}");
        let text = cluster.broker(broker).log_text()?;
        assert!(
            text.contains(r#""message":"stopped","clean":true"#),
            "{}",
            cluster.broker(broker).log_tail()
        );
        cluster.broker(broker).restart().await?;
        cluster.settled(&client).await?;
        load.goes_on().await?;
    }
    load.check(&client).await?;
    Ok(())
}
