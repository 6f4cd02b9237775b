//! When a leader says that it is there, and when a follower stands for election.
//!
//! ```text
//!   leader     a heartbeat to every member, each interval, when the broker's other leaders send theirs (`beat`)
//!   follower   from the last word of a leader:   |--- lease: nobody else is elected ---|-- drawn --| it stands (a pre-vote first)
//! ```
//!
//! openraft can do both by itself, with a timer that fires five times per heartbeat in every group: with a dozen groups in a broker
//! those timers cost more than all heartbeats. This one wakes for each heartbeat, and in followers about once a lease.

use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::{AsyncRuntime, Raft};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::beat::Beat;
use crate::config::RaftTiming;
use crate::runtime::Runtime;
use crate::state_machine::StateMachine;
use crate::status::ReplicaRole;
use crate::types::TypeConfig;

/// When a leader was last heard of.
#[derive(Debug)]
pub(crate) struct LastWord(Mutex<Instant>);

impl LastWord {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    /// A leader was heard, and is followed.
    pub(crate) fn note(&self) {
        *self.0.lock() = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock()
    }
}

/// Starts the timer of a replica. The task ends with the replica; it keeps none of it alive.
#[allow(clippy::disallowed_methods, reason = "openraft runs in tasks; this one ends with its core")]
pub(crate) fn spawn(
    (timing, beat): (RaftTiming, Beat),
    raft: &Arc<Raft<TypeConfig, StateMachine>>,
    role: watch::Receiver<ReplicaRole>,
    last_word: Arc<LastWord>,
) {
    let pulse = Pulse { timing, beat, raft: Arc::downgrade(raft), role, last_word };
    tokio::spawn(pulse.run());
}

struct Pulse {
    timing: RaftTiming,
    beat: Beat,
    raft: Weak<Raft<TypeConfig, StateMachine>>,
    role: watch::Receiver<ReplicaRole>,
    last_word: Arc<LastWord>,
}

impl Pulse {
    async fn run(mut self) {
        loop {
            let role = self.role.borrow_and_update().clone();
            if role.stopped().is_some() {
                return;
            }
            let goes_on = if role.is_leader() { self.lead().await } else { self.follow().await };
            if goes_on.is_none() {
                return;
            }
        }
    }

    /// Until the role changes; `None` where the replica is gone.
    async fn lead(&mut self) -> Option<()> {
        let interval = Duration::from_millis(self.timing.heartbeat_interval_ms);
        loop {
            // The first one at once.
            let next = self.beat.next(interval);
            self.raft.upgrade()?.trigger().heartbeat().await.ok()?;
            tokio::select! {
                biased;
                changed = self.role.changed() => return changed.ok(),
                () = sleep_until(next) => {}
            }
        }
    }

    /// Until the role changes; `None` where the replica is gone. A role that changed is news of an election: whoever stands, this one or
    /// another, is given time to win it, since votes wait for disks.
    async fn follow(&mut self) -> Option<()> {
        let votes_patience = Duration::from_millis(self.timing.votes_patience_ms());
        let mut not_before = Instant::now() + votes_patience + self.drawn();
        let mut patience = self.patience();
        loop {
            let due = not_before.max(self.last_word.at() + patience);
            tokio::select! {
                biased;
                changed = self.role.changed() => return changed.ok(),
                () = sleep_until(due) => {}
            }
            // Heard of meanwhile.
            if Instant::now() < self.last_word.at() + patience {
                continue;
            }
            // Whoever has no vote ignores this; a vote is asked for only if a majority would give it.
            self.raft.upgrade()?.trigger().elect(true).await.ok()?;
            not_before = Instant::now() + self.drawn();
            patience = self.patience();
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.timing.lease_ms) + self.drawn()
    }

    /// Never so short that another's lease, which began a moment later, could still hold.
    fn drawn(&self) -> Duration {
        let most = self.timing.election_spread_ms;
        Duration::from_millis(Runtime::thread_rng().random_range(most / 8..=most))
    }
}
