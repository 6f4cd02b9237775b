//! Deployments: create, list, describe, pause, resume, delete, logs.

use tidemill_controller::{
    ControllerCommand, ControllerReply, DeploymentKind, DeploymentRecord, DeploymentSpec, DeploymentStatus,
    FailurePolicy, StartAt,
};
use tidemill_protocol::messages::{
    self, CreateDeploymentRequest, Deployment, DeploymentLogsReply, DeploymentLogsRequest, Error,
    ListDeploymentsReply, ListDeploymentsRequest, LogLine, OffsetQuery, TaskStatus, position::At,
};
use tidemill_protocol::{ErrorCode, Offset, PartitionId, TopicPartition};
use tidemill_raft::Replica;
use tokio::time::Instant;

use crate::adopter::deployment_version;
use crate::cluster::Asking;
use crate::components;
use crate::context::Context;
use crate::errors;
use crate::handlers::adoption::{self, ADOPTION_INTERVAL, is_current};
use crate::handlers::offsets;
use crate::handlers::page::page;
use crate::handlers::plugins::name;
use crate::handlers::topics::{self, control};
use crate::naming::unknown_plugin;
use crate::plans;
use crate::view::ClusterView;

mod tasks;

use tasks::Tasks;

const ATTEMPTS_DEFAULT: u32 = 5;
const BACKOFF_MS_DEFAULT: u32 = 200;
const LOG_LINES_MAX: u32 = 1000;
/// Deployments of which a listing looks at the tasks; no page has more.
const LISTED_MAX: usize = 1_001;

pub(crate) async fn create(asking: &Asking, request: CreateDeploymentRequest) -> Result<Deployment, Error> {
    let context = &*asking.context;
    context.room_to_write()?;
    let view = context.view.now();
    let spec = spec(asking, &view, request).await?;
    // The plugin sees its configuration before anything is bound: a bad one is refused in its own words.
    let plan = dry_run(&view, &spec)?;
    let valid = components::validate(context, &plan).await;
    valid.map_err(|error| components::elsewhere(context, error))?;
    let record = deployment_reply(control(context, ControllerCommand::CreateDeployment(spec)).await?)?;
    let until = adoption::patience();
    settled(context, &record, until).await;
    loop {
        let described = described(asking, &record).await;
        // Of a task that its shard has not heard of yet nothing is known.
        let is_everywhere = described.tasks.len() == tasks::count(&context.view.now(), &record);
        if is_everywhere || Instant::now() >= until {
            return Ok(described);
        }
        tokio::time::sleep(ADOPTION_INTERVAL).await;
    }
}

async fn spec(
    asking: &Asking,
    view: &ClusterView,
    request: CreateDeploymentRequest,
) -> Result<DeploymentSpec, Error> {
    let invalid = |reason: String| Error::new(ErrorCode::InvalidDeployment, reason);
    let kind = match messages::DeploymentKind::try_from(request.kind) {
        Ok(messages::DeploymentKind::Partitioner) => DeploymentKind::Partitioner,
        Ok(messages::DeploymentKind::SubscriptionFilter) => DeploymentKind::SubscriptionFilter,
        Ok(messages::DeploymentKind::ProduceFilter) => DeploymentKind::ProduceFilter,
        Ok(messages::DeploymentKind::Consumer) => DeploymentKind::Consumer,
        _ => return Err(invalid("a deployment is a partitioner, a filter or a consumer".to_owned())),
    };
    let policy = match messages::FailurePolicy::try_from(request.policy) {
        Ok(messages::FailurePolicy::Skip) => FailurePolicy::Skip,
        Ok(messages::FailurePolicy::DeadLetter) => FailurePolicy::DeadLetter,
        // What loses nothing and hides nothing.
        Ok(messages::FailurePolicy::Pause | messages::FailurePolicy::Unspecified) => FailurePolicy::Pause,
        Err(_) => return Err(invalid("the failure policy is skip, dead-letter or pause".to_owned())),
    };
    let settings = &asking.context.config.plugins;
    let memory = match request.memory_bytes_max {
        0 => settings.memory_bytes_default,
        asked if asked <= settings.memory_bytes_max => asked,
        _ => {
            return Err(invalid(format!(
                "an instance may have at most {} bytes of memory (plugins.memory_bytes_max)",
                settings.memory_bytes_max
            )));
        }
    };
    let names = |texts: &[String]| texts.iter().map(|text| topics::name(text)).collect::<Result<Vec<_>, _>>();
    let read = names(&request.topics)?;
    let start = match kind {
        DeploymentKind::Consumer => start(asking, view, &request).await?,
        _ => StartAt::Latest,
    };
    Ok(DeploymentSpec {
        name: name(&request.name)?,
        kind,
        plugin: name(&request.plugin)?,
        version: Some(request.plugin_version.as_str())
            .filter(|version| !version.is_empty())
            .map(name)
            .transpose()?,
        config: request.config.into_iter().collect(),
        topics: read,
        targets: names(&request.targets)?,
        start,
        policy,
        dead_letter: Some(request.dead_letter_topic.as_str())
            .filter(|topic| !topic.is_empty())
            .map(topics::name)
            .transpose()?,
        attempts: if request.attempts == 0 { ATTEMPTS_DEFAULT } else { request.attempts },
        backoff_ms: if request.backoff_ms == 0 { BACKOFF_MS_DEFAULT } else { request.backoff_ms },
        memory_bytes_max: memory,
        drop_rejected: request.drop_rejected,
    })
}

/// A time is looked up here, once: what is decided must not depend on when a shard hears of it.
async fn start(
    asking: &Asking,
    view: &ClusterView,
    request: &CreateDeploymentRequest,
) -> Result<StartAt, Error> {
    let position = request.start.as_ref().and_then(|position| position.at);
    match position {
        None | Some(At::Latest(_)) => Ok(StartAt::Latest),
        Some(At::Earliest(_)) => Ok(StartAt::Earliest),
        Some(At::Offset(offset)) if offset < 0 => {
            Err(Error::new(ErrorCode::OffsetOutOfRange, "a consumer starts at offset 0 or later"))
        }
        Some(At::Offset(offset)) => {
            let all = partitions(view, &request.topics)?;
            Ok(StartAt::Offsets(all.into_iter().map(|partition| (partition, Offset::new(offset))).collect()))
        }
        Some(At::Timestamp(_)) => {
            let all = partitions(view, &request.topics)?;
            let query = |partition: &TopicPartition| OffsetQuery {
                partition: Some((*partition).into()),
                position: request.start,
            };
            let queries: Vec<OffsetQuery> = all.iter().map(query).collect();
            let found = offsets::look_up(asking, &queries).await?;
            let starts = all.into_iter().zip(found).map(|(partition, found)| match found.error {
                Some(error) => Err(error),
                None => Ok((partition, Offset::new(found.offset))),
            });
            starts.collect::<Result<_, _>>().map(StartAt::Offsets)
        }
    }
}
fn partitions(view: &ClusterView, topics: &[String]) -> Result<Vec<TopicPartition>, Error> {
    let mut all = Vec::new();
    for topic in topics {
        let topic = view.topic_by_name(topic).ok_or_else(|| errors::unknown_topic(topic))?;
        all.extend((0..topic.partition_count()).map(|p| TopicPartition::new(topic.id, PartitionId::new(p))));
    }
    Ok(all)
}

/// What the plugin would be told if the deployment stood.
fn dry_run(view: &ClusterView, spec: &DeploymentSpec) -> Result<tidemill_hosting::PluginPlan, Error> {
    let version = spec.version.as_ref().map(tidemill_controller::Name::as_str);
    let plugin = view
        .plugin(spec.plugin.as_str(), version)
        .ok_or_else(|| unknown_plugin(view, spec.plugin.as_str(), version))?;
    if plugin.kind != spec.kind.plugin_kind() {
        return Err(Error::new(
            ErrorCode::WrongWorld,
            format!(
                "plugin '{}' is a {}, and this needs a {}",
                spec.plugin,
                plugin.kind.word(),
                spec.kind.plugin_kind().word()
            ),
        ));
    }
    Ok(tidemill_hosting::PluginPlan {
        deployment: spec.name.to_string(),
        deployment_id: None,
        digest: plugin.digest,
        kind: plans::kind(spec.kind),
        config: spec.config.clone(),
        topics: spec.topics.iter().map(ToString::to_string).collect(),
        targets: spec.targets.iter().map(ToString::to_string).collect(),
        memory_bytes_max: spec.memory_bytes_max,
    })
}

/// Waits until every shard concerned that has a replica here has adopted the change.
async fn settled(context: &Context, record: &DeploymentRecord, until: Instant) {
    let has_adopted = |replica: &Replica| {
        is_current(deployment_version(replica, record.id), record.version, record.deleted)
    };
    let shards = tasks::shards(&context.view.now(), record);
    adoption::adopted(context, &shards, until, has_adopted).await;
}

pub(crate) async fn list(
    asking: &Asking,
    request: &ListDeploymentsRequest,
) -> Result<ListDeploymentsReply, Error> {
    let context = &*asking.context;
    let view = context.view.now();
    let live = view.controller().deployments().filter(|record| !record.deleted);
    let listed: Vec<&DeploymentRecord> =
        live.filter(|record| record.id.get() >= request.from_id).take(LISTED_MAX).collect();
    let mut tasks = Tasks::of_all(asking, &view, &listed, request).await;
    let messages = listed.iter().map(|record| message(context, record, tasks.take(record.id)));
    let (deployments, more) = page(messages, request.limit);
    Ok(ListDeploymentsReply { deployments, more })
}

pub(crate) async fn describe(asking: &Asking, name: &str) -> Result<Deployment, Error> {
    let view = asking.context.view.now();
    let record = view.deployment_by_name(name).ok_or_else(|| errors::unknown_deployment(name))?;
    Ok(described(asking, record).await)
}

async fn described(asking: &Asking, record: &DeploymentRecord) -> Deployment {
    let mut tasks = Tasks::of_one(asking, &asking.context.view.now(), record).await;
    message(&asking.context, record, tasks.take(record.id))
}

pub(crate) async fn pause(asking: &Asking, deployment: &str) -> Result<Deployment, Error> {
    set_status(asking, deployment, DeploymentStatus::Paused).await
}

pub(crate) async fn resume(asking: &Asking, deployment: &str) -> Result<Deployment, Error> {
    set_status(asking, deployment, DeploymentStatus::Running).await
}

async fn set_status(
    asking: &Asking,
    deployment: &str,
    status: DeploymentStatus,
) -> Result<Deployment, Error> {
    let context = &*asking.context;
    if let Some(record) = context.view.now().deployment_by_name(deployment)
        && record.spec.kind != DeploymentKind::Consumer
    {
        return Err(Error::new(
            ErrorCode::InvalidDeployment,
            format!(
                "'{deployment}' is not a hosted consumer: only these pause and resume; delete it instead"
            ),
        ));
    }
    let command = ControllerCommand::SetDeploymentStatus { name: name(deployment)?, status };
    let record = deployment_reply(control(context, command).await?)?;
    settled(context, &record, adoption::patience()).await;
    Ok(described(asking, &record).await)
}

pub(crate) async fn delete(context: &Context, deployment: &str) -> Result<(), Error> {
    let command = ControllerCommand::DeleteDeployment { name: name(deployment)? };
    let record = deployment_reply(control(context, command).await?)?;
    settled(context, &record, adoption::patience()).await;
    Ok(())
}

pub(crate) fn logs(context: &Context, request: &DeploymentLogsRequest) -> Result<DeploymentLogsReply, Error> {
    let view = context.view.now();
    let record =
        view.deployment_by_name(&request.name).ok_or_else(|| errors::unknown_deployment(&request.name))?;
    let limit = if request.limit == 0 { LOG_LINES_MAX } else { request.limit.min(LOG_LINES_MAX) };
    let page = context.hosting.logs(record.id, request.after, usize::try_from(limit).unwrap_or(1));
    let lines = page
        .lines
        .into_iter()
        .map(|line| LogLine {
            number: line.number,
            time: line.time.get(),
            level: line.level.to_string(),
            partition: line.partition,
            message: line.message,
        })
        .collect();
    Ok(DeploymentLogsReply { lines, next: page.next, dropped: page.dropped })
}

fn deployment_reply(reply: ControllerReply) -> Result<DeploymentRecord, Error> {
    match reply {
        ControllerReply::Deployment(record) => Ok(*record),
        other => Err(errors::another_reply(&other)),
    }
}

fn message(context: &Context, record: &DeploymentRecord, tasks: Vec<TaskStatus>) -> Deployment {
    let kind = match record.spec.kind {
        DeploymentKind::Partitioner => messages::DeploymentKind::Partitioner,
        DeploymentKind::SubscriptionFilter => messages::DeploymentKind::SubscriptionFilter,
        DeploymentKind::ProduceFilter => messages::DeploymentKind::ProduceFilter,
        DeploymentKind::Consumer => messages::DeploymentKind::Consumer,
    };
    let policy = match record.spec.policy {
        FailurePolicy::Skip => messages::FailurePolicy::Skip,
        FailurePolicy::DeadLetter => messages::FailurePolicy::DeadLetter,
        FailurePolicy::Pause => messages::FailurePolicy::Pause,
    };
    let (status, status_reason) = match &record.status {
        DeploymentStatus::Running => (messages::DeploymentStatus::Running, String::new()),
        DeploymentStatus::Paused => (messages::DeploymentStatus::Paused, String::new()),
        DeploymentStatus::Failed(reason) => (messages::DeploymentStatus::Failed, reason.clone()),
    };
    let (status, status_reason) = as_its_tasks(status, status_reason, &tasks);
    Deployment {
        deployment_id: record.id.get(),
        name: record.spec.name.to_string(),
        kind: kind.into(),
        plugin: record.spec.plugin.to_string(),
        plugin_version: record.spec.version.as_ref().map(ToString::to_string).unwrap_or_default(),
        config: record.spec.config.clone(),
        topics: record.spec.topics.iter().map(ToString::to_string).collect(),
        targets: record.spec.targets.iter().map(ToString::to_string).collect(),
        policy: policy.into(),
        dead_letter_topic: record.spec.dead_letter.as_ref().map(ToString::to_string).unwrap_or_default(),
        status: status.into(),
        status_reason,
        epoch: record.epoch,
        created_at: record.created_at.get(),
        tasks,
        counters: context.hosting.counters(record.id),
        memory_bytes_max: record.spec.memory_bytes_max,
        attempts: record.spec.attempts,
        backoff_ms: record.spec.backoff_ms,
        drop_rejected: record.spec.drop_rejected,
    }
}

/// A deployment that is to run and none of whose tasks does has stopped.
fn as_its_tasks(
    status: messages::DeploymentStatus,
    reason: String,
    tasks: &[TaskStatus],
) -> (messages::DeploymentStatus, String) {
    // One of which nothing is known may run.
    let runs = [messages::DeploymentStatus::Running, messages::DeploymentStatus::Unspecified];
    let is_stopped = |task: &TaskStatus| !runs.contains(&task.status());
    match tasks.first() {
        Some(first) if status == messages::DeploymentStatus::Running && tasks.iter().all(is_stopped) => {
            let of =
                if tasks.len() == 1 { "its task".to_owned() } else { format!("all {} tasks", tasks.len()) };
            (first.status(), format!("{of} stopped: {}", first.reason))
        }
        _ => (status, reason),
    }
}
