//! Producers and readers that go on whatever happens, and what must be there in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidemill_client::{Client, Consumer, NewDeployment, NewTopic, PartitionId, Producer, Record, Start};
use tidemill_cluster_tests::reading::{ByPartition, read_all};
use tidemill_cluster_tests::waiting::eventually;
use tidemill_cluster_tests::{Outcome, plugins};
use tokio::task::JoinHandle;

/// How long a record may take to be acknowledged: longer than any failover.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);
/// Within this time producers go on: an election, on a machine that is busy with other things.
const GOING_ON_WITHIN: Duration = Duration::from_secs(45);
/// So many more records are acknowledged of one that goes on: more than can have been on their way.
const PROGRESS: u64 = 10;
/// Until a reader has been given what is there already.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Between two records of a producer: what counts is that it goes on, not how much it sends.
const PAUSE: Duration = Duration::from_millis(2);

/// What producers are to do.
#[derive(Clone, Default)]
struct Orders {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
}

/// A producer that sends a record when the one before it is acknowledged. Its numbers are from 0 on.
struct Sender {
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<Result<(), String>>,
}

impl Sender {
    /// Sends what `value` makes of each number, to a partition, or where the broker places it.
    fn start(
        producer: Producer,
        partition: Option<PartitionId>,
        orders: &Orders,
        value: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let (acknowledged, orders) = (Arc::new(AtomicU64::new(0)), orders.clone());
        let counter = Arc::clone(&acknowledged);
        let task = tokio::spawn(async move {
            let mut number = 0_u64;
            while !orders.stop.load(Ordering::Relaxed) {
                if orders.pause.load(Ordering::Relaxed) {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                let bytes = value(number);
                let record = Record::new(&bytes);
                let record = partition.map_or(record, |partition| record.partition(partition));
                let sent = producer.send(record).await.map_err(|error| error.to_string())?;
                sent.await.map_err(|error| format!("record {number}, for {partition:?}: {error}"))?;
                number += 1;
                counter.store(number, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
        Self { acknowledged, task }
    }

    /// How many of its records are acknowledged.
    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for its last record, when it was told to stop. Answers how many there were.
    async fn end(self) -> Outcome<u64> {
        self.task.await??;
        Ok(self.acknowledged.load(Ordering::Relaxed))
    }
}

fn counts(senders: &[Sender]) -> Vec<u64> {
    senders.iter().map(Sender::acknowledged).collect()
}

/// Waits until each producer has been acknowledged some more records than now; an error says why one ended, or how far they came.
async fn go_on(senders: &mut [Sender]) -> Outcome<()> {
    let before = counts(senders);
    let (seen, known) = (&*senders, &before);
    let waited = eventually("all producers go on", GOING_ON_WITHIN, async || {
        let ended = seen.iter().any(|sender| sender.task.is_finished());
        let risen = counts(seen).iter().zip(known).all(|(now, before)| *now >= before + PROGRESS);
        (ended || risen).then_some(())
    })
    .await;
    if let Some(ended) = senders.iter_mut().find(|sender| sender.task.is_finished()) {
        return Err(format!("a producer gave up: {:?}", (&mut ended.task).await?).into());
    }
    let now = counts(senders);
    waited.map_err(|error| format!("{error}: {before:?} records were acknowledged, then {now:?}").into())
}

/// One producer per partition, each sending numbers from 0 on, one behind the other.
pub(crate) struct Load {
    orders: Orders,
    /// By partition.
    senders: Vec<Sender>,
    topic: String,
}

impl Load {
    pub(crate) async fn start(client: &Client, topic: &str, partitions: u32) -> Outcome<Self> {
        client.topics().create(NewTopic::new(topic, partitions)).await?;
        let (orders, mut senders) = (Orders::default(), Vec::new());
        for partition in 0..partitions {
            let producer = client.producer(topic).delivery_timeout(DELIVERY_DEADLINE).build().await?;
            let value = |number: u64| number.to_be_bytes().to_vec();
            senders.push(Sender::start(producer, Some(PartitionId::new(partition)), &orders, value));
        }
        Ok(Self { orders, senders, topic: topic.to_owned() })
    }

    /// Has the producers send nothing, beyond what is under way, until they are to go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.orders.pause.store(paused, Ordering::Relaxed);
    }

    /// Waits until more of every partition is acknowledged than now. Not while it is paused.
    pub(crate) async fn goes_on(&mut self) -> Outcome<()> {
        assert!(!self.orders.pause.load(Ordering::Relaxed), "nobody goes on who is told to pause");
        go_on(&mut self.senders).await
    }

    /// Checks that each record that is acknowledged by now is there once, in order; there may be more by then.
    pub(crate) async fn is_there(&self, client: &Client) -> Outcome<()> {
        let acknowledged = counts(&self.senders);
        let read = read_all(client, &self.topic).await?;
        for (partition, acknowledged) in (0..).zip(acknowledged) {
            let there = count_in_order(&read, partition);
            assert!(
                there >= acknowledged,
                "partition {partition}: {acknowledged} acknowledged, {there} are there"
            );
        }
        Ok(())
    }

    /// Ends the load, and checks that each acknowledged record is there once, in order. Answers how many there are.
    pub(crate) async fn check(self, client: &Client) -> Outcome<u64> {
        self.orders.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for sender in self.senders {
            acknowledged.push(sender.end().await?);
        }
        let read = read_all(client, &self.topic).await?;
        for (partition, count) in (0..).zip(&acknowledged) {
            assert_eq!(
                count_in_order(&read, partition),
                *count,
                "of partition {partition}: what is there, and what was acknowledged"
            );
        }
        Ok(acknowledged.iter().sum())
    }
}

/// How many records of a load a partition has: the numbers from 0 on, each once, in order, and without gaps between their offsets.
fn count_in_order(read: &ByPartition, partition: u32) -> u64 {
    let records = read.get(&partition).map(Vec::as_slice).unwrap_or_default();
    let values: Vec<u64> = records
        .iter()
        .map(|record| {
            let value = record.value.as_deref().unwrap_or_default();
            u64::from_be_bytes(value.try_into().expect("8 bytes were sent"))
        })
        .collect();
    let count = values.len() as u64;
    assert!(values.iter().copied().eq(0..count), "partition {partition}: read {values:?}");
    let offsets = records.iter().map(|record| record.offset.get());
    assert!(offsets.eq(0..count as i64), "partition {partition} has gaps");
    count
}

/// A reader of everything from the first record on, which is given no record twice and misses none.
pub(crate) struct Reader {
    given: Arc<AtomicU64>,
    task: JoinHandle<Result<(), String>>,
}

impl Reader {
    pub(crate) async fn start(client: &Client, topic: &str) -> Outcome<Self> {
        let consumer = client.consumer().topic(topic).from(Start::Earliest).build().await?;
        let given = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(read_in_order(consumer, Arc::clone(&given)));
        Ok(Self { given, task })
    }

    /// Waits until it has been given so many records, and ends it.
    pub(crate) async fn has_all(self, records: u64) -> Outcome<()> {
        let (given, task) = (&self.given, &self.task);
        let waited = eventually("a reader is given all that is there", READ_WITHIN, async || {
            (task.is_finished() || given.load(Ordering::Relaxed) >= records).then_some(())
        })
        .await;
        if self.task.is_finished() {
            return Err(format!("a reader ended: {:?}", self.task.await?).into());
        }
        self.task.abort();
        let given = self.given.load(Ordering::Relaxed);
        waited.map_err(|error| format!("{error}: {records} records are, and it was given {given}").into())
    }
}

/// Counts what a consumer is given, which is each partition's records from the first on, none twice and none left out.
async fn read_in_order(mut consumer: Consumer, given: Arc<AtomicU64>) -> Result<(), String> {
    let mut next: BTreeMap<PartitionId, i64> = BTreeMap::new();
    while let Some(record) = consumer.next().await {
        let record = record.map_err(|error| error.to_string())?;
        let expected = next.entry(record.partition).or_default();
        if record.offset.get() != *expected {
            let (partition, offset) = (record.partition, record.offset);
            return Err(format!("partition {partition}: offset {offset} came where {expected} should"));
        }
        *expected += 1;
        given.fetch_add(1, Ordering::Relaxed);
    }
    Err("it was given an end".to_owned())
}

/// One producer of a topic whose partitioner places what it sends: songs, each in one partition.
pub(crate) struct Routed {
    orders: Orders,
    sender: Sender,
    topic: String,
}

#[derive(serde::Deserialize)]
struct Play {
    song_id: String,
    number: u64,
}

impl Routed {
    const SONGS: u64 = 7;

    pub(crate) async fn start(client: &Client, topic: &str, partitions: u32) -> Outcome<Self> {
        plugins::upload(client, "field-hash").await?;
        client.topics().create(NewTopic::new(topic, partitions)).await?;
        let by_song = NewDeployment::partitioner("by-song", "field-hash", topic).set("field", "song_id");
        client.deployments().create(by_song).await?;
        let producer = client.producer(topic).routed().delivery_timeout(DELIVERY_DEADLINE).build().await?;
        let orders = Orders::default();
        let sender = Sender::start(producer, None, &orders, |number| {
            format!(r#"{{"song_id":"song-{}","number":{number}}}"#, number % Self::SONGS).into_bytes()
        });
        Ok(Self { orders, sender, topic: topic.to_owned() })
    }

    /// Waits until more of it is acknowledged than now.
    pub(crate) async fn goes_on(&mut self) -> Outcome<()> {
        go_on(std::slice::from_mut(&mut self.sender)).await
    }

    /// Ends it, and checks that each acknowledged record is there once, in order, with the others of its song.
    pub(crate) async fn check(self, client: &Client) -> Outcome<()> {
        self.orders.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.sender.end().await?;
        let (mut places, mut numbers) = (BTreeMap::new(), BTreeSet::new());
        for (partition, records) in read_all(client, &self.topic).await? {
            let mut last = None;
            for record in records {
                let Play { song_id, number } =
                    serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
                assert!(last < Some(number), "partition {partition}: {number} stands behind {last:?}");
                last = Some(number);
                numbers.insert(number);
                let place = *places.entry(song_id.clone()).or_insert(partition);
                assert_eq!(place, partition, "{song_id} is in two partitions");
            }
        }
        assert!(numbers.iter().copied().eq(0..acknowledged), "{acknowledged} acknowledged, read {numbers:?}");
        Ok(())
    }
}
