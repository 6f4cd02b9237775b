use std::sync::Arc;
use std::time::Duration;

use tidemill_client::{
    Client, Commit, ConsumerRecord, Offset, OutOfRange, PartitionId, Start, TopicPartition,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::history::RecordId;
use super::load::{DEVICES, Topic, recognise};
use super::recording::Recording;
use super::setup::FILTERED_DEVICE;
use crate::Outcome;

/// How often a reader that waits for the end looks whether it is there.
const END_INTERVAL: Duration = Duration::from_millis(200);
/// Between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(300);

/// A live reader under fire: from the first record on, across all reconnects.
pub(super) struct Reading {
    pub(super) client: Client,
    /// As the history calls it.
    pub(super) name: &'static str,
    pub(super) seed: u64,
    pub(super) topic: Topic,
    pub(super) is_filtered: bool,
    /// Where it reads, if not at the leaders.
    pub(super) rack: Option<&'static str>,
    pub(super) recording: Recording,
    /// Where the partitions end, once nothing more is produced.
    pub(super) ends: watch::Receiver<Option<Vec<i64>>>,
    /// Where it is, for whoever commits that.
    pub(super) positions: watch::Sender<Vec<i64>>,
}

/// What a reader saw.
#[derive(Debug)]
pub(super) struct Seen {
    /// By partition: offset and record.
    pub(super) records: Vec<Vec<(i64, RecordId)>>,
    pub(super) reconnects: u64,
    /// Why it came no further, where it should have.
    pub(super) stopped: Option<String>,
}

impl Reading {
    /// Reads until it has read up to the ends, or is told that nothing more comes.
    pub(super) async fn run(self) -> Outcome<Seen> {
        let builder =
            self.client.consumer().topic(self.topic.name()).from(Start::Earliest).window_bytes(2 << 20);
        let builder = if self.is_filtered {
            let condition = format!("device == \"{}\"", DEVICES[FILTERED_DEVICE as usize]);
            builder.filter("json-filter", [("where", condition.as_str())])
        } else {
            builder
        };
        // Where retention has overtaken it, it goes on with what is left.
        let builder = match self.topic {
            Topic::Trimmed => builder.on_out_of_range(OutOfRange::Earliest),
            Topic::Direct | Topic::Routed => builder,
        };
        let builder = match self.rack {
            Some(rack) => builder.rack(rack),
            None => builder,
        };
        self.recording.consumer(self.name, self.is_filtered);
        let mut consumer = builder.build().await?;
        let mut seen = vec![Vec::new(); self.topic.partitions() as usize];
        let mut positions = vec![0; seen.len()];
        let stopped = loop {
            let ends = self.ends.borrow().clone();
            if let Some(ends) = &ends {
                let now = consumer.positions();
                let next = |partition: &u32| {
                    let mut all = now.iter();
                    let found = all.find(|(known, _)| known.partition.get() == *partition);
                    found.and_then(|(_, position)| position.next).map_or(0, Offset::get)
                };
                if (0u32..).zip(ends).all(|(partition, end)| next(&partition) >= *end) {
                    for (partition, _) in (0u32..).zip(ends) {
                        self.recording.drained(self.name, self.topic, partition, next(&partition));
                    }
                    break None;
                }
            }
            // With a look at the ends now and then, also where nothing comes any more.
            let Ok(record) = timeout(END_INTERVAL, consumer.next()).await else { continue };
            let record = match record {
                Some(Ok(record)) => record,
                Some(Err(error)) => break Some(error.to_string()),
                None => break Some("it came to an end by itself".to_owned()),
            };
            let partition = record.partition.get() as usize;
            let read = self.recognise(&record)?;
            let offset = record.offset.get();
            self.recording.poll(self.name, self.topic, record.partition.get(), offset, read);
            seen.get_mut(partition).ok_or("a record of no partition")?.push((record.offset.get(), read));
            if let Some(position) = positions.get_mut(partition) {
                *position = record.offset.get() + 1;
            }
            self.positions.send_replace(positions.clone());
        };
        Ok(Seen { records: seen, reconnects: consumer.stats().reconnects, stopped })
    }

    fn recognise(&self, record: &ConsumerRecord) -> Outcome<RecordId> {
        let offset = record.offset.get();
        let read = recognise(self.seed, self.topic, offset, record.key.as_deref(), record.value.as_deref());
        let place = format!("{}-{} at {offset}", record.topic, record.partition);
        Ok(read.map_err(|reason| format!("{place}: {reason}"))?.id)
    }
}

/// Commits a reader's positions under a group's name, again and again.
pub(super) struct Committing {
    pub(super) client: Client,
    pub(super) group: &'static str,
    pub(super) topic: Topic,
    pub(super) positions: watch::Receiver<Vec<i64>>,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) recording: Recording,
}

/// The last commits, by partition.
#[derive(Debug, Clone)]
pub(super) struct Committed {
    pub(super) acknowledged: Vec<i64>,
    pub(super) tried: Vec<i64>,
    pub(super) commits: u64,
}

impl Committing {
    pub(super) async fn run(self) -> Outcome<Committed> {
        let topic = Arc::clone(&self.client.topic_metadata(self.topic.name()).await?);
        let none = vec![0; self.topic.partitions() as usize];
        let mut committed = Committed { acknowledged: none.clone(), tried: none, commits: 0 };
        while !*self.stopped.borrow() {
            sleep(COMMIT_INTERVAL).await;
            let positions = self.positions.borrow().clone();
            if positions.len() != committed.tried.len() {
                continue;
            }
            let commits: Vec<_> = (0u32..)
                .zip(&positions)
                .map(|(partition, next)| {
                    let partition = TopicPartition::new(topic.id, PartitionId::new(partition));
                    Commit::new(partition, Offset::new(*next))
                })
                .collect();
            committed.tried.clone_from(&positions);
            self.recording.commit(self.group, self.topic, &positions);
            if self.client.groups().commit(self.group, &commits).await.is_ok() {
                self.recording.committed(self.group, self.topic, &positions);
                committed.acknowledged = positions;
                committed.commits += 1;
            }
        }
        Ok(committed)
    }
}
