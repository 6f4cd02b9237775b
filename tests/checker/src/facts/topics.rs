use std::collections::HashMap;

use crate::error::EventError;
use crate::ids::{PARTITIONS_MAX, TopicPartition};

/// What holds of a topic.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Topic {
    pub(crate) partitions: u32,
    pub(crate) is_dense: bool,
    pub(crate) is_compacted: bool,
}

/// Topics, and small numbers ("slots") for partitions.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    topics: HashMap<String, Topic>,
    slots: HashMap<String, HashMap<u32, u16>>,
    names: Vec<TopicPartition>,
}

impl Topics {
    pub(crate) fn declare(&mut self, topic: &str, holds: Topic) {
        self.topics.insert(topic.to_owned(), holds);
    }

    pub(crate) fn topic(&self, topic: &str) -> Topic {
        self.topics.get(topic).copied().unwrap_or_default()
    }

    /// What holds of the topic of a slot.
    pub(crate) fn topic_of(&self, slot: u16) -> Topic {
        self.topic(&self.name(slot).topic)
    }

    pub(crate) fn name(&self, slot: u16) -> &TopicPartition {
        &self.names[usize::from(slot)]
    }

    pub(crate) fn find(&self, topic: &str, partition: u32) -> Option<u16> {
        self.slots.get(topic)?.get(&partition).copied()
    }

    pub(super) fn slot(&mut self, topic: &str, partition: u32) -> Result<u16, EventError> {
        if let Some(slot) = self.find(topic, partition) {
            return Ok(slot);
        }
        let slot = u16::try_from(self.names.len())
            .map_err(|_| EventError::TooManyPartitions { partitions_max: PARTITIONS_MAX })?;
        self.slots.entry(topic.to_owned()).or_default().insert(partition, slot);
        self.names.push(TopicPartition::new(topic, partition));
        Ok(slot)
    }
}
