//! A follower that has forgotten what it acknowledged, and can't know it; and one on an older copy of its directory, which is turned away where
//! the others can tell.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_client::Client;
use tidemill_client::messages::{ClusterStatus, ShardPlacement};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, WorldError};
use tidemill_log::wal::FrameKind;

use crate::files::copy;
use crate::load::Load;
use crate::wal_files::NewestFile;

const CONTROLLER: u32 = 0;
/// The only one with data.
const SHARD: u32 = 1;
/// What is lost at the end of the log, at the most.
const LOST_BLOCKS: u64 = 16;
/// A busy machine may change its leader at any time, and the next one knows nothing of what was acknowledged to the one before.
const ATTEMPTS: usize = 5;

fn placed(status: &ClusterStatus) -> Option<&ShardPlacement> {
    placed_of(status, SHARD)
}

fn placed_of(status: &ClusterStatus, shard: u32) -> Option<&ShardPlacement> {
    status.placement.iter().find(|placed| placed.shard == shard)
}

/// The life in which a broker's replica is a voter of the shard.
fn life_of(placed: &ShardPlacement, broker: u32) -> u32 {
    let mut voters = placed.replicas.iter().filter(|replica| replica.voter);
    voters.find(|replica| replica.broker_id == broker).map_or(0, |replica| replica.incarnation)
}

/// Whether a shard is led and all of its replicas have all that it holds.
fn is_at_its_end(placed: &ShardPlacement) -> bool {
    placed.leader != 0 && placed.replicas.iter().all(|replica| replica.behind == 0)
}

/// A broker that leads neither shard.
fn follower_of(status: &ClusterStatus) -> Outcome<u32> {
    let leaders: BTreeSet<u32> = status.placement.iter().map(|shard| shard.leader).collect();
    let follower = (1..=3).find(|broker| !leaders.contains(broker));
    Ok(follower.ok_or("one of three leads neither shard")?)
}

/// Without checkpoints that would give a loss away at the start, and without the leader's, which would send a snapshot over it.
fn options() -> BrokerOptions {
    BrokerOptions::default().set("storage.checkpoint_bytes", 512 << 20).set("wal.bytes_max", 1_u64 << 30)
}

/// The end of a log that is gone looks like one that was never written: its broker goes on under its old ids, and only the leader, which was
/// told more, finds out. It has the replica replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lacks_what_it_acknowledged_is_replaced() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 1, options()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 4).await?;
    let mut replaced = None;
    for _ in 0..ATTEMPTS {
        replaced = lose_and_see(&mut cluster, &client, &mut load).await?;
        if replaced.is_some() {
            break;
        }
    }
    let follower = replaced.ok_or("in no attempt the shard's leader stayed one")?;
    let told = "a replica that lost what it had acknowledged is replaced";
    let logs = cluster.brokers().iter().map(|broker| broker.log_text()).collect::<Result<Vec<_>, _>>()?;
    assert!(logs.iter().any(|log| log.contains(told)), "{}", cluster.broker(follower).log_tail());
    let alone = cluster.broker(follower).client().await?;
    assert_eq!(metric(&alone, "tidemill_replicas_retired_total").await?, 0.0, "by itself it could not know");
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}

/// A follower loses the end of its log. Answers which, once its replica was replaced; `None` where another leader came between, or nothing of
/// the shard's was there to lose.
async fn lose_and_see(cluster: &mut TestCluster, client: &Client, load: &mut Load) -> Outcome<Option<u32>> {
    let follower = follower_of(&cluster.led_as_planned(client).await?)?;
    let data_dir = cluster.broker(follower).data_dir();
    NewestFile::well_filled(&data_dir).await?;
    load.pause(true);
    let status = cluster
        .until(client, "have all replicas hold everything", |status| {
            placed(status).is_some_and(is_at_its_end)
        })
        .await?;
    let before = placed(&status).ok_or("the shard is there")?;
    let (term, life) = (before.term, life_of(before, follower));
    cluster.broker(follower).kill().await?;
    load.pause(false);

    let lost = lose_end(&NewestFile::find(&data_dir)?)?;
    load.goes_on().await?;
    cluster.broker(follower).restart().await?;
    let status = cluster
        .until(client, "replace the replica that lost the end of its log", |status| {
            let now = placed(status).filter(|now| now.leader != 0);
            now.is_some_and(|now| !lost || now.term > term || life_of(now, follower) > life)
        })
        .await?;
    let is_new = placed(&status).is_some_and(|now| life_of(now, follower) > life);
    cluster.settled(client).await?;
    Ok(is_new.then_some(follower))
}

/// Takes entries of the shard from the end of a log, and nothing that the other shard's replica wrote there: of what its controller tells
/// it lives a broker. `false` where none are at the end.
fn lose_end(newest: &NewestFile) -> Outcome<bool> {
    let of_shard = |shard: u16| u32::from(shard) == SHARD;
    let others = newest.frames.iter().filter(|frame| frame.shard.is_some_and(|shard| !of_shard(shard.get())));
    // The last of them may reach into the next block.
    let kept = others.map(|frame| frame.block + 2).max().unwrap_or(0);
    let from = kept.max(newest.data.end.saturating_sub(LOST_BLOCKS)).max(newest.data.start);
    let is_lost = newest.frames.iter().any(|frame| frame.block >= from && frame.kind == FrameKind::Entry);
    if is_lost {
        newest.lose_from(from)?;
    }
    Ok(is_lost)
}

/// A copy from one start ago is let in: it counts as many starts. That it had started is an entry of the controller's, so its replica of that
/// lacks something, too. By it the broker would hear what is planned in its place, and the leader tells it nothing any more: it asks others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_can_not_hear_that_it_is_replaced_comes_back_all_the_same() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 1, options()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 2).await?;
    let mut replaced = None;
    for attempt in 0..ATTEMPTS {
        replaced = go_back_and_see(&mut cluster, &client, &mut load, attempt).await?;
        if replaced.is_some() {
            break;
        }
    }
    let follower = replaced.ok_or("in no attempt the controller's leader stayed one")?;
    let told = "a replica lost what it had acknowledged; it is retired";
    assert!(cluster.broker(follower).log_text()?.contains(told), "{}", cluster.broker(follower).log_tail());
    let alone = cluster.broker(follower).client().await?;
    let retired = metric(&alone, "tidemill_replicas_retired_total").await?;
    assert_eq!(retired, 1.0, "the controller's; by that it hears of the other");
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}

/// A follower goes back to what it had one start before. Answers which, once its replicas were replaced; `None` where another leader of the
/// controller came between.
async fn go_back_and_see(
    cluster: &mut TestCluster,
    client: &Client,
    load: &mut Load,
    attempt: usize,
) -> Outcome<Option<u32>> {
    let follower = follower_of(&cluster.led_as_planned(client).await?)?;
    let data_dir = cluster.broker(follower).data_dir();
    let [copied, newer] =
        ["copied", "newer"].map(|name| cluster.directory().join(format!("{name}-{attempt}")));
    cluster.broker(follower).stop().await?;
    copy(&data_dir, &copied)?;
    cluster.broker(follower).restart().await?;
    cluster.settled(client).await?;
    load.goes_on().await?;
    load.pause(true);
    let before = cluster
        .until(client, "have all replicas hold everything", |status| {
            status.placement.len() == 2 && status.placement.iter().all(is_at_its_end)
        })
        .await?;
    cluster.broker(follower).stop().await?;
    load.pause(false);

    std::fs::rename(&data_dir, newer)?;
    std::fs::rename(copied, &data_dir)?;
    load.goes_on().await?;
    cluster.broker(follower).restart().await?;
    let life = |placed: &ShardPlacement| life_of(placed, follower);
    let status = cluster
        .until(client, "replace the replicas that went back", |status| {
            before.placement.iter().all(|before| {
                let now = placed_of(status, before.shard).filter(|now| now.leader != 0);
                now.is_some_and(|now| now.term > before.term || life(now) > life(before))
            })
        })
        .await?;
    let of_controller = |status: &ClusterStatus| placed_of(status, CONTROLLER).map(life);
    let is_new = of_controller(&status) > of_controller(&before);
    cluster.settled(client).await?;
    Ok(is_new.then_some(follower))
}

/// A copy from two starts ago, or older, is known by its count of starts: the others do not let its broker in, and it ends by itself. On the
/// directory that it had it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_on_an_older_copy_of_its_directory_is_turned_away() -> Outcome<()> {
    const COPIED: u32 = 3;
    let mut cluster = TestCluster::start(3, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 2).await?;
    let data_dir = cluster.broker(COPIED).data_dir();
    let [copied, newer] = ["copied", "newer"].map(|name| cluster.directory().join(name));
    cluster.broker(COPIED).stop().await?;
    copy(&data_dir, &copied)?;
    for _ in 0..2 {
        cluster.broker(COPIED).restart().await?;
        cluster.settled(&client).await?;
        load.goes_on().await?;
        cluster.broker(COPIED).stop().await?;
    }

    std::fs::rename(&data_dir, &newer)?;
    std::fs::rename(&copied, &data_dir)?;
    match cluster.broker(COPIED).restart().await {
        Ok(_) => assert!(!cluster.broker(COPIED).ended(Duration::from_secs(30)).await?.success()),
        Err(WorldError::Ended { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    let log = cluster.broker(COPIED).log_text()?;
    assert!(
        log.contains("the directory is an older copy of itself"),
        "{}",
        cluster.broker(COPIED).log_tail()
    );
    load.goes_on().await?;

    std::fs::remove_dir_all(&data_dir)?;
    std::fs::rename(&newer, &data_dir)?;
    cluster.broker(COPIED).restart().await?;
    let status = cluster.settled(&client).await?;
    assert_eq!(placed(&status).map(|placed| life_of(placed, COPIED)), Some(1), "{status:#?}");
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}
