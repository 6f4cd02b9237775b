//! One broker's disk has no room.

use std::time::Duration;

use tidemill_client::{DeliveryError, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

const PARTITIONS: u32 = 3;
/// Longer than brokers take to hear of each other's disks.
const DEADLINE: Duration = Duration::from_secs(5);

/// What the others lead they refuse too, since it would be written there as well; its own leads go to them; and all is as before when
/// there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_one_broker_is_counted_by_all_and_its_leads_leave_it() -> Outcome<()> {
    const FULL: u32 = 2;
    let mut cluster = TestCluster::start(3, 3, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    let producer = client.producer("plays").delivery_timeout(DEADLINE).build().await?;
    let send = async |number: u32| -> Outcome<Result<(), DeliveryError>> {
        let record = Record::new(b"play").partition(PartitionId::new(number));
        Ok(producer.send(record).await?.await.map(drop))
    };
    for number in 0..PARTITIONS {
        send(number).await??;
    }

    let usual = cluster.options_of(FULL);
    let full = usual.clone().set("storage.disk_free_min_bytes", 1_u64 << 60);
    cluster.broker(FULL).stop().await?;
    cluster.broker(FULL).change(full);
    cluster.broker(FULL).restart().await?;
    cluster
        .until(&client, "lead nothing at the full broker", |status| {
            let there = status.placement.iter().flat_map(|shard| &shard.replicas);
            let is_back = there.filter(|replica| replica.broker_id == FULL && replica.silent_ms < 1_000);
            let led = status.placement.iter().all(|shard| shard.leader != 0 && shard.leader != FULL);
            led && is_back.count() == status.placement.len()
        })
        .await?;
    for number in 0..PARTITIONS {
        // Those that heard of it too late would have taken the first.
        let refusal = loop {
            match send(number).await? {
                Ok(()) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => break error.to_string(),
            }
        };
        assert!(refusal.contains("DISK_FULL") && refusal.contains("broker 2"), "{refusal}");
    }

    // Whichever broker is asked.
    let risks = client.cluster_status().await?.risks;
    assert!(risks.iter().any(|risk| risk.starts_with("the disk of broker 2 is nearly full")), "{risks:?}");

    cluster.broker(FULL).stop().await?;
    cluster.broker(FULL).change(usual);
    cluster.broker(FULL).restart().await?;
    cluster
        .until(&client, "lead as planned again", |status| {
            status.placement.iter().any(|shard| shard.leader == FULL)
        })
        .await?;
    let producer = client.producer("plays").build().await?;
    for number in 0..PARTITIONS {
        let record = Record::new(b"play").partition(PartitionId::new(number));
        producer.send(record).await?.await?;
    }
    Ok(())
}
