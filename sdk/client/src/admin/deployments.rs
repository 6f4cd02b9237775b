use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::messages::{
    CreateDeploymentRequest, DeleteDeploymentRequest, Deployment, DeploymentKind, DeploymentLogsReply,
    DeploymentLogsRequest, DescribeDeploymentRequest, FailurePolicy, ListDeploymentsRequest,
    PauseDeploymentRequest, ResumeDeploymentRequest, request,
};

use super::{Position, all_pages, body_of};
use crate::cluster::{Cluster, Repeat};
use crate::{Client, RequestError};

/// A deployment is compiled on its brokers before it is there.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(120);

/// Plugins at work. From [`Client::deployments`].
#[derive(Debug, Clone)]
pub struct Deployments {
    cluster: Arc<Cluster>,
}

/// A deployment to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDeployment {
    request: CreateDeploymentRequest,
}

impl NewDeployment {
    fn new(kind: DeploymentKind, name: impl Into<String>, plugin: impl Into<String>) -> Self {
        let request = CreateDeploymentRequest {
            name: name.into(),
            kind: kind.into(),
            plugin: plugin.into(),
            ..Default::default()
        };
        Self { request }
    }

    /// The partitioner of a topic.
    pub fn partitioner(name: impl Into<String>, plugin: impl Into<String>, topic: impl Into<String>) -> Self {
        Self::new(DeploymentKind::Partitioner, name, plugin).topic(topic)
    }

    /// A filter on what is produced to a topic.
    pub fn produce_filter(
        name: impl Into<String>,
        plugin: impl Into<String>,
        topic: impl Into<String>,
    ) -> Self {
        Self::new(DeploymentKind::ProduceFilter, name, plugin).topic(topic)
    }

    /// A configured filter that subscriptions ask for by name.
    pub fn subscription_filter(name: impl Into<String>, plugin: impl Into<String>) -> Self {
        Self::new(DeploymentKind::SubscriptionFilter, name, plugin)
    }

    /// A consumer; name its topics and targets.
    pub fn consumer(name: impl Into<String>, plugin: impl Into<String>) -> Self {
        Self::new(DeploymentKind::Consumer, name, plugin)
    }

    /// Of this version of the plugin instead of the newest.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.request.plugin_version = version.into();
        self
    }

    /// With a setting for the plugin.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.config.insert(key.into(), value.into());
        self
    }

    /// Reads this topic, too.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.request.topics.push(topic.into());
        self
    }

    /// May emit to this topic.
    #[must_use]
    pub fn target(mut self, topic: impl Into<String>) -> Self {
        self.request.targets.push(topic.into());
        self
    }

    /// Begins here instead of at the end.
    #[must_use]
    pub fn start(mut self, position: Position) -> Self {
        self.request.start = Some(position.into());
        self
    }

    /// What becomes of records that fail.
    #[must_use]
    pub fn policy(mut self, policy: FailurePolicy) -> Self {
        self.request.policy = policy.into();
        self
    }

    /// Where records that fail go.
    #[must_use]
    pub fn dead_letter(mut self, topic: impl Into<String>) -> Self {
        self.request.dead_letter_topic = topic.into();
        self.policy(FailurePolicy::DeadLetter)
    }

    /// How often a record is tried, and the pause after the first failure.
    #[must_use]
    pub fn attempts(mut self, attempts: u32, backoff: Duration) -> Self {
        self.request.attempts = attempts;
        self.request.backoff_ms = u32::try_from(backoff.as_millis()).unwrap_or(u32::MAX);
        self
    }

    /// Memory that an instance may have.
    #[must_use]
    pub const fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.request.memory_bytes_max = bytes;
        self
    }

    /// A produce filter drops what it rejects instead of refusing the batch.
    #[must_use]
    pub const fn drop_rejected(mut self) -> Self {
        self.request.drop_rejected = true;
        self
    }
}

impl Client {
    /// Deployments: make, list, describe, pause, resume, delete, logs.
    #[must_use]
    pub fn deployments(&self) -> Deployments {
        Deployments { cluster: Arc::clone(&self.cluster) }
    }
}

impl Deployments {
    /// Makes a deployment.
    ///
    /// # Errors
    /// The broker's reasons not to, or no answer.
    pub async fn create(&self, deployment: NewDeployment) -> Result<Deployment, RequestError> {
        let body = request::Body::CreateDeployment(deployment.request);
        let reply = self.cluster.call_with(body, bytes::Bytes::new(), Repeat::Freely, DEPLOY_TIMEOUT).await?;
        body_of!(reply, Deployment)
    }

    /// All deployments.
    ///
    /// # Errors
    /// No answer.
    pub async fn list(&self) -> Result<Vec<Deployment>, RequestError> {
        all_pages(|last: Option<&Deployment>| {
            let from_id = last.map_or(0, |last| last.deployment_id.saturating_add(1));
            let body = request::Body::ListDeployments(ListDeploymentsRequest { from_id, limit: 0 });
            async move {
                let page = body_of!(self.cluster.call(body, Repeat::Freely).await?, ListDeployments)?;
                Ok((page.deployments, page.more))
            }
        })
        .await
    }

    /// One deployment with its tasks and counters.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn describe(&self, name: &str) -> Result<Deployment, RequestError> {
        let body = request::Body::DescribeDeployment(DescribeDeploymentRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Deployment)
    }

    /// Stops a deployment where it is.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn pause(&self, name: &str) -> Result<Deployment, RequestError> {
        let body = request::Body::PauseDeployment(PauseDeploymentRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Deployment)
    }

    /// Lets a deployment go on.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn resume(&self, name: &str) -> Result<Deployment, RequestError> {
        let body = request::Body::ResumeDeployment(ResumeDeploymentRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::Freely).await?, Deployment)
    }

    /// Deletes a deployment with its state.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn delete(&self, name: &str) -> Result<(), RequestError> {
        let body = request::Body::DeleteDeployment(DeleteDeploymentRequest { name: name.to_owned() });
        body_of!(self.cluster.call(body, Repeat::IfUntouched).await?, Empty).map(drop)
    }

    /// Log lines of a deployment after a number (0: from the first that is kept), at most `limit`.
    ///
    /// # Errors
    /// No such deployment, or no answer.
    pub async fn logs(
        &self,
        name: &str,
        after: u64,
        limit: u32,
    ) -> Result<DeploymentLogsReply, RequestError> {
        let body = DeploymentLogsRequest { name: name.to_owned(), after, limit };
        body_of!(
            self.cluster.call(request::Body::DeploymentLogs(body), Repeat::Freely).await?,
            DeploymentLogs
        )
    }
}
