//! Hosted consumers, whose tasks, timers and outboxes move with the leads of shards.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_client::{Client, NewDeployment, NewTopic, Position, Record};
use tidemill_cluster_tests::reading::read_all;
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestCluster, plugins};

const PARTITIONS: u32 = 3;
const SONGS: u64 = 7;
/// Longer than a failover and the windows that are open by then.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(serde::Deserialize)]
struct Count {
    song_id: u64,
    count: u64,
    window_start: i64,
}

/// What each window of a song said, in the order of the offsets.
type Windows = BTreeMap<(u64, i64), Vec<u64>>;

/// What was emitted.
async fn emitted(client: &Client) -> Outcome<Windows> {
    let mut windows = Windows::new();
    for record in read_all(client, "counts").await?.into_values().flatten() {
        let count: Count = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
        windows.entry((count.song_id, count.window_start)).or_default().push(count.count);
    }
    Ok(windows)
}

/// Waits until the windows of all that was sent have closed: together they say of each song how many records it had.
async fn all_closed(client: &Client, sent: &BTreeMap<u64, u64>, what: &str) -> Outcome<Windows> {
    eventually(what, PATIENCE, async || {
        let windows = emitted(client).await.ok()?;
        let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
        for ((song, _), counts) in &windows {
            *counted.entry(*song).or_default() += counts.last().copied().unwrap_or_default();
        }
        (counted == *sent).then_some(windows)
    })
    .await
}

/// Windows of a second are open on every broker when it is killed: their timers fire where their shards are led next, before it is back;
/// each window says once how much it counted, and together that is every record, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_that_were_open_when_their_broker_died_close_once_elsewhere() -> Outcome<()> {
    let mut cluster = TestCluster::start(3, PARTITIONS as u16, BrokerOptions::default()).await?;
    let client = cluster.client()?;
    cluster.settled(&client).await?;
    for topic in ["plays", "counts"] {
        client.topics().create(NewTopic::new(topic, PARTITIONS)).await?;
    }
    plugins::upload(&client, "count-by-field").await?;
    let counter = NewDeployment::consumer("songs", "count-by-field")
        .topic("plays")
        .target("counts")
        .set("field", "song_id")
        .set("window", "1s")
        .set("grace", "500ms")
        .start(Position::Earliest);
    client.deployments().create(counter).await?;

    let producer = client.producer("plays").build().await?;
    let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
    for broker in 1..=3 {
        for number in 0..400_u64 {
            let song = number % SONGS;
            let (key, value) = (song.to_be_bytes(), format!(r#"{{"song_id":{song}}}"#));
            producer.send(Record::new(&value).key(&key)).await?.await?;
            *sent.entry(song).or_default() += 1;
            if number == 300 {
                cluster.broker(broker).kill().await?;
            }
        }
        all_closed(&client, &sent, &format!("all windows close without broker {broker}")).await?;
        cluster.broker(broker).restart().await?;
        cluster.settled(&client).await?;
    }

    let windows = all_closed(&client, &sent, "all windows have closed").await?;
    assert!(windows.len() as u64 > 3 * SONGS, "{} windows", windows.len());
    for (window, counts) in windows {
        // One that late records opened again says more than before.
        assert!(counts.is_sorted_by(|before, after| before < after), "{window:?} said {counts:?}");
    }
    Ok(())
}
