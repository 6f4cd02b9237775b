//! Topics: create, delete, alter, describe, delete records.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_controller::{ControllerCommand, ControllerReply, Name, TopicOverrides, TopicRecord};
use tidemill_protocol::messages::{
    self, AlterTopicRequest, CreateTopicRequest, DeleteRecordsReply, DeleteRecordsRequest,
    DeleteTopicRequest, DescribeTopicRequest, Error, OffsetQuery, PartitionStatus, Position,
    TopicDescription, TopicPartitionRef, position::At, reply, request,
};
use tidemill_protocol::{ErrorCode, Offset, PartitionId, ShardId, TopicId, TopicPartition};
use tidemill_raft::Replica;
use tidemill_shard::{PartitionView, Unit, UnitResult};
use tokio::time::Instant;

use crate::cluster::Asking;
use crate::context::Context;
use crate::errors;
use crate::handlers::adoption::{self, ADOPTION_INTERVAL, is_current};
use crate::handlers::{metadata, offsets};
use crate::view::ClusterView;

pub(crate) async fn create(asking: &Asking, request: CreateTopicRequest) -> Result<TopicDescription, Error> {
    let context = &*asking.context;
    let command = ControllerCommand::CreateTopic {
        id: TopicId::new(uuid::Uuid::now_v7()),
        name: name(&request.name)?,
        partitions: request.partitions,
        overrides: overrides(context, &request.name, request.config.as_ref())?,
        with: Some(request.with.as_str()).filter(|with| !with.is_empty()).map(name).transpose()?,
        if_not_exists: request.if_not_exists,
    };
    let topic = topic_reply(control(context, command).await?)?;
    let until = adoption::patience();
    adopted(context, &topic, until).await;
    loop {
        let described = description(asking, &context.view.now(), &topic).await;
        let is_everywhere = described.partitions.iter().all(|partition| partition.high_watermark >= 0);
        if is_everywhere || Instant::now() >= until {
            return Ok(described);
        }
        tokio::time::sleep(ADOPTION_INTERVAL).await;
    }
}

pub(crate) async fn alter(asking: &Asking, request: AlterTopicRequest) -> Result<TopicDescription, Error> {
    let context = &*asking.context;
    let command = ControllerCommand::AlterTopic {
        name: name(&request.name)?,
        overrides: overrides(context, &request.name, request.config.as_ref())?,
    };
    let topic = topic_reply(control(context, command).await?)?;
    adopted(context, &topic, adoption::patience()).await;
    Ok(description(asking, &context.view.now(), &topic).await)
}

pub(crate) async fn delete(context: &Context, request: DeleteTopicRequest) -> Result<(), Error> {
    let topic =
        topic_reply(control(context, ControllerCommand::DeleteTopic { name: name(&request.name)? }).await?)?;
    adopted(context, &topic, adoption::patience()).await;
    Ok(())
}

pub(crate) async fn describe(asking: &Asking, name: &str) -> Result<TopicDescription, Error> {
    let view = asking.context.view.now();
    let topic = view.topic_by_name(name).ok_or_else(|| errors::unknown_topic(name))?;
    // What a replica here has not heard yet is shown as it stands there: a description is better than none.
    let _ = asking.context.confirm(topic.shards.iter().copied()).await;
    Ok(description(asking, &view, topic).await)
}

pub(crate) async fn delete_records(
    asking: &Asking,
    request: &DeleteRecordsRequest,
) -> Result<DeleteRecordsReply, Error> {
    let context = &*asking.context;
    let partition = partition(request.partition.as_ref())?;
    let (_, shard) = context.locate(&context.view.now(), partition)?;
    let query = OffsetQuery {
        partition: request.partition.clone(),
        position: Some(Position { at: Some(At::Latest(true)) }),
    };
    let end = offsets::look_up(asking, &[query]).await?.into_iter().next().unwrap_or_default();
    if let Some(error) = end.error {
        return Err(error);
    }
    let end = Offset::new(end.offset);
    let offset = match request.before_offset {
        -1 => end,
        offset => Offset::new(offset),
    };
    if offset > end || offset < Offset::ZERO {
        return Err(Error::new(
            ErrorCode::OffsetOutOfRange,
            format!("records up to {end} can be deleted, not up to {offset}"),
        ));
    }
    let unit = Unit::AdvanceLogStart { partition, offset };
    match context.shards.propose(shard, unit).await.map_err(|error| errors::propose(&error))? {
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

/// Waits until every shard of the topic that has a replica here has the change.
async fn adopted(context: &Context, topic: &TopicRecord, until: Instant) {
    let shards: BTreeSet<ShardId> = topic.shards.iter().copied().collect();
    let shards: Vec<ShardId> = shards.into_iter().collect();
    let has_adopted =
        |replica: &Replica| is_current(replica.shard().topic_version(topic.id), topic.version, topic.deleted);
    adoption::adopted(context, &shards, until, has_adopted).await;
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

/// A topic with the ends of its partitions. Where those of one can't be told just now, they are -1.
async fn description(asking: &Asking, view: &ClusterView, topic: &TopicRecord) -> TopicDescription {
    let context = &*asking.context;
    let info = metadata::info(context, view, topic);
    let mut ends = ends(asking, topic).await;
    let partitions = info
        .partitions
        .iter()
        .map(|partition| PartitionStatus {
            partition: partition.partition,
            shard: partition.shard,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            ..ends.remove(&partition.partition).unwrap_or_else(unknown_ends)
        })
        .collect();
    let filter = topic.produce_filter.and_then(|id| view.deployment(id));
    let produce_filter = filter.map(|record| record.spec.name.to_string()).unwrap_or_default();
    TopicDescription { info: Some(info), partitions, produce_filter }
}

fn unknown_ends() -> PartitionStatus {
    PartitionStatus {
        log_start_offset: -1,
        last_stable_offset: -1,
        high_watermark: -1,
        ..PartitionStatus::default()
    }
}

/// What is known of the partitions of a topic, by their numbers: of shards without a replica here, as other brokers say.
async fn ends(asking: &Asking, topic: &TopicRecord) -> BTreeMap<u32, PartitionStatus> {
    let placed = || (0_u32..).zip(topic.shards.iter().copied());
    let share = asking.share(topic.shards.iter().copied());
    let mut known = BTreeMap::new();
    for (shard, replica) in &share.here {
        let state = replica.shard();
        for (number, _) in placed().filter(|(_, of)| of == shard) {
            let partition = TopicPartition::new(topic.id, PartitionId::new(number));
            known.extend(state.partition(partition).map(|view| (number, status(&view))));
        }
    }
    let body = request::Body::DescribeTopic(DescribeTopicRequest { name: topic.name.to_string() });
    let answers = asking.ask_each(share.there, |_| body.clone()).await;
    for error in share.nowhere.values().chain(answers.failed.values()) {
        tracing::debug!(topic = %topic.name, %error, "where partitions of a topic end is not known here");
    }
    for (shards, body) in answers.said {
        let reply::Body::Topic(part) = body else { continue };
        let theirs: BTreeSet<u32> =
            placed().filter(|(_, of)| shards.contains(of)).map(|(number, _)| number).collect();
        let told = part.partitions.into_iter().filter(|partition| theirs.contains(&partition.partition));
        known.extend(told.map(|partition| (partition.partition, partition)));
    }
    known
}

fn status(known: &PartitionView) -> PartitionStatus {
    PartitionStatus {
        log_start_offset: known.log_start.get(),
        last_stable_offset: known.last_stable.get(),
        high_watermark: known.high_watermark.get(),
        bytes: known.bytes,
        segments: u32::try_from(known.segments).unwrap_or(u32::MAX),
        ..PartitionStatus::default()
    }
}
