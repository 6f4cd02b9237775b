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

use super::places::Place;
use crate::barriers::Barriers;
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
    pub(super) place: Place,
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
    /// Among the partitions of the connection.
    _place: Place,
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
    pub(super) fn new(source: Source, terms: Terms, place: Place) -> Self {
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
            _place: place,
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
    let shown = Standing::of(replica, partition).shows(needed, barriers.confirm(replica, needed.asked)).await;
    shown.map_err(|not_shown| match not_shown {
        NotShown::LedElsewhere => errors::led_elsewhere(replica.shard_id()),
        NotShown::LeftBehind => errors::left_behind(&context.view.now().partition_name(partition)),
        NotShown::NotConfirmed(error) => errors::barrier(&error, replica.others_vote()),
    })
}

/// How a replica stands to a reader that wants to begin there.
#[derive(Debug, Clone, Copy)]
struct Standing {
    /// Its end of the partition; -1 where it has not heard of that.
    end: i64,
    /// More may have been acknowledged than it shows.
    may_lack: bool,
    may_be_deposed: bool,
    others_vote: bool,
}

/// Why a replica can't show what a reader needs.
#[derive(Debug, PartialEq, Eq)]
enum NotShown {
    /// It has stopped, and whoever leads now knows the end.
    LedElsewhere,
    /// It has stopped, and others have what it lacks.
    LeftBehind,
    NotConfirmed(ReadError),
}

impl Standing {
    fn of(replica: &Replica, partition: TopicPartition) -> Self {
        Self {
            end: replica.shard().partition(partition).map_or(-1, |view| view.high_watermark.get()),
            may_lack: !shows_all(replica),
            may_be_deposed: may_be_deposed(replica),
            others_vote: replica.others_vote(),
        }
    }

    /// See [`catch_up`]. The barrier is begun only where it is needed.
    async fn shows(
        self,
        needed: &Needed,
        barrier: impl Future<Output = Result<(), ReadError>>,
    ) -> Result<(), NotShown> {
        let at = needed.position.as_ref().and_then(|position| position.at.as_ref());
        let (asks_for_end, is_behind) = match at {
            Some(At::Earliest(_)) => (needed.exact_end, self.end < needed.floor.max(0)),
            Some(At::Offset(offset)) => (needed.exact_end, self.end < needed.floor.max(*offset)),
            None | Some(At::Latest(_) | At::Timestamp(_)) => (true, self.end < needed.floor),
        };
        if is_behind || (asks_for_end && (self.may_lack || self.may_be_deposed)) {
            return match barrier.await {
                Ok(()) => Ok(()),
                Err(ReadError::Stopped { .. }) if needed.exact_end && self.may_be_deposed => {
                    Err(NotShown::LedElsewhere)
                }
                Err(ReadError::Stopped { .. }) if is_behind && self.others_vote => Err(NotShown::LeftBehind),
                // One that has stopped shows what it had.
                Err(ReadError::Stopped { .. }) => Ok(()),
                Err(error) => Err(NotShown::NotConfirmed(error)),
            };
        }
        if self.may_lack {
            // The reader begins with what is here in any case; where the leader answers soon, its end is the log's as of now.
            let _ = tokio::time::timeout(NEWS_PATIENCE, barrier).await;
        }
        Ok(())
    }
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
    use std::future::{pending, ready};
    use std::sync::Arc;

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

    /// Longer than anybody waits for what need not be waited for.
    const LONG: Duration = Duration::from_secs(3600);
    /// The follower's end.
    const END: i64 = 10;
    const FOLLOWER: Standing = Standing { end: END, may_lack: true, may_be_deposed: true, others_vote: true };

    /// For a reader who has seen elsewhere what is below the floor.
    fn needed(position: Position, floor: i64) -> Needed {
        Needed { position: Some(position), floor, exact_end: false, asked: Instant::now() }
    }

    /// Where readers begin who need no end: a follower serves them from what it has.
    fn begins() -> [Position; 3] {
        [Position::earliest(), Position::offset(Offset::new(0)), Position::offset(Offset::new(END))]
    }

    fn stopped() -> ReadError {
        ReadError::Stopped { reason: Arc::from("its disk failed") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_below_the_floor_answers_only_once_it_shows_all_that_was_acknowledged() {
        for position in begins() {
            let needed = needed(position, END + 1);
            let waits = tokio::time::timeout(LONG, FOLLOWER.shows(&needed, pending())).await;
            assert!(waits.is_err(), "{position:?}: as long as nobody says how far the log goes: {waits:?}");
            assert_eq!(FOLLOWER.shows(&needed, ready(Ok(()))).await, Ok(()), "{position:?}");
            for error in [ReadError::NoQuorum, ReadError::NotLeader { leader: None }] {
                let shown = FOLLOWER.shows(&needed, ready(Err(error.clone()))).await;
                assert_eq!(shown, Err(NotShown::NotConfirmed(error)), "{position:?}");
            }
            let shown = FOLLOWER.shows(&needed, ready(Err(stopped()))).await;
            assert_eq!(shown, Err(NotShown::LeftBehind), "{position:?}: others have what it lacks");
            let alone = Standing { others_vote: false, ..FOLLOWER };
            let shown = alone.shows(&needed, ready(Err(stopped()))).await;
            assert_eq!(shown, Ok(()), "{position:?}: nobody has more");
            // One that leads, as far as it knows.
            let leader = Standing { may_lack: false, ..FOLLOWER };
            assert_eq!(
                leader.shows(&needed, pending()).now_or_never(),
                None,
                "{position:?}: it may be deposed"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_at_the_floor_serves_what_it_has_whoever_answers() {
        for (position, floor) in begins().into_iter().flat_map(|position| [(position, END), (position, 0)]) {
            let needed = needed(position, floor);
            let shown = tokio::time::timeout(LONG, FOLLOWER.shows(&needed, pending())).await;
            assert_eq!(shown, Ok(Ok(())), "{position:?}, {floor}: it waits for news, and not for long");
            for error in [ReadError::NoQuorum, stopped()] {
                let shown = FOLLOWER.shows(&needed, ready(Err(error))).await;
                assert_eq!(shown, Ok(()), "{position:?}, {floor}");
            }
            let leader = Standing { may_lack: false, ..FOLLOWER };
            let shown = leader.shows(&needed, pending()).now_or_never();
            assert_eq!(shown, Some(Ok(())), "{position:?}, {floor}: a leader asks nobody");
        }
    }

    #[tokio::test]
    async fn what_is_not_here_yet_is_beyond_a_replica_without_a_floor_too() {
        let beyond = needed(Position::offset(Offset::new(END + 1)), 0);
        assert_eq!(FOLLOWER.shows(&beyond, pending()).now_or_never(), None);
        let nowhere = Standing { end: -1, ..FOLLOWER };
        assert_eq!(nowhere.shows(&needed(Position::earliest(), 0), pending()).now_or_never(), None);
        // The end, and a time, which may be none that is here: only who is alone knows.
        for position in [Position::latest(), Position::timestamp(Timestamp::new(0))] {
            let needed = needed(position, 0);
            assert_eq!(FOLLOWER.shows(&needed, pending()).now_or_never(), None, "{position:?}");
            let alone = Standing { may_lack: false, may_be_deposed: false, others_vote: false, ..FOLLOWER };
            assert_eq!(alone.shows(&needed, pending()).now_or_never(), Some(Ok(())), "{position:?}");
        }
        let exact = Needed { exact_end: true, ..needed(Position::earliest(), 0) };
        assert_eq!(FOLLOWER.shows(&exact, ready(Err(stopped()))).await, Err(NotShown::LedElsewhere));
    }
}
