//! Who leads is pushed to who listens: nobody asks for it.

use tidemill_client::NewTopic;
use tidemill_client::messages::{Metadata, PartitionInfo};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::raw::RawPeer;

/// The first partition of the one topic that is listened for; `None` where the topic is not there.
fn first(metadata: &Metadata) -> Option<&PartitionInfo> {
    metadata.topics.first()?.partitions.first()
}

/// The leader dies without a word. Who listens at another broker, and never opens another stream than its first, is told who leads instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_is_told_of_a_new_leader() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    let status = cluster.led_as_planned(&client).await?;
    let shard = status.placement.iter().find(|placed| placed.shard == 1).ok_or("the shard is there")?;
    let (leader, listens_at) = (shard.leader, shard.leader % 3 + 1);
    client.topics().create(NewTopic::new("plays", 1)).await?;

    let (_peer, mut control) = RawPeer::greeted_without_ids(cluster.broker(listens_at)).await?;
    control.listen_for(&["plays"]).await?;
    let is_led = |now: &Metadata| first(now).is_some_and(|partition| partition.leader == leader);
    let before = control.pushed(is_led).await?;
    let before = first(&before).ok_or("it was there")?;
    assert!(before.leader_epoch > 0 && before.replicas.contains(&leader), "{before:?}");

    cluster.broker(leader).kill().await?;
    let is_led_elsewhere =
        |now: &Metadata| first(now).is_some_and(|partition| ![0, leader].contains(&partition.leader));
    let after = control.pushed(is_led_elsewhere).await?;
    let after = first(&after).ok_or("it was there")?;
    assert!(after.leader_epoch > before.leader_epoch, "{before:?}, then {after:?}");
    assert!(after.replicas.contains(&after.leader), "{after:?}");
    Ok(())
}
