use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidemill_protocol::messages::{self, TopicConfig};
use tidemill_protocol::{BrokerId, DeploymentId, LeaderEpoch, PartitionId, ShardId, TopicId};

/// What the cluster said of a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicMetadata {
    /// The topic, for its whole life.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// By number, from 0, without gaps; at least one.
    pub partitions: Vec<PartitionMetadata>,
    /// As configured; what is absent has the broker's default.
    pub config: TopicConfig,
    /// What places records in routed produce; absent: murmur2 of the key.
    pub partitioner: Option<PartitionerMetadata>,
    /// Of the cluster's metadata when this was said.
    pub version: u64,
}

/// What the cluster said of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number.
    pub partition: PartitionId,
    /// The shard that it lives in.
    pub shard: ShardId,
    /// The broker that leads it.
    pub leader: BrokerId,
    /// Rises with each change of leader.
    pub leader_epoch: LeaderEpoch,
}

/// The deployment that places a topic's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionerMetadata {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Its name.
    pub name: String,
    /// Rises with each change of the binding.
    pub epoch: u32,
}

impl TopicMetadata {
    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        // `parse` lets no more through.
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }

    /// `None` where what the broker says contradicts itself.
    fn parse(info: messages::TopicInfo, version: u64) -> Option<Self> {
        let partitions = info.partitions.iter().zip(0..).map(|(info, number)| {
            (info.partition == number).then_some(())?;
            Some(PartitionMetadata {
                partition: PartitionId::new(number),
                shard: ShardId::new(u16::try_from(info.shard).ok()?),
                leader: BrokerId::new(info.leader),
                leader_epoch: LeaderEpoch::new(info.leader_epoch),
            })
        });
        let partitions: Vec<_> = partitions.collect::<Option<_>>()?;
        if partitions.is_empty() || info.name.is_empty() {
            return None;
        }
        Some(Self {
            id: TopicId::from_slice(&info.topic_id)?,
            name: info.name.into(),
            partitions,
            config: info.config.unwrap_or_default(),
            partitioner: info.partitioner.map(|partitioner| PartitionerMetadata {
                deployment: DeploymentId::new(partitioner.deployment_id),
                name: partitioner.deployment,
                epoch: partitioner.epoch,
            }),
            version,
        })
    }
}

/// Everything known, replaced as a whole.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata {
    pub(super) brokers: BTreeMap<BrokerId, Vec<String>>,
    pub(super) topics: HashMap<Arc<str>, Arc<TopicMetadata>>,
    version: u64,
}

impl Metadata {
    /// Takes what a broker said; older news than what is known changes nothing.
    pub(super) fn merge(&mut self, news: messages::Metadata) {
        let version = news.version;
        if version >= self.version && !news.brokers.is_empty() {
            self.version = version;
            self.brokers = news
                .brokers
                .into_iter()
                .map(|info| (BrokerId::new(info.broker_id), info.addresses))
                .collect();
        }
        for info in news.topics {
            if self.topics.get(info.name.as_str()).is_some_and(|known| known.version > version) {
                continue;
            }
            if info.error.as_ref().is_some_and(|error| !error.is_none()) {
                self.topics.remove(info.name.as_str());
                continue;
            }
            let name = info.name.clone();
            match TopicMetadata::parse(info, version) {
                Some(topic) => {
                    self.topics.insert(Arc::clone(&topic.name), Arc::new(topic));
                }
                None => tracing::warn!(topic = name, "the broker's metadata of the topic contradicts itself"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::ErrorCode;

    use super::*;

    fn info(name: &str, leaders: &[(u32, u32)]) -> messages::TopicInfo {
        messages::TopicInfo {
            topic_id: bytes::Bytes::from_static(&[7; 16]),
            name: name.to_owned(),
            partitions: leaders
                .iter()
                .map(|(partition, leader)| messages::PartitionInfo {
                    partition: *partition,
                    shard: 1,
                    leader: *leader,
                    leader_epoch: 0,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn news(version: u64, topics: Vec<messages::TopicInfo>) -> messages::Metadata {
        messages::Metadata { version, brokers: vec![], topics }
    }

    fn leader(metadata: &Metadata) -> Option<u32> {
        Some(metadata.topics.get("t")?.partitions.first()?.leader.get())
    }

    #[test]
    fn newer_news_win_and_nonsense_is_ignored() {
        let mut metadata = Metadata::default();
        metadata.merge(news(2, vec![info("t", &[(0, 1)])]));
        metadata.merge(news(1, vec![info("t", &[(0, 9)])]));
        assert_eq!(leader(&metadata), Some(1));
        metadata.merge(news(3, vec![info("t", &[(0, 2)])]));
        assert_eq!(leader(&metadata), Some(2));

        let mut short_id = info("t", &[(0, 3)]);
        short_id.topic_id = bytes::Bytes::from_static(&[7; 15]);
        metadata.merge(news(4, vec![info("t", &[(1, 3)]), info("t", &[]), short_id]));
        assert_eq!(leader(&metadata), Some(2));

        let mut gone = info("t", &[]);
        gone.error = Some(messages::Error::new(ErrorCode::UnknownTopic, "no such topic"));
        metadata.merge(news(5, vec![gone]));
        assert_eq!(leader(&metadata), None);
    }
}
