//! What a broker counts, over HTTP. What it counts of bad input is in `each_kind`.

use std::net::SocketAddr;

use tidemill_client::{
    BatchBuilder, BuilderOptions, Compression, PartitionId, RecordBatch, Start, Timestamp,
};
use tidemill_cluster_tests::reading::{count, drain};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, WorldError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{broker, create, metric};

async fn scrape(address: SocketAddr) -> Outcome<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: broker\r\nAccept: text/plain\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scraper_reads_what_the_broker_counts() -> Outcome<()> {
    let options = BrokerOptions::default().set("metrics.listen", "127.0.0.1:0");
    let broker = TestBroker::start(options).await?;
    let client = broker.client().await?;
    create(&client, "t", 1).await?;
    let address = broker.metrics_address().ok_or("it says where its metrics are")?;
    let answer = scrape(address).await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for metric in [
        "tidemill_requests_total",
        "tidemill_wal_sync_seconds_bucket",
        "tidemill_raft_leading{shard=\"0\"} 1",
    ] {
        assert!(answer.contains(metric), "{metric} is missing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_beyond_this_machine_reads_them_unasked() -> Outcome<()> {
    let broker = TestBroker::start(BrokerOptions::default()).await?;
    assert_eq!(broker.metrics_address(), None, "off where nobody asks for it");
    match TestBroker::start(BrokerOptions::default().set("metrics.listen", "0.0.0.0:0")).await {
        Err(WorldError::Ended { log, .. }) => assert!(log.contains("metrics.insecure"), "{log}"),
        other => return Err(format!("it listens: {other:?}").into()),
    }
    Ok(())
}

/// One record that is easy to compress.
fn zeros(compression: Compression, bytes: usize) -> Outcome<RecordBatch> {
    let mut builder = BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() });
    builder.append(Timestamp::new(1_000), None, Some(&vec![0; bytes]), [])?;
    Ok(builder.build_batch()?)
}

/// Small ones are unpacked where they come, whether they say their size or not; nothing is where nothing is compressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unpacked_apart_is_counted() -> Outcome<()> {
    const APART: &str = "tidemill_unpacked_apart_total";
    let (_broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let producer = client.producer("t").build().await?;
    let mut expected = 0.0;
    for (compression, bytes, apart) in [
        (Compression::None, 1 << 20, 0.0),
        (Compression::Zstd, 100_000, 0.0),
        (Compression::Gzip, 100_000, 0.0),
        (Compression::Zstd, 1 << 20, 1.0),
        (Compression::Gzip, 1 << 20, 1.0),
    ] {
        producer.send_batch(PartitionId::new(0), zeros(compression, bytes)?).await?.await?;
        expected += apart;
        assert_eq!(metric(&client, APART).await?, expected, "{compression}, {bytes} bytes");
    }
    // A subscription's filter reads them, and its connection unpacks them once more.
    client.plugins().upload("keep", "1", tidemill_hostile::keep_all()).await?;
    let none: [(&str, &str); 0] = [];
    let filtered = client.consumer().topic("t").from(Start::Earliest).filter("keep", none).stop_at_end();
    assert_eq!(count(&drain(filtered.build().await?).await?), 5);
    assert_eq!(metric(&client, APART).await?, expected + 2.0);
    Ok(())
}
