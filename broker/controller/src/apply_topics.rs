//! Topics: created, altered, deleted, forgotten.

use tidemill_protocol::{DeploymentId, ShardId, TopicId};

use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::names::Name;
use crate::state::{Bounds, Controller};
use crate::topic::{PAST_FILTERS_MAX, PartitionerBinding, TopicConfig, TopicOverrides, TopicRecord};

impl Controller {
    pub(crate) fn create_topic(
        &mut self,
        id: TopicId,
        name: &Name,
        partitions: u32,
        overrides: &TopicOverrides,
        with: Option<&Name>,
        if_not_exists: bool,
    ) -> Result<ControllerReply, ControllerError> {
        if let Some(existing) = self.topic_by_name(name.as_str()) {
            // The same id: a proposal whose outcome was unknown came again.
            return if if_not_exists || existing.id == id {
                Ok(ControllerReply::Topic(Box::new(existing.clone())))
            } else {
                Err(ControllerError::TopicExists(name.to_string()))
            };
        }
        let invalid = |reason: String| ControllerError::InvalidTopic { topic: name.to_string(), reason };
        if self.topics.contains_key(&id) {
            return Err(invalid("its id was used before; ask again".into()));
        }
        if self.topics.len() >= Bounds::TOPICS_MAX {
            return Err(ControllerError::TooMany { what: "topics", limit: Bounds::TOPICS_MAX });
        }
        let config = TopicConfig::default().with(overrides).map_err(invalid)?;
        let shards = match with {
            Some(other) => {
                let other = self
                    .topic_by_name(other.as_str())
                    .ok_or_else(|| ControllerError::UnknownTopic(other.to_string()))?;
                if partitions != 0 && partitions != other.partition_count() {
                    return Err(invalid(format!(
                        "topic '{}' has {} partitions, and a co-partitioned topic has as many",
                        other.name,
                        other.partition_count()
                    )));
                }
                other.shards.clone()
            }
            None => self.place(name, partitions)?,
        };
        let held: usize = self.topics.values().map(|topic| topic.shards.len()).sum();
        if held + shards.len() > Bounds::PARTITIONS_MAX {
            return Err(ControllerError::TooMany { what: "partitions", limit: Bounds::PARTITIONS_MAX });
        }
        let topic = TopicRecord {
            id,
            name: name.clone(),
            version: self.next_version(),
            config,
            shards,
            partitioner: PartitionerBinding { deployment: None, epoch: 0 },
            past_partitioners: Vec::new(),
            produce_filter: None,
            past_filters: Vec::new(),
            deleted: false,
        };
        self.topic_names.insert(name.to_string(), id);
        self.topics.insert(id, topic.clone());
        self.note_change(ObjectKey::Topic(id));
        Ok(ControllerReply::Topic(Box::new(topic)))
    }

    /// Round robin over the data shards, each topic beginning where the last one ended.
    fn place(&mut self, name: &Name, partitions: u32) -> Result<Vec<ShardId>, ControllerError> {
        if partitions == 0 || partitions > Bounds::TOPIC_PARTITIONS_MAX {
            return Err(ControllerError::InvalidTopic {
                topic: name.to_string(),
                reason: format!("it needs between 1 and {} partitions", Bounds::TOPIC_PARTITIONS_MAX),
            });
        }
        let count = self.data_shards().max(1);
        let shards = (0..partitions)
            .map(|_| {
                let shard = ShardId::new(self.header.next_shard % count + 1);
                self.header.next_shard = (self.header.next_shard + 1) % count;
                shard
            })
            .collect();
        Ok(shards)
    }

    pub(crate) fn alter_topic(
        &mut self,
        name: &Name,
        overrides: &TopicOverrides,
    ) -> Result<ControllerReply, ControllerError> {
        let id = self.live_topic(name)?;
        let config = self.topics[&id]
            .config
            .with(overrides)
            .map_err(|reason| ControllerError::InvalidTopic { topic: name.to_string(), reason })?;
        let topic = self.change_topic(id, |topic| topic.config = config);
        Ok(ControllerReply::Topic(Box::new(topic)))
    }

    pub(crate) fn delete_topic(&mut self, name: &Name) -> Result<ControllerReply, ControllerError> {
        let id = self.live_topic(name)?;
        let user = self.deployments.values().find(|deployment| !deployment.deleted && deployment.uses(id));
        if let Some(user) = user {
            return Err(ControllerError::TopicInUse {
                topic: name.to_string(),
                deployment: user.spec.name.to_string(),
            });
        }
        self.topic_names.remove(name.as_str());
        let topic = self.change_topic(id, |topic| topic.deleted = true);
        Ok(ControllerReply::Topic(Box::new(topic)))
    }

    pub(crate) fn forget_topic(&mut self, id: TopicId) -> ControllerReply {
        if self.topics.get(&id).is_some_and(|topic| topic.deleted) {
            self.topics.remove(&id);
            self.note_change(ObjectKey::Topic(id));
            self.next_version();
        }
        ControllerReply::Done
    }

    pub(crate) fn live_topic(&self, name: &Name) -> Result<TopicId, ControllerError> {
        self.topic_names
            .get(name.as_str())
            .copied()
            .ok_or_else(|| ControllerError::UnknownTopic(name.to_string()))
    }

    /// Binds a deployment as the topic's partitioner, or none.
    pub(crate) fn bind_partitioner(&mut self, id: TopicId, deployment: Option<DeploymentId>) {
        self.change_topic(id, |topic| topic.bind_partitioner(deployment, 1));
    }

    /// Takes a topic's produce filter away.
    pub(crate) fn unbind_produce_filter(&mut self, id: TopicId) {
        self.change_topic(id, |topic| {
            topic.past_filters.extend(topic.produce_filter.take());
            if topic.past_filters.len() > PAST_FILTERS_MAX {
                topic.past_filters.remove(0);
            }
        });
    }

    /// Changes a topic that is known to be there, and gives it the next version.
    pub(crate) fn change_topic(&mut self, id: TopicId, change: impl FnOnce(&mut TopicRecord)) -> TopicRecord {
        let version = self.next_version();
        self.note_change(ObjectKey::Topic(id));
        let topic = self.topics.get_mut(&id).expect("callers look the topic up first");
        change(topic);
        topic.version = version;
        topic.clone()
    }
}
