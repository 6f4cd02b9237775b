//! One partition of a subscription: where it stands and how much it may send.

use std::time::Duration;

use tidemill_protocol::messages::Position;
use tidemill_protocol::messages::position::At;
use tidemill_protocol::{ErrorCode, NodeId, Offset, Timestamp, TopicPartition, messages::Error};
use tidemill_raft::{GroupMembers, HighWatermark, ReadError, Replica, ReplicaRole, ShardHandle};
use tidemill_shard::{PartitionView, Shard};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::barriers::Barriers;
use crate::context::{Context, may_be_deposed, shows_all};
use crate::errors;

/// How long a reader that could begin waits for the replica to hear how far the log goes.
const NEWS_PATIENCE: Duration = Duration::from_secs(1);

/// What the client has said of a partition.
pub(super) struct Terms {
    /// Of the last seek; what was sent before it is the client's to discard.
    pub(super) generation: u64,
    /// Bytes that may still be sent. A batch larger than the rest takes it below zero.
    pub(super) credit: i64,
    pub(super) paused: bool,
}

/// A partition that was added, while it is looked up where it begins.
pub(super) struct Opening {
    pub(super) partition: TopicPartition,
    pub(super) terms: Terms,
}

/// Where a partition is read, and from which offset on.
pub(super) struct Source {
    pub(super) partition: TopicPartition,
    pub(super) end: ReplicaEnd,
    pub(super) shard: ShardHandle,
    pub(super) high_watermark: HighWatermark,
    pub(super) next: Offset,
}

/// One partition of a subscription.
pub(super) struct Subscribed {
    pub(super) partition: TopicPartition,
    pub(super) end: ReplicaEnd,
    pub(super) shard: ShardHandle,
    pub(super) high_watermark: HighWatermark,
    /// The next offset to send.
    pub(super) next: Offset,
    pub(super) terms: Terms,
    /// It is looked up where it goes on: until then nothing is sent.
    pub(super) seeking: bool,
    /// A future that waits for the high watermark is under way.
    pub(super) waiting: bool,
    /// It stands in the queue of those to serve.
    pub(super) queued: bool,
    /// Ends the waiter when this is dropped.
    pub(super) removed: Removal,
}

/// Cancels its tokens when it is dropped.
#[derive(Default)]
pub(super) struct Removal(CancellationToken);

impl Removal {
    pub(super) fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Subscribed {
    pub(super) fn new(source: Source, terms: Terms) -> Self {
        let Source { partition, end, shard, high_watermark, next } = source;
        Self {
            partition,
            end,
            shard,
            high_watermark,
            next,
            terms,
            seeking: false,
            waiting: false,
            queued: false,
            removed: Removal::default(),
        }
    }

    pub(super) fn may_send(&self) -> bool {
        !self.seeking && !self.terms.paused && self.terms.credit > 0
    }

    pub(super) fn at_end(&self) -> bool {
        self.next >= self.high_watermark.get()
    }
}

/// Tells when the replica that a partition is read from stops, and does not keep it from that.
#[derive(Clone)]
pub(super) struct ReplicaEnd {
    node: NodeId,
    role: watch::Receiver<ReplicaRole>,
    members: watch::Receiver<GroupMembers>,
}

impl ReplicaEnd {
    pub(super) fn of(replica: &Replica) -> Self {
        Self { node: replica.node(), role: replica.watch(), members: replica.watch_members() }
    }

    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    /// Returns once it has stopped while others go on: nothing comes there any more.
    pub(super) async fn left_behind(mut self) {
        // The announcer gone means the same.
        drop(self.role.wait_for(|role| role.stopped().is_some()).await);
        if !self.members.borrow().has_voters_beside(self.node) {
            std::future::pending::<()>().await;
        }
    }
}

/// What a replica must show before a reader's start is looked up in it.
pub(super) struct Needed {
    pub(super) position: Option<Position>,
    /// The reader has seen what is below it elsewhere.
    pub(super) floor: i64,
    /// The reader is going to stop at the end that it is told.
    pub(super) exact_end: bool,
    /// When it was asked for.
    pub(super) asked: Instant,
}

impl Needed {
    /// Whether the position is a time, which takes a look at the disk.
    pub(super) fn is_a_time(&self) -> bool {
        matches!(self.position.as_ref().and_then(|position| position.at.as_ref()), Some(At::Timestamp(_)))
    }
}

/// Makes sure that the replica here shows what a position is about, and all that the client has seen elsewhere: one that follows may be
/// behind, and one that leads may lead no longer and not know it. A majority is asked only where that can matter.
///
/// # Errors
/// It can't be asked: the same may succeed later, here or at another replica.
pub(super) async fn catch_up(
    context: &Context,
    barriers: &Barriers,
    replica: &Replica,
    partition: TopicPartition,
    needed: &Needed,
) -> Result<(), Error> {
    let end = replica.shard().partition(partition).map_or(-1, |view| view.high_watermark.get());
    let may_lack = !shows_all(replica);
    let may_be_deposed = may_be_deposed(replica);
    let (asks_for_end, is_behind) = match needed.position.as_ref().and_then(|position| position.at.as_ref()) {
        Some(At::Earliest(_)) => (needed.exact_end, end < needed.floor.max(0)),
        Some(At::Offset(offset)) => (needed.exact_end, end < needed.floor.max(*offset)),
        None | Some(At::Latest(_) | At::Timestamp(_)) => (true, end < needed.floor),
    };
    if is_behind || (asks_for_end && (may_lack || may_be_deposed)) {
        return match barriers.confirm(replica, needed.asked).await {
            Ok(()) => Ok(()),
            Err(ReadError::Stopped { .. }) if needed.exact_end && may_be_deposed => {
                Err(errors::led_elsewhere(replica.shard_id()))
            }
            // What it lacks, others have.
            Err(ReadError::Stopped { .. }) if is_behind && replica.others_vote() => {
                Err(errors::left_behind(&context.view.now().partition_name(partition)))
            }
            // One that has stopped shows what it had.
            Err(ReadError::Stopped { .. }) => Ok(()),
            Err(error) => Err(errors::barrier(&error)),
        };
    }
    if may_lack {
        // The reader begins with what is here in any case; where the leader answers soon, its end is the log's as of now.
        let _ = tokio::time::timeout(NEWS_PATIENCE, barriers.confirm(replica, needed.asked)).await;
    }
    Ok(())
}

/// The offset that a position means now. `place` is held while a time is looked up.
///
/// # Errors
/// `OFFSET_OUT_OF_RANGE` names the range; a time is looked up on a thread that may block.
pub(super) async fn resolve(
    shard: &Shard,
    partition: TopicPartition,
    name: &str,
    position: Option<&Position>,
    place: Option<OwnedSemaphorePermit>,
) -> Result<Offset, Error> {
    let view = shard.partition(partition).ok_or_else(|| errors::not_ready(name))?;
    match position.and_then(|position| position.at.as_ref()) {
        None | Some(At::Latest(_)) => Ok(view.high_watermark),
        Some(At::Earliest(_)) => Ok(view.log_start),
        Some(At::Offset(offset)) => in_range(&view, Offset::new(*offset), name),
        Some(At::Timestamp(time)) => {
            let (shard, time) = (shard.clone(), Timestamp::new(*time));
            // Who asked may be gone by then, and the thread is not: it gives the place back.
            let looking = move || {
                let found = shard.offset_for_time(partition, time);
                drop(place);
                found
            };
            match tokio::task::spawn_blocking(looking).await {
                Ok(Ok(Some((offset, _)))) => Ok(offset.max(view.log_start)),
                Ok(Ok(None)) => Ok(view.high_watermark),
                Ok(Err(error)) => Err(errors::read(&error, name)),
                Err(_) => Err(errors::interrupted("looking up a time")),
            }
        }
    }
}

fn in_range(view: &PartitionView, offset: Offset, name: &str) -> Result<Offset, Error> {
    if offset < view.log_start || offset > view.high_watermark {
        return Err(out_of_range(name, offset, view.log_start, view.high_watermark));
    }
    Ok(offset)
}

pub(super) fn out_of_range(name: &str, offset: Offset, log_start: Offset, high_watermark: Offset) -> Error {
    Error::new(
        ErrorCode::OffsetOutOfRange,
        format!(
            "offset {offset} is outside {name}, which holds {log_start} to {high_watermark}; read from one of these"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::FutureExt;
    use tidemill_protocol::{BrokerId, Term};
    use tidemill_raft::ReplicaState;

    use super::*;

    #[tokio::test]
    async fn a_replica_of_which_nothing_is_announced_any_more_has_left_its_readers_behind() {
        let node = |broker| NodeId::new(BrokerId::new(broker), 1);
        let role = ReplicaRole { state: ReplicaState::Follower, term: Term::new(1), leader: None };
        let (announcer, role) = watch::channel(role);
        let voters = |voters: BTreeSet<NodeId>| GroupMembers { voters, ..GroupMembers::default() };
        let (regroup, members) = watch::channel(voters([node(1), node(2)].into()));
        let end = ReplicaEnd { node: node(1), role, members };
        let left_behind = || end.clone().left_behind().now_or_never().is_some();
        assert!(!left_behind(), "it follows");
        drop(announcer);
        assert!(left_behind());
        regroup.send_replace(voters([node(1)].into()));
        assert!(!left_behind(), "there is nobody to go to");
    }
}
