//! From the controller's records to what the hosting room runs.

use std::sync::Arc;

use tidemill_controller::{DeploymentKind, DeploymentRecord, FailurePolicy};
use tidemill_hosting::{PluginKind, PluginPlan, TargetPlan, TaskPlan, TaskPolicy};
use tidemill_protocol::{PartitionId, TopicId, TopicPartition};

use crate::view::ClusterView;

/// The plugin of a deployment with everything that its `init` is told.
pub(crate) fn plugin(view: &ClusterView, record: &DeploymentRecord) -> PluginPlan {
    PluginPlan {
        deployment: record.spec.name.to_string(),
        deployment_id: Some(record.id),
        digest: record.digest,
        kind: kind(record.spec.kind),
        config: record.spec.config.clone(),
        topics: record.topics.iter().map(|topic| view.topic_name(*topic)).collect(),
        targets: record.targets.iter().map(|topic| view.topic_name(*topic)).collect(),
        memory_bytes_max: record.spec.memory_bytes_max,
    }
}

pub(crate) fn kind(kind: DeploymentKind) -> PluginKind {
    match kind {
        DeploymentKind::Partitioner => PluginKind::Partitioner,
        DeploymentKind::SubscriptionFilter | DeploymentKind::ProduceFilter => PluginKind::Filter,
        DeploymentKind::Consumer => PluginKind::Consumer,
    }
}

/// One task of a consumer deployment.
pub(crate) fn task(view: &ClusterView, record: &DeploymentRecord, partition: PartitionId) -> TaskPlan {
    let sources = (0u32..)
        .zip(&record.topics)
        .map(|(index, topic)| (index, TopicPartition::new(*topic, partition)))
        .collect();
    let targets = record.targets.iter().filter_map(|topic| target(view, *topic)).collect();
    let policy = match record.spec.policy {
        FailurePolicy::Skip => TaskPolicy::Skip,
        FailurePolicy::Pause => TaskPolicy::Pause,
        // Without its topic, which can't be deleted while it is used, pausing loses nothing.
        FailurePolicy::DeadLetter => record
            .dead_letter
            .and_then(|topic| target(view, topic))
            .map_or(TaskPolicy::Pause, |target| TaskPolicy::DeadLetter(Box::new(target))),
    };
    TaskPlan {
        plugin: Arc::new(plugin(view, record)),
        epoch: record.epoch,
        partition,
        sources,
        targets,
        policy,
        attempts: record.spec.attempts.max(1),
        backoff_ms: record.spec.backoff_ms,
    }
}

fn target(view: &ClusterView, topic: TopicId) -> Option<TargetPlan> {
    let topic = view.topic(topic)?;
    let partitioner = topic.partitioner.deployment.and_then(|id| view.deployment(id));
    Some(TargetPlan {
        topic: topic.id,
        name: topic.name.to_string(),
        partitions: topic.partition_count(),
        partitioner: partitioner.map(|record| plugin(view, record)),
    })
}
