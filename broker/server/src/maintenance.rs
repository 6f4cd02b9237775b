//! What a broker does unasked: retention, due timers and expiry, the disk watch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemill_log::fs::{DiskReserve, Storage};
use tidemill_protocol::Timestamp;
use tidemill_raft::Replica;
use tidemill_shard::Unit;
use tokio_util::sync::CancellationToken;

use crate::admission::DiskLook;
use crate::clock::Clock;
use crate::context::DiskState;
use crate::shards::Shards;

/// How often the disk's free space is looked at.
const DISK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a nearly full disk is made to give back what retention and deletions let go.
const RELIEF_INTERVAL: Duration = Duration::from_secs(2);
/// Room that must be back, as a multiple of what is the least, before produce is taken again.
const DISK_RELIEF: u64 = 2;

/// Proposes what retention lets go, shard by shard.
pub(crate) async fn retention(shards: Shards, every: Duration, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return,
        }
        for (_, replica) in shards.data().filter(|(_, replica)| replica.watch().borrow().is_leader()) {
            retain(replica).await;
        }
    }
}

async fn retain(replica: &Replica) {
    for unit in replica.shard().retention_due() {
        if let Err(error) = replica.propose(unit).await {
            tracing::debug!(shard = %replica.shard_id(), %error, "retention will be tried again");
            return;
        }
    }
}

/// Proposes a tick when the log's time stands still while a timer is due, and now and then for expiry where something
/// was written.
pub(crate) async fn ticks(replica: Replica, clock: Clock, stopping: CancellationToken) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(200);
    const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut expired_at = tokio::time::Instant::now();
    let mut applied = replica.shard().applied().last;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = stopping.cancelled() => return,
        }
        if !replica.watch().borrow().is_leader() {
            continue;
        }
        let expiry = expired_at.elapsed() >= EXPIRY_INTERVAL && replica.shard().applied().last != applied;
        if !expiry && !timer_due(&replica, clock()).await {
            continue;
        }
        let unit = Unit::Tick;
        if let Err(error) = replica.propose(unit).await {
            tracing::debug!(shard = %replica.shard_id(), %error, "a tick will be tried again");
        } else if expiry {
            expired_at = tokio::time::Instant::now();
            applied = replica.shard().applied().last;
        }
    }
}

/// Whether a task's timer is due by the clock and not yet by the log's time.
async fn timer_due(replica: &Replica, now: Timestamp) -> bool {
    let shard = replica.shard().clone();
    let tasks = shard.tasks();
    if tasks.is_empty() {
        return false;
    }
    let looked = tokio::task::spawn_blocking(move || {
        let log_time = shard.log_time();
        tasks.iter().any(|task| {
            let known = shard.task(task.deployment, task.partition).ok().flatten();
            known.and_then(|task| task.next_timer).is_some_and(|(at, _)| at <= now && at > log_time)
        })
    });
    looked.await.unwrap_or(false)
}

/// Watches the free space: refuses produce below the least, gives the reserve up when there is nothing left, takes it
/// back later.
pub(crate) struct DiskWatch {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) state: Arc<crate::context::Context>,
    pub(crate) free_min_bytes: u64,
    pub(crate) reserve: Arc<DiskReserve>,
}

impl DiskWatch {
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let this = Arc::new(self);
        let mut relieved_at: Option<tokio::time::Instant> = None;
        let mut ticks = tokio::time::interval(DISK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = this.state.shards.admission().disk_pressed() => {}
                () = stopping.cancelled() => return,
            }
            let looking = Arc::clone(&this);
            let _ = tokio::task::spawn_blocking(move || looking.look()).await;
            if this.state.disk.is_nearly_full()
                && relieved_at.is_none_or(|at| at.elapsed() >= RELIEF_INTERVAL)
            {
                this.relieve().await;
                relieved_at = Some(tokio::time::Instant::now());
            }
        }
    }

    /// Files that nobody needs any more go with a checkpoint, and where nothing is written no other comes.
    async fn relieve(&self) {
        for (shard, replica) in self.state.shards.iter() {
            if replica.bytes_since_checkpoint() == 0 {
                continue;
            }
            if let Err(error) = replica.checkpoint().await {
                tracing::warn!(%shard, %error, "a checkpoint that would free space failed");
            }
        }
    }

    fn look(&self) {
        let disk: &DiskState = &self.state.disk;
        let before = disk.is_nearly_full();
        let least = self.free_min_bytes.saturating_mul(if before { DISK_RELIEF } else { 1 });
        let mut found = None;
        let room = self.state.shards.admission().looked(|| {
            let unwritten =
                self.state.shards.iter().map(|(_, replica)| replica.shard().write_behind_lag_bytes()).sum();
            let space = self.storage.free_space();
            let free = space.as_ref().map_or(u64::MAX, |space| space.free);
            found = Some(space);
            DiskLook { free, least, unwritten }
        });
        let space = match found {
            Some(Ok(space)) => space,
            Some(Err(error)) => return tracing::warn!(%error, "the free space can't be read"),
            None => return,
        };
        disk.set_space(space);
        metrics::gauge!("tidemill_disk_free_bytes").set(space.free as f64);
        let nearly_full = !room;
        if disk.set_nearly_full(nearly_full) != nearly_full {
            if nearly_full {
                tracing::error!(
                    free = space.free,
                    least = self.free_min_bytes,
                    "the disk is nearly full: produce is refused"
                );
            } else {
                tracing::info!(free = space.free, "the disk has room again: produce is taken");
            }
        }
        // The reserve is what lets checkpoints and retention still write when nothing else is left.
        let held = self.reserve.is_held().unwrap_or(false);
        if nearly_full && held && space.free < self.reserve.bytes() {
            match self.reserve.release() {
                Ok(()) => tracing::warn!("the disk reserve was given up, so that retention can free space"),
                Err(error) => tracing::error!(%error, "the disk reserve can't be given up"),
            }
        } else if !nearly_full
            && !held
            && let Err(error) = self.reserve.ensure()
        {
            tracing::debug!(%error, "the disk reserve can't be taken back yet");
        }
    }
}

/// Where the reserve lies.
pub(crate) fn reserve(storage: &Arc<dyn Storage>, bytes: u64) -> DiskReserve {
    DiskReserve::new(Arc::clone(storage), Path::new("reserve"), bytes)
}
