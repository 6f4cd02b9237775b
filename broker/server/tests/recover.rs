//! `tidemill cluster recover` on the directory of a broker that was a cluster of its own: what it refuses, and what it leaves.

use std::path::Path;

use tidemill_protocol::Timestamp;
use tidemill_server::{
    Broker, BrokerConfig, RecoverError, RecoverReport, RecoverRequest, StartError, recover,
};

fn config(data_dir: &Path) -> BrokerConfig {
    let mut config = BrokerConfig {
        data_dir: data_dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        shards: Some(2),
        ..BrokerConfig::default()
    };
    config.wal.segment_bytes = 8 << 20;
    config.wal.bytes_max = 64 << 20;
    config.storage.disk_reserve_bytes = 0;
    config.storage.disk_free_min_bytes = 0;
    config
}

async fn run(data_dir: &Path, accept_loss: bool) -> Result<RecoverReport, RecoverError> {
    let now = Timestamp::new(1_800_000_000_000);
    recover(RecoverRequest { data_dir: data_dir.to_owned(), accept_loss, leave_missing: false, now }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_goes_on_under_new_lives_and_what_was_broken_off_starts_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path();
    let none = run(data, true).await.expect_err("there is nothing");
    assert!(matches!(none, RecoverError::NoDirectory(_)), "{none}");

    let broker = Broker::start(config(data)).await.expect("starts");
    let cluster = broker.cluster();
    let running = run(data, true).await.expect_err("it runs");
    assert!(matches!(running, RecoverError::DataDir(_)), "{running}");
    assert!(running.to_string().contains("in use"), "{running}");
    broker.shutdown("enough").await;

    let looked = run(data, false).await.expect("reads");
    assert!(!looked.recovered && looked.others.is_empty() && looked.cluster == cluster);
    assert_eq!((looked.shards.len(), looked.incarnation), (3, 2));
    assert!(looked.shards.iter().all(|shard| shard.held.is_ok()), "{looked:?}");
    let done = run(data, true).await.expect("goes on");
    assert!(done.recovered && done.incarnation == 2);
    let broker = Broker::start(config(data)).await.expect("starts");
    assert_eq!(broker.cluster(), cluster, "it is what it was");
    broker.shutdown("enough").await;

    // As if it had ended half-way.
    let note = data.join("recovered");
    let text = std::fs::read_to_string(&note).expect("there");
    assert!(text.contains("complete = true") && text.contains("1800000000000"), "{text}");
    // What it told the controller stands in the log by then: who was thrown out is known from the note alone.
    assert!(text.contains("lost_brokers = []"), "{text}");
    let half = text.replace("complete = true", "complete = false");
    std::fs::write(&note, half.replace("lost_brokers = []", "lost_brokers = [2, 3]")).expect("written");
    let Err(error) = Broker::start(config(data)).await else { panic!("it is half recovered") };
    assert!(matches!(&error, StartError::HalfRecovered { .. }), "{error}");
    let again = run(data, true).await.expect("once more");
    assert_eq!(again.incarnation, 3, "no incarnation comes twice");
    let lost: Vec<u32> = again.others.iter().map(|broker| broker.get()).collect();
    assert_eq!(lost, [2, 3]);
    let text = std::fs::read_to_string(&note).expect("there");
    assert!(text.contains("lost_brokers = [2, 3]") && text.contains("complete = true"), "{text}");
    assert!(!text.contains("complete = false"), "one note of one recovery: {text}");
    Broker::start(config(data)).await.expect("starts").shutdown("enough").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_without_a_replica_here_are_named_and_left_only_when_told() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path();
    Broker::start(config(data)).await.expect("starts").shutdown("enough").await;
    // As on a broker that was never given the second shard.
    let lives = data.join("replicas");
    let text = std::fs::read_to_string(&lives).expect("there");
    let without: String = text
        .lines()
        .map(|line| match line.strip_prefix("begun = ") {
            Some(_) => "begun = [0, 1]\n".to_owned(),
            None => format!("{line}\n"),
        })
        .collect();
    assert_ne!(text, without);
    std::fs::write(&lives, without).expect("written");
    let refused = run(data, true).await.expect_err("a shard is missing");
    assert!(matches!(&refused, RecoverError::Missing { missing, .. } if missing.len() == 1), "{refused}");
    assert!(refused.to_string().contains("shard 2") && refused.to_string().contains("--leave-missing"));
    assert!(!data.join("recovered").exists(), "nothing has changed");
    let now = Timestamp::new(1_800_000_000_000);
    let told = RecoverRequest { data_dir: data.to_owned(), accept_loss: true, leave_missing: true, now };
    assert!(recover(told).await.expect("as told").recovered);
}
