//! Carries what the controller decided into the shards.
//!
//! The controller and the other shards are separate logs. A topic, its configuration, its deletion, a deployment: each
//! reaches a shard as an `adopt` unit with the version that the controller gave it. The leader of a shard compares what
//! it has adopted with what it should have whenever either changes; adopting twice is harmless, since a shard accepts
//! rising versions only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidemill_controller::{DeploymentKind, DeploymentRecord, DeploymentStatus, StartAt, TopicRecord};
use tidemill_coordinator::GroupCommand;
use tidemill_protocol::{DeploymentId, Offset, PartitionId, ShardId, TopicPartition};
use tidemill_raft::Replica;
use tidemill_shard::{
    AdoptDeployment, AdoptTopic, AdoptedStatus, StartAt as TaskStart, TaskAssignment, Unit, UnitResult,
};

use crate::config::PluginSettings;
use crate::context::Context;
use crate::shards::Shards;
use crate::view::{ClusterView, ViewReader};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What failed is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Looked at unasked: for what came to a shard just when what it belongs to was forgotten.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);

mod forgetting;

pub(crate) use forgetting::held_here;

pub(crate) struct Adopter {
    pub(crate) context: Arc<Context>,
    pub(crate) shards: Shards,
    pub(crate) view: ViewReader,
    pub(crate) plugins: PluginSettings,
}

impl Adopter {
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let all: BTreeSet<ShardId> = self.shards.numbers().collect();
        // Until it was led here, and took what was found.
        let mut to_look_at = all.clone();
        // Outside of the loop: in a busy cluster the view changes more often than that.
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        loop {
            let done = self.reconcile(&mut to_look_at).await;
            tokio::select! {
                changed = self.view.changed() => {
                    if changed.is_none() {
                        return;
                    }
                }
                () = tokio::time::sleep(RETRY_INTERVAL), if !done => {}
                () = tokio::time::sleep_until(next_look) => {
                    next_look = Instant::now() + LOOK_INTERVAL;
                    to_look_at.clone_from(&all);
                }
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Proposes what is missing; `false` where something has to be tried again.
    async fn reconcile(&self, to_look_at: &mut BTreeSet<ShardId>) -> bool {
        let view = self.view.now();
        let deletes = view.controller().topics().any(|topic| topic.deleted)
            || view.controller().deployments().any(|record| record.deleted);
        let mut done = true;
        for (shard, replica) in self.shards.data() {
            if !replica.watch().borrow().is_leader() {
                continue;
            }
            let looks = deletes || to_look_at.contains(&shard);
            let left_over = if looks { self.left_over(&replica).await } else { Some(Vec::new()) };
            let mut taken = left_over.is_some();
            let left_over = left_over.unwrap_or_default();
            for unit in self.missing(&view, shard, &replica).into_iter().chain(left_over) {
                match replica.propose(unit).await {
                    Ok(UnitResult::Adopted | UnitResult::Stale { .. } | UnitResult::Group(_)) => {}
                    Ok(other) => {
                        tracing::error!(%shard, result = ?other, "a shard did not adopt what the controller decided");
                        taken = false;
                    }
                    Err(error) => {
                        tracing::debug!(%shard, %error, "adopting will be tried again");
                        taken = false;
                    }
                }
            }
            if taken {
                to_look_at.remove(&shard);
            }
            done &= taken;
        }
        done && forgetting::forget(&self.context, &view).await
    }

    fn missing(&self, view: &Arc<ClusterView>, shard: ShardId, replica: &Replica) -> Vec<Unit> {
        let state = replica.shard();
        let mut units = Vec::new();
        for topic in view.controller().topics() {
            let held = topic.partitions_of(shard).next().is_some();
            let adopted = state.topic_version(topic.id);
            let due = if topic.deleted {
                adopted.is_some_and(|version| version < topic.version)
            } else {
                held && adopted.is_none_or(|version| version < topic.version)
            };
            if due {
                units.push(Unit::AdoptTopic(adopt_topic(shard, topic)));
            }
        }
        for record in
            view.controller().deployments().filter(|record| record.spec.kind == DeploymentKind::Consumer)
        {
            let adopted = deployment_version(replica, record.id);
            let tasks = assignments(view, shard, record);
            let due = if record.deleted {
                adopted.is_some_and(|version| version < record.version)
            } else {
                !tasks.is_empty() && adopted.is_none_or(|version| version < record.version)
            };
            if due {
                units.push(Unit::AdoptDeployment(self.adopt_deployment(record, tasks)));
            }
        }
        units
    }

    /// What a shard holds of topics and deployments that are gone and that it never adopted: groups' positions live in the shard that the
    /// group's name points to, and how far outputs came in the shard that they came to. `None` where the controller can't be asked: they
    /// come from other brokers, too, which may know of topics and deployments that this one has not heard of.
    async fn left_over(&self, replica: &Replica) -> Option<Vec<Unit>> {
        let shard = replica.shard();
        let (mut topics, mut senders) = (shard.group_topics(), shard.strange_senders());
        let view = self.view.now();
        topics.retain(|topic| view.topic(*topic).is_none());
        senders.retain(|id| view.deployment(*id).is_none_or(|record| record.deleted));
        if topics.is_empty() && senders.is_empty() {
            return Some(Vec::new());
        }
        // Only now: whatever the shard holds belongs to something that the controller has known before.
        let now = self.shards.controller_now().await?;
        let gone = topics.into_iter().filter(|topic| now.topic(*topic).is_none_or(|topic| topic.deleted));
        let positions = gone.map(|topic| Unit::Group(GroupCommand::ForgetTopic { topic }));
        let gone = senders.into_iter().filter_map(|id| match now.deployment(id) {
            Some(record) if record.deleted => Some(self.adopt_deployment(record, Vec::new())),
            Some(_) => None,
            None => Some(AdoptDeployment {
                deployment: id,
                version: now.version(),
                epoch: 0,
                status: AdoptedStatus::Deleted,
                tasks: Vec::new(),
                state_bytes_max: 0,
                outbox_bytes_max: 0,
            }),
        });
        Some(positions.chain(gone.map(Unit::AdoptDeployment)).collect())
    }

    fn adopt_deployment(&self, record: &DeploymentRecord, tasks: Vec<TaskAssignment>) -> AdoptDeployment {
        AdoptDeployment {
            deployment: record.id,
            version: record.version,
            epoch: record.epoch,
            status: match (&record.status, record.deleted) {
                (_, true) => AdoptedStatus::Deleted,
                (DeploymentStatus::Running, _) => AdoptedStatus::Running,
                (DeploymentStatus::Paused | DeploymentStatus::Failed(_), _) => AdoptedStatus::Paused,
            },
            tasks,
            state_bytes_max: self.plugins.state_bytes_max,
            outbox_bytes_max: self.plugins.outbox_bytes_max,
        }
    }
}

fn adopt_topic(shard: ShardId, topic: &TopicRecord) -> AdoptTopic {
    AdoptTopic {
        topic: topic.id,
        version: topic.version,
        name: topic.name.to_string(),
        config: topic.config,
        partitions: topic.partitions_of(shard).collect(),
        deleted: topic.deleted,
    }
}

/// The version of a deployment that a shard has adopted.
pub(crate) fn deployment_version(replica: &Replica, deployment: DeploymentId) -> Option<u64> {
    replica.shard().deployment_version(deployment)
}

/// The tasks of a deployment that live in a shard: one per partition of its (co-partitioned) topics.
pub(crate) fn assignments(
    view: &ClusterView,
    shard: ShardId,
    record: &DeploymentRecord,
) -> Vec<TaskAssignment> {
    let Some(first) = record.topics.first().and_then(|topic| view.topic(*topic)) else { return Vec::new() };
    first
        .partitions_of(shard)
        .map(|partition| TaskAssignment { partition, sources: sources(record, partition) })
        .collect()
}

fn sources(record: &DeploymentRecord, partition: PartitionId) -> Vec<(TopicPartition, TaskStart)> {
    record
        .topics
        .iter()
        .map(|topic| {
            let source = TopicPartition::new(*topic, partition);
            let start = match &record.spec.start {
                StartAt::Earliest => TaskStart::Earliest,
                StartAt::Latest => TaskStart::Latest,
                StartAt::Offsets(offsets) => {
                    let found = offsets.iter().find(|(named, _)| *named == source);
                    TaskStart::Offset(found.map_or(Offset::ZERO, |(_, offset)| *offset))
                }
            };
            (source, start)
        })
        .collect()
}
