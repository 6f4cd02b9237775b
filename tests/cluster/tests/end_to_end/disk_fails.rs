//! A disk that fails for good, under a whole broker: nothing is acknowledged that is not durable, the shards stop and say so, and what
//! was acknowledged is there when the disk works again.

use std::fs::File;
use std::time::Duration;

use tidemill_client::messages::TopicConfig;
use tidemill_client::{Client, DeliveryError, ErrorCode, NewTopic, Record};
use tidemill_cluster_tests::loop_disk::BrittleDisk;
use tidemill_cluster_tests::machine::unable;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};

use crate::kit::{PATIENCE, create, metric, partition_of};
use crate::raw::RawPeer;
use crate::small_disk::SmallDisk;

/// Sends records until one is refused: how many were acknowledged before, and why no more.
pub(crate) async fn send_until_refused(
    client: &Client,
    topic: &str,
    value: &[u8],
    at_most: usize,
) -> Outcome<(usize, DeliveryError)> {
    let producer = client.producer(topic).delivery_timeout(Duration::from_secs(10)).build().await?;
    for acknowledged in 0..at_most {
        if let Err(error) = producer.send(Record::new(value)).await?.await {
            return Ok((acknowledged, error));
        }
    }
    Err("the disk goes on working".into())
}

/// Every shard that the failure concerns is stopped and says why; the broker answers, and counts them.
pub(crate) async fn stopped_with(client: &Client, reason: &str) -> Outcome<()> {
    eventually("stopped shards", PATIENCE, async || {
        let status = client.cluster_status().await.ok()?;
        let stopped =
            status.shards.iter().any(|shard| shard.state == "stopped" && shard.reason.contains(reason));
        stopped.then_some(())
    })
    .await?;
    assert!(metric(client, "tidemill_shards_stopped_total").await? > 0.0);
    Ok(())
}

/// A refusal that says that the storage failed, at once or after the outcome of the first attempt was unknown: then it does not
/// call the record unstored.
pub(crate) fn is_storage_failed(error: &DeliveryError) -> bool {
    match error {
        DeliveryError::Refused(error) | DeliveryError::Unknown(error) => error.is(ErrorCode::StorageFailed),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_answers_eio_stops_the_shards_and_loses_nothing() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let disk = match BrittleDisk::mount(&home.path().join("data")) {
        Ok(disk) => disk,
        Err(reason) => {
            let reason = format!("no disk that can be broken is to be had here: {reason}");
            unable(&["mount", "mkfs.ext4"], &reason);
            return Ok(());
        }
    };
    // The log of the process lies beside the disk: it must be able to say what happened.
    let mut broker = TestBroker::start(BrokerOptions::default().directory(home.path())).await?;
    let client = broker.client().await?;
    create(&client, "t", 2).await?;
    let other = partition_of(&client, "t", 1).await?;
    let producer = client.producer("t").build().await?;
    for _ in 0..300 {
        producer.send(Record::new(&[b'x'; 1_000])).await?.await?;
    }
    let (peer, _control) = RawPeer::greeted(&broker).await?;

    disk.fail()?;
    let (acknowledged, refusal) =
        send_until_refused(&client, "t", &[b'y'; 1_000], 1).await.unwrap_or_else(|error| {
            panic!("nothing may be acknowledged: {error}");
        });
    assert_eq!(acknowledged, 0);
    assert!(is_storage_failed(&refusal), "{refusal}");
    stopped_with(&client, "nput/output error").await?;
    // Whoever comes later, to whichever partition, hears the same, once the shard has noticed.
    let batch = crate::kit::batch_of(&["later"]);
    eventually("STORAGE_FAILED for the other partition", PATIENCE, async || {
        let error = peer.producing(other).await.ok()?.produce(0, batch.bytes()).await.ok()?.error;
        let code = error.expect("it can't be stored").code;
        assert!(
            [ErrorCode::StorageFailed, ErrorCode::OutcomeUnknown].map(ErrorCode::code).contains(&code),
            "{code}"
        );
        (code == ErrorCode::StorageFailed.code()).then_some(())
    })
    .await?;
    let log = broker.log_text()?;
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("nput/output error")), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    broker.stop().await?;

    disk.mend()?;
    broker.restart().await?;
    let there = count(&read_all(&client, "t").await?);
    // What was on its way, one batch for each partition, may have reached the disk.
    assert!((300..=302).contains(&there), "{there}");
    client.producer("t").build().await?.send(Record::new("again")).await?.await?;
    assert_eq!(count(&read_all(&client, "t").await?), there + 1);
    broker.stop().await?;
    Ok(())
}

/// Free space is not all that a disk runs out of: here files can be made no more, which nobody sees beforehand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_makes_no_more_files_stops_the_shards_and_loses_nothing() -> Outcome<()> {
    let Some(disk) = SmallDisk::mount("size=512m,nr_inodes=2000") else { return Ok(()) };
    let options = BrokerOptions::default()
        .directory(disk.path())
        .set("wal.segment_bytes", 4 << 20)
        .set("wal.bytes_max", 32 << 20)
        .set("storage.checkpoint_bytes", 2 << 20);
    let mut broker = TestBroker::start(options).await?;
    let client = broker.client().await?;
    let config = TopicConfig { segment_bytes: Some(1 << 20), ..TopicConfig::default() };
    client.topics().create(NewTopic::new("t", 1).config(config)).await?;
    let producer = client.producer("t").build().await?;
    for _ in 0..30 {
        producer.send(Record::new(&[b'x'; 100_000])).await?.await?;
    }
    let fillers = disk.path().join("fillers");
    std::fs::create_dir(&fillers)?;
    let filled =
        (0..5_000).take_while(|number| File::create(fillers.join(number.to_string())).is_ok()).count();
    assert!((1..2_000).contains(&filled), "{filled}");

    let (acknowledged, refusal) = send_until_refused(&client, "t", &[b'y'; 100_000], 2_000).await?;
    assert!(is_storage_failed(&refusal), "after {acknowledged} more: {refusal}");
    stopped_with(&client, "No space left").await?;
    broker.stop().await?;
    std::fs::remove_dir_all(&fillers)?;
    broker.restart().await?;
    let there = count(&read_all(&client, "t").await?);
    assert!((30 + acknowledged..=31 + acknowledged).contains(&there), "{there}, {acknowledged} acknowledged");
    client.producer("t").build().await?.send(Record::new("again")).await?.await?;
    Ok(())
}
