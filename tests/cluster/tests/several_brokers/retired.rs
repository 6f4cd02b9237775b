//! A broker whose write-ahead log was damaged while it was away.

use std::time::Duration;

use tidemill_client::Client;
use tidemill_client::messages::{ClusterStatus, ShardPlacement, ShardReplica};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::load::Load;
use crate::wal_files::NewestFile;

/// Of data; the controller's is one more.
pub(crate) const SHARDS: u16 = 3;
const DAMAGED: u32 = 2;
const DAMAGED_BLOCKS: u64 = 4;
const RETIRED: &str = "tidemill_replicas_retired_total";
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether each shard, the controller's among them, has a replica of a broker's that votes, and none of the first life.
fn all_are_new(status: &ClusterStatus, broker: u32) -> bool {
    let is_new = |replica: &ShardReplica| replica.voter && replica.incarnation > 1;
    let is_new_in = |shard: &ShardPlacement| {
        let mut here = shard.replicas.iter().filter(|replica| replica.broker_id == broker).peekable();
        here.peek().is_some() && here.all(is_new)
    };
    // Who has not heard of the shards yet is no witness.
    status.placement.len() == usize::from(SHARDS) + 1 && status.placement.iter().all(is_new_in)
}

/// Waits until a broker that was started again has found that it can't trust its log, and has new replicas of everything.
pub(crate) async fn comes_back_anew(cluster: &TestCluster, client: &Client, broker: u32) -> Outcome<()> {
    cluster
        .until(client, "replace all replicas of the broker that lost some of its log", |status| {
            all_are_new(status, broker)
        })
        .await?;
    // Its log is one for all shards, so all of them are in doubt.
    let shards = f64::from(SHARDS) + 1.0;
    let alone = cluster.brokers()[broker as usize - 1].client().await?;
    eventually("it counts those that it retired", PATIENCE, async || {
        (metric(&alone, RETIRED).await.ok()? == shards).then_some(())
    })
    .await?;
    cluster.settled(client).await?;
    Ok(())
}

/// Blocks in the middle of what was acknowledged no longer read, and later ones prove that they had been flushed. The broker starts all the
/// same, retires its replicas, and gets all that they had from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_a_damaged_log_comes_back_with_new_replicas() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, SHARDS, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", 6).await?;
    let data_dir = cluster.broker(DAMAGED).data_dir();
    NewestFile::well_filled(&data_dir).await?;
    cluster.broker(DAMAGED).kill().await?;
    load.goes_on().await?;

    let newest = NewestFile::find(&data_dir)?;
    let middle = newest.data.start.midpoint(newest.data.end);
    assert!(middle + 2 * DAMAGED_BLOCKS < newest.data.end, "{:?} are few blocks", newest.data);
    newest.change(middle..middle + DAMAGED_BLOCKS, |block| block[0] ^= 1)?;
    cluster.broker(DAMAGED).restart().await?;
    comes_back_anew(&cluster, &client, DAMAGED).await?;
    let log = cluster.broker(DAMAGED).log_text()?;
    assert!(
        log.contains("flushed bytes of the write-ahead log are damaged"),
        "{}",
        cluster.broker(DAMAGED).log_tail()
    );
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}
