//! When to write checkpoints: by bytes, per shard and over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tidemill_log::wal::Wal;
use tidemill_protocol::ShardId;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::replica::Replica;
use crate::runtime::blocking;

/// Bounds that the driver keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The write-ahead log's size, over all shards, above which those that hold its oldest part are checkpointed.
    pub wal_bytes_max: u64,
    /// How often the log's size is looked at.
    pub interval: Duration,
    /// How long a shard whose checkpoint failed is left alone.
    pub retry_after: Duration,
    /// How often shards are looked for that have files to let go of: these leave the disk with a checkpoint.
    pub let_go_interval: Duration,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            wal_bytes_max: 2 << 30,
            interval: Duration::from_millis(500),
            retry_after: Duration::from_secs(5),
            let_go_interval: Duration::from_secs(10),
        }
    }
}

/// How often a log that is too large is looked at again after checkpoints, and how long one waits for it to shrink.
const RELIEF_ROUNDS_MAX: usize = 5;
const RELIEF_PAUSE: Duration = Duration::from_millis(10);
/// Most bytes of a stopped shard's entries that are copied at once.
const CARRY_BYTES_MAX: usize = 4 << 20;
/// The log is allowed what stopped shards hold and this part of `wal_bytes_max` before their entries are copied: to free a
/// segment costs writing the share of them in it again, so that with less room beside them copying would never end.
const CARRY_SHARE: u64 = 2;

/// Writes checkpoints of a broker's shards, one at a time, and frees the log behind them.
///
/// A shard is due when it has applied [`ReplicaLimits::checkpoint_bytes`](crate::ReplicaLimits) since its last
/// checkpoint, when the log is too large and this shard's entries keep its oldest segments, or when files wait for a
/// checkpoint to leave the disk.
///
/// While the disk is short of room every bound counts as reached: all shards are checkpointed while they still can be, the
/// log recycles its segments rather than grow, and what retention let go leaves the disk at once.
#[derive(Debug)]
pub struct CheckpointDriver {
    task: JoinHandle<()>,
    pressure: Arc<Notify>,
}

impl CheckpointDriver {
    /// Starts driving; ends when dropped. `replicas` says which there are, and is asked again and again: they come and go. `short_of_room` says
    /// whether the disk is.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the driver is a task by its nature; dropping it ends it")]
    pub fn start(
        config: CheckpointConfig,
        wal: Wal,
        replicas: impl Fn() -> Vec<Replica> + Send + Sync + 'static,
        short_of_room: watch::Receiver<bool>,
    ) -> Self {
        let pressure = Arc::new(Notify::new());
        let driving = Driving { config, wal, replicas: Box::new(replicas), short_of_room };
        Self { task: tokio::spawn(driving.run(Arc::clone(&pressure))), pressure }
    }

    /// To be notified by whoever wants to write and finds the log large: its size is looked at without delay.
    #[must_use]
    pub fn pressure(&self) -> Arc<Notify> {
        Arc::clone(&self.pressure)
    }
}

impl Drop for CheckpointDriver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the driver's task works on.
struct Driving {
    config: CheckpointConfig,
    wal: Wal,
    replicas: Box<dyn Fn() -> Vec<Replica> + Send + Sync>,
    short_of_room: watch::Receiver<bool>,
}

/// Why a stopped shard's entries could not be carried forward, as it was said last: not again until that changes.
type Told = BTreeMap<ShardId, String>;

impl Driving {
    async fn run(self, pressure: Arc<Notify>) {
        let mut interval = tokio::time::interval(self.config.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked_for_files = Instant::now();
        let mut was_short = false;
        let mut told = Told::new();
        // After a failure no sooner than with the next tick: whoever notifies does so for each write.
        let mut heeds_pressure = true;
        let mut watched: Vec<Replica> = Vec::new();
        let mut due = FuturesUnordered::new();
        loop {
            let here = (self.replicas)();
            for replica in here.iter().filter(|replica| !watched.iter().any(|known| known.is_same(replica))) {
                due.push(next_due(replica.clone(), Duration::ZERO));
            }
            watched = here;
            // In a set order, so that who owns time and randomness knows what comes next. Nobody is left out by it: a tick
            // that is due is looked for after each checkpoint, and does what pressure asks for.
            tokio::select! {
                biased;
                Some(replica) = due.next() => {
                    // One that has ended, or is another's by now, is let go of.
                    let is_here = watched.iter().any(|known| known.is_same(&replica));
                    if !is_here || is_stopped(&replica) {
                        continue;
                    }
                    let done = checkpoint(&replica).await;
                    due.push(next_due(replica, if done { Duration::ZERO } else { self.config.retry_after }));
                    if interval.tick().now_or_never().is_none() {
                        continue;
                    }
                }
                _ = interval.tick() => {}
                () = pressure.notified(), if heeds_pressure => {
                    heeds_pressure = self.relieve(&mut told).await;
                    continue;
                }
            }
            let short = *self.short_of_room.borrow();
            if short && !was_short {
                self.checkpoint_all().await;
            }
            was_short = short;
            heeds_pressure = self.relieve(&mut told).await;
            if short || looked_for_files.elapsed() >= self.config.let_go_interval {
                looked_for_files = Instant::now();
                self.let_files_go().await;
            }
        }
    }

    async fn checkpoint_all(&self) {
        for replica in &(self.replicas)() {
            checkpoint(replica).await;
        }
    }

    async fn let_files_go(&self) {
        for replica in (self.replicas)().iter().filter(|replica| replica.shard().has_files_to_let_go()) {
            checkpoint(replica).await;
        }
    }

    /// While the log is too large, checkpoints the shards that keep its oldest segments. A stopped one's entries, which no
    /// checkpoint will ever free, are carried forward. False where something failed, and would again at once.
    async fn relieve(&self, told: &mut Told) -> bool {
        for _ in 0..RELIEF_ROUNDS_MAX {
            let bytes_max = if *self.short_of_room.borrow() { 0 } else { self.config.wal_bytes_max };
            let bytes = self.wal.bytes();
            if bytes <= bytes_max {
                return true;
            }
            let pinning = self.wal.pinning_shards();
            let replicas = (self.replicas)();
            let mut done_something = pinning.is_empty();
            for shard in &pinning {
                let done = match replicas.iter().find(|replica| replica.shard_id() == *shard) {
                    Some(replica) if !is_stopped(replica) => checkpoint(replica).await.then_some(true),
                    _ => self.carry_forward(*shard, told).await,
                };
                match done {
                    Some(done) => done_something |= done,
                    None => return false,
                }
            }
            if !done_something {
                return true;
            }
            // Also where nothing keeps them any more: their release rides with the next write, and with a log at its
            // bound there is none.
            if !self.forget().await {
                return false;
            }
            if pinning.is_empty() && self.wal.bytes() == bytes {
                return true;
            }
        }
        true
    }

    /// Carries what a stopped shard has in the oldest segment to the log's end; `Some(false)` where that would free too
    /// little, `None` where it failed.
    async fn carry_forward(&self, shard: ShardId, told: &mut Told) -> Option<bool> {
        let replicas = (self.replicas)();
        // The shard itself may have no replica here just now.
        let stopped = replicas.iter().filter(|replica| is_stopped(replica)).map(Replica::shard_id);
        let stopped: BTreeSet<ShardId> = stopped.chain([shard]).collect();
        let held: u64 = stopped.into_iter().map(|shard| self.wal.bytes_held(shard)).sum();
        let bytes_max = self.config.wal_bytes_max;
        if self.wal.bytes() <= bytes_max.max(held.saturating_add(bytes_max / CARRY_SHARE)) {
            return Some(false);
        }
        loop {
            let (done, durable) = oneshot::channel();
            let wal = self.wal.clone();
            let copying = blocking(self.wal.background(), move || {
                wal.carry_forward(shard, CARRY_BYTES_MAX, Box::new(move |result| drop(done.send(result))))
            });
            match copying.await {
                Ok(Ok(0)) => {
                    told.remove(&shard);
                    return Some(true);
                }
                // Until the oldest segment has none left: each turn takes some.
                Ok(Ok(_)) => durable.await.ok()?.ok()?,
                Ok(Err(error)) => {
                    let error = error.to_string();
                    if told.get(&shard) != Some(&error) {
                        tracing::warn!(%shard, %error, "a stopped shard's entries can't be carried forward");
                        told.insert(shard, error);
                    }
                    return None;
                }
                Err(panicked) => {
                    tracing::error!(%shard, %panicked, "carrying entries forward");
                    return None;
                }
            }
        }
    }

    /// The log forgets in steps: the purges are flushed, then the release of the segments behind them.
    async fn forget(&self) -> bool {
        tokio::time::sleep(RELIEF_PAUSE).await;
        for _ in 0..2 {
            let (done, flushed) = oneshot::channel();
            self.wal.flush(Box::new(move |result| drop(done.send(result))));
            if !matches!(flushed.await, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }
}

/// Resolves when the replica's next checkpoint is due; after a failure, when it is to be tried again; and when it has ended.
async fn next_due(replica: Replica, retry_after: Duration) -> Replica {
    if retry_after.is_zero() {
        let mut role = replica.watch();
        tokio::select! {
            biased;
            () = replica.checkpoint_due().notified() => {}
            _ = role.wait_for(|role| role.stopped().is_some()) => {}
        }
    } else {
        tokio::time::sleep(retry_after).await;
    }
    replica
}

/// Whether it will make no checkpoint any more.
fn is_stopped(replica: &Replica) -> bool {
    replica.watch().borrow().stopped().is_some()
}

/// Whether there is nothing to repeat.
async fn checkpoint(replica: &Replica) -> bool {
    if let Some(reason) = replica.watch().borrow().stopped() {
        tracing::debug!(shard = %replica.shard_id(), %reason, "no checkpoint of a stopped replica");
        return true;
    }
    match replica.checkpoint().await {
        Ok(done) => {
            tracing::debug!(shard = %replica.shard_id(), ?done, "checkpoint");
            true
        }
        Err(error) => {
            tracing::warn!(shard = %replica.shard_id(), %error, "checkpoint failed; it is tried again");
            false
        }
    }
}
