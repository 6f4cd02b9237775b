//! One directory, one broker.

use tidemill_client::Record;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, WorldError};

use crate::kit::create;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_broker_on_the_same_directory_is_refused() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let options = BrokerOptions::default().directory(home.path());
    let mut broker = TestBroker::start(options.clone()).await?;
    let client = broker.client().await?;
    create(&client, "t", 1).await?;
    let producer = client.producer("t").build().await?;
    producer.send(Record::new("one")).await?.await?;
    let holder = broker.process_id().ok_or("it runs")?;
    match TestBroker::start(options.clone()).await {
        Err(WorldError::Ended { status, log }) => {
            assert_eq!(status.code(), Some(1));
            let why = format!("error: the data directory is in use by process {holder} (lock file ");
            assert!(log.contains(&why) && log.contains("stop it first"), "it says why: {log}");
            assert!(log.contains("/lock); stop it first"), "and in which directory: {log}");
        }
        other => return Err(format!("two brokers share a directory: {other:?}").into()),
    }
    // The first has not noticed; and once it is gone, another may take over at once.
    producer.send(Record::new("two")).await?.await?;
    broker.kill().await?;
    let second = TestBroker::start(options).await?;
    let client = second.client().await?;
    assert_eq!(count(&read_all(&client, "t").await?), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_something_else_is_left_alone() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let data = home.path().join("data");
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("thesis.tex"), "\\documentclass{book}")?;
    let refused = TestBroker::start(BrokerOptions::default().directory(home.path())).await;
    assert!(matches!(refused, Err(WorldError::Ended { .. })), "{refused:?}");
    assert_eq!(std::fs::read_to_string(data.join("thesis.tex"))?, "\\documentclass{book}");
    Ok(())
}
