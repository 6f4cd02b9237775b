//! Groups' committed positions.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidemill_coordinator::{GroupCommand, GroupReply, PositionCommit};
use tidemill_protocol::messages::{
    CommitOffsetsReply, CommitOffsetsRequest, CommittedOffset, Error, GroupDescription, ListGroupsReply,
    ListGroupsRequest,
};
use tidemill_protocol::{ErrorCode, LeaderEpoch, Offset, TopicPartition};
use tidemill_raft::Replica;
use tidemill_shard::{Unit, UnitResult};

use crate::context::Context;
use crate::errors;
use crate::handlers::page::page;
use crate::handlers::topics;
use crate::view::ClusterView;

/// Sets positions, all of them or none.
pub(crate) async fn commit(
    context: &Arc<Context>,
    request: CommitOffsetsRequest,
) -> Result<CommitOffsetsReply, Error> {
    context.room_for_positions()?;
    let view = context.view.now();
    let named = request.offsets.iter().filter(|offset| offset.offset >= 0);
    let named = named.filter_map(|offset| view.shard_of(offset.partition.as_ref()?.parse()?));
    context.settle(named).await?;
    let mut positions = Vec::with_capacity(request.offsets.len());
    for offset in request.offsets {
        let partition = topics::partition(offset.partition.as_ref())?;
        // A position of a partition that never was would be a typing error kept for ever.
        if offset.offset >= 0 {
            let (_, replica) = context.find(&view, partition)?;
            within_the_log(&view, &replica, partition, Offset::new(offset.offset))?;
        }
        positions.push(PositionCommit {
            partition,
            offset: (offset.offset >= 0).then(|| Offset::new(offset.offset)),
            leader_epoch: (offset.leader_epoch >= 0).then(|| LeaderEpoch::new(offset.leader_epoch)),
            note: offset.note,
        });
    }
    let errors = vec![Error::default(); positions.len()];
    propose(context, &request.group.clone(), GroupCommand::Commit { group: request.group, positions })
        .await?;
    Ok(CommitOffsetsReply { errors })
}

/// Whoever has read to the log's end stands at it, and nobody beyond: such a position would pass over records that are not there yet.
fn within_the_log(
    view: &ClusterView,
    replica: &Replica,
    partition: TopicPartition,
    offset: Offset,
) -> Result<(), Error> {
    match replica.shard().partition(partition) {
        Some(known) if offset > known.high_watermark => Err(Error::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "position {offset} lies beyond the end of {}, which is {}; commit the end or an offset before it",
                view.partition_name(partition),
                known.high_watermark
            ),
        )),
        _ => Ok(()),
    }
}

pub(crate) async fn describe(context: &Arc<Context>, group: String) -> Result<GroupDescription, Error> {
    let replica = home(context, &group)?;
    replica.read_barrier().await.map_err(|error| errors::barrier(&error))?;
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

pub(crate) fn list(context: &Context, request: &ListGroupsRequest) -> ListGroupsReply {
    let names: BTreeSet<String> = context
        .shards
        .data()
        .flat_map(|(_, replica)| replica.shard().group_names())
        .filter(|name| *name > request.after)
        .collect();
    let (groups, more) = page(names.into_iter(), request.limit);
    ListGroupsReply { groups, more }
}

pub(crate) async fn delete(context: &Arc<Context>, group: String) -> Result<(), Error> {
    propose(context, &group.clone(), GroupCommand::Delete { group }).await
}

async fn propose(context: &Context, group: &str, command: GroupCommand) -> Result<(), Error> {
    let replica = home(context, group)?;
    // A deletion is small, and makes room.
    let deletes = matches!(command, GroupCommand::Delete { .. });
    let unit = Unit::Group(command);
    let _admitted = if deletes { None } else { Some(context.admit_to_log(unit.bytes()).await?) };
    match replica.propose_anywhere(unit).await.map_err(|error| errors::propose(&error))? {
        UnitResult::Group(GroupReply::Done) => Ok(()),
        UnitResult::Group(GroupReply::Refused(refusal)) => Err(errors::group(&refusal)),
        other => Err(errors::unit(&other)),
    }
}

/// The replica of the group's home shard.
fn home(context: &Context, group: &str) -> Result<Replica, Error> {
    context
        .view
        .now()
        .controller()
        .shard_of_group(group)
        .and_then(|shard| context.shards.replica(shard))
        .ok_or_else(|| {
            Error::new(ErrorCode::NotLeader, "the group's shard is not on this broker; refresh the metadata")
        })
}
