//! Two readers at their own positions, one of them live to the end.

use std::collections::BTreeMap;

use tidemill_client::{Client, Consumer, ConsumerStats, PartitionId, RequestError, Start, TopicPartition};
use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::reading::ByPartition;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::chapters::{EVENTS, PARTITIONS, PATIENCE, TOPIC};
use crate::narrator::{Narrator, grouped};

const LIVE: &str = "recommendations";
const NIGHTLY: &str = "royalties";

/// Chapter: two readers at their own positions. Answers the one that goes on reading, and where the other one is: there the
/// replay begins.
pub(crate) async fn play(
    narrator: &mut Narrator,
    client: &Client,
    all: &ByPartition,
) -> Outcome<(LiveReader, BTreeMap<u32, i64>)> {
    narrator.chapter("Two readers, each at its own pace");
    narrator.tell(
        "Recommendations read live, all the time; royalties run at night and are behind. Both read the same log; each commits its \
         own position under its name, and neither takes anything away from the other.",
    );
    let mut live = LiveReader::start(client).await?;
    live.has_read(EVENTS).await?;
    live.commit().await?;
    let mut nightly =
        client.consumer().topic(TOPIC).from(Start::committed(NIGHTLY)).stop_at_end().build().await?;
    for _ in 0..EVENTS / 4 {
        nightly.next().await.ok_or("the topic ended too early")??;
    }
    nightly.commit(NIGHTLY).await?;
    drop(nightly);
    let topic = client.topic_metadata(TOPIC).await?;
    let mut positions = BTreeMap::new();
    for group in [LIVE, NIGHTLY] {
        let committed = client.groups().positions(group).await?;
        let at = |partition: u32| {
            committed
                .get(&TopicPartition::new(topic.id, PartitionId::new(partition)))
                .map_or(0, |offset| offset.get())
        };
        let all_at: Vec<i64> = (0..PARTITIONS).map(at).collect();
        let behind = all.values().map(Vec::len).sum::<usize>() as i64 - all_at.iter().sum::<i64>();
        narrator.show(format!(
            "{group:<16} committed offsets {all_at:?}, {} events behind",
            grouped(behind.unsigned_abs())
        ));
        positions.insert(group, all_at);
    }
    let ends: Vec<i64> =
        (0..PARTITIONS).map(|p| all.get(&p).map_or(0, |records| records.len() as i64)).collect();
    narrator.check(positions[LIVE] == ends, "recommendations have read everything, and wait for more");
    let royalties = &positions[NIGHTLY];
    narrator.check(
        royalties.iter().sum::<i64>() == (EVENTS / 4) as i64,
        format!("royalties have read {} events", grouped(EVENTS / 4)),
    );
    Ok((live, (0..PARTITIONS).zip(royalties.iter().copied()).collect()))
}

/// One consumer that reads whatever comes, until it is asked what it has.
pub(crate) struct LiveReader {
    commands: mpsc::Sender<Command>,
    count: watch::Receiver<u64>,
    reading: JoinHandle<Outcome<(ByPartition, ConsumerStats)>>,
}

enum Command {
    Commit(oneshot::Sender<Result<(), RequestError>>),
    Finish,
}

impl LiveReader {
    async fn start(client: &Client) -> Outcome<Self> {
        let consumer = client.consumer().topic(TOPIC).from(Start::committed(LIVE)).build().await?;
        let (commands, commanded) = mpsc::channel(1);
        let (counted, count) = watch::channel(0);
        Ok(Self { commands, count, reading: tokio::spawn(read(consumer, commanded, counted)) })
    }

    /// Waits until so many events have arrived.
    pub(crate) async fn has_read(&mut self, events: u64) -> Outcome<()> {
        let arrived = tokio::time::timeout(PATIENCE, self.count.wait_for(|count| *count >= events)).await;
        arrived.map_err(|_| format!("{LIVE} did not get {events} events within {PATIENCE:?}"))??;
        Ok(())
    }

    async fn commit(&self) -> Outcome<()> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Commit(answer)).await?;
        Ok(answered.await??)
    }

    /// Ends it: all that it read, and how.
    pub(crate) async fn finish(self) -> Outcome<(ByPartition, ConsumerStats)> {
        self.commands.send(Command::Finish).await?;
        self.reading.await?
    }
}

async fn read(
    mut consumer: Consumer,
    mut commands: mpsc::Receiver<Command>,
    count: watch::Sender<u64>,
) -> Outcome<(ByPartition, ConsumerStats)> {
    let mut read = ByPartition::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Commit(answer)) => _ = answer.send(consumer.commit(LIVE).await),
                Some(Command::Finish) | None => return Ok((read, consumer.stats())),
            },
            record = consumer.next() => {
                let record = record.ok_or("a live reader's topic does not end")??;
                read.entry(record.partition.get()).or_default().push(record);
                count.send_modify(|count| *count += 1);
            }
        }
    }
}
