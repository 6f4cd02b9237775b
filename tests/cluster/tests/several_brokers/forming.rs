//! Three brokers become a cluster.

use tidemill_client::{NewTopic, Record};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_form_a_cluster_that_any_of_them_serves() -> Outcome<()> {
    let cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    let status = cluster.settled(&client).await?;
    assert_eq!(status.brokers.len(), 3);
    assert!(status.brokers.iter().all(|broker| broker.alive && broker.state == "active"), "{status:#?}");
    assert_eq!(status.placement.len(), 4, "the controller's shard and three of data");
    for shard in &status.placement {
        let voters = shard.replicas.iter().filter(|replica| replica.voter).count();
        assert_eq!((voters, shard.planned.len()), (3, 3), "{shard:?}");
    }

    for broker in cluster.brokers() {
        let log = broker.log_text()?;
        let refused = log.lines().find(|line| line.contains("refused: the peer reset"));
        assert_eq!(refused, None, "a stream that is let go of is no refusal");
    }

    client.topics().create(NewTopic::new("plays", 6)).await?;
    let producer = client.producer("plays").build().await?;
    for number in 0..100u32 {
        producer.send(Record::new(&number.to_be_bytes()).key(&number.to_be_bytes())).await?.await?;
    }
    // By each broker alone: what it does not lead it has from those that do.
    for (there, broker) in (100..).zip(cluster.brokers()) {
        let alone = broker.client().await?;
        assert_eq!(count(&read_all(&alone, "plays").await?), there);
        let producer = alone.producer("plays").build().await?;
        producer.send(Record::new(b"one more")).await?.await?;
        let described = alone.topics().describe("plays").await?;
        assert_eq!(described.partitions.len(), 6);
    }
    Ok(())
}
