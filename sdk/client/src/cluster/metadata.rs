use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidemill_protocol::messages::{self, TopicConfig};
use tidemill_protocol::{BrokerId, DeploymentId, ErrorCode, LeaderEpoch, PartitionId, ShardId, TopicId};

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
    /// Of the cluster's metadata when this was said. Leaders may be newer: they have their epochs.
    pub version: u64,
}

/// What the cluster said of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number.
    pub partition: PartitionId,
    /// The shard that it lives in.
    pub shard: ShardId,
    /// The broker that leads it; `None`: not known just now.
    pub leader: Option<BrokerId>,
    /// Rises with each change of leader.
    pub leader_epoch: LeaderEpoch,
    /// The brokers that hold it, the leader's among them; empty where the cluster did not say.
    pub replicas: Arc<[BrokerId]>,
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

    /// The partition of this number.
    pub(crate) fn partition(&self, number: PartitionId) -> Option<&PartitionMetadata> {
        self.partitions.get(usize::try_from(number.get()).ok()?)
    }

    /// `None` where what the broker says contradicts itself.
    fn parse(info: messages::TopicInfo, version: u64) -> Option<Self> {
        let partitions = info.partitions.iter().zip(0..).map(|(info, number)| {
            (info.partition == number).then_some(())?;
            Some(PartitionMetadata {
                partition: PartitionId::new(number),
                shard: ShardId::new(u16::try_from(info.shard).ok()?),
                leader: (info.leader != 0).then(|| BrokerId::new(info.leader)),
                leader_epoch: LeaderEpoch::new(info.leader_epoch),
                replicas: info.replicas.iter().copied().map(BrokerId::new).collect(),
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

    /// What is known, and what was said of the same topic, in one. What is of the topic goes by the version of the cluster's
    /// metadata. Who leads goes by the leader epoch instead: brokers hear of versions and of elections in different order, and
    /// one that is behind in the first may well be ahead in the second.
    fn joined(known: &Self, said: Self) -> Self {
        let (mut newer, older) =
            if said.version >= known.version { (said, known) } else { (known.clone(), &said) };
        for (partition, other) in newer.partitions.iter_mut().zip(&older.partitions) {
            let is_later = match other.leader_epoch.cmp(&partition.leader_epoch) {
                std::cmp::Ordering::Greater => true,
                // An epoch has one leader at most: who names it knows more.
                std::cmp::Ordering::Equal => partition.leader.is_none(),
                std::cmp::Ordering::Less => false,
            };
            if is_later {
                (partition.leader, partition.leader_epoch) = (other.leader, other.leader_epoch);
            }
        }
        newer
    }
}

/// What the cluster said of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct BrokerMetadata {
    pub(crate) addresses: Vec<String>,
    pub(crate) rack: String,
}

/// Who leads a partition, as of which epoch. What is newer has a higher epoch, or names the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) leader: Option<BrokerId>,
    pub(crate) epoch: LeaderEpoch,
}

/// Everything known: what brokers of different age said, and what this client sees of the brokers themselves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) brokers: BTreeMap<BrokerId, BrokerMetadata>,
    pub(super) topics: HashMap<Arc<str>, Arc<TopicMetadata>>,
    /// Brokers that did not answer just now, or said that they are going away. Until they answer, or lead something anew.
    pub(super) unwell: BTreeSet<BrokerId>,
    /// Of the list of brokers.
    brokers_version: u64,
    /// The highest that any broker spoke of: one that speaks of a lower one is behind.
    pub(super) newest: u64,
}

/// What [`Metadata::merge`] did.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    /// Anything but a version is another now.
    pub(super) changed: bool,
    /// Brokers that lead something in an epoch that was not known yet: they were there a moment ago.
    pub(super) leaders: BTreeSet<BrokerId>,
    /// Topics that were known, and are not there any more.
    pub(super) gone: Vec<Arc<str>>,
}

impl Metadata {
    /// Takes what a broker said; older news than what is known changes nothing.
    pub(crate) fn merge(&mut self, news: messages::Metadata) -> Learned {
        let mut learned = Learned::default();
        let version = news.version;
        self.newest = self.newest.max(version);
        if version >= self.brokers_version && !news.brokers.is_empty() {
            self.brokers_version = version;
            self.take_brokers(news.brokers, &mut learned);
        }
        for info in news.topics {
            self.take_topic(info, version, &mut learned);
        }
        for leader in &learned.leaders {
            learned.changed |= self.unwell.remove(leader);
        }
        learned
    }

    fn take_brokers(&mut self, brokers: Vec<messages::BrokerInfo>, learned: &mut Learned) {
        let brokers: BTreeMap<_, _> = brokers
            .into_iter()
            .map(|info| {
                let broker = BrokerMetadata { addresses: info.addresses, rack: info.rack };
                (BrokerId::new(info.broker_id), broker)
            })
            .collect();
        if brokers != self.brokers {
            self.unwell.retain(|broker| brokers.contains_key(broker));
            self.brokers = brokers;
            learned.changed = true;
        }
    }

    fn take_topic(&mut self, info: messages::TopicInfo, version: u64, learned: &mut Learned) {
        let known = self.topics.get(info.name.as_str());
        if let Some(error) = info.error.as_ref().filter(|error| !error.is_none()) {
            let is_gone = error.error_code() == Some(ErrorCode::UnknownTopic);
            // A broker that is behind has not heard of it yet.
            if is_gone && known.is_some_and(|known| known.version <= version) {
                learned.gone.extend(self.topics.remove_entry(info.name.as_str()).map(|(name, _)| name));
                learned.changed = true;
            }
            return;
        }
        let name = info.name.clone();
        let Some(said) = TopicMetadata::parse(info, version) else {
            tracing::warn!(topic = name, "the broker's metadata of the topic contradicts itself");
            return;
        };
        let topic = match known {
            // Deleted and made anew meanwhile: nothing of the one holds for the other.
            Some(known) if known.id != said.id && known.version > version => return,
            Some(known) if known.id == said.id => TopicMetadata::joined(known, said),
            _ => said,
        };
        let before = known.filter(|known| known.id == topic.id);
        for (partition, number) in topic.partitions.iter().zip(0..) {
            let was = before.and_then(|known| known.partition(PartitionId::new(number)));
            if let Some(leader) = partition.leader
                && was.is_none_or(|was| was.leader_epoch < partition.leader_epoch || was.leader.is_none())
            {
                learned.leaders.insert(leader);
            }
        }
        let is_same =
            known.is_some_and(|known| **known == TopicMetadata { version: known.version, ..topic.clone() });
        learned.changed |= !is_same;
        self.topics.insert(Arc::clone(&topic.name), Arc::new(topic));
    }

    /// The topic of this name and id.
    pub(crate) fn topic(&self, name: &str, id: TopicId) -> Option<&TopicMetadata> {
        self.topics.get(name).map(|topic| &**topic).filter(|topic| topic.id == id)
    }

    /// Who leads a partition. A topic that was deleted and made anew is another.
    pub(crate) fn lead(&self, name: &str, id: TopicId, partition: PartitionId) -> Option<Lead> {
        let partition = self.topic(name, id)?.partition(partition)?;
        Some(Lead { leader: partition.leader, epoch: partition.leader_epoch })
    }

    /// Whether the broker is there as far as is known: it has not failed to answer.
    pub(crate) fn is_well(&self, broker: BrokerId) -> bool {
        !self.unwell.contains(&broker)
    }

    /// Whether there is a broker besides this one that does answer, as far as is known.
    pub(crate) fn has_well_beside(&self, broker: BrokerId) -> bool {
        self.brokers.keys().any(|other| *other != broker && self.is_well(*other))
    }

    /// Whether a partition of a topic that is in use has no leader that answers.
    pub(super) fn lacks_leader(&self) -> bool {
        let mut partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        partitions.any(|partition| partition.leader.is_none_or(|leader| !self.is_well(leader)))
    }

    /// Where to read a partition: in `rack`, where one of its replicas is there; else at its leader; where that does not answer, at
    /// another replica; where none does, as behind NAT, at any broker, which has the records from one. `avoid` has just refused. `None`:
    /// nobody is known to have it.
    pub(crate) fn reader(
        &self,
        partition: &PartitionMetadata,
        rack: Option<&str>,
        avoid: Option<BrokerId>,
    ) -> Option<BrokerId> {
        let serves = |broker: &BrokerId| self.is_well(*broker) && Some(*broker) != avoid;
        // Spread over those that are as good as each other.
        let one_of = |candidates: Vec<BrokerId>| {
            let place = usize::try_from(partition.partition.get()).unwrap_or(0);
            let count = candidates.len();
            (count > 0).then(|| candidates[place % count])
        };
        let replicas = || partition.replicas.iter().copied().filter(serves);
        let leader = partition.leader.filter(serves);
        if let Some(rack) = rack {
            let is_near =
                |broker: &BrokerId| self.brokers.get(broker).is_some_and(|broker| broker.rack == rack);
            // The leader is as near as any and never behind.
            let nearest = leader.filter(is_near).or_else(|| one_of(replicas().filter(is_near).collect()));
            if nearest.is_some() {
                return nearest;
            }
        }
        leader
            .or_else(|| one_of(replicas().collect()))
            .or_else(|| one_of(self.brokers.keys().copied().filter(serves).collect()))
            .or(partition.leader)
            .or_else(|| one_of(partition.replicas.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, leaders: &[(u32, u32, i32)]) -> messages::TopicInfo {
        messages::TopicInfo {
            topic_id: bytes::Bytes::from_static(&[7; 16]),
            name: name.to_owned(),
            partitions: leaders
                .iter()
                .map(|(partition, leader, leader_epoch)| messages::PartitionInfo {
                    partition: *partition,
                    shard: 1,
                    leader: *leader,
                    leader_epoch: *leader_epoch,
                    replicas: vec![1, 2, 3],
                })
                .collect(),
            ..Default::default()
        }
    }

    fn news(version: u64, topics: Vec<messages::TopicInfo>) -> messages::Metadata {
        messages::Metadata { version, brokers: vec![], topics }
    }

    fn gone(name: &str) -> messages::TopicInfo {
        let error = Some(messages::Error::new(ErrorCode::UnknownTopic, "no such topic"));
        messages::TopicInfo { error, ..info(name, &[]) }
    }

    fn lead(metadata: &Metadata) -> Option<(u32, i32)> {
        let partition = metadata.topics.get("t")?.partitions.first()?;
        Some((partition.leader.map_or(0, BrokerId::get), partition.leader_epoch.get()))
    }

    #[test]
    fn newer_news_win_and_nonsense_is_ignored() {
        let mut metadata = Metadata::default();
        metadata.merge(news(2, vec![info("t", &[(0, 1, 1)])]));
        metadata.merge(news(1, vec![info("t", &[(0, 9, 0)])]));
        assert_eq!(lead(&metadata), Some((1, 1)));

        let mut short_id = info("t", &[(0, 3, 9)]);
        short_id.topic_id = bytes::Bytes::from_static(&[7; 15]);
        metadata.merge(news(4, vec![info("t", &[(1, 3, 9)]), info("t", &[]), short_id]));
        assert_eq!(lead(&metadata), Some((1, 1)));
        let learned = metadata.merge(news(5, vec![gone("t"), gone("never known")]));
        assert_eq!(learned.gone, [Arc::<str>::from("t")]);
        assert_eq!(lead(&metadata), None);
    }

    #[test]
    fn who_leads_goes_by_the_epoch_whoever_says_it_and_whatever_the_version() {
        let mut metadata = Metadata::default();
        metadata.merge(news(9, vec![info("t", &[(0, 1, 5)])]));
        // A broker that is behind in versions, and knows of an election.
        let learned = metadata.merge(news(3, vec![info("t", &[(0, 0, 6)])]));
        assert!(learned.changed && learned.leaders.is_empty());
        assert_eq!(lead(&metadata), Some((0, 6)), "in epoch 6, and nobody says who");
        // One that is ahead in versions, and has slept through it.
        metadata.merge(news(10, vec![info("t", &[(0, 1, 5)])]));
        assert_eq!(lead(&metadata), Some((0, 6)));
        let learned = metadata.merge(news(3, vec![info("t", &[(0, 2, 6)])]));
        assert_eq!(learned.leaders, [BrokerId::new(2)].into());
        let learned = metadata.merge(news(11, vec![info("t", &[(0, 0, 6)])]));
        assert_eq!(lead(&metadata), Some((2, 6)), "a name beats none");
        assert!(!learned.changed && learned.leaders.is_empty());
    }

    #[test]
    fn what_is_of_the_topic_goes_by_the_version() {
        let mut metadata = Metadata::default();
        metadata.merge(news(5, vec![info("t", &[(0, 1, 1)])]));
        metadata.merge(news(4, vec![gone("t")]));
        assert_eq!(lead(&metadata), Some((1, 1)), "a broker that is behind has not heard of it yet");
        let unsaid = messages::TopicInfo {
            error: Some(messages::Error::new(ErrorCode::NotYetAdopted, "soon")),
            ..info("t", &[])
        };
        metadata.merge(news(6, vec![unsaid]));
        assert_eq!(lead(&metadata), Some((1, 1)), "this is not what a broker says of a topic that is gone");

        let mut older = info("t", &[(0, 2, 3), (1, 2, 3)]);
        older.partitions[0].replicas = vec![4];
        older.config = Some(TopicConfig { retention_ms: Some(1), ..TopicConfig::default() });
        metadata.merge(news(4, vec![older.clone()]));
        let topic = &metadata.topics["t"];
        assert_eq!((topic.partitions.len(), topic.config.retention_ms), (1, None));
        assert_eq!((lead(&metadata), topic.partitions[0].replicas.len()), (Some((2, 3)), 3));
        metadata.merge(news(6, vec![older]));
        let topic = &metadata.topics["t"];
        assert_eq!((topic.partitions.len(), topic.config.retention_ms), (2, Some(1)));
        assert_eq!(topic.partitions[0].replicas.len(), 1);

        // Made anew under the same name: epochs begin again, and those of the one before say nothing.
        let mut anew = info("t", &[(0, 3, 0)]);
        anew.topic_id = bytes::Bytes::from_static(&[8; 16]);
        metadata.merge(news(5, vec![anew.clone()]));
        assert_eq!(lead(&metadata), Some((2, 3)), "that was before");
        metadata.merge(news(7, vec![anew]));
        assert_eq!(lead(&metadata), Some((3, 0)));
    }

    fn three_brokers() -> Metadata {
        let mut metadata = Metadata::default();
        let broker = |broker_id: u32, rack: &str| messages::BrokerInfo {
            broker_id,
            addresses: vec![format!("broker-{broker_id}:1")],
            rack: rack.to_owned(),
        };
        let brokers = vec![broker(1, "a"), broker(2, "b"), broker(3, "b")];
        metadata.merge(messages::Metadata { version: 7, brokers, topics: vec![] });
        metadata.merge(news(7, vec![info("t", &[(0, 1, 1), (1, 2, 1)])]));
        metadata
    }

    #[test]
    fn brokers_go_by_the_version_and_an_election_speaks_for_whom_it_chose() {
        let mut metadata = three_brokers();
        let alone = messages::BrokerInfo { broker_id: 9, ..Default::default() };
        metadata.merge(messages::Metadata { version: 6, brokers: vec![alone], topics: vec![] });
        assert_eq!(metadata.brokers.len(), 3);
        metadata.unwell.insert(BrokerId::new(3));
        metadata.merge(news(7, vec![info("t", &[(0, 1, 1)])]));
        assert!(!metadata.is_well(BrokerId::new(3)));
        metadata.merge(news(1, vec![info("t", &[(0, 3, 2)])]));
        assert!(metadata.is_well(BrokerId::new(3)));
        assert!(!metadata.lacks_leader());
        metadata.unwell.insert(BrokerId::new(3));
        assert!(metadata.lacks_leader());
    }

    #[test]
    fn a_partition_is_read_at_its_leader_or_in_the_rack_or_wherever_somebody_answers() {
        let mut metadata = three_brokers();
        let topic = Arc::clone(&metadata.topics["t"]);
        let read = |metadata: &Metadata, number: usize, rack: Option<&str>, avoid: Option<u32>| {
            let reader = metadata.reader(&topic.partitions[number], rack, avoid.map(BrokerId::new));
            reader.expect("somebody").get()
        };
        assert_eq!([read(&metadata, 0, None, None), read(&metadata, 1, None, None)], [1, 2]);
        assert_eq!([read(&metadata, 0, Some("b"), None), read(&metadata, 1, Some("b"), None)], [2, 2]);
        assert_eq!(read(&metadata, 0, Some("elsewhere"), None), 1, "nobody is there: the leader");
        assert_eq!(read(&metadata, 1, Some("b"), Some(2)), 3);
        metadata.unwell.insert(BrokerId::new(2));
        assert_eq!(read(&metadata, 0, Some("b"), None), 3);
        assert_eq!(read(&metadata, 1, None, None), 3);
        metadata.unwell.extend([1, 3].map(BrokerId::new));
        assert_eq!(read(&metadata, 1, None, None), 2, "nobody answers: the leader is as good as any");
        metadata.brokers.insert(BrokerId::new(4), BrokerMetadata::default());
        assert_eq!(
            read(&metadata, 1, None, None),
            4,
            "it has no replica, and passes on what it has from there"
        );
    }
}
