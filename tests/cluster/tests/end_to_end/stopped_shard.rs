//! A shard whose own files fail stops alone. The others go on, the log that they share keeps its bound and what the stopped one has in
//! it, and what was decided meanwhile reaches that one when it starts again.

use std::path::PathBuf;

use tidemill_client::messages::{CreateTopicRequest, SubscribeAdd, request, subscribe_event};
use tidemill_client::{Client, ErrorCode, PartitionId, Position, Record, TopicPartition};
use tidemill_cluster_tests::reading::{count, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};

use crate::disk_fails::{is_storage_failed, send_until_refused, stopped_with};
use crate::kit::{PATIENCE, broker_with, code, create, metric, partition_of};
use crate::raw::RawPeer;

const RECORD_BYTES: usize = 100_000;
const WAL_SEGMENT_BYTES: u64 = 4 << 20;
const WAL_BYTES_MAX: u64 = 24 << 20;
/// Several times what the log may have.
const OTHER_RECORDS: usize = 700;

/// A broker of two shards, of which one has stopped.
struct OneStopped {
    broker: TestBroker,
    client: Client,
    shard: u32,
    /// What keeps its files from being written.
    obstacle: PathBuf,
    /// Records of the topic `stopped` that were acknowledged before; `other` is in the other shard.
    acknowledged: usize,
}

impl OneStopped {
    async fn start() -> Outcome<Self> {
        let options = BrokerOptions::default()
            .set("shards", 2)
            .set("wal.segment_bytes", WAL_SEGMENT_BYTES)
            .set("wal.bytes_max", WAL_BYTES_MAX)
            .set("storage.checkpoint_bytes", 2 << 20);
        let (broker, client) = broker_with(options).await?;
        create(&client, "stopped", 1).await?;
        create(&client, "other", 1).await?;
        let shard = shards_of(&client, "stopped").await?[0];
        assert_ne!(shards_of(&client, "other").await?, [shard]);
        // A file where the directory of the partition's segments is to be.
        let partition = partition_of(&client, "stopped", 0).await?;
        let obstacle = broker.data_dir().join(format!("shard-{shard:02}")).join(partition.to_string());
        std::fs::write(&obstacle, b"")?;
        let value = [b'x'; RECORD_BYTES];
        let (acknowledged, refusal) = send_until_refused(&client, "stopped", &value, 200).await?;
        assert!(is_storage_failed(&refusal), "after {acknowledged}: {refusal}");
        stopped_with(&client, "then restart the broker").await?;
        Ok(Self { broker, client, shard, obstacle, acknowledged })
    }

    /// Starts the broker again, and there is nothing in the shard's way any more. Answers a client that knows nothing of before.
    async fn mend(&mut self) -> Outcome<Client> {
        self.broker.stop().await?;
        std::fs::remove_file(&self.obstacle)?;
        self.broker.restart().await?;
        Ok(self.broker.client().await?)
    }
}

/// The shard of each partition.
async fn shards_of(client: &Client, topic: &str) -> Outcome<Vec<u32>> {
    let described = client.topics().describe(topic).await?;
    Ok(described.partitions.iter().map(|partition| partition.shard).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_in_a_log_that_keeps_its_bound() -> Outcome<()> {
    const CARRIED: &str = "tidemill_wal_carried_bytes_total";
    let mut one = OneStopped::start().await?;
    assert_eq!(metric(&one.client, CARRIED).await?, 0.0, "there is room yet");
    let producer = one.client.producer("other").build().await?;
    for _ in 0..OTHER_RECORDS {
        producer.send_and_forget(Record::new(&[b'y'; RECORD_BYTES])).await?;
    }
    producer.flush().await?;
    let wal_bytes = one.client.cluster_status().await?.wal_bytes;
    // What is being carried is not waited for.
    assert!(wal_bytes <= WAL_BYTES_MAX + WAL_SEGMENT_BYTES, "the log has {wal_bytes} bytes");
    let carried = metric(&one.client, CARRIED).await?;
    let held = (one.acknowledged * RECORD_BYTES) as f64;
    assert!(carried >= held, "{carried} bytes of {held} that the stopped shard has in the log");

    let client = one.mend().await?;
    let there = count(&read_all(&client, "stopped").await?);
    // The one that was refused was on its way.
    assert!((one.acknowledged..=one.acknowledged + 1).contains(&there), "{there} of {}", one.acknowledged);
    assert_eq!(count(&read_all(&client, "other").await?), OTHER_RECORDS);
    client.producer("stopped").build().await?.send(Record::new("again")).await?.await?;
    Ok(())
}

/// A topic that is made meanwhile stands, and is served where its shard has heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shard_has_not_heard_of_it_hears_when_it_starts_again() -> Outcome<()> {
    let mut one = OneStopped::start().await?;
    let (peer, _control) = RawPeer::greeted(&one.broker).await?;
    let topic = CreateTopicRequest { name: "later".to_owned(), partitions: 2, ..Default::default() };
    let late = peer.answer(500, request::Body::CreateTopic(topic)).await?.error;
    assert_eq!(code(late), Some(ErrorCode::Deadline), "whoever makes it waits for both shards");
    let shards = shards_of(&one.client, "later").await?;
    let unheard = u32::from(shards[1] == one.shard);
    assert_eq!(shards[unheard as usize], one.shard, "a partition in each of two shards: {shards:?}");
    let behind = partition_of(&one.client, "later", unheard).await?;
    let ahead = partition_of(&one.client, "later", 1 - unheard).await?;

    let asked = [(behind, Position::Earliest), (ahead, Position::Earliest)];
    let found = one.client.offsets().find(&asked).await?;
    let error = found[0].as_ref().expect_err("its shard knows nothing of it");
    assert!(error.is(ErrorCode::NotYetAdopted) && error.retriable, "{error}");
    assert!(found[1].is_ok(), "the other is answered: {found:?}");

    let mut stream = peer.subscribing().await?;
    let add = |id: u32, partition: TopicPartition| SubscribeAdd {
        id,
        partition: Some(partition.into()),
        ..SubscribeAdd::default()
    };
    match stream.subscribe_to(add(1, behind)).await? {
        subscribe_event::Kind::Failed(failed) => {
            assert_eq!((failed.id, code(failed.error)), (1, Some(ErrorCode::NotYetAdopted)));
        }
        other => return Err(format!("it is served: {other:?}").into()),
    }
    let started = stream.subscribe_to(add(2, ahead)).await?;
    assert!(matches!(started, subscribe_event::Kind::Started(_)), "the stream goes on: {started:?}");
    let series = "tidemill_subscribe_failed_total{code=\"NOT_YET_ADOPTED\"}";
    assert_eq!(metric(&one.client, series).await?, 1.0);

    let client = one.mend().await?;
    eventually("the shard hears of the topic", PATIENCE, async || {
        let found = client.offsets().find(&asked).await.ok()?;
        found.iter().all(Result::is_ok).then_some(())
    })
    .await?;
    let producer = client.producer("later").build().await?;
    producer.send(Record::new("at last").partition(PartitionId::new(unheard))).await?.await?;
    assert_eq!(count(&read_all(&client, "later").await?), 1);
    Ok(())
}
