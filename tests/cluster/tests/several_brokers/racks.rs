//! Brokers that stand in racks.

use std::collections::BTreeSet;

use tidemill_client::messages::{ClusterStatus, ShardPlacement};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::load::Load;

const SHARDS: u16 = 3;
/// Where each broker stands, the first one first.
const RACKS: [&str; 5] = ["a", "a", "b", "b", "c"];

fn rack(broker: u32) -> &'static str {
    RACKS[broker as usize - 1]
}

/// Whether a shard has three replicas, no two of them in the same rack.
fn is_spread(shard: &ShardPlacement) -> bool {
    let voters: Vec<u32> =
        shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.broker_id).collect();
    let racks: BTreeSet<&str> = voters.iter().map(|broker| rack(*broker)).collect();
    voters.len() == 3 && racks.len() == 3
}

/// Three replicas each, so one in each of the three racks, though the founders began without a thought of them. Then a whole rack dies, and
/// no shard has lost more than one of its replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_stand_in_different_racks_and_survive_the_loss_of_one() -> Outcome<()> {
    let mut cluster = TestCluster::planned(5, SHARDS, BrokerOptions::default(), None).await?;
    cluster.start_planned(|broker, options| options.set("rack", rack(broker))).await?;
    let client = cluster.client()?;
    let spread = |status: &ClusterStatus| {
        let shards = usize::from(SHARDS) + 1;
        status.risks.is_empty() && status.placement.len() == shards && status.placement.iter().all(is_spread)
    };
    let status = cluster.until(&client, "spread each shard over the racks", spread).await?;
    let stand: Vec<&str> = status.brokers.iter().map(|broker| broker.rack.as_str()).collect();
    assert_eq!(stand, RACKS);

    let mut load = Load::start(&client, "plays", 6).await?;
    load.goes_on().await?;
    for broker in [1, 2] {
        cluster.broker(broker).kill().await?;
    }
    load.goes_on().await?;
    for broker in [1, 2] {
        cluster.broker(broker).restart().await?;
    }
    cluster.settled(&client).await?;
    load.check(&client).await?;
    Ok(())
}
