//! Moves what tasks emitted for partitions of other shards: from the source shard's outbox to the target, in order.
//!
//! Each item has a number without gaps per stream (deployment, incarnation, source partition, target partition). The
//! target accepts last+1 only, so an item that is sent twice, after a restart say, is appended once; and so the items of a stream need not
//! wait for each other's answers: behind one that got lost none is taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tidemill_protocol::{ShardId, TopicPartition};
use tidemill_raft::{ProposeError, Replica};
use tidemill_shard::{OutboxItem, OutboxStream, Unit, UnitError, UnitResult};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::room::Room;
use crate::shards::Shards;
use crate::view::ViewReader;

/// Items in flight per round; their bytes are bounded by the shard.
const ROUND_ITEMS_MAX: usize = 256;
/// Of them, items of one stream that wait for their answers.
const STREAM_ITEMS_MAX: usize = 64;
/// Looked at unasked, for what was left by an earlier leader or start.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What failed is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Wakes a shard's dispatcher when a step with outputs was committed.
pub(crate) struct OutboxSignals(BTreeMap<ShardId, Notify>);

impl OutboxSignals {
    pub(crate) fn new(shards: &Shards) -> Arc<Self> {
        Arc::new(Self(shards.numbers().map(|shard| (shard, Notify::new())).collect()))
    }

    pub(crate) fn wake(&self, source: ShardId) {
        if let Some(signal) = self.0.get(&source) {
            signal.notify_one();
        }
    }

    async fn wait(&self, source: ShardId) {
        match self.0.get(&source) {
            Some(signal) => signal.notified().await,
            None => std::future::pending().await,
        }
    }
}

/// Empties one shard's outbox for as long as it is led here.
pub(crate) struct OutboxDispatcher {
    pub(crate) source: ShardId,
    pub(crate) shards: Shards,
    pub(crate) view: ViewReader,
    pub(crate) signals: Arc<OutboxSignals>,
    pub(crate) room: Room,
    /// Streams whose target refuses what comes: told once, until something arrives.
    refused: Mutex<BTreeSet<OutboxStream>>,
}

impl OutboxDispatcher {
    pub(crate) async fn run(self, stopping: CancellationToken) {
        loop {
            let led = self.shards.replica(self.source).filter(|replica| replica.watch().borrow().is_leader());
            let more = match led {
                // What is in the outbox is on the disk already; delivered it would be there twice for a while.
                Some(replica) if self.room.lacking(&replica).is_none() => self.round(&replica).await,
                _ => Round::Idle,
            };
            let retry = match more {
                Round::More if stopping.is_cancelled() => return,
                Round::More => continue,
                Round::Idle => false,
                Round::Failed => true,
            };
            tokio::select! {
                () = self.signals.wait(self.source) => {}
                () = tokio::time::sleep(if retry { RETRY_INTERVAL } else { LOOK_INTERVAL }) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Sends a bounded share of what is queued, all streams at once, each in its order.
    async fn round(&self, source: &Replica) -> Round {
        let shard = source.shard().clone();
        let items = match tokio::task::spawn_blocking(move || shard.outbox_next(ROUND_ITEMS_MAX)).await {
            Ok(Ok(items)) => items,
            Ok(Err(error)) => {
                tracing::error!(shard = %self.source, %error, "the outbox can't be read");
                return Round::Failed;
            }
            Err(_) => return Round::Failed,
        };
        if items.is_empty() {
            return Round::Idle;
        }
        let mut streams: Vec<(OutboxStream, Vec<OutboxItem>)> = Vec::new();
        for item in items {
            match streams.iter_mut().find(|(stream, _)| *stream == item.stream) {
                Some((_, of_stream)) => of_stream.push(item),
                None => streams.push((item.stream, vec![item])),
            }
        }
        let sent =
            join_all(streams.into_iter().map(|(stream, items)| self.send_stream(source, stream, items)))
                .await;
        if sent.into_iter().all(|sent| sent) { Round::More } else { Round::Failed }
    }

    /// Sends the items of one stream, one behind the other without waiting for answers, and frees what the target has; `false` where
    /// something is left that must be tried again.
    ///
    /// Units are written in the order in which they are submitted. Should one get lost, those behind it find a gap, and come
    /// again with it.
    async fn send_stream(&self, source: &Replica, stream: OutboxStream, items: Vec<OutboxItem>) -> bool {
        let Some(target) = self.view.now().shard_of(stream.target) else {
            if !self.is_gone(stream.target).await {
                return false;
            }
            // A topic that a deployment emits to can't be deleted; this is what is left of a deployment that went first.
            tracing::warn!(partition = %stream.target, "outputs for a deleted topic are dropped");
            self.refused.lock().remove(&stream);
            let up_to = items.last().map(|item| item.number);
            return self.free(source, stream, up_to).await;
        };
        let last = items.last().map(|item| item.number);
        let arrived = pipeline(items, |item| self.submit(target, stream, item)).await;
        self.free(source, stream, arrived).await && arrived == last
    }

    /// Whether a partition's topic is no more: a view that lacks it may be an old one.
    async fn is_gone(&self, target: TopicPartition) -> bool {
        let now = self.shards.controller_now().await;
        now.is_some_and(|controller| controller.topic(target.topic).is_none_or(|topic| topic.deleted))
    }

    /// Lets the source forget what has arrived.
    async fn free(&self, source: &Replica, stream: OutboxStream, up_to: Option<u64>) -> bool {
        let Some(up_to) = up_to else { return true };
        source.propose(Unit::Delivered { stream, up_to }).await.is_ok()
    }

    /// Puts an item on its way behind those before it; `None` where there is no room for it now.
    async fn submit(
        &self,
        target: ShardId,
        stream: OutboxStream,
        item: OutboxItem,
    ) -> Option<impl Future<Output = Delivery> + use<'_>> {
        let number = item.number;
        let unit = Unit::Deliver { stream, number, batch: item.batch };
        // Where no replica is here, the leader's gate looks.
        if self.shards.replica(target).is_some_and(|replica| self.room.lacking(&replica).is_some()) {
            return None;
        }
        let admitted = self.shards.admission().admit(unit.bytes()).await.ok()?;
        match self.shards.reserve(target, unit.bytes()).await {
            Ok(permit) => {
                let answer = permit.submit(unit);
                Some(async move {
                    let answer = answer.await;
                    drop(admitted);
                    self.delivery(stream, number, answer)
                })
            }
            Err(error) => {
                tracing::debug!(partition = %stream.target, %error, "delivering will be tried again");
                None
            }
        }
    }

    fn delivery(
        &self,
        stream: OutboxStream,
        number: u64,
        answer: Result<UnitResult, ProposeError>,
    ) -> Delivery {
        match answer {
            Ok(UnitResult::Delivered { .. }) => {
                self.refused.lock().remove(&stream);
                Delivery::Done
            }
            // It has more already: a round before was not freed.
            Ok(UnitResult::OutOfOrder { last }) if last >= number => Delivery::Done,
            // One before it did not arrive.
            Ok(UnitResult::OutOfOrder { .. } | UnitResult::Refused(UnitError::NotAdopted(_))) => {
                Delivery::Retry
            }
            // The topic went while the item was on its way.
            Ok(UnitResult::Refused(UnitError::TopicDeleted(_))) => {
                self.refused.lock().remove(&stream);
                Delivery::Done
            }
            Ok(other) => {
                if self.refused.lock().insert(stream) {
                    tracing::error!(partition = %stream.target, number, result = ?other, "a target refuses an output; it is tried again and again");
                }
                Delivery::Retry
            }
            Err(error) => {
                tracing::debug!(partition = %stream.target, %error, "delivering will be tried again");
                Delivery::Retry
            }
        }
    }
}

/// Sends items in their order, a bounded number of them without waiting for answers. Answers the number of the last one that is
/// known to have arrived: all before it have, too, since the target takes none out of order.
async fn pipeline<S, A>(items: Vec<OutboxItem>, mut submit: impl FnMut(OutboxItem) -> S) -> Option<u64>
where
    S: Future<Output = Option<A>>,
    A: Future<Output = Delivery>,
{
    let mut on_the_way = VecDeque::new();
    let mut arrived = None;
    for item in items {
        if on_the_way.len() >= STREAM_ITEMS_MAX
            && let Some((number, answer)) = on_the_way.pop_front()
        {
            match answer.await {
                Delivery::Done => arrived = Some(number),
                Delivery::Retry => break,
            }
        }
        let number = item.number;
        match submit(item).await {
            Some(answer) => on_the_way.push_back((number, answer)),
            None => break,
        }
    }
    for (number, answer) in on_the_way {
        if answer.await == Delivery::Done {
            arrived = Some(number);
        }
    }
    arrived
}

enum Round {
    More,
    Idle,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// The target has it, or never will have to.
    Done,
    /// It must come again.
    Retry,
}

/// Starts a dispatcher per data shard.
pub(crate) fn start(
    shards: &Shards,
    view: &ViewReader,
    signals: &Arc<OutboxSignals>,
    room: &Room,
    stopping: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    shards
        .numbers()
        .map(|source| {
            let dispatcher = OutboxDispatcher {
                source,
                shards: shards.clone(),
                view: view.clone(),
                signals: Arc::clone(signals),
                room: room.clone(),
                refused: Mutex::default(),
            };
            tokio::spawn(dispatcher.run(stopping.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemill_protocol::{DeploymentId, PartitionId, TopicId};

    use super::*;

    /// A target that takes last+1 only, and how often it was asked at once.
    #[derive(Default)]
    struct Target {
        last: u64,
        taken: Vec<u64>,
        unanswered: usize,
        unanswered_most: usize,
    }

    fn items(numbers: std::ops::RangeInclusive<u64>) -> Vec<OutboxItem> {
        let topic = TopicId::from_slice(&[1; 16]).expect("16 bytes make an id");
        let stream = OutboxStream {
            deployment: DeploymentId::new(1),
            incarnation: 1,
            source: PartitionId::new(0),
            target: TopicPartition::new(topic, PartitionId::new(0)),
        };
        numbers.map(|number| OutboxItem { stream, number, batch: Bytes::new() }).collect()
    }

    /// Sends items of which some get lost, some are taken and not answered for, and some find no room.
    async fn send(
        target: &Mutex<Target>,
        items: Vec<OutboxItem>,
        lost: u64,
        unheard: u64,
        full: u64,
    ) -> Option<u64> {
        let submit = |item: OutboxItem| async move {
            if item.number == full {
                return None;
            }
            let mut at = target.lock();
            at.unanswered += 1;
            at.unanswered_most = at.unanswered_most.max(at.unanswered);
            if item.number == at.last + 1 && item.number != lost {
                at.last = item.number;
                at.taken.push(item.number);
            }
            let there = item.number <= at.last && item.number != unheard;
            Some(async move {
                target.lock().unanswered -= 1;
                if there { Delivery::Done } else { Delivery::Retry }
            })
        };
        pipeline(items, submit).await
    }

    #[tokio::test]
    async fn items_arrive_in_order_and_once_whatever_gets_lost() {
        let target = Mutex::new(Target::default());
        assert_eq!(send(&target, items(1..=5), 3, 0, 0).await, Some(2), "what is behind a gap is not taken");
        assert_eq!(
            send(&target, items(3..=5), 0, 4, 0).await,
            Some(5),
            "one that arrived tells of those before it"
        );
        assert_eq!(
            send(&target, items(4..=9), 0, 0, 8).await,
            Some(7),
            "what was not freed comes twice, and is taken once"
        );
        assert_eq!(send(&target, items(8..=9), 8, 0, 0).await, None);
        assert_eq!(send(&target, items(8..=9), 0, 9, 0).await, Some(8));
        assert_eq!(target.lock().taken, (1..=9).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_bounded_number_of_items_waits_for_answers() {
        let target = Mutex::new(Target::default());
        assert_eq!(send(&target, items(1..=200), 0, 0, 0).await, Some(200));
        assert_eq!(target.lock().unanswered_most, STREAM_ITEMS_MAX);
        let target = Mutex::new(Target::default());
        assert_eq!(send(&target, items(1..=200), 2, 0, 0).await, Some(1));
        assert_eq!(target.lock().unanswered, 0, "all that was sent is waited for");
    }
}
