//! Groups' committed positions.

use std::collections::BTreeSet;

use tidemill_coordinator::{GroupCommand, GroupReply, PositionCommit};
use tidemill_protocol::messages::{
    CommitOffsetsReply, CommitOffsetsRequest, CommittedOffset, DescribeGroupRequest, Error, GroupDescription,
    ListGroupsReply, ListGroupsRequest, OffsetAnswer, OffsetQuery, Position, position::At, request,
};
use tidemill_protocol::{ErrorCode, LeaderEpoch, Offset, ShardId, TopicPartition};
use tidemill_shard::{Unit, UnitResult};

use crate::cluster::{Asking, Place, body_of};
use crate::context::Context;
use crate::errors;
use crate::handlers::page::page;
use crate::handlers::{offsets, topics};
use crate::view::ClusterView;

/// Sets positions, all of them or none.
pub(crate) async fn commit(
    asking: &Asking,
    request: CommitOffsetsRequest,
) -> Result<CommitOffsetsReply, Error> {
    let context = &asking.context;
    context.room_for_positions()?;
    let view = context.view.now();
    let mut positions = Vec::with_capacity(request.offsets.len());
    for offset in request.offsets {
        let partition = topics::partition(offset.partition.as_ref())?;
        if offset.offset >= 0 {
            context.locate(&view, partition)?;
        }
        positions.push(PositionCommit {
            partition,
            offset: (offset.offset >= 0).then(|| Offset::new(offset.offset)),
            leader_epoch: (offset.leader_epoch >= 0).then(|| LeaderEpoch::new(offset.leader_epoch)),
            note: offset.note,
        });
    }
    within_the_logs(asking, &view, &positions).await?;
    let errors = vec![Error::default(); positions.len()];
    propose(context, &request.group.clone(), GroupCommand::Commit { group: request.group, positions })
        .await?;
    Ok(CommitOffsetsReply { errors })
}

/// Refuses positions beyond the ends of their partitions, and positions of partitions that never were: such a one would be a typing
/// error kept for ever.
async fn within_the_logs(
    asking: &Asking,
    view: &ClusterView,
    positions: &[PositionCommit],
) -> Result<(), Error> {
    let named: Vec<(TopicPartition, Offset)> =
        positions.iter().filter_map(|position| Some((position.partition, position.offset?))).collect();
    let end = Some(Position { at: Some(At::Latest(true)) });
    let query = |partition: TopicPartition| OffsetQuery { partition: Some(partition.into()), position: end };
    let queries: Vec<OffsetQuery> = named.iter().map(|(partition, _)| query(*partition)).collect();
    let ends = offsets::look_up(asking, &queries).await?;
    named
        .into_iter()
        .zip(ends)
        .try_for_each(|((partition, offset), end)| within_the_log(view, partition, offset, end))
}

/// Whoever has read to the log's end stands at it, and nobody beyond: such a position would pass over records that are not there yet.
fn within_the_log(
    view: &ClusterView,
    partition: TopicPartition,
    offset: Offset,
    end: OffsetAnswer,
) -> Result<(), Error> {
    match end {
        // Nothing was written to it yet.
        OffsetAnswer { error: Some(error), .. } if error.error_code() == Some(ErrorCode::NotYetAdopted) => {
            Ok(())
        }
        OffsetAnswer { error: Some(error), .. } => Err(error),
        OffsetAnswer { offset: end, .. } if offset.get() > end => Err(Error::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "position {offset} lies beyond the end of {}, which is {end}; commit the end or an offset before it",
                view.partition_name(partition),
            ),
        )),
        OffsetAnswer { .. } => Ok(()),
    }
}

pub(crate) async fn describe(asking: &Asking, group: String) -> Result<GroupDescription, Error> {
    let shard = home(&asking.context, &group)?;
    let replica = match asking.place(shard)? {
        Place::Here(replica) => replica,
        Place::There => {
            let body = request::Body::DescribeGroup(DescribeGroupRequest { group });
            return body_of!(asking.ask_one(shard, body).await?, Group);
        }
    };
    replica.read_barrier().await.map_err(|error| errors::barrier(&error, replica.others_vote()))?;
    let positions = replica.shard().group(&group).ok_or_else(|| errors::unknown_group(&group))?;
    let offsets = positions
        .into_iter()
        .map(|(partition, position)| CommittedOffset {
            partition: Some(partition.into()),
            offset: position.offset.get(),
            leader_epoch: position.leader_epoch.map_or(-1, LeaderEpoch::get),
            note: position.note,
            committed_at: position.committed_at.get(),
        })
        .collect();
    Ok(GroupDescription { group, offsets })
}

/// The names of all shards' groups in one order. A listing that lacks those of one shard would not be one, and is refused.
pub(crate) async fn list(asking: &Asking, request: &ListGroupsRequest) -> Result<ListGroupsReply, Error> {
    let share = asking.share(asking.context.shards.numbers());
    if let Some(error) = share.nowhere.into_values().next() {
        return Err(error);
    }
    asking.context.settle(share.here.iter().map(|(shard, _)| *shard)).await?;
    let here = share.here.iter().flat_map(|(_, replica)| replica.shard().group_names());
    let mut names: BTreeSet<String> = here.filter(|name| *name > request.after).collect();
    let said = asking.ask_each(share.there, |_| request::Body::ListGroups(request.clone())).await.whole()?;
    let mut whole_up_to: Option<String> = None;
    for body in said {
        let part = body_of!(body, ListGroups)?;
        if part.more {
            // Behind the last of them there may be others that were not sent.
            let last = part.groups.last().cloned().ok_or_else(crate::cluster::another_answer)?;
            whole_up_to = Some(whole_up_to.map_or(last.clone(), |known| known.min(last)));
        }
        names.extend(part.groups);
    }
    if let Some(last) = &whole_up_to {
        names.retain(|name| name <= last);
    }
    let (groups, more) = page(names.into_iter(), request.limit);
    Ok(ListGroupsReply { groups, more: more || whole_up_to.is_some() })
}

pub(crate) async fn delete(context: &Context, group: String) -> Result<(), Error> {
    propose(context, &group.clone(), GroupCommand::Delete { group }).await
}

async fn propose(context: &Context, group: &str, command: GroupCommand) -> Result<(), Error> {
    let shard = home(context, group)?;
    // A deletion is small, and makes room.
    let deletes = matches!(command, GroupCommand::Delete { .. });
    let unit = Unit::Group(command);
    let _admitted = if deletes { None } else { Some(context.admit_to_log(unit.bytes()).await?) };
    match context.shards.propose(shard, unit).await.map_err(|error| errors::propose(&error))? {
        UnitResult::Group(GroupReply::Done) => Ok(()),
        UnitResult::Group(GroupReply::Refused(refusal)) => Err(errors::group(&refusal)),
        other => Err(errors::unit(&other)),
    }
}

/// The group's home shard.
fn home(context: &Context, group: &str) -> Result<ShardId, Error> {
    context.view.now().controller().shard_of_group(group).ok_or_else(|| {
        Error::new(ErrorCode::NotLeader, "this broker has not heard yet where groups live; try again")
    })
}
