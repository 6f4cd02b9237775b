//! How the tasks of hosted consumers are, in whichever shard they live: a task is looked at where a replica of its shard is, here or at
//! another broker.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_controller::{DeploymentKind, DeploymentRecord, DeploymentStatus, TopicRecord};
use tidemill_protocol::messages::{
    self, Deployment, DescribeDeploymentRequest, ListDeploymentsRequest, TaskPosition, TaskStatus, reply,
    request,
};
use tidemill_protocol::{DeploymentId, PartitionId, ShardId};
use tidemill_raft::Replica;
use tidemill_shard::TaskStatus as TaskState;

use crate::cluster::Asking;
use crate::context::Context;
use crate::task_port::TASKS_WAIT;
use crate::view::ClusterView;

/// The tasks of deployments, by the numbers of their partitions.
pub(super) struct Tasks(BTreeMap<DeploymentId, BTreeMap<u32, TaskStatus>>);

/// How many tasks a deployment has.
pub(super) fn count(view: &ClusterView, record: &DeploymentRecord) -> usize {
    first_topic(view, record).map_or(0, |topic| topic.shards.len())
}

/// The shards that they live in.
pub(super) fn shards(view: &ClusterView, record: &DeploymentRecord) -> Vec<ShardId> {
    let shards = first_topic(view, record).into_iter().flat_map(|topic| topic.shards.iter().copied());
    let shards: BTreeSet<ShardId> = shards.collect();
    shards.into_iter().collect()
}

/// The topic whose partitions a hosted consumer has a task each of.
fn first_topic<'a>(view: &'a ClusterView, record: &DeploymentRecord) -> Option<&'a TopicRecord> {
    if record.spec.kind != DeploymentKind::Consumer {
        return None;
    }
    record.topics.first().and_then(|topic| view.topic(*topic)).map(|topic| &**topic)
}

impl Tasks {
    /// Those of one deployment.
    pub(super) async fn of_one(asking: &Asking, view: &ClusterView, record: &DeploymentRecord) -> Self {
        let name = record.spec.name.to_string();
        let body = request::Body::DescribeDeployment(DescribeDeploymentRequest { name });
        Self::gather(asking, view, &[record], &body).await
    }

    /// Those of a page of deployments.
    pub(super) async fn of_all(
        asking: &Asking,
        view: &ClusterView,
        records: &[&DeploymentRecord],
        request: &ListDeploymentsRequest,
    ) -> Self {
        Self::gather(asking, view, records, &request::Body::ListDeployments(*request)).await
    }

    pub(super) fn take(&mut self, deployment: DeploymentId) -> Vec<TaskStatus> {
        self.0.remove(&deployment).unwrap_or_default().into_values().collect()
    }

    async fn gather(
        asking: &Asking,
        view: &ClusterView,
        records: &[&DeploymentRecord],
        body: &request::Body,
    ) -> Self {
        let context = &*asking.context;
        let placed = Placed::of(view, records);
        let share = asking.share(placed.0.keys().copied());
        // What a replica here has not heard yet is shown as it stands there: a description is better than none.
        let _ = context.settle(share.here.iter().map(|(shard, _)| *shard)).await;
        let mut tasks = Self(BTreeMap::new());
        for (shard, replica) in &share.here {
            for (record, partition) in placed.of_shard(*shard) {
                tasks.extend(record.id, here(context, view, replica, record, partition));
            }
        }
        let answers = asking.ask_each(share.there, |_| body.clone()).await;
        for (shards, body) in answers.said {
            let said = match body {
                reply::Body::Deployment(deployment) => vec![deployment],
                reply::Body::ListDeployments(listed) => listed.deployments,
                _ => Vec::new(),
            };
            tasks.take_over(&placed, &shards, said);
        }
        for (shard, error) in share.nowhere.into_iter().chain(answers.failed) {
            for (record, partition) in placed.of_shard(shard) {
                let reason = format!("how it is can't be told by this broker: {}", error.message);
                // Neither running nor stopped, as far as is known.
                let status = messages::DeploymentStatus::Unspecified.into();
                let unknown = TaskStatus { partition, status, reason, ..TaskStatus::default() };
                tasks.extend(record.id, Some(unknown));
            }
        }
        tasks
    }

    fn extend(&mut self, deployment: DeploymentId, task: Option<TaskStatus>) {
        if let Some(task) = task {
            self.0.entry(deployment).or_default().insert(task.partition, task);
        }
    }

    /// Takes what another broker said of tasks in the shards that it was asked about.
    fn take_over(&mut self, placed: &Placed<'_>, shards: &BTreeSet<ShardId>, said: Vec<Deployment>) {
        let asked = shards.iter().flat_map(|shard| placed.of_shard(*shard));
        let asked: BTreeSet<(DeploymentId, u32)> =
            asked.map(|(record, number)| (record.id, number)).collect();
        for deployment in said {
            let id = DeploymentId::new(deployment.deployment_id);
            for task in deployment.tasks.into_iter().filter(|task| asked.contains(&(id, task.partition))) {
                self.extend(id, Some(task));
            }
        }
    }
}

/// Which tasks live in which shard.
struct Placed<'a>(BTreeMap<ShardId, BTreeMap<DeploymentId, (&'a DeploymentRecord, Vec<u32>)>>);

impl<'a> Placed<'a> {
    fn of(view: &ClusterView, records: &[&'a DeploymentRecord]) -> Self {
        let mut placed = Self(BTreeMap::new());
        for record in records {
            let Some(topic) = first_topic(view, record) else { continue };
            for (partition, shard) in (0_u32..).zip(&topic.shards) {
                let of_shard = placed.0.entry(*shard).or_default();
                of_shard.entry(record.id).or_insert((record, Vec::new())).1.push(partition);
            }
        }
        placed
    }

    fn of_shard(&self, shard: ShardId) -> impl Iterator<Item = (&'a DeploymentRecord, u32)> {
        let all = self.0.get(&shard).into_iter().flat_map(BTreeMap::values);
        all.flat_map(|(record, partitions)| partitions.iter().map(|partition| (*record, *partition)))
    }
}

/// A task as a replica here shows it; `None` where its shard has not heard of it yet.
fn here(
    context: &Context,
    view: &ClusterView,
    replica: &Replica,
    record: &DeploymentRecord,
    partition: u32,
) -> Option<TaskStatus> {
    let shard = replica.shard();
    let task = shard.task_now(record.id, PartitionId::new(partition))?;
    let waits = context.disk.is_nearly_full() && record.status == DeploymentStatus::Running;
    let (status, reason) = match &task.status {
        // The deployment's word counts for every task, whatever the shard's note of it says yet.
        TaskState::Running if record.status == DeploymentStatus::Paused => {
            (messages::DeploymentStatus::Paused, String::new())
        }
        TaskState::Running if waits => (messages::DeploymentStatus::Running, TASKS_WAIT.to_owned()),
        TaskState::Running => {
            let waits = context.hosting.waits(record.id, task.partition).unwrap_or_default();
            (messages::DeploymentStatus::Running, waits)
        }
        TaskState::Paused { reason } => (messages::DeploymentStatus::Paused, reason.clone()),
        TaskState::Failed { reason } => (messages::DeploymentStatus::Failed, reason.clone()),
    };
    let positions = task
        .positions
        .iter()
        .map(|(source, position)| TaskPosition {
            topic: view.topic_name(source.topic),
            position: position.get(),
            high_watermark: shard.partition(*source).map_or(-1, |known| known.high_watermark.get()),
        })
        .collect();
    Some(TaskStatus {
        partition,
        status: status.into(),
        reason,
        positions,
        outbox_bytes: task.outbox.iter().map(|(_, bytes)| bytes).sum(),
        state_bytes: task.state_bytes,
    })
}
