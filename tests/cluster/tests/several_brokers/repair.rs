//! Segments of a broker's that no longer are what was written.

use std::time::Duration;

use tidemill_client::{Client, Start};
use tidemill_cluster_tests::metrics::metric;
use tidemill_cluster_tests::reading::{count, drain};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster};

use crate::files::{fill_segments, sealed};

const RECORDS: u32 = 600;
const DAMAGED: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

fn rack(broker: u32) -> String {
    format!("rack-{broker}")
}

/// Everything that the topic has, read at one broker.
async fn read_at(client: &Client, broker: u32) -> Outcome<usize> {
    let consumer = client.consumer().topic("plays").rack(rack(broker)).from(Start::Earliest).stop_at_end();
    Ok(count(&drain(consumer.build().await?).await?))
}

/// One broker's segments get flipped bits and swapped blocks while it is away. Back again it finds the damage, by itself or because somebody
/// reads, and takes the segments from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_segments_come_whole_from_the_other_brokers() -> Outcome<()> {
    let mut cluster = TestCluster::planned(3, 2, BrokerOptions::default(), None).await?;
    cluster.start_planned(|broker, options| options.set("rack", rack(broker))).await?;
    let client = cluster.client()?;
    fill_segments(&cluster, &client, "plays", 2, RECORDS).await?;
    // What was applied is in segments when a broker has stopped.
    cluster.broker(2).stop().await?;
    let whole = sealed(&cluster.broker(2).data_dir())?;
    assert!(whole.len() > 4, "{:?}", whole.keys());
    cluster.broker(2).restart().await?;
    cluster.settled(&client).await?;

    // A scrub finds it first, or a reader does.
    let options = cluster.options_of(DAMAGED).set("rack", rack(DAMAGED));
    for (rate, reads) in [(256 << 20, false), (0, true)] {
        cluster.broker(DAMAGED).stop().await?;
        let data_dir = cluster.broker(DAMAGED).data_dir();
        assert_eq!(sealed(&data_dir)?.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for (number, (path, bytes)) in whole.iter().enumerate() {
            let (mut bytes, half) = (bytes.clone(), bytes.len() / 2);
            match number % 3 {
                0 => bytes[half] ^= 1,
                1 => {
                    let (one, other) = bytes.split_at_mut(half);
                    one[512..1024].swap_with_slice(&mut other[512..1024]);
                }
                _ => continue,
            }
            std::fs::write(data_dir.join(path), bytes)?;
        }
        assert_ne!(sealed(&data_dir)?, whole);
        cluster.broker(DAMAGED).change(options.clone().set("storage.scrub_bytes_per_second", rate));
        cluster.broker(DAMAGED).restart().await?;
        cluster.settled(&client).await?;
        if reads {
            // Where it does not read here, the client turns to another replica.
            assert_eq!(read_at(&client, DAMAGED).await?, RECORDS as usize);
        }
        let repaired = eventually("all segments are whole again", PATIENCE, async || {
            if reads {
                // One damaged segment at a time is met by a reader that goes elsewhere.
                read_at(&client, DAMAGED).await.ok()?;
            }
            (sealed(&data_dir).ok()? == whole).then_some(())
        });
        if let Err(error) = repaired.await {
            return Err(format!("{error}\n{}", cluster.broker(DAMAGED).log_tail()).into());
        }
        assert_eq!(read_at(&client, DAMAGED).await?, RECORDS as usize);
        // Another replica in its place would have whole segments, too.
        let alone = cluster.broker(DAMAGED).client().await?;
        eventually("it counts what it repaired, and nothing that waits", PATIENCE, async || {
            let repaired = metric(&alone, "tidemill_segment_repairs_total").await.ok()?;
            (repaired > 0.0 && waiting(&alone).await? == 0.0).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// Segments of a broker's that are not repaired yet; `None` until it has looked for any.
async fn waiting(alone: &Client) -> Option<f64> {
    let metrics = alone.metrics().await.ok()?;
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix("tidemill_segments_unrepaired "));
    values.next()?.parse().ok()
}
