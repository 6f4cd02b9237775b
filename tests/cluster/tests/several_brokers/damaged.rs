//! A shard that does not open: its broker starts all the same, and gets the shard from the others.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_client::Client;
use tidemill_client::messages::ClusterStatus;
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::files::{fill_segments, sealed};
use crate::load::Load;

/// The only one with data.
const SHARD: u32 = 1;
const RECORDS: u32 = 200;
const DAMAGED: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Three brokers, and a topic with a few sealed segments.
async fn with_segments() -> Outcome<(TestCluster, Client)> {
    let cluster = TestCluster::start(3, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    fill_segments(&cluster, &client, "songs", 1, RECORDS).await?;
    Ok((cluster, client))
}

fn shard(data_dir: &Path) -> PathBuf {
    data_dir.join(format!("shard-{SHARD:02}"))
}

/// A segment of a stopped broker that never grows again.
fn a_sealed_one(data_dir: &Path) -> Outcome<PathBuf> {
    let mut paths = sealed(data_dir)?.into_keys().map(|path| data_dir.join(path));
    let found = paths.find(|path| path.starts_with(shard(data_dir)));
    found.ok_or_else(|| "no segment is sealed".into())
}

fn cut_a_segment(data_dir: &Path) -> Outcome<()> {
    let file = OpenOptions::new().write(true).open(a_sealed_one(data_dir)?)?;
    file.set_len(file.metadata()?.len() / 2)?;
    Ok(())
}

fn garble_the_state(data_dir: &Path) -> Outcome<()> {
    let state = shard(data_dir).join("state");
    let length = std::fs::metadata(&state)?.len();
    std::fs::write(&state, vec![0xa5; usize::try_from(length)?])?;
    Ok(())
}

/// The incarnation under which a broker votes in the shard.
fn life(status: &ClusterStatus, broker: u32) -> Option<u32> {
    let placed = status.placement.iter().find(|placed| placed.shard == SHARD)?;
    let replicas = placed.replicas.iter().filter(|replica| replica.broker_id == broker && replica.voter);
    replicas.map(|replica| replica.incarnation).max()
}

/// Once a sealed segment is too short, then the state file is rubbish: each time the replica is retired and built anew from the others, while
/// they go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_shard_comes_whole_from_the_other_brokers() -> Outcome<()> {
    let (mut cluster, client) = with_segments().await?;
    let mut load = Load::start(&client, "plays", 2).await?;
    let mut whole = None;
    let damages: [fn(&Path) -> Outcome<()>; 2] = [cut_a_segment, garble_the_state];
    for damage in damages {
        let status = cluster.settled(&client).await?;
        let before = life(&status, DAMAGED).ok_or("it votes")?;
        let broker = cluster.broker(DAMAGED);
        broker.stop().await?;
        let data_dir = broker.data_dir();
        if whole.is_none() {
            let path = a_sealed_one(&data_dir)?;
            whole = Some((std::fs::read(&path)?, path));
        }
        damage(&data_dir)?;
        broker.restart().await?;
        let alone = broker.client().await?;
        cluster
            .until(&client, "have a new replica in the damaged one's place", |status| {
                life(status, DAMAGED).is_some_and(|now| now > before)
            })
            .await?;
        cluster.settled(&client).await?;
        let log = cluster.broker(DAMAGED).log_text()?;
        assert!(log.contains("what a replica stored is damaged"), "{}", cluster.broker(DAMAGED).log_tail());
        assert_eq!(metric(&alone, "tidemill_replicas_retired_total").await?, 1.0, "the shard alone");
        load.goes_on().await?;
    }
    load.check(&client).await?;
    assert_eq!(count(&read_all(&client, "songs").await?), RECORDS as usize);
    // What was applied is in segments when a broker has stopped.
    cluster.broker(DAMAGED).stop().await?;
    let (bytes, path) = whole.ok_or("it was damaged")?;
    assert!(std::fs::read(&path)? == bytes, "{} is what it was", path.display());
    Ok(())
}

/// What nobody else can give is not thrown away, though all brokers start: put back it is as whole as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_on_all_brokers_stays_where_it_is() -> Outcome<()> {
    let (mut cluster, client) = with_segments().await?;
    let status = cluster.settled(&client).await?;
    let lives: Vec<_> = (1..=3).map(|broker| life(&status, broker)).collect();
    let mut whole = BTreeMap::new();
    for id in 1..=3 {
        cluster.broker(id).stop().await?;
        let path = a_sealed_one(&cluster.broker(id).data_dir())?;
        whole.insert(path.clone(), std::fs::read(&path)?);
        cut_a_segment(&cluster.broker(id).data_dir())?;
    }
    for id in 1..=3 {
        cluster.broker(id).restart().await?;
    }
    for broker in cluster.brokers() {
        let told = eventually("it says that it is not replaced", PATIENCE, async || {
            let log = broker.log_text().ok()?;
            (log.contains("is not replaced yet") && log.contains("what is left of it is kept")).then_some(())
        });
        if let Err(error) = told.await {
            return Err(format!("{error}\n{}", broker.log_tail()).into());
        }
    }
    for id in 1..=3 {
        cluster.broker(id).stop().await?;
    }
    for (path, bytes) in &whole {
        assert!(std::fs::read(path)? == bytes[..bytes.len() / 2], "{} is as it was left", path.display());
        std::fs::write(path, bytes)?;
    }
    for id in 1..=3 {
        cluster.broker(id).restart().await?;
    }
    let status = cluster.settled(&client).await?;
    assert_eq!((1..=3).map(|broker| life(&status, broker)).collect::<Vec<_>>(), lives, "nobody is a new one");
    assert_eq!(count(&read_all(&client, "songs").await?), RECORDS as usize);
    Ok(())
}
