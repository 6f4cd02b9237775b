use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_protocol::messages::FilterSpec;
use tidemill_protocol::{Offset, PartitionId, Timestamp, TopicPartition};

use super::guide::guide;
use super::state::{PartitionState, Settings, Shared, StopAtEnd};
use super::{Consumer, ConsumerError};
use crate::cluster::Cluster;
use crate::{Client, Position};

/// Where a consumer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// At the first record that the log still has.
    Earliest,
    /// Behind the last record.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record at or after this time.
    Time(Timestamp),
    /// Where the group's committed position is; a partition that has none begins at `or`.
    Committed {
        /// The group's name.
        group: String,
        /// For partitions without a position.
        or: Position,
    },
}

impl Start {
    /// Where the group's committed position is, else at the earliest record.
    pub fn committed(group: impl Into<String>) -> Self {
        Self::Committed { group: group.into(), or: Position::Earliest }
    }
}

impl From<Position> for Start {
    fn from(position: Position) -> Self {
        match position {
            Position::Earliest => Self::Earliest,
            Position::Latest => Self::Latest,
            Position::Offset(offset) => Self::Offset(offset),
            Position::Time(at) => Self::Time(at),
        }
    }
}

/// What happens where a position was deleted or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutOfRange {
    /// The partition ends with [`ConsumeError::OutOfRange`](super::ConsumeError::OutOfRange).
    #[default]
    Fail,
    /// It goes on at the first record that the log still has.
    Earliest,
    /// It goes on behind the last record.
    Latest,
}

/// What a [`Consumer`] reads and how. Made by [`Client::consumer`].
#[derive(Debug)]
#[must_use = "nothing happens before build"]
pub struct ConsumerBuilder {
    cluster: Arc<Cluster>,
    topics: Vec<(String, Option<Vec<PartitionId>>)>,
    start: Start,
    settings: Settings,
    window: Window,
}

/// How many bytes may wait to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    total_bytes: usize,
    partition_bytes: usize,
}

impl Window {
    /// Below this a window is all overhead.
    const PARTITION_BYTES_MIN: usize = 16 << 10;

    /// What each of `partitions` gets, so that the sum stays within the whole.
    fn share(self, partitions: usize) -> Result<u64, ConsumerError> {
        let share = (self.total_bytes / partitions.max(1)).min(self.partition_bytes);
        if share < Self::PARTITION_BYTES_MIN {
            return Err(ConsumerError::Window { partitions, window: self.total_bytes });
        }
        Ok(share as u64)
    }
}

impl Client {
    /// Begins a consumer.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder {
            cluster: Arc::clone(&self.cluster),
            topics: Vec::new(),
            start: Start::Latest,
            settings: Settings {
                filter: None,
                out_of_range: OutOfRange::Fail,
                stop_at_end: StopAtEnd::Never,
                rack: self.cluster.rack().map(str::to_owned),
            },
            window: Window { total_bytes: 32 << 20, partition_bytes: 8 << 20 },
        }
    }
}

impl ConsumerBuilder {
    /// Reads this topic, too; all its partitions unless [`partitions`](Self::partitions) follows.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push((topic.into(), None));
        self
    }

    /// Of the topic named last, only these partitions.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        if let Some((_, wanted)) = self.topics.last_mut() {
            *wanted = Some(partitions.into_iter().collect());
        }
        self
    }

    /// Where to begin. By default at the end.
    pub fn from(mut self, start: impl Into<Start>) -> Self {
        self.start = start.into();
        self
    }

    /// Lets a plugin (the newest version) or a filter deployment choose the records, in the broker.
    pub fn filter<K: Into<String>, V: Into<String>>(
        mut self,
        name: impl Into<String>,
        config: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let config = config.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self.settings.filter = Some(FilterSpec { name: name.into(), version: String::new(), config });
        self
    }

    /// The filter's version, instead of the newest.
    pub fn filter_version(mut self, version: impl Into<String>) -> Self {
        if let Some(filter) = &mut self.settings.filter {
            filter.version = version.into();
        }
        self
    }

    /// What happens where a position was deleted or never was. By default the partition fails.
    pub const fn on_out_of_range(mut self, policy: OutOfRange) -> Self {
        self.settings.out_of_range = policy;
        self
    }

    /// Ends when every partition has been read up to where it ended when reading began: all that was acknowledged before is read. While a
    /// partition has no majority of its replicas, nobody can say where that is, and reading waits. By default it never ends.
    pub const fn stop_at_end(mut self) -> Self {
        self.settings.stop_at_end = StopAtEnd::FromTheBeginning;
        self
    }

    /// As [`stop_at_end`](Self::stop_at_end), but a partition's end is asked for only when everything has been read that was known to
    /// be there, and is the one of that moment. So what is there is read also while a partition has no majority of its replicas, and
    /// only then reading waits. Behind producers that write faster than it reads it does not end: for readers that stop by themselves
    /// after some records.
    pub const fn stop_at_end_once_reached(mut self) -> Self {
        self.settings.stop_at_end = StopAtEnd::OnceReached;
        self
    }

    /// Reads from replicas in this rack, where there are any, instead of where the partitions are led: nearer, cheaper, and a moment
    /// later. By default the client's [`rack`](crate::ClientConfig::rack).
    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.settings.rack = Some(rack.into());
        self
    }

    /// Bytes that may wait to be read, over all partitions. By default 32 MiB; keep it below the client's
    /// [`receive_window_bytes`](crate::ClientConfig::receive_window_bytes).
    pub const fn window_bytes(mut self, bytes: usize) -> Self {
        self.window.total_bytes = bytes;
        self
    }

    /// Of these, at most so many for one partition. By default 8 MiB.
    pub const fn partition_window_bytes(mut self, bytes: usize) -> Self {
        self.window.partition_bytes = bytes;
        self
    }

    /// Looks up the topics and positions, and begins to read.
    ///
    /// # Errors
    /// No such topic or partition, or no answer.
    pub async fn build(self) -> Result<Consumer, ConsumerError> {
        if self.topics.is_empty() {
            return Err(ConsumerError::NoTopic);
        }
        let committed = match &self.start {
            Start::Committed { group, .. } => {
                let client = Client { cluster: Arc::clone(&self.cluster) };
                client.groups().positions(group).await?
            }
            _ => BTreeMap::new(),
        };
        let mut chosen = Vec::new();
        for (name, wanted) in &self.topics {
            let (topic, in_use) = self.cluster.topic_in_use(name).await?;
            let in_use = Arc::new(in_use);
            let all = || topic.partitions.iter().map(|partition| partition.partition).collect();
            for partition in wanted.clone().unwrap_or_else(all) {
                if topic.partition(partition).is_none() {
                    return Err(ConsumerError::NoPartition {
                        topic: name.clone(),
                        partition: partition.get(),
                        count: topic.partition_count(),
                    });
                }
                chosen.push((TopicPartition::new(topic.id, partition), Arc::clone(&in_use)));
            }
        }
        chosen.sort_unstable_by_key(|(key, _)| *key);
        chosen.dedup_by_key(|(key, _)| *key);
        let share = self.window.share(chosen.len())?;
        let shared = Arc::new(Shared::new(self.cluster, self.settings));
        shared.with(|state| {
            for (key, in_use) in chosen {
                let committed = committed.get(&key).copied();
                let start = position(&self.start, committed);
                let incarnation = state.next_incarnation;
                state.next_incarnation += 1;
                let floor = committed.unwrap_or(Offset::ZERO);
                state.partitions.insert(key, PartitionState::new(in_use, start, floor, incarnation, share));
            }
        });
        drop(shared.runtime.spawn(guide(Arc::clone(&shared))));
        Ok(Consumer::new(shared, self.window))
    }
}

/// Where a partition begins.
pub(super) fn position(start: &Start, committed: Option<Offset>) -> Position {
    match start {
        Start::Earliest => Position::Earliest,
        Start::Latest => Position::Latest,
        Start::Offset(offset) => Position::Offset(*offset),
        Start::Time(at) => Position::Time(*at),
        Start::Committed { or, .. } => committed.map_or(*or, Position::Offset),
    }
}

/// What a partition that is added to `others` gets: its share, as far as there is room.
pub(super) fn share_beside(
    window: Window,
    others: impl ExactSizeIterator<Item = u64>,
) -> Result<u64, ConsumerError> {
    let count = others.len() + 1;
    let granted: u64 = others.sum();
    let left = (window.total_bytes as u64).saturating_sub(granted);
    let share = window.share(count)?.min(left);
    if share < Window::PARTITION_BYTES_MIN as u64 {
        return Err(ConsumerError::Window { partitions: count, window: window.total_bytes });
    }
    Ok(share)
}
