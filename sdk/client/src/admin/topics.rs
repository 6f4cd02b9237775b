use std::sync::Arc;

use tidemill_protocol::messages::{
    AlterTopicRequest, CreateTopicRequest, DeleteRecordsRequest, DeleteTopicRequest, DescribeTopicRequest,
    MetadataRequest, TopicConfig, TopicDescription, request,
};
use tidemill_protocol::{Offset, PartitionId, TopicPartition};

use super::body_of;
use crate::cluster::{Cluster, Repeat};
use crate::{Client, RequestError};

/// Topics of the cluster. From [`Client::topics`].
#[derive(Debug, Clone)]
pub struct Topics {
    cluster: Arc<Cluster>,
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTopic {
    request: CreateTopicRequest,
}

impl NewTopic {
    /// A topic of `partitions` partitions, everything else as the broker has it.
    pub fn new(name: impl Into<String>, partitions: u32) -> Self {
        let request = CreateTopicRequest { name: name.into(), partitions, ..Default::default() };
        Self { request }
    }

    /// With settings of its own.
    #[must_use]
    pub fn config(mut self, config: TopicConfig) -> Self {
        self.request.config = Some(config);
        self
    }

    /// Placed as another topic is, partition by partition, so that one deployment can read both.
    #[must_use]
    pub fn with(mut self, topic: impl Into<String>) -> Self {
        self.request.with = topic.into();
        self
    }

    /// No error where a topic of this name and shape exists.
    #[must_use]
    pub const fn if_not_exists(mut self) -> Self {
        self.request.if_not_exists = true;
        self
    }
}

impl Client {
    /// Topics: make, list, describe, alter, delete.
    #[must_use]
    pub fn topics(&self) -> Topics {
        Topics { cluster: Arc::clone(&self.cluster) }
    }
}

impl Topics {
    /// Makes a topic.
    ///
    /// # Errors
    /// It exists, its name or settings are not allowed, or no answer.
    pub async fn create(&self, topic: NewTopic) -> Result<TopicDescription, RequestError> {
        let repeat = if topic.request.if_not_exists { Repeat::Freely } else { Repeat::IfUntouched };
        let body = request::Body::CreateTopic(topic.request);
        body_of!(self.cluster.call(body, repeat).await?, Topic)
    }

    /// The names of all topics, sorted.
    ///
    /// # Errors
    /// No answer.
    pub async fn list(&self) -> Result<Vec<String>, RequestError> {
        let body = request::Body::Metadata(MetadataRequest { topics: Vec::new(), all: true });
        let metadata = body_of!(self.cluster.call(body, Repeat::Freely).await?, Metadata)?;
        let mut names: Vec<_> = metadata.topics.into_iter().map(|topic| topic.name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Settings, placement and sizes of a topic.
    ///
    /// # Errors
    /// No such topic, or no answer.
    pub async fn describe(&self, name: &str) -> Result<TopicDescription, RequestError> {
        let body = request::Body::DescribeTopic(DescribeTopicRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Topic)
    }

    /// Changes settings; those that are absent in `config` stay.
    ///
    /// # Errors
    /// No such topic, settings that are not allowed, or no answer.
    pub async fn alter(&self, name: &str, config: TopicConfig) -> Result<TopicDescription, RequestError> {
        let body =
            request::Body::AlterTopic(AlterTopicRequest { name: name.to_owned(), config: Some(config) });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Topic)
    }

    /// Deletes a topic with its records.
    ///
    /// # Errors
    /// No such topic, or no answer.
    pub async fn delete(&self, name: &str) -> Result<(), RequestError> {
        let body = request::Body::DeleteTopic(DeleteTopicRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::IfUntouched).await?, Empty).map(drop)
    }

    /// Deletes the records of a partition before an offset; answers where its log starts now.
    ///
    /// # Errors
    /// No such partition, an offset beyond its end, or no answer.
    pub async fn delete_records(
        &self,
        topic: &str,
        partition: PartitionId,
        before: Offset,
    ) -> Result<Offset, RequestError> {
        let id = self.cluster.topic(topic).await?.id;
        let partition = Some(TopicPartition::new(id, partition).into());
        let body =
            request::Body::DeleteRecords(DeleteRecordsRequest { partition, before_offset: before.get() });
        let reply = body_of!(self.cluster.call(body, Repeat::Freely).await?, DeleteRecords)?;
        Ok(Offset::new(reply.log_start_offset))
    }
}
