//! What a broker does unasked: retention, due timers and expiry.

use std::time::Duration;

use tidemill_protocol::{ShardId, Timestamp};
use tidemill_raft::Replica;
use tidemill_shard::Unit;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::machine::Clock;
use crate::shards::Shards;

/// Proposes what retention lets go, shard by shard; at once when the disk is nearly full.
pub(crate) async fn retention(
    shards: Shards,
    every: Duration,
    clock: Clock,
    mut nearly_full: watch::Receiver<bool>,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = nearly_full.changed() => {}
            () = stopping.cancelled() => return,
        }
        for (_, replica) in shards.data().filter(|(_, replica)| replica.watch().borrow().is_leader()) {
            retain(&replica, &clock).await;
        }
    }
}

async fn retain(replica: &Replica, clock: &Clock) {
    let shard = replica.shard();
    let due = shard.retention_due_at(clock());
    if due.is_empty() {
        return;
    }
    // The log's time stands still where nothing is written: its records would never become too old.
    if due != shard.retention_due()
        && let Err(error) = replica.propose(Unit::Tick).await
    {
        tracing::debug!(shard = %replica.shard_id(), %error, "retention will be tried again");
        return;
    }
    for unit in replica.shard().retention_due() {
        if let Err(error) = replica.propose(unit).await {
            tracing::debug!(shard = %replica.shard_id(), %error, "retention will be tried again");
            return;
        }
    }
}

/// Has every replica here take its part in comparing the states of its group.
pub(crate) async fn compare_states(shards: Shards, stopping: CancellationToken) {
    const LOOK_INTERVAL: Duration = Duration::from_secs(1);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopping.cancelled() => return,
        }
        for (_, replica) in shards.iter() {
            tokio::select! {
                () = replica.compare_states() => {}
                () = stopping.cancelled() => return,
            }
        }
    }
}

/// Proposes a tick when the log's time stands still while a timer is due, while there are keys that have expired or rows of
/// deleted tasks, and now and then where something was written.
pub(crate) async fn ticks(shards: Shards, shard: ShardId, clock: Clock, stopping: CancellationToken) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(200);
    const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
    const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut swept_at, mut looked_at) = (tokio::time::Instant::now(), tokio::time::Instant::now());
    let mut applied = None;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = stopping.cancelled() => return,
        }
        let led = shards.replica(shard).filter(|replica| replica.watch().borrow().is_leader());
        let Some(replica) = led else { continue };
        let sweep = swept_at.elapsed() >= SWEEP_INTERVAL && replica.shard().applied().last != applied;
        let look = looked_at.elapsed() >= EXPIRY_INTERVAL;
        if look {
            looked_at = tokio::time::Instant::now();
        }
        let due = sweep || timer_due(&replica, clock()).await || (look && tick_due(&replica, clock()).await);
        if due && tick_while_due(&replica, &clock, &stopping).await && sweep {
            swept_at = tokio::time::Instant::now();
            applied = replica.shard().applied().last;
        }
    }
}

/// Ticks once, and on while there is more to do than one tick does, up to a bound; `false` where a tick failed.
async fn tick_while_due(replica: &Replica, clock: &Clock, stopping: &CancellationToken) -> bool {
    const TICKS_MAX: usize = 1000;
    for _ in 0..TICKS_MAX {
        if let Err(error) = replica.propose(Unit::Tick).await {
            tracing::debug!(shard = %replica.shard_id(), %error, "a tick will be tried again");
            return false;
        }
        if stopping.is_cancelled() || !tick_due(replica, clock()).await {
            break;
        }
    }
    true
}

/// Whether a tick would let go of something that a task has kept too long.
async fn tick_due(replica: &Replica, now: Timestamp) -> bool {
    let shard = replica.shard().clone();
    match tokio::task::spawn_blocking(move || shard.tick_due(now)).await {
        Ok(Ok(due)) => due,
        Ok(Err(error)) => {
            tracing::error!(shard = %replica.shard_id(), %error, "what has expired can't be looked up");
            false
        }
        Err(_) => false,
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
