//! Who is no broker of the cluster is told so, at both ends.

use std::time::Duration;

use tidemill_client::Client;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster, WorldError};

/// Longer than a broker takes to dial its seeds a few times.
const PATIENCE: Duration = Duration::from_secs(60);
/// What both say of a certificate that another authority signed.
const SIGNED_ELSEWHERE: &str = "it was not signed by the authority that is trusted";

/// Whether one line of a broker's log says all of this.
fn says(broker: &TestBroker, words: &[&str]) -> Option<()> {
    let log = broker.log_text().ok()?;
    log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
}

/// Whether a broker has counted anything in this series.
async fn has_counted(client: &Client, series: &str) -> Option<()> {
    let metrics = client.metrics().await.ok()?;
    let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
    (values.sum::<f64>() > 0.0).then_some(())
}

/// A broker of another cluster has another authority, and so no certificate that counts here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_another_cluster_is_refused_with_the_reason_at_both_ends() -> Outcome<()> {
    let cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let seed = cluster.peer_address(1);
    let mut stranger = TestBroker::start(BrokerOptions::default().set("broker_id", 2)).await?;
    stranger.stop().await?;
    stranger.set("peers.seeds", &seed);
    stranger.restart().await?;
    // Who dials looks at the other's certificate first, and tells it that this will not do.
    let here = &cluster.brokers()[0];
    let turned_away = ["turned a peer away: it does not accept this broker's certificate", SIGNED_ELSEWHERE];
    eventually("the seed says why", PATIENCE, async || says(here, &turned_away)).await?;
    let client = cluster.client()?;
    let refused = r#"tidemill_peer_refused_total{reason="not_accepted"}"#;
    eventually("the seed counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    let in_vain = ["no seed answers", "is not of this cluster", SIGNED_ELSEWHERE];
    eventually("the stranger says why", PATIENCE, async || says(&stranger, &in_vain)).await?;
    let client = stranger.client().await?;
    let failed = r#"tidemill_peer_failed_dials_total{reason="stranger"}"#;
    eventually("the stranger counts it", PATIENCE, async || has_counted(&client, failed).await).await?;
    Ok(())
}

/// As long as a cluster is not formed nobody is over for good: a founder that comes with another directory than it had is refused for what it
/// says of itself, hears why, and asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_directory_is_refused_at_the_hello_and_both_ends_count_it() -> Outcome<()> {
    const WHY: &str = "broker 5 came with another data directory than it had";
    // Two of five are no majority.
    let cluster = TestCluster::planned(5, 1, BrokerOptions::default(), None).await?;
    let here = TestBroker::start(cluster.options_of(4)).await?;
    let mut stranger = TestBroker::start(cluster.options_of(5)).await?;
    let client = here.client().await?;
    let connected = r#"tidemill_peer_connected{broker="5"}"#;
    eventually("they meet", PATIENCE, async || has_counted(&client, connected).await).await?;

    stranger.kill().await?;
    std::fs::remove_dir_all(stranger.data_dir())?;
    stranger.restart().await?;
    eventually("who refuses says why", PATIENCE, async || says(&here, &[WHY])).await?;
    let refused = r#"tidemill_peer_refused_total{reason="hello"}"#;
    eventually("who refuses counts it", PATIENCE, async || has_counted(&client, refused).await).await?;

    let in_vain = ["refuses this one", WHY];
    eventually("the refused one says why", PATIENCE, async || says(&stranger, &in_vain)).await?;
    let client = stranger.client().await?;
    let failed = r#"tidemill_peer_failed_dials_total{reason="hello"}"#;
    eventually("who is refused counts it", PATIENCE, async || has_counted(&client, failed).await).await?;
    Ok(())
}

/// A seed may be another broker that has this one's number: that is not this broker itself, and both say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_broker_of_a_seeds_number_is_refused_as_one_with_another_directory() -> Outcome<()> {
    const WHY: &str = "broker 1 came with another data directory than it had";
    let cluster = TestCluster::planned(3, 1, BrokerOptions::default(), None).await?;
    let (here, seed) = (TestBroker::start(cluster.options_of(1)).await?, cluster.peer_address(1));
    let options = cluster
        .options_of(1)
        .directory(cluster.directory().join("twin"))
        .set("peers.listen", "127.0.0.1:0")
        .set("peers.seeds", &seed);
    let twin = TestBroker::start(options).await?;
    eventually("who refuses says why", PATIENCE, async || says(&here, &[WHY])).await?;
    let in_vain = ["no seed answers", "refuses this one", WHY];
    eventually("the refused one says why", PATIENCE, async || says(&twin, &in_vain)).await?;
    let waits = ["waiting for brokers 2 and 3 to form the cluster", seed.as_str(), WHY];
    eventually("and what it waits for", PATIENCE, async || says(&twin, &waits)).await?;
    Ok(())
}

/// A broker whose only seed is itself finds nobody: nothing says so but its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_names_only_itself_as_a_seed_says_so() -> Outcome<()> {
    let cluster = TestCluster::planned(3, 1, BrokerOptions::default(), None).await?;
    let own = cluster.peer_address(1);
    let lone = TestBroker::start(cluster.options_of(1).set("peers.seeds", &own)).await?;
    let every = format!("every seed ({own}) is this broker's own address");
    let told = [every.as_str(), "name another broker's peers.listen with --seed"];
    eventually("it says what is wrong", PATIENCE, async || says(&lone, &told)).await?;
    let waits = ["WARN", "waiting for brokers 2 and 3 to form the cluster", every.as_str()];
    eventually("and what it waits for", PATIENCE, async || says(&lone, &waits)).await?;
    assert!(says(&lone, &["refused: "]).is_none(), "it is no stranger to itself: {}", lone.log_tail());
    Ok(())
}

/// Tokens that are none, or nobody's, and brokers that are not in the plan.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_right_to_join_does_not() -> Outcome<()> {
    let mut cluster = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let refusal = |refused: WorldError| match refused {
        WorldError::Ended { log, .. } => log,
        other => panic!("{other}"),
    };
    let options = cluster.joining(2, "hello")?;
    let said = refusal(TestBroker::start(options).await.expect_err("no token"));
    assert!(said.contains("this is no join token"), "{said}");

    let forever = client.create_join_token(None, Some(Duration::from_secs(8 * 24 * 60 * 60))).await;
    let said = forever.expect_err("a token for so long").to_string();
    assert!(said.contains("CLUSTER_CHANGE_REFUSED") && said.contains("7 days"), "{said}");

    let token = client.create_join_token(Some(tidemill_client::BrokerId::new(3)), None).await?;
    let options = cluster.joining(3, &token.token)?.set("shards", 5);
    let said = refusal(TestBroker::start(options).await.expect_err("what the cluster has fixed"));
    assert!(said.contains("shards") && said.contains("has fixed it"), "{said}");
    let options = cluster.joining(2, &token.token)?;
    let said = refusal(TestBroker::start(options).await.expect_err("another broker's token"));
    assert!(said.contains("is for broker 3"), "{said}");

    let options = BrokerOptions::default().set("broker_id", 2).set("peers.seeds", cluster.peer_address(1));
    let said = refusal(TestBroker::start(options).await.expect_err("neither token nor plan"));
    assert!(said.contains("peers.seeds names other brokers") && said.contains("--join"), "{said}");

    // A directory keeps to its cluster, whatever token is shown.
    let other = TestCluster::start(1, 1, BrokerOptions::default()).await?;
    let theirs = other.client()?.create_join_token(Some(tidemill_client::BrokerId::new(1)), None).await?;
    cluster.broker(1).stop().await?;
    let directory = cluster.broker(1).directory().to_owned();
    let options = BrokerOptions::default().directory(directory).set("broker_id", 1).set("join", theirs.token);
    cluster.broker(1).change(options);
    let said = refusal(cluster.broker(1).restart().await.expect_err("another cluster's token"));
    assert!(said.contains("and join is of cluster"), "{said}");

    let options = cluster.options_of(1).set("broker_id", 7).directory(cluster.directory().join("broker-7"));
    let said = refusal(TestBroker::start(options).await.expect_err("not planned"));
    assert!(said.contains("not one of those that form the cluster"), "{said}");
    Ok(())
}
