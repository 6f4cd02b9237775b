//! Two of three brokers are lost for good: the third goes on alone, and others join it.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_client::BrokerId;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster};

use crate::files::copy;
use crate::load::Load;

/// Everything that is acknowledged while the third is away is on the first two; so the second may be lost at any moment after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_with_all_that_it_has() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 6).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.broker(3).kill().await?;
    load.goes_on().await?;
    let left = cluster.broker(1).data_dir().display().to_string();
    let looks = ["--json", "cluster", "recover", "--data-dir", &left];
    let running = cluster.command(&looks).await?;
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(!running.status.success() && said.contains("in use"), "{said}");

    cluster.broker(2).kill().await?;
    cluster.broker(1).stop().await?;
    let kept = cluster.directory().join("broker-2-kept");
    copy(&cluster.broker(2).data_dir(), &kept.join("data"))?;
    for lost in [2, 3] {
        std::fs::remove_dir_all(cluster.broker(lost).data_dir())?;
    }

    let looked = cluster.command(&looks).await?;
    assert_eq!(looked.status.code(), Some(5), "{}", String::from_utf8_lossy(&looked.stderr));
    let seen: serde_json::Value = serde_json::from_slice(&looked.stdout)?;
    assert_eq!((&seen["recovered"], &seen["lost_brokers"]), (&false.into(), &serde_json::json!([2, 3])));
    let shards = seen["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), 4);
    assert!(shards.iter().all(|shard| shard["voters"] == serde_json::json!(["1.1", "2.1", "3.1"])), "{seen}");
    let dry =
        cluster.command(&["cluster", "recover", "--data-dir", &left, "--accept-loss", "--dry-run"]).await?;
    let said = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(dry.status.success() && said.contains("NEVER START AGAIN"), "{said}");
    let again = cluster.command(&looks).await?;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&again.stdout)?, seen, "nothing has changed");

    let done =
        cluster.command(&["--json", "cluster", "recover", "--data-dir", &left, "--accept-loss"]).await?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    assert_eq!((&done["recovered"], &done["incarnation"]), (&true.into(), &2.into()));

    cluster.broker(1).restart().await?;
    assert!(cluster.broker(1).log_text()?.contains("was recovered with --accept-loss"));
    let client = cluster.broker(1).client().await?;
    cluster
        .until(&client, "go on with one replica of everything", |status| {
            status.placement.iter().all(|shard| shard.leader == 1 && shard.replicas.len() == 1)
        })
        .await?;
    load.goes_on().await?;

    // One of the old ones was not lost after all: nobody hears it.
    let options = cluster.options_of(2).directory(&kept);
    let mut old = TestBroker::start(options).await?;
    let ended = old.ended(Duration::from_secs(30)).await?;
    assert!(!ended.success(), "it says that it is not wanted: {ended}");
    let there = old.log_text()?;
    assert!(there.contains("refuses this one") && there.contains("does not want this broker"), "{there}");
    let here = cluster.broker(1).log_text()?;
    assert!(here.contains("broker 2 was removed from the cluster"), "{}", cluster.broker(1).log_tail());

    for id in [2, 3] {
        let token = client.create_join_token(Some(BrokerId::new(id)), None).await?;
        let options = cluster.joining(id, &token.token)?;
        *cluster.broker(id) = TestBroker::start(options).await?;
    }
    let client = cluster.client()?;
    let status = cluster
        .until(&client, "have three replicas of everything", |status| {
            let three = |replicas: usize| replicas == 3;
            let close = |shard: &tidemill_client::messages::ShardPlacement| {
                shard.replicas.iter().filter(|replica| replica.voter && replica.behind < 256).count()
            };
            status.risks.is_empty() && status.placement.iter().all(|shard| three(close(shard)))
        })
        .await?;
    let lives: BTreeSet<(u32, u32)> = status
        .placement
        .iter()
        .flat_map(|shard| &shard.replicas)
        .map(|replica| (replica.broker_id, replica.incarnation))
        .collect();
    assert!(lives.iter().all(|(_, incarnation)| *incarnation > 1), "no life comes back: {lives:?}");
    load.goes_on().await?;
    let acknowledged = load.check(&client).await?;
    assert!(acknowledged > 0);
    Ok(())
}
