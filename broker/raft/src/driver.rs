//! When to write checkpoints: by bytes, per shard and over all of them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tidemill_log::wal::Wal;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::replica::Replica;

/// Bounds that the driver keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The write-ahead log's size, over all shards, above which those that hold its oldest part are checkpointed.
    pub wal_bytes_max: u64,
    /// How often the log's size is looked at.
    pub interval: Duration,
    /// How long a shard whose checkpoint failed is left alone.
    pub retry_after: Duration,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            wal_bytes_max: 2 << 30,
            interval: Duration::from_millis(500),
            retry_after: Duration::from_secs(5),
        }
    }
}

/// How often a log that is too large is looked at again after checkpoints, and how long one waits for it to shrink.
const RELIEF_ROUNDS_MAX: usize = 5;
const RELIEF_PAUSE: Duration = Duration::from_millis(10);

/// Writes checkpoints of a broker's shards, one at a time, and frees the log behind them.
///
/// A shard is due when it has applied [`ReplicaLimits::checkpoint_bytes`](crate::ReplicaLimits) since its last
/// checkpoint, or when the log is too large and this shard's entries keep its oldest segments.
#[derive(Debug)]
pub struct CheckpointDriver {
    task: JoinHandle<()>,
    pressure: Arc<Notify>,
}

impl CheckpointDriver {
    /// Starts driving; ends when dropped.
    #[must_use]
    pub fn start(config: CheckpointConfig, wal: Wal, replicas: Vec<Replica>) -> Self {
        let pressure = Arc::new(Notify::new());
        let task = tokio::spawn(run(config, wal, replicas, Arc::clone(&pressure)));
        Self { task, pressure }
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

async fn run(config: CheckpointConfig, wal: Wal, replicas: Vec<Replica>, pressure: Arc<Notify>) {
    let mut interval = tokio::time::interval(config.interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: FuturesUnordered<_> =
        replicas.iter().map(|replica| next_due(replica, Duration::ZERO)).collect();
    loop {
        tokio::select! {
            Some(replica) = due.next() => {
                let done = checkpoint(replica).await;
                due.push(next_due(replica, if done { Duration::ZERO } else { config.retry_after }));
            }
            () = pressure.notified() => relieve(&config, &wal, &replicas).await,
            _ = interval.tick() => relieve(&config, &wal, &replicas).await,
        }
    }
}

/// Checkpoints the shards that keep a log's oldest segments while it is too large.
async fn relieve(config: &CheckpointConfig, wal: &Wal, replicas: &[Replica]) {
    for _ in 0..RELIEF_ROUNDS_MAX {
        if wal.bytes() <= config.wal_bytes_max {
            return;
        }
        for (shard, _) in wal.pinning_shards() {
            for replica in replicas.iter().filter(|replica| replica.shard_id() == shard) {
                if !checkpoint(replica).await {
                    return;
                }
            }
        }
        // The log forgets in steps: the purges are flushed, then the release of the segments behind them.
        tokio::time::sleep(RELIEF_PAUSE).await;
        for _ in 0..2 {
            let (done, flushed) = oneshot::channel();
            wal.flush(Box::new(move |result| drop(done.send(result))));
            if !matches!(flushed.await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// Resolves when the replica's next checkpoint is due; after a failure, when it is to be tried again.
async fn next_due(replica: &Replica, retry_after: Duration) -> &Replica {
    if retry_after.is_zero() {
        replica.checkpoint_due().notified().await;
    } else {
        tokio::time::sleep(retry_after).await;
    }
    replica
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
