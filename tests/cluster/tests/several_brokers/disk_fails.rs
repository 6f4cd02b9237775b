//! One broker's disk fails for good, and its process lives on.

use std::time::Duration;

use tidemill_client::messages::ClusterStatus;
use tidemill_client::{Client, Consumer, NewTopic, Record, Start};
use tidemill_cluster_tests::loop_disk::BrittleDisk;
use tidemill_cluster_tests::machine::unable;
use tidemill_cluster_tests::reading::{count, drain};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, plugins};

use crate::load::Load;

const PARTITIONS: u32 = 3;
const FAILING: u32 = 2;

/// Whose process ends before its disk goes, and that before the directory around it.
struct OnBrittleDisk {
    disk: Option<BrittleDisk>,
    cluster: TestCluster,
}

impl Drop for OnBrittleDisk {
    fn drop(&mut self) {
        self.cluster.let_go();
        self.disk = None;
    }
}

/// Reads so many records more.
async fn read(consumer: &mut Consumer, count: usize) -> Outcome<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    for number in 0..count {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        next.map_err(|_| format!("{number} of {count} came"))?.ok_or("the end")??;
    }
    Ok(())
}

/// How many songs have a number below five, as read in the failing broker's rack.
async fn small_numbers(client: &Client) -> Outcome<usize> {
    let consumer = client.consumer().topic("songs").from(Start::Earliest).rack(format!("rack-{FAILING}"));
    let consumer = consumer.filter("json-filter", [("where", "number < 5")]).stop_at_end().build().await?;
    Ok(count(&drain(consumer).await?))
}

/// Its producers go to the others without an error, and so do readers that had chosen it for its rack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_a_broker_with_a_failing_disk_served_the_others_serve() -> Outcome<()> {
    let cluster = TestCluster::planned(3, PARTITIONS as u16, BrokerOptions::default(), None).await?;
    let mount = cluster.directory().join(format!("broker-{FAILING}/data"));
    let mut world = OnBrittleDisk { disk: None, cluster };
    match BrittleDisk::mount(&mount) {
        Ok(disk) => world.disk = Some(disk),
        Err(reason) => {
            unable(
                &["mount", "mkfs.ext4"],
                &format!("no disk that can be broken is to be had here: {reason}"),
            );
            return Ok(());
        }
    }
    world.cluster.start_planned(|id, options| options.set("rack", format!("rack-{id}"))).await?;
    let client = world.cluster.client()?;
    world.cluster.settled(&client).await?;
    plugins::upload(&client, "json-filter").await?;
    client.topics().create(NewTopic::new("songs", PARTITIONS)).await?;
    let producer = client.producer("songs").build().await?;
    for number in 0..30 {
        producer.send(Record::new(&format!(r#"{{"number":{number}}}"#))).await?.await?;
    }
    // In its new life it has loaded no component.
    world.cluster.broker(FAILING).stop().await?;
    world.cluster.broker(FAILING).restart().await?;
    world.cluster.settled(&client).await?;
    let mut load = Load::start(&client, "plays", PARTITIONS).await?;
    let reader = client.consumer().topic("plays").from(Start::Earliest).rack(format!("rack-{FAILING}"));
    let mut reader = reader.build().await?;
    read(&mut reader, 500).await?;
    let at_failing = world.cluster.broker(FAILING).client().await?;

    if let Some(disk) = &world.disk {
        disk.fail()?;
    }
    let well = world.cluster.broker(1).client().await?;
    world
        .cluster
        .until(&well, "lead elsewhere what the failing broker led", |status| {
            status.placement.iter().all(|shard| shard.leader != 0 && shard.leader != FAILING)
        })
        .await?;
    let told = |status: &ClusterStatus| {
        status.risks.iter().any(|risk| risk.contains(&format!("has stopped on broker {FAILING}")))
    };
    world.cluster.until(&well, "say that shards have stopped", told).await?;
    // More than were on their way.
    read(&mut reader, 3_000).await?;
    load.goes_on().await?;
    // The filter's component is on the broken disk, too, and nothing can be stored there.
    assert_eq!(small_numbers(&client).await?, 5);
    plugins::upload(&at_failing, "redact").await?;

    world.cluster.broker(FAILING).kill().await?;
    if let Some(disk) = &world.disk {
        disk.mend()?;
    }
    world.cluster.broker(FAILING).restart().await?;
    world.cluster.settled(&client).await?;
    read(&mut reader, 100).await?;
    load.goes_on().await?;
    load.check(&client).await?;
    Ok(())
}
