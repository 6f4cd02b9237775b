//! What this broker knows of the cluster: an immutable picture of the controller's state, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use tidemill_controller::{Controller, DeploymentRecord, PluginRecord, TopicRecord};
use tidemill_protocol::{BrokerId, DeploymentId, ShardId, TopicId, TopicPartition};
use tokio::sync::watch;

/// The cluster's metadata at one version.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterView {
    controller: Arc<Controller>,
    /// `host:port` of this broker, for clients.
    pub(crate) addresses: Vec<String>,
    pub(crate) broker: BrokerId,
    topics: HashMap<TopicId, Arc<TopicRecord>>,
}

impl ClusterView {
    pub(crate) fn new(controller: Arc<Controller>, broker: BrokerId, addresses: Vec<String>) -> Self {
        let topics = controller.topics().map(|topic| (topic.id, Arc::new(topic.clone()))).collect();
        Self { controller, addresses, broker, topics }
    }

    pub(crate) fn version(&self) -> u64 {
        self.controller.version()
    }

    pub(crate) fn controller(&self) -> &Controller {
        &self.controller
    }

    /// A topic that is not deleted.
    pub(crate) fn topic(&self, id: TopicId) -> Option<&Arc<TopicRecord>> {
        self.topics.get(&id).filter(|topic| !topic.deleted)
    }

    pub(crate) fn topic_by_name(&self, name: &str) -> Option<&Arc<TopicRecord>> {
        self.topics.get(&self.controller.topic_by_name(name)?.id)
    }

    /// The topics that are not deleted, by name.
    pub(crate) fn live_topics(&self) -> Vec<&Arc<TopicRecord>> {
        let mut topics: Vec<_> = self.topics.values().filter(|topic| !topic.deleted).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    pub(crate) fn shard_of(&self, partition: TopicPartition) -> Option<ShardId> {
        self.topic(partition.topic)?.shard_of(partition.partition)
    }

    /// A deployment, a deleted one that is still remembered included.
    pub(crate) fn deployment(&self, id: DeploymentId) -> Option<&DeploymentRecord> {
        self.controller.deployment(id)
    }

    pub(crate) fn deployment_by_name(&self, name: &str) -> Option<&DeploymentRecord> {
        self.controller.deployment_by_name(name)
    }

    pub(crate) fn plugin(&self, name: &str, version: Option<&str>) -> Option<&PluginRecord> {
        self.controller.plugin(name, version)
    }

    /// `plays` for people, where the topic is known, else its id.
    pub(crate) fn topic_name(&self, id: TopicId) -> String {
        self.topics.get(&id).map_or_else(|| id.to_string(), |topic| topic.name.to_string())
    }

    /// `plays-3` for people.
    pub(crate) fn partition_name(&self, partition: TopicPartition) -> String {
        format!("{}-{}", self.topic_name(partition.topic), partition.partition)
    }
}

/// The newest [`ClusterView`], and a way to hear of the next.
#[derive(Clone)]
pub(crate) struct ViewReader(watch::Receiver<Arc<ClusterView>>);

impl ViewReader {
    pub(crate) fn channel(first: ClusterView) -> (watch::Sender<Arc<ClusterView>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    pub(crate) fn now(&self) -> Arc<ClusterView> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for another view than the last one that this reader saw here.
    pub(crate) async fn changed(&mut self) -> Option<Arc<ClusterView>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update()))
    }
}
