//! Clusters that grow and shrink.

use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster};

use crate::load::Load;

/// A cluster of one becomes one of three, under load: with its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_broker_grows_to_three_with_its_data() -> Outcome<()> {
    let mut cluster = TestCluster::start(1, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 6).await?;
    for id in 2..=3 {
        let token = client.create_join_token(Some(tidemill_client::BrokerId::new(id)), None).await?;
        let options = cluster.joining(id, &token.token)?;
        cluster.push(TestBroker::start(options).await?);
    }
    let status = cluster
        .until(&client, "have three replicas of everything", |status| {
            let three = |voters: usize| voters == 3;
            status.risks.is_empty()
                && status.placement.iter().all(|shard| {
                    three(
                        shard.replicas.iter().filter(|replica| replica.voter && replica.behind < 256).count(),
                    )
                })
        })
        .await?;
    assert_eq!(status.brokers.len(), 3);
    // The first broker dies: what it had alone once is on the others.
    cluster.broker(1).kill().await?;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    load.goes_on().await?;
    cluster.broker(1).restart().await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    load.check(&client).await?;
    Ok(())
}
