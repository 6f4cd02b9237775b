//! What is fixed when a data directory is made, and stays.

use tidemill_client::Record;
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, WorldError};

use crate::kit::create;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_and_durability_stay_what_they_were() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let options = BrokerOptions::default().directory(home.path());
    let made = options.clone().set("shards", 2).set("durability", "replicated");
    let mut broker = TestBroker::start(made.clone()).await?;
    let client = broker.client().await?;
    create(&client, "t", 3).await?;
    let producer = client.producer("t").build().await?;
    producer.send(Record::new("one")).await?.await?;
    // A broker that stops gives its clients time.
    drop((producer, client));
    broker.stop().await?;

    for (setting, value, stored) in [("shards", "3", "2"), ("durability", "fsync", "replicated")] {
        match TestBroker::start(options.clone().set(setting, value)).await {
            Err(WorldError::Ended { status, log }) => {
                assert_eq!(status.code(), Some(2));
                let said = log.lines().last().unwrap_or_default();
                assert!(said.contains(setting) && said.contains(value) && said.contains(stored), "{said}");
                assert!(
                    said.contains("settings") && said.contains("directory"),
                    "it says what to do: {said}"
                );
            }
            other => return Err(format!("{setting} = {value} is taken: {other:?}").into()),
        }
    }
    // Neither a word about it nor the same word stands in the way.
    for settings in [options, made] {
        let mut again = TestBroker::start(settings).await?;
        let client = again.client().await?;
        let status = client.cluster_status().await?;
        assert_eq!(
            (status.durability.as_str(), status.shards.len()),
            ("replicated", 3),
            "with the controller's"
        );
        assert_eq!(count(&read_all(&client, "t").await?), 1);
        drop(client);
        again.stop().await?;
    }
    Ok(())
}
