//! The replicas of a shard compare their states while they work, and one whose state file was altered stops.

use std::path::Path;
use std::time::Duration;

use tidemill_client::{BrokerId, Client, Commit, ErrorCode, Offset, PartitionId, TopicPartition};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::load::Load;

const PARTITIONS: u32 = 4;
/// The only one with data.
const SHARD: u32 = 1;
/// What a group's position carries, and stands in the state file as it is.
const NOTE: &str = "a note as a client has written it";
const ALTERED: &str = "a note as a disk has rewritten it";
const _: () = assert!(NOTE.len() == ALTERED.len());
const MISMATCHES: &str = "tidemill_state_hash_mismatches_total";
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a round is looked for.
const QUIET: Duration = Duration::from_secs(3);

/// A client of each broker, that asks this one.
async fn each_alone(cluster: &TestCluster) -> Outcome<Vec<Client>> {
    let mut clients = Vec::new();
    for broker in cluster.brokers() {
        clients.push(broker.client().await?);
    }
    Ok(clients)
}

/// A metric of each broker.
async fn of_each(clients: &[Client], name: &str) -> Outcome<Vec<f64>> {
    let mut values = Vec::new();
    for client in clients {
        values.push(metric(client, name).await?);
    }
    Ok(values)
}

/// What the disk does to a state file that nobody has open.
fn alter(state: &Path) -> Outcome<()> {
    let mut bytes = std::fs::read(state)?;
    let places = bytes.windows(NOTE.len()).enumerate().filter(|(_, window)| *window == NOTE.as_bytes());
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the note is in {}", state.display());
    for at in places {
        bytes[at..at + NOTE.len()].copy_from_slice(ALTERED.as_bytes());
    }
    std::fs::write(state, bytes)?;
    Ok(())
}

/// Replicas with the same state go on, round after round. A follower whose state file was altered while it was away starts and follows as if
/// nothing were; the next comparison stops it, all know of it, and the others go on. None of those can be spared then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_state_was_altered_is_found_and_stops() -> Outcome<()> {
    let options = BrokerOptions::default()
        .set("storage.state_hash_bytes", 64 << 10)
        .set("storage.state_hash_interval_ms", 1_000);
    let mut cluster = TestCluster::start(3, 1, options).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", PARTITIONS).await?;
    let partition = TopicPartition::new(client.topic_metadata("plays").await?.id, PartitionId::new(0));
    let commit = Commit { note: NOTE.to_owned(), ..Commit::new(partition, Offset::new(0)) };
    client.groups().commit("noted", &[commit]).await?;

    let hashes = format!("tidemill_state_hashes_total{{shard=\"{SHARD}\"}}");
    let alone = each_alone(&cluster).await?;
    let before = of_each(&alone, &hashes).await?;
    // Of the second one at the latest the note is a part.
    eventually("all replicas are compared again and again", PATIENCE, async || {
        let now = of_each(&alone, &hashes).await.ok()?;
        now.iter().zip(&before).all(|(now, before)| *now >= before + 3.0).then_some(())
    })
    .await?;
    assert_eq!(of_each(&alone, MISMATCHES).await?, [0.0; 3], "they are the same");
    load.goes_on().await?;

    let status = cluster.settled(&client).await?;
    let placed = status.placement.iter().find(|placed| placed.shard == SHARD).ok_or("the shard is there")?;
    let follower = (1..=3).find(|broker| *broker != placed.leader).ok_or("somebody follows")?;
    // A checkpoint that the others write while it is away would have it sent a snapshot, and what was altered would be gone: no records, and
    // no round, until it is back.
    load.pause(true);
    eventually("there are no more rounds", PATIENCE, async || {
        let before = of_each(&alone, &hashes).await.ok()?;
        tokio::time::sleep(QUIET).await;
        (of_each(&alone, &hashes).await.ok()? == before).then_some(())
    })
    .await?;
    cluster.broker(follower).stop().await?;
    alter(&cluster.broker(follower).data_dir().join(format!("shard-{SHARD:02}")).join("state"))?;
    cluster.broker(follower).restart().await?;
    cluster.settled(&client).await?;
    load.pause(false);

    let told = format!("shard {SHARD} has stopped on broker {follower}");
    let status = cluster
        .until(&client, "say that the altered replica has stopped", |status| {
            status.risks.iter().any(|risk| risk.contains(&told))
        })
        .await?;
    let risk = status.risks.iter().find(|risk| risk.contains(&told)).ok_or("it was there")?;
    assert!(risk.contains("astray") && risk.contains("cluster add"), "{risk}");
    let alone = each_alone(&cluster).await?;
    eventually("all count it", PATIENCE, async || {
        let mismatches = of_each(&alone, MISMATCHES).await.ok()?;
        mismatches.iter().all(|count| *count > 0.0).then_some(())
    })
    .await?;
    assert!(cluster.broker(follower).log_text()?.contains("it went astray"), "its log says so, too");
    load.goes_on().await?;
    load.check(&client).await?;
    let asked = cluster.broker(follower).client().await?;
    another_one_can_not_be_spared(&mut cluster, &client, &asked, follower).await
}

/// Of three replicas one has stopped on a broker that lives. For the controller a majority is left without another broker that is dead, so it
/// is not the controller that refuses to remove that one. Asked is the broker that need ask nobody which of its replicas have stopped.
async fn another_one_can_not_be_spared(
    cluster: &mut TestCluster,
    client: &Client,
    asked: &Client,
    stopped: u32,
) -> Outcome<()> {
    let spared = (1..=3).find(|broker| *broker != stopped).ok_or("there are others")?;
    cluster.broker(spared).kill().await?;
    let dead = format!("broker {spared} is down and holds");
    cluster
        .until(client, "count another one as dead", |status| {
            status.risks.iter().any(|risk| risk.contains(&dead))
        })
        .await?;
    let refused = asked.remove_broker(BrokerId::new(spared)).await.expect_err("one of three would be left");
    assert_eq!(refused.code(), Some(ErrorCode::ClusterChangeRefused.code()), "{refused}");
    let said = refused.to_string();
    let what = format!("removing broker {spared} would leave shard {SHARD} with ");
    let why = format!(" working of 3 replicas, which is no majority: it has stopped on broker {stopped}");
    assert!(said.contains(&what) && said.contains(&why), "{said}");
    Ok(())
}
