//! Moves what tasks emitted for partitions of other shards: from the source shard's outbox to the target, in order.
//!
//! Each item has a number without gaps per stream (deployment, incarnation, source partition, target partition). The
//! target accepts last+1 only, so an item that is sent twice, after a restart say, is appended once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tidemill_protocol::ShardId;
use tidemill_raft::Replica;
use tidemill_shard::{OutboxItem, OutboxStream, Unit, UnitError, UnitResult};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::disk::DiskState;
use crate::shards::Shards;
use crate::view::ViewReader;

/// Items in flight per round; their bytes are bounded by the shard.
const ROUND_ITEMS_MAX: usize = 256;
/// Looked at unasked, for what was left by an earlier leader or start.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What failed is tried again after this long.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Wakes a shard's dispatcher when a step with outputs was committed.
pub(crate) struct OutboxSignals(BTreeMap<ShardId, Notify>);

impl OutboxSignals {
    pub(crate) fn new(shards: &Shards) -> Arc<Self> {
        Arc::new(Self(shards.data().map(|(shard, _)| (shard, Notify::new())).collect()))
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
    pub(crate) disk: Arc<DiskState>,
}

impl OutboxDispatcher {
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let Some(replica) = self.shards.replica(self.source).cloned() else { return };
        loop {
            // What is in the outbox is on the disk already; delivered it would be there twice for a while.
            let may = replica.watch().borrow().is_leader() && !self.disk.is_nearly_full();
            let more = if may { self.round(&replica).await } else { Round::Idle };
            let retry = match more {
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

    /// Sends the items of one stream and frees what the target has; `false` where it must be tried again.
    async fn send_stream(&self, source: &Replica, stream: OutboxStream, items: Vec<OutboxItem>) -> bool {
        let mut delivered = None;
        let mut all = true;
        for item in items {
            match self.deliver(stream, &item).await {
                Delivery::Done => delivered = Some(item.number),
                // It has more already: a round before was not freed.
                Delivery::Ahead(last) => delivered = Some(last.max(item.number)),
                Delivery::Retry => {
                    all = false;
                    break;
                }
            }
        }
        let Some(up_to) = delivered else { return all };
        let unit = Unit::Delivered { stream, up_to };
        all && source.propose(unit).await.is_ok()
    }

    async fn deliver(&self, stream: OutboxStream, item: &OutboxItem) -> Delivery {
        let Some(target) = self.view.now().shard_of(stream.target) else {
            // A topic that a deployment emits to can't be deleted; this is what is left of a deployment that went first.
            tracing::warn!(partition = %stream.target, "outputs for a deleted topic are dropped");
            return Delivery::Done;
        };
        let unit = Unit::Deliver { stream, number: item.number, batch: item.batch.clone() };
        let Ok(_admitted) = self.shards.admission().admit(unit.bytes()).await else {
            return Delivery::Retry;
        };
        match self.shards.propose(target, unit).await {
            Ok(UnitResult::Delivered { .. }) => Delivery::Done,
            Ok(UnitResult::OutOfOrder { last }) if last >= item.number => Delivery::Ahead(last),
            Ok(UnitResult::Refused(UnitError::NotAdopted(_))) => Delivery::Retry,
            // The topic went while the item was on its way.
            Ok(UnitResult::Refused(UnitError::TopicDeleted(_))) => Delivery::Done,
            Ok(other) => {
                tracing::error!(partition = %stream.target, number = item.number, result = ?other, "a target refused an output");
                Delivery::Retry
            }
            Err(error) => {
                tracing::debug!(partition = %stream.target, %error, "delivering will be tried again");
                Delivery::Retry
            }
        }
    }
}

enum Round {
    More,
    Idle,
    Failed,
}

enum Delivery {
    Done,
    Ahead(u64),
    Retry,
}

/// Starts a dispatcher per data shard.
pub(crate) fn start(
    shards: &Shards,
    view: &ViewReader,
    signals: &Arc<OutboxSignals>,
    disk: &Arc<DiskState>,
    stopping: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    shards
        .data()
        .map(|(source, _)| {
            let dispatcher = OutboxDispatcher {
                source,
                shards: shards.clone(),
                view: view.clone(),
                signals: Arc::clone(signals),
                disk: Arc::clone(disk),
            };
            tokio::spawn(dispatcher.run(stopping.clone()))
        })
        .collect()
}
