//! Clients that say nothing, and use a replica that leaves.

use tidemill_client::messages::ClusterStatus;
use tidemill_client::{BrokerId, NewTopic, PartitionId, Position, Record, TopicPartition};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::members::{join, replicas_of};

const SHARDS: u16 = 4;
const PARTITIONS: u32 = 8;
/// The broker whose replicas leave and come back.
const DRAINED: u32 = 2;

/// A consumer that is paused and a producer that has nothing to send are told that a replica has left: otherwise they would keep its files
/// open, and no other could take its place at that broker for as long as they stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_keeps_no_replica_from_coming_back() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, SHARDS, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    join(&mut cluster, &client, 4).await?;
    let whole = |status: &ClusterStatus| {
        let leads = status.placement.iter().any(|shard| shard.shard != 0 && shard.leader == DRAINED);
        leads && replicas_of(status, DRAINED) == 3 && status.risks.is_empty()
    };
    cluster.until(&client, "give each broker its share", whole).await?;

    let topic = client.topics().create(NewTopic::new("plays", PARTITIONS)).await?.id;
    let producer = client.producer("plays").build().await?;
    let to_each = async |value: &'static [u8]| -> Outcome<()> {
        for partition in 0..PARTITIONS {
            producer.send(Record::new(value).partition(PartitionId::new(partition))).await?.await?;
        }
        Ok(())
    };
    to_each(b"before").await?;
    let mut consumer = client.consumer().topic("plays").from(Position::earliest()).build().await?;
    let mut seen = 0;
    while seen < PARTITIONS {
        consumer.next().await.ok_or("it does not end")??;
        seen += 1;
    }
    let partitions =
        (0..PARTITIONS).map(|partition| TopicPartition { topic, partition: PartitionId::new(partition) });
    partitions.clone().for_each(|partition| consumer.pause(partition));

    client.drain_broker(BrokerId::new(DRAINED), false).await?;
    cluster.until(&client, "drain a broker", |status| replicas_of(status, DRAINED) == 0).await?;
    client.drain_broker(BrokerId::new(DRAINED), true).await?;
    cluster.until(&client, "give the broker its share back", whole).await?;
    let log = cluster.broker(DRAINED).log_text()?;
    assert!(!log.contains("are still in use here"), "{}", cluster.broker(DRAINED).log_tail());

    // Both go on.
    to_each(b"after").await?;
    partitions.for_each(|partition| consumer.resume(partition));
    for _ in 0..PARTITIONS {
        let record = consumer.next().await.ok_or("it does not end")??;
        assert_eq!(record.value.as_deref(), Some(&b"after"[..]));
    }
    Ok(())
}
