//! What a broker counts: over HTTP, and of bad input.

use std::net::{SocketAddr, UdpSocket};

use tidemill_client::{ErrorCode, NewDeployment, PartitionId, Start};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, WorldError};
use tidemill_hostile as hostile;
use tidemill_hostile::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{PATIENCE, batch_of, broker, create, not_stored, refused};
use crate::raw::RawPeer;

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

/// Each kind of bad input is counted, and there is a line of it in the broker's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_counted_and_logged() -> Outcome<()> {
    let (broker, client) = broker().await?;
    create(&client, "t", 1).await?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..50 {
        socket.send_to(b"GET / HTTP/1.1\r\n\r\n", broker.address())?;
    }
    assert!(RawPeer::connect(&broker, b"h3").await.is_err());
    let upload = client.plugins().upload("core", "1", hostile::core_module_only()).await;
    assert_eq!(refused(upload), ErrorCode::InvalidComponent);
    client.plugins().upload("traps", "1", hostile::traps(World::Filter)).await?;
    client.deployments().create(NewDeployment::produce_filter("traps", "traps", "t")).await?;
    let producer = client.producer("t").build().await?;
    let outcome = producer.send_batch(PartitionId::new(0), batch_of(&["a"])).await?.await;
    assert_eq!(not_stored(outcome), ErrorCode::PluginTrapped);
    let none: [(&str, &str); 0] = [];
    client.deployments().delete("traps").await?;
    producer.send_batch(PartitionId::new(0), batch_of(&["a"])).await?.await?;
    let mut consumer =
        client.consumer().topic("t").from(Start::Earliest).filter("traps", none).build().await?;
    let read = tokio::time::timeout(PATIENCE, consumer.next()).await?;
    assert!(read.is_some_and(|record| record.is_err()), "its filter fails");

    let expected = [
        ("tidemill_net_garbage_datagrams_total", "datagrams that are not QUIC"),
        ("tidemill_net_failed_handshakes_total", "a handshake failed"),
        ("tidemill_requests_failed_total{code=\"INVALID_COMPONENT\"}", "INVALID_COMPONENT"),
        ("tidemill_produce_refused_total{code=\"PLUGIN_TRAPPED\"}", "PLUGIN_TRAPPED"),
        ("tidemill_plugin_failures_total{kind=\"trapped\"}", "PLUGIN_TRAPPED"),
        ("tidemill_subscribe_failed_total{code=\"PLUGIN_TRAPPED\"}", "subscription"),
    ];
    for (series, line) in expected {
        eventually(series, PATIENCE, async || {
            let text = client.metrics().await.ok()?;
            let value =
                text.lines().find_map(|sample| sample.strip_prefix(series)?.trim().parse::<f64>().ok());
            value.filter(|value| *value >= 1.0)
        })
        .await?;
        eventually(line, PATIENCE, async || broker.log_text().ok()?.contains(line).then_some(())).await?;
    }
    Ok(())
}
