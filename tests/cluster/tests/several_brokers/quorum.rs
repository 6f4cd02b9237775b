//! Two of three brokers are gone.

use std::time::{Duration, Instant};

use tidemill_client::{NewTopic, Record, Start};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

/// Producers get an error within their deadline, readers go on with what is committed, and all is well when the others are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_written_and_what_is_there_is_read() -> Outcome<()> {
    const DEADLINE: Duration = Duration::from_secs(3);
    let mut cluster = TestCluster::start(3, 2, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    client.topics().create(NewTopic::new("plays", 2)).await?;
    let producer = client.producer("plays").build().await?;
    for number in 0..50u32 {
        producer.send(Record::new(&number.to_be_bytes())).await?.await?;
    }
    cluster.broker(2).kill().await?;
    cluster.broker(3).kill().await?;

    let alone = cluster.broker(1).client().await?;
    let hasty = client.producer("plays").delivery_timeout(DEADLINE).build().await;
    let begun = Instant::now();
    if let Ok(hasty) = hasty {
        let sent = hasty.send(Record::new(b"lost?")).await?;
        sent.await.expect_err("no majority has it");
    }
    let took = begun.elapsed();
    assert!(took < DEADLINE + Duration::from_secs(5), "the deadline was {DEADLINE:?}, and it took {took:?}");

    // From the start, by offsets: what is committed here is there to read.
    let mut consumer = alone.consumer().topic("plays").from(Start::Earliest).build().await?;
    let mut read = 0;
    while read < 50 {
        match tokio::time::timeout(Duration::from_secs(20), consumer.next()).await {
            Ok(Some(record)) => {
                record?;
                read += 1;
            }
            other => panic!("{read} of 50 records were read, then: {other:?}"),
        }
    }
    drop(consumer);

    cluster.broker(2).restart().await?;
    cluster.broker(3).restart().await?;
    cluster.settled(&client).await?;
    producer.send(Record::new(b"again")).await?.await?;
    // Whoever reads to the end as of now may be served by a replica that hears of the newest record a moment later.
    let there = eventually("the record written last is read", Duration::from_secs(20), async || {
        let there = count(&read_all(&client, "plays").await.ok()?);
        (there > 50).then_some(there)
    })
    .await?;
    assert!((51..=52).contains(&there), "{there} records");
    Ok(())
}
