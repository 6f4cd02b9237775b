//! Topics: create, delete, alter, describe, delete records.

use std::sync::Arc;

use tidemill_controller::{ControllerCommand, ControllerReply, Name, TopicOverrides, TopicRecord};
use tidemill_protocol::messages::{
    self, AlterTopicRequest, CreateTopicRequest, DeleteRecordsReply, DeleteRecordsRequest,
    DeleteTopicRequest, Error, PartitionStatus, TopicDescription, TopicPartitionRef,
};
use tidemill_protocol::{ErrorCode, Offset, PartitionId, ShardId, TopicId, TopicPartition};
use tidemill_shard::{Unit, UnitResult};

use crate::context::Context;
use crate::errors;
use crate::handlers::metadata;
use crate::view::ClusterView;

pub(crate) async fn create(
    context: &Arc<Context>,
    request: CreateTopicRequest,
) -> Result<TopicDescription, Error> {
    let command = ControllerCommand::CreateTopic {
        id: TopicId::new(uuid::Uuid::now_v7()),
        name: name(&request.name)?,
        partitions: request.partitions,
        overrides: overrides(context, &request.name, request.config.as_ref())?,
        with: Some(request.with.as_str()).filter(|with| !with.is_empty()).map(name).transpose()?,
        if_not_exists: request.if_not_exists,
    };
    let topic = topic_reply(control(context, command).await?)?;
    adopted(context, &topic).await;
    description(context, &context.view.now(), &topic)
}

pub(crate) async fn alter(
    context: &Arc<Context>,
    request: AlterTopicRequest,
) -> Result<TopicDescription, Error> {
    let command = ControllerCommand::AlterTopic {
        name: name(&request.name)?,
        overrides: overrides(context, &request.name, request.config.as_ref())?,
    };
    let topic = topic_reply(control(context, command).await?)?;
    adopted(context, &topic).await;
    description(context, &context.view.now(), &topic)
}

pub(crate) async fn delete(context: &Arc<Context>, request: DeleteTopicRequest) -> Result<(), Error> {
    let topic =
        topic_reply(control(context, ControllerCommand::DeleteTopic { name: name(&request.name)? }).await?)?;
    adopted(context, &topic).await;
    Ok(())
}

pub(crate) async fn describe(context: &Context, name: &str) -> Result<TopicDescription, Error> {
    let view = context.view.now();
    let topic = view.topic_by_name(name).ok_or_else(|| errors::unknown_topic(name))?;
    // What a replica here has not heard yet is shown as it stands there: a description is better than none.
    let _ = context.confirm(topic.shards.iter().copied()).await;
    description(context, &view, topic)
}

pub(crate) async fn delete_records(
    context: &Arc<Context>,
    request: &DeleteRecordsRequest,
) -> Result<DeleteRecordsReply, Error> {
    let partition = partition(request.partition.as_ref())?;
    let view = context.view.now();
    let (_, replica) = context.find(&view, partition)?;
    context.confirm([replica.shard_id()]).await?;
    let known = replica
        .shard()
        .partition(partition)
        .ok_or_else(|| errors::not_ready(view.partition_name(partition)))?;
    drop(view);
    let offset = match request.before_offset {
        -1 => known.high_watermark,
        offset => Offset::new(offset),
    };
    if offset > known.high_watermark || offset < Offset::ZERO {
        return Err(Error::new(
            ErrorCode::OffsetOutOfRange,
            format!("records up to {} can be deleted, not up to {offset}", known.high_watermark),
        ));
    }
    let unit = Unit::AdvanceLogStart { partition, offset };
    match replica.propose_anywhere(unit).await.map_err(|error| errors::propose(&error))? {
        UnitResult::LogStart { offset } => Ok(DeleteRecordsReply { log_start_offset: offset.get() }),
        other => Err(errors::unit(&other)),
    }
}

/// Parses a topic's name.
pub(crate) fn name(text: &str) -> Result<Name, Error> {
    Name::parse(text).map_err(|error| errors::invalid_topic_name(&error))
}

/// A partition that a message names.
pub(crate) fn partition(reference: Option<&TopicPartitionRef>) -> Result<TopicPartition, Error> {
    reference.and_then(TopicPartitionRef::parse).ok_or_else(errors::not_an_id)
}

/// Asks the controller for a change, and waits until this broker's view shows it: whoever was answered finds what he did with his
/// next request. Bounded by the request's deadline.
pub(crate) async fn control(context: &Context, command: ControllerCommand) -> Result<ControllerReply, Error> {
    let unit = Unit::Control(command);
    let result =
        context.shards.propose(ShardId::CONTROLLER, unit).await.map_err(|error| errors::propose(&error))?;
    match result {
        UnitResult::Control(Ok(reply)) => {
            // Decided elsewhere, this broker hears of it a little later, and its view a little after that.
            if let Some(controller) = context.shards.controller()
                && controller.read_barrier().await.is_ok()
            {
                context.view_shows(&controller).await;
            }
            Ok(reply)
        }
        UnitResult::Control(Err(error)) => Err(errors::controller(&error)),
        other => Err(errors::unit(&other)),
    }
}

fn topic_reply(reply: ControllerReply) -> Result<TopicRecord, Error> {
    match reply {
        ControllerReply::Topic(topic) => Ok(*topic),
        other => Err(errors::another_reply(&other)),
    }
}

/// Waits until every shard of the topic has the change, so that the next request finds it.
/// Bounded by the request's deadline: the change stands whether or not anybody waits.
async fn adopted(context: &Context, topic: &TopicRecord) {
    for (shard, replica) in context.shards.data() {
        if topic.partitions_of(shard).next().is_none() {
            continue;
        }
        let mut changes = replica.handle().changes();
        while replica.shard().topic_version(topic.id).is_none_or(|version| version < topic.version) {
            // A shard that never knew a deleted topic has nothing to adopt.
            if topic.deleted && replica.shard().topic_version(topic.id).is_none() {
                break;
            }
            changes.changed().await;
        }
    }
}

/// The settings that a client names. The controller checks them by the cluster's rules; what this broker could not keep is refused
/// here.
fn overrides(
    context: &Context,
    topic: &str,
    config: Option<&messages::TopicConfig>,
) -> Result<TopicOverrides, Error> {
    let Some(config) = config else { return Ok(TopicOverrides::default()) };
    let asked = config.batch_bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(asked) = asked.filter(|asked| *asked > context.batch_bytes_max) {
        return Err(Error::new(
            ErrorCode::InvalidTopic,
            format!(
                "topic '{topic}' can't be so: batches of {asked} bytes do not fit this broker, which takes up to {} \
                 (limits.frame_bytes_max, and half of wal.segment_bytes)",
                context.batch_bytes_max
            ),
        ));
    }
    Ok(TopicOverrides {
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        segment_bytes: config.segment_bytes,
        segment_ms: config.segment_ms,
        batch_bytes_max: config.batch_bytes_max,
        log_append_time: config.log_append_time,
    })
}

fn description(
    context: &Context,
    view: &ClusterView,
    topic: &TopicRecord,
) -> Result<TopicDescription, Error> {
    let info = metadata::info(context, view, topic);
    let partitions = info
        .partitions
        .iter()
        .map(|partition| {
            let id = TopicPartition::new(topic.id, PartitionId::new(partition.partition));
            let shard = u16::try_from(partition.shard).map(ShardId::new).ok();
            let known =
                shard.and_then(|shard| context.shards.state(shard)).and_then(|shard| shard.partition(id));
            let mut status = PartitionStatus {
                partition: partition.partition,
                shard: partition.shard,
                leader: partition.leader,
                leader_epoch: partition.leader_epoch,
                ..PartitionStatus::default()
            };
            if let Some(known) = known {
                status.log_start_offset = known.log_start.get();
                status.last_stable_offset = known.last_stable.get();
                status.high_watermark = known.high_watermark.get();
                status.bytes = known.bytes;
                status.segments = u32::try_from(known.segments).unwrap_or(u32::MAX);
            }
            status
        })
        .collect();
    let filter = topic.produce_filter.and_then(|id| view.deployment(id));
    let produce_filter = filter.map(|record| record.spec.name.to_string()).unwrap_or_default();
    Ok(TopicDescription { info: Some(info), partitions, produce_filter })
}
