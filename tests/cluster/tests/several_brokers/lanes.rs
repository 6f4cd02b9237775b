//! What clients do over connections between brokers holds up no replica.

use std::time::Duration;

use tidemill_client::{Client, NewTopic, PartitionId, Record};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

/// More streams than brokers let each other have on one connection would leave, all to one broker.
const PARTITIONS: u32 = 1_200;
/// Producers that each have a stream for each partition.
const PRODUCERS: u32 = 8;

/// One shard, so that one broker leads all partitions; a client behind another broker, as one is whose network knows no other, fills what
/// carries clients' streams between the two. Then the leader dies, and the others must still elect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_clients_that_fill_their_connection_keep_nobody_from_an_election() -> Outcome<()> {
    let mut cluster = TestCluster::planned(3, 1, BrokerOptions::default(), None).await?;
    cluster.start_planned(|broker, options| options.set("advertise", format!("127.0.0.1:{broker}"))).await?;
    let at = |cluster: &TestCluster, broker: u32| -> Outcome<Client> {
        let address = cluster.brokers()[broker as usize - 1].address().to_string();
        let config = cluster.client_config_at([address]).client_id("at one broker");
        Ok(Client::detached(config.request_timeout(Duration::from_secs(60)))?)
    };
    let status = cluster.settled(&at(&cluster, 1)?).await?;
    let led = |status: &tidemill_client::messages::ClusterStatus| {
        status.placement.iter().find(|shard| shard.shard == 1).map_or(0, |shard| shard.leader)
    };
    let leader = led(&status);
    let behind = leader % 3 + 1;
    let client = at(&cluster, behind)?;
    client.topics().create(NewTopic::new("plays", PARTITIONS)).await?;
    let mut producers = Vec::new();
    for _ in 0..PRODUCERS {
        let producer = client.producer("plays").build().await?;
        for number in 0..PARTITIONS {
            let record = Record::new(b"play").partition(PartitionId::new(number));
            // Where there is no stream for it any more, it waits.
            producer.send_and_forget(record).await?;
        }
        producers.push(producer);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;

    cluster.broker(leader).kill().await?;
    // Its own connection: on the other one a request waits for a stream like all that the producers still want.
    let onlooker = at(&cluster, behind)?;
    let elsewhere = |status: &tidemill_client::messages::ClusterStatus| ![0, leader].contains(&led(status));
    cluster.until(&onlooker, "lead the shard elsewhere", elsewhere).await?;
    drop(producers);
    cluster.broker(leader).restart().await?;
    cluster.settled(&onlooker).await?;
    Ok(())
}
