//! A broker that lost everything gets it back by snapshots: at the rate that the operator set, and not twice what it had when it died again.

use std::time::{Duration, Instant};

use tidemill_client::{BrokerId, Client, Start};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::reading::{count, drain};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, TestCluster};

use crate::files::{Filling, fill};

const EMPTIED: u32 = 3;
/// Those who send to it.
const SENDERS: [u32; 2] = [1, 2];
const PARTITIONS: u32 = 4;
const RECORDS: u32 = 4_096;
const RECORD_BYTES: usize = 8 << 10;
const DATA_BYTES: f64 = RECORDS as f64 * RECORD_BYTES as f64;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Of each sender.
const BYTES_PER_SECOND: u64 = 3 << 20;
/// When so much has come it dies.
const DIES_AT_BYTES: f64 = DATA_BYTES * 0.375;
const RATE: &str = "tidemill_snapshot_rate_limit_bytes_per_second";
const RECEIVED: &str = "tidemill_snapshot_received_bytes_total";
const PATIENCE: Duration = Duration::from_secs(60);

fn rack(broker: u32) -> String {
    format!("rack-{broker}")
}

/// What a broker counts as received, once it is so much.
async fn received(broker: &TestBroker, at_least: f64) -> Outcome<f64> {
    let alone = Client::detached(broker.client_config().client_id("test"))?;
    eventually("snapshots come", PATIENCE, async || {
        metric(&alone, RECEIVED).await.ok().filter(|bytes| *bytes >= at_least)
    })
    .await
}

/// The entries of which it all was made have left the others' logs, so only snapshots bring it back. The broker is killed in the middle of them,
/// and goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_come_at_the_rate_that_was_set_and_go_on_where_their_receiver_died() -> Outcome<()> {
    let options = BrokerOptions::default().set("storage.checkpoint_bytes", 1 << 20);
    let mut cluster = TestCluster::planned(3, 2, options, None).await?;
    cluster.start_planned(|broker, options| options.set("rack", rack(broker))).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let filling = Filling {
        partitions: PARTITIONS,
        in_turn: true,
        segment_bytes: SEGMENT_BYTES,
        records: RECORDS,
        record_bytes: RECORD_BYTES,
        seed: 12,
    };
    fill(&client, "plays", &filling).await?;
    cluster.settled(&client).await?;
    client.alter_cluster(None, Some(BYTES_PER_SECOND)).await?;
    for sender in SENDERS {
        let alone = cluster.broker(sender).client().await?;
        eventually("the rate comes to who will send", PATIENCE, async || {
            (metric(&alone, RATE).await.ok()? == BYTES_PER_SECOND as f64).then_some(())
        })
        .await?;
    }

    cluster.broker(EMPTIED).kill().await?;
    std::fs::remove_dir_all(cluster.broker(EMPTIED).data_dir())?;
    let token = client.create_join_token(Some(BrokerId::new(EMPTIED)), None).await?;
    let options = cluster.joining(EMPTIED, &token.token)?.set("rack", rack(EMPTIED));
    let begun = Instant::now();
    *cluster.broker(EMPTIED) = TestBroker::start(options).await?;
    let first = received(cluster.broker(EMPTIED), DIES_AT_BYTES).await?;
    cluster.broker(EMPTIED).kill().await?;
    assert!(first < DATA_BYTES * 0.75, "{first} of {DATA_BYTES} bytes had come: that is not the middle");

    cluster.broker(EMPTIED).restart().await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    let took = begun.elapsed().as_secs_f64();
    let second = received(cluster.broker(EMPTIED), 1.0).await?;
    let total = first + second;
    assert!(total > DATA_BYTES / 2.0, "{first} and {second} bytes came by snapshots, and the rest otherwise");
    assert!(second < DATA_BYTES - first / 2.0, "of {first} bytes most came again: {second} bytes");
    let least = total / (SENDERS.len() as f64 * BYTES_PER_SECOND as f64);
    // A faster one would be the rate's fault, a slower one the machine's.
    assert!(took > least / 2.0, "{total} bytes within {took} s, which the rate allows in {least} s");

    let reader = client.consumer().topic("plays").rack(rack(EMPTIED)).from(Start::Earliest).stop_at_end();
    assert_eq!(count(&drain(reader.build().await?).await?), RECORDS as usize);
    Ok(())
}
