//! Clusters that grow and shrink.

use std::net::{TcpListener, UdpSocket};

use tidemill_client::{BrokerId, Client};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster, WorldError};

use crate::load::Load;

/// A cluster of one becomes one of three, under load: with its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_broker_grows_to_three_with_its_data() -> Outcome<()> {
    let mut cluster = TestCluster::start(1, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 6).await?;
    for id in 2..=3 {
        let token = client.create_join_token(Some(BrokerId::new(id)), None).await?;
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
    // A group that has not come to the end of its change needs the first broker still; one that another leads has.
    cluster.led_as_planned(&client).await?;
    load.goes_on().await?;
    // The first broker dies: what it had alone once is on the others, and they go on without it.
    cluster.broker(1).kill().await?;
    load.goes_on().await?;
    let others: Vec<String> =
        cluster.brokers()[1..].iter().map(|broker| broker.address().to_string()).collect();
    let others = Client::detached(cluster.client_config_at(others).client_id("at the others"))?;
    load.is_there(&others).await?;
    cluster.broker(1).restart().await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    load.check(&client).await?;
    Ok(())
}

/// What was mistyped beside a token costs nothing: no member, no directory, and not the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_mistypes_a_setting_beside_a_token_joins_with_the_same_one() -> Outcome<()> {
    let mut cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let token = client.create_join_token(Some(BrokerId::new(2)), None).await?;
    let options = cluster.joining(2, &token.token)?;
    let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let mistakes = [
        ("client_ca", "nope.pem".to_owned(), "client_ca: nope.pem: "),
        ("peers.listen", udp.local_addr()?.to_string(), "peers.listen: could not listen on UDP"),
        ("metrics.listen", tcp.local_addr()?.to_string(), "metrics.listen: "),
    ];
    for (setting, mistaken, said) in mistakes {
        let started = TestBroker::start(options.clone().set(setting, mistaken)).await;
        let log = match started.expect_err(setting) {
            WorldError::Ended { log, .. } => log,
            other => panic!("{other}"),
        };
        assert!(log.contains(said), "{log}");
        assert!(!cluster.directory().join("broker-2").join("data").exists(), "{setting}: {log}");
    }
    let status = client.cluster_status().await?;
    assert_eq!(status.brokers.len(), 1, "nobody was let in: {status:#?}");
    cluster.push(TestBroker::start(options).await?);
    cluster.until(&client, "have two brokers", |status| status.brokers.len() == 2).await?;
    Ok(())
}
