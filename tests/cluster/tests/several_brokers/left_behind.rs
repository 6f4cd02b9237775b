//! Streams of clients that wait for nothing but their clients, at a replica that ends.

use std::collections::BTreeSet;

use tidemill_client::messages::{
    ClusterStatus, Error, SubscribeAdd, SubscribeEvent, SubscribeFailed, subscribe_event,
};
use tidemill_client::{
    BatchBuilder, BrokerId, BuilderOptions, ErrorCode, NewTopic, PartitionId, Record, Timestamp,
    TopicPartition,
};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::raw::{RawPeer, RawStream};

/// The only one with data.
const SHARD: u32 = 1;
const CREDIT_BYTES: u64 = 1 << 20;

/// The brokers whose replicas vote in the shard.
fn voters(status: &ClusterStatus) -> BTreeSet<u32> {
    let placed = status.placement.iter().filter(|placed| placed.shard == SHARD);
    let replicas = placed.flat_map(|placed| &placed.replicas).filter(|replica| replica.voter);
    replicas.map(|replica| replica.broker_id).collect()
}

/// The incarnations of a broker's replicas of the shard.
fn lives(status: &ClusterStatus, broker: u32) -> BTreeSet<u32> {
    let placed = status.placement.iter().filter(|placed| placed.shard == SHARD);
    let replicas = placed.flat_map(|placed| &placed.replicas).filter(|replica| replica.broker_id == broker);
    replicas.map(|replica| replica.incarnation).collect()
}

fn code(error: Option<&Error>) -> Option<ErrorCode> {
    error.and_then(|error| ErrorCode::from_code(error.code))
}

/// Adds a partition from its start.
async fn begin(stream: &mut RawStream, add: SubscribeAdd) -> Outcome<()> {
    match stream.subscribe_to(add).await? {
        subscribe_event::Kind::Started(_) => Ok(()),
        other => Err(format!("the partition should begin: {other:?}").into()),
    }
}

/// How a partition ended, of which nothing else may come.
async fn failed(stream: &mut RawStream) -> Outcome<SubscribeFailed> {
    match stream.message::<SubscribeEvent>().await?.kind {
        Some(subscribe_event::Kind::Failed(failed)) => Ok(failed),
        other => Err(format!("the partition should end: {other:?}").into()),
    }
}

/// A leader's replica moves away and comes back, while a reader that has paused, one that gives no credit, and a producer that has nothing to say
/// stay where they are. What they were opened to has ended, so nobody may have its files open when the next replica opens them; and each of them
/// hears of it: the readers at once, the producer with its next batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_comes_back_though_idle_streams_stay() -> Outcome<()> {
    let mut cluster = TestCluster::start(4, 1, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    let status = cluster.led_as_planned(&client).await?;
    let placed = status.placement.iter().find(|placed| placed.shard == SHARD).ok_or("the shard is there")?;
    let (leader, before) = (placed.leader, lives(&status, placed.leader));
    let spare =
        (1..=4).find(|broker| !voters(&status).contains(broker)).ok_or("one of four has no replica")?;
    client.topics().create(NewTopic::new("plays", 1)).await?;
    let producer = client.producer("plays").build().await?;
    producer.send(Record::new(b"play")).await?.await?;

    let partition = TopicPartition::new(client.topic_metadata("plays").await?.id, PartitionId::new(0));
    let (peer, _control) = RawPeer::greeted_without_ids(cluster.broker(leader)).await?;
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    builder.append(Timestamp::new(1_000), None, Some(b"another play"), [])?;
    let batch = builder.build()?;
    let mut producing = peer.producing(partition).await?;
    let ack = producing.produce(0, &batch).await?;
    assert!(ack.error.is_none(), "{ack:?}");
    let mut reading = peer.subscribing().await?;
    let add = SubscribeAdd { partition: Some(partition.into()), ..SubscribeAdd::default() };
    begin(&mut reading, SubscribeAdd { id: 1, ..add.clone() }).await?;
    begin(&mut reading, SubscribeAdd { id: 2, paused: true, credit_bytes: CREDIT_BYTES, ..add }).await?;

    client.drain_broker(BrokerId::new(leader), false).await?;
    let has_left = |status: &ClusterStatus| lives(status, leader).is_empty() && voters(status).len() == 3;
    cluster.until(&client, "give the leader's place to the fourth broker", has_left).await?;
    client.drain_broker(BrokerId::new(leader), true).await?;
    client.drain_broker(BrokerId::new(spare), false).await?;
    let is_back = |status: &ClusterStatus| voters(status).contains(&leader);
    let status = cluster.until(&client, "have a new replica where the first leader was", is_back).await?;
    assert!(lives(&status, leader).is_disjoint(&before), "no replica comes back: {status:#?}");
    let log = cluster.broker(leader).log_text()?;
    assert!(!log.contains("are still in use here"), "{}", cluster.broker(leader).log_tail());

    let mut ended = BTreeSet::new();
    for _ in 0..2 {
        let failed = failed(&mut reading).await?;
        let error = failed.error.as_ref();
        assert_eq!(code(error), Some(ErrorCode::StorageFailed), "{failed:?}");
        assert!(error.is_some_and(|error| error.retriable), "others have it: {failed:?}");
        ended.insert(failed.id);
    }
    assert_eq!(ended, BTreeSet::from([1, 2]));
    let ack = producing.produce(1, &batch).await?;
    assert_eq!(code(ack.error.as_ref()), Some(ErrorCode::NotLeader), "{ack:?}");
    producer.send(Record::new(b"the last play")).await?.await?;
    Ok(())
}
