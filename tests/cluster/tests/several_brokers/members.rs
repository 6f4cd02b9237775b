//! Brokers come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tidemill_client::messages::{BrokerStatus, ClusterStatus};
use tidemill_client::{BrokerId, Client, ErrorCode, RequestError};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster, WorldError};

use crate::load::Load;

/// For what a broker does by itself within a few seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a refusal to be counted where it was made, once whoever was refused has ended.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
/// Starts of a broker that was removed, until one of them is refused by another.
const STARTS: u32 = 8;

fn holders(status: &ClusterStatus) -> BTreeSet<u32> {
    let data = status.placement.iter().filter(|shard| shard.shard != 0);
    data.flat_map(|shard| &shard.replicas).map(|replica| replica.broker_id).collect()
}

fn replicas_of(status: &ClusterStatus, broker: u32) -> usize {
    let data = status.placement.iter().filter(|shard| shard.shard != 0);
    data.flat_map(|shard| &shard.replicas).filter(|replica| replica.broker_id == broker).count()
}

/// The shards of which a broker has a replica, and under which incarnation.
fn lives(status: &ClusterStatus, broker: u32) -> BTreeMap<u32, u32> {
    let data = status.placement.iter().filter(|shard| shard.shard != 0);
    let replicas = data.flat_map(|shard| shard.replicas.iter().map(move |replica| (shard.shard, replica)));
    let own = replicas.filter(|(_, replica)| replica.broker_id == broker);
    own.map(|(shard, replica)| (shard, replica.incarnation)).collect()
}

fn lives_now(status: &ClusterStatus, broker: u32) -> bool {
    status.brokers.iter().any(|known| known.broker_id == broker && known.alive)
}

/// The shards of which there is anything in a broker's data directory.
fn shards_on_disk(broker: &TestBroker) -> Option<BTreeSet<u32>> {
    let entries = std::fs::read_dir(broker.data_dir()).ok()?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    Some(names.filter_map(|name| name.strip_prefix("shard-")?.parse().ok()).collect())
}

/// Waits until a broker has on its disk the shards that it has replicas of, and nothing of those that it had once. The controller's
/// shard every broker follows.
async fn keeps_what_it_holds(client: &Client, broker: &TestBroker, id: u32) -> Outcome<()> {
    let kept = eventually("a broker's disk has what it holds, and no more", PATIENCE, async || {
        let held = lives(&client.cluster_status().await.ok()?, id);
        let expected: BTreeSet<u32> = held.into_keys().chain([0]).collect();
        (shards_on_disk(broker)? == expected).then_some(())
    });
    kept.await.map_err(|error| format!("{error}: broker {id} has {:?}", shards_on_disk(broker)).into())
}

async fn join(cluster: &mut TestCluster, client: &Client, id: u32) -> Outcome<()> {
    let token = client.create_join_token(Some(BrokerId::new(id)), None).await?;
    let options = cluster.joining(id, &token.token)?;
    cluster.push(TestBroker::start(options).await?);
    Ok(())
}

/// Whether a broker has ended its link to one that was removed.
fn has_left_one(broker: &TestBroker) -> Option<()> {
    broker.log_text().ok()?.contains("a broker is not connected to any more").then_some(())
}

/// How often brokers have refused a hello, by their counters, and how often their logs say that the second one is removed for good.
async fn refusals(brokers: &[&TestBroker], clients: &[Client]) -> Outcome<(f64, usize)> {
    let (mut counted, mut said) = (0.0, 0);
    for client in clients {
        counted += metric(client, r#"tidemill_peer_refused_total{reason="hello"}"#).await?;
    }
    for broker in brokers {
        let words = "refused: broker 2 was removed from the cluster, and this life of it never comes back";
        said += broker.log_text()?.matches(words).count();
    }
    Ok((counted, said))
}

/// The second broker was removed and has ended. Started on what it has it ends each time, and the others refuse it, count that and say why.
async fn the_second_broker_is_refused(cluster: &mut TestCluster) -> Outcome<()> {
    const OTHERS: [usize; 3] = [1, 3, 4];
    let mut clients = Vec::new();
    for other in OTHERS {
        clients.push(cluster.brokers()[other - 1].client().await?);
    }
    for _ in 0..STARTS {
        let before = refusals(&OTHERS.map(|other| &cluster.brokers()[other - 1]), &clients).await?;
        let ended = removals_said(&cluster.broker(2).log_text()?);
        let log = turned_away(cluster.broker(2)).await?;
        assert!(removals_said(&log) > ended, "it ended for another reason: {}", cluster.broker(2).log_tail());
        let others = OTHERS.map(|other| &cluster.brokers()[other - 1]);
        let refused = eventually("another broker refuses it", COUNTED_WITHIN, async || {
            let now = refusals(&others, &clients).await.ok()?;
            (now.0 > before.0 && now.1 > before.1).then_some(())
        });
        if refused.await.is_ok() {
            return Ok(());
        }
        // What it has may say that it was removed, and end it before anybody was asked.
    }
    let logs = OTHERS.map(|other| cluster.brokers()[other - 1].log_tail()).join("\n----\n");
    Err(format!("nobody refused the second broker in {STARTS} starts:\n{logs}").into())
}

/// How often a broker's log says that it was removed.
fn removals_said(log: &str) -> usize {
    log.matches("removed from the cluster").count()
}

/// The fourth gets its share under load; another is drained, which is taken back once, holds nothing, is removed, and never comes back as
/// what it was. In another life it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_broker_takes_its_share_and_another_leaves_for_good() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 4, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 8).await?;
    join(&mut cluster, &client, 4).await?;
    cluster
        .until(&client, "give the fourth broker its share", |status| {
            replicas_of(status, 4) == 3 && status.risks.is_empty()
        })
        .await?;
    cluster
        .until(&client, "have the fourth broker lead", |status| {
            status.placement.iter().any(|shard| shard.leader == 4)
        })
        .await?;

    client.drain_broker(BrokerId::new(2), false).await?;
    let drained = |status: &ClusterStatus| {
        let leads = status.placement.iter().any(|shard| shard.leader == 2);
        replicas_of(status, 2) == 0 && !leads && status.risks.len() <= 1
    };
    cluster.until(&client, "drain the second broker", drained).await?;
    // Taken back while the replicas that have left are still on their way out: it holds as much as the others again, as new ones.
    client.drain_broker(BrokerId::new(2), true).await?;
    let status = cluster
        .until(&client, "give the second broker its share back", |status| {
            let is_active = |broker: &BrokerStatus| broker.broker_id == 2 && broker.state == "active";
            status.brokers.iter().any(is_active) && replicas_of(status, 2) == 3 && status.risks.is_empty()
        })
        .await?;
    let back = lives(&status, 2);
    assert!(back.values().all(|incarnation| *incarnation > 1), "no replica comes back: {back:?}");
    load.goes_on().await?;

    client.drain_broker(BrokerId::new(2), false).await?;
    let status = cluster.until(&client, "drain the second broker again", drained).await?;
    assert_eq!(holders(&status), BTreeSet::from([1, 3, 4]), "{status:#?}");
    keeps_what_it_holds(&client, cluster.broker(2), 2).await?;
    load.goes_on().await?;
    // It helped to form the groups that it has left: started again it does not begin anew, nor misses what it had.
    cluster.broker(2).stop().await?;
    cluster.broker(2).restart().await?;
    cluster
        .until(&client, "see the drained broker back", |status| drained(status) && lives_now(status, 2))
        .await?;
    keeps_what_it_holds(&client, cluster.broker(2), 2).await?;
    let log = cluster.broker(2).log_text()?;
    assert!(!log.contains("lost what it may have promised"), "{}", cluster.broker(2).log_tail());
    load.goes_on().await?;

    client.remove_broker(BrokerId::new(2)).await?;
    cluster.until(&client, "forget the second broker", |status| status.risks.is_empty()).await?;
    // It hears of it, stops by itself, and is not let in again.
    let ended = cluster.broker(2).ended(Duration::from_secs(30)).await?;
    assert!(!ended.success(), "it says that it was not wanted: {ended}");
    assert!(
        cluster.broker(2).log_text()?.contains("removed from the cluster"),
        "{}",
        cluster.broker(2).log_tail()
    );
    for other in [1, 3, 4] {
        let other = &cluster.brokers()[other - 1];
        eventually("the others look for it no more", PATIENCE, async || has_left_one(other)).await?;
    }
    the_second_broker_is_refused(&mut cluster).await?;
    let status = client.cluster_status().await?;
    let is_out = |broker: &BrokerStatus| broker.state == "removed" && !broker.alive;
    assert!(
        status.brokers.iter().any(|broker| broker.broker_id == 2 && is_out(broker)),
        "it is not taken back: {status:#?}"
    );

    std::fs::remove_dir_all(cluster.broker(2).data_dir())?;
    let token = client.create_join_token(Some(BrokerId::new(2)), None).await?;
    let options = cluster.joining(2, &token.token)?;
    *cluster.broker(2) = TestBroker::start(options).await?;
    cluster
        .until(&client, "give the second broker its share again", |status| {
            replicas_of(status, 2) == 3 && status.risks.is_empty()
        })
        .await?;
    load.check(&client).await?;
    Ok(())
}

/// What would lose a quorum, or leave replicas without a place, is refused, and the answer says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cluster_can_not_do_without_stays() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let refused = client.drain_broker(BrokerId::new(1), false).await.expect_err("it has nowhere to go");
    assert_eq!(refused.code(), Some(ErrorCode::ClusterChangeRefused.code()), "{refused}");
    assert!(refused.to_string().contains("broker 1 can't be drained"), "{refused}");
    let unknown = client.remove_broker(BrokerId::new(9)).await.expect_err("there is none");
    assert_eq!(unknown.code(), Some(ErrorCode::UnknownBroker.code()), "{unknown}");
    // With one of three down, a second one can't be spared.
    cluster.broker(3).kill().await?;
    // In these words the controller says it, which decides: not the broker that is asked.
    let dead = |status: &ClusterStatus| at_risk(status, "broker 3 is down and holds");
    cluster.until(&client, "count the third as dead", dead).await?;
    let refused = client.remove_broker(BrokerId::new(2)).await.expect_err("a majority would be lost");
    refused_for_quorum(&refused, 2);
    Ok(())
}

/// Dead brokers hold up nobody's removal but where they would leave a shard without those who could carry it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_broker_stays_as_long_as_a_shard_is_lost_without_it() -> Outcome<()> {
    // Three replicas each, so two of the four shards lie on both of the last two brokers; the controller's lies on the first three.
    let mut cluster = TestCluster::start(4, 4, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    for broker in [3, 4] {
        cluster.broker(broker).kill().await?;
    }
    let lost = |status: &ClusterStatus| at_risk(status, "has 1 of its 3 voters alive, which is no majority");
    cluster.until(&client, "count both as dead", lost).await?;
    for broker in [3, 4] {
        // Neither lives, so nothing else keeps it in.
        let refused = client.remove_broker(BrokerId::new(broker)).await.expect_err("a shard would be lost");
        refused_for_quorum(&refused, broker);
    }
    cluster.broker(3).restart().await?;
    let alone = |status: &ClusterStatus| {
        let dead = status.brokers.iter().filter(|broker| !broker.alive);
        dead.map(|broker| broker.broker_id).eq([4]) && !at_risk(status, "which is no majority")
    };
    cluster.until(&client, "count the third as alive", alone).await?;
    // On a busy machine the third may be counted as dead once more.
    let begun = Instant::now();
    while let Err(refused) = client.remove_broker(BrokerId::new(4)).await {
        refused_for_quorum(&refused, 4);
        assert!(begun.elapsed() < Duration::from_secs(60), "{refused}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

fn at_risk(status: &ClusterStatus, words: &str) -> bool {
    status.risks.iter().any(|risk| risk.contains(words))
}

/// That it was the majority that stood in the way, and not that the broker lives.
fn refused_for_quorum(refused: &RequestError, broker: u32) {
    assert_eq!(refused.code(), Some(ErrorCode::ClusterChangeRefused.code()), "{refused}");
    let said = refused.to_string();
    let what = format!("broker {broker} can't be removed: without it shard ");
    let why = "has 1 of its 3 voters alive, which is no majority";
    assert!(said.contains(&what) && said.contains(why), "{said}");
}

/// Neither a token for its number nor a removal pushes out a broker that lives and holds replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lives_is_not_pushed_out() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let refused = client.remove_broker(BrokerId::new(3)).await.expect_err("it lives");
    assert_eq!(refused.code(), Some(ErrorCode::ClusterChangeRefused.code()), "{refused}");
    assert!(refused.to_string().contains("tidemill cluster drain 3"), "{refused}");

    let token = client.create_join_token(Some(BrokerId::new(3)), None).await?;
    let elsewhere = cluster.directory().join("another-3");
    let options = cluster.joining(3, &token.token)?.directory(elsewhere);
    let refused = TestBroker::start(options).await.expect_err("its place is taken");
    assert!(
        matches!(&refused, WorldError::Ended { log, .. } if log.contains("broker 3 is alive")),
        "{refused}"
    );
    let status = cluster.settled(&client).await?;
    assert!(status.brokers.iter().all(|broker| broker.alive && broker.incarnation == 1), "{status:#?}");
    assert_eq!(replicas_of(&status, 3), 2);
    Ok(())
}

/// Starts a broker that its cluster does not want: it ends by itself, at once or when it has heard why. Answers its log.
async fn turned_away(broker: &mut TestBroker) -> Outcome<String> {
    match broker.restart().await {
        Ok(_) => assert!(!broker.ended(Duration::from_secs(30)).await?.success()),
        Err(WorldError::Ended { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    Ok(broker.log_text()?)
}

/// An empty directory under a known id is a stranger; with a token it is the broker's next life, and gets everything back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_broker_comes_back_with_a_token_and_not_without() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 4).await?;
    load.goes_on().await?;
    cluster.broker(3).kill().await?;
    load.goes_on().await?;
    std::fs::remove_dir_all(cluster.broker(3).data_dir())?;
    // It would form the cluster anew: it is told that there is one, and what to do. On every attempt.
    for _ in 0..2 {
        let log = turned_away(cluster.broker(3)).await?;
        assert!(log.contains("another data directory") && log.contains("tidemill cluster add"), "{log}");
    }
    let seed = cluster.broker(2).log_text()?;
    assert!(seed.contains("another data directory"), "{}", cluster.broker(2).log_tail());

    let token = client.create_join_token(Some(BrokerId::new(3)), None).await?;
    let options = cluster.joining(3, &token.token)?;
    // A token is for an empty directory: this one holds what was turned away.
    cluster.broker(3).change(options.clone());
    let log = turned_away(cluster.broker(3)).await?;
    assert!(log.contains("is not empty, so the token was not used"), "{log}");
    std::fs::remove_dir_all(cluster.broker(3).data_dir())?;
    *cluster.broker(3) = TestBroker::start(options).await?;
    let client = cluster.client()?;
    let status = cluster.settled(&client).await?;
    assert_eq!(replicas_of(&status, 3), 2);
    let lives: BTreeSet<u32> = status
        .placement
        .iter()
        .flat_map(|shard| &shard.replicas)
        .filter(|replica| replica.broker_id == 3)
        .map(|replica| replica.incarnation)
        .collect();
    assert!(!lives.contains(&1), "the old life is over: {lives:?}");
    // The token is used up.
    let options = cluster.joining(4, &token.token)?;
    let refused = TestBroker::start(options).await.expect_err("the token is used up");
    assert!(matches!(&refused, WorldError::Ended { log, .. } if log.contains("used already")), "{refused}");
    load.check(&client).await?;
    Ok(())
}

/// A dead broker is not waited for without end: its replicas are rebuilt elsewhere after the delay that the operator sets. When it is back
/// it gets its share again, and what it had before is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicas_of_a_dead_broker_are_rebuilt_elsewhere() -> Outcome<()> {
    let mut cluster = TestCluster::start(4, 4, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    client.alter_cluster(Some(Duration::from_secs(1)), None).await?;
    let mut load = Load::start(&client, "plays", 8).await?;
    load.goes_on().await?;
    let before = lives(&cluster.settled(&client).await?, 4);
    assert_eq!(before.len(), 3, "{before:?}");
    cluster.broker(4).kill().await?;
    load.goes_on().await?;
    let status = cluster
        .until(&client, "rebuild what the dead broker held", |status| {
            let full = |shard: &tidemill_client::messages::ShardPlacement| {
                shard
                    .replicas
                    .iter()
                    .filter(|replica| replica.voter && replica.broker_id != 4 && replica.behind < 256)
                    .count()
                    == 3
            };
            status.placement.iter().filter(|shard| shard.shard != 0).all(full) && replicas_of(status, 4) == 0
        })
        .await?;
    assert_eq!(holders(&status), BTreeSet::from([1, 2, 3]));
    load.goes_on().await?;
    cluster.broker(4).restart().await?;
    let status = cluster
        .until(&client, "give the fourth broker its share again", |status| {
            replicas_of(status, 4) == 3 && status.risks.is_empty()
        })
        .await?;
    // Of a shard that it had no replica of this is its first.
    let mut again = lives(&status, 4);
    again.retain(|shard, _| before.contains_key(shard));
    assert!(!again.is_empty(), "it had three of four shards, and has three again: {status:#?}");
    assert!(again.values().all(|incarnation| *incarnation > 1), "no replica comes back: {again:?}");
    keeps_what_it_holds(&client, cluster.broker(4), 4).await?;
    cluster.settled(&client).await?;
    load.check(&client).await?;
    Ok(())
}
