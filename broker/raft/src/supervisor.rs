//! Watches over a replica: announces its role, expires its proposals, and says why it ended.

use std::sync::{Arc, Weak};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, RaftMetrics};
use tidemill_protocol::ShardId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::proposer::Proposer;
use crate::state_machine::StateMachine;
use crate::status::{ReplicaRole, ReplicaState};
use crate::telemetry::StateTelemetry;
use crate::types::TypeConfig;

/// Starts watching. The task ends with the replica; it keeps none of it alive.
pub(crate) fn spawn(
    shard: ShardId,
    raft: &Raft<TypeConfig, StateMachine>,
    proposer: &Arc<Proposer>,
) -> watch::Receiver<ReplicaRole> {
    let server = raft.server_metrics();
    let (role, watched) = watch::channel(ReplicaRole::of(&server.borrow_watched()));
    let supervisor = Supervisor {
        shard,
        server,
        metrics: raft.metrics(),
        proposer: Arc::downgrade(proposer),
        role,
        telemetry: StateTelemetry::new(shard),
    };
    let interval = proposer.sweep_interval();
    tokio::spawn(supervisor.run(interval));
    watched
}

struct Supervisor {
    shard: ShardId,
    server: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    proposer: Weak<Proposer>,
    role: watch::Sender<ReplicaRole>,
    telemetry: StateTelemetry,
}

impl Supervisor {
    async fn run(mut self, sweep_interval: std::time::Duration) {
        let mut sweep = tokio::time::interval(sweep_interval);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.announce();
        loop {
            tokio::select! {
                changed = self.server.changed() => match changed {
                    Ok(()) => self.announce(),
                    // The core is gone, and with it the sender.
                    Err(_) => break,
                },
                _ = sweep.tick() => {
                    if let Some(proposer) = self.proposer.upgrade() {
                        proposer.sweep(Instant::now());
                    }
                }
            }
        }
        self.ended();
    }

    fn announce(&mut self) {
        let role = ReplicaRole::of(&self.server.borrow_watched());
        self.telemetry.leading.set(if role.is_leader() { 1.0 } else { 0.0 });
        self.telemetry.term.set(role.term.get() as f64);
        self.role.send_if_modified(|current| {
            let changed = *current != role;
            if changed {
                tracing::info!(shard = %self.shard, state = ?role.state, term = %role.term, "replica changed its role");
                *current = role;
            }
            changed
        });
    }

    fn ended(&self) {
        let reason: Arc<str> = match &self.metrics.borrow_watched().running_state {
            Ok(()) => Arc::from("its Raft core ended unexpectedly"),
            Err(openraft::errors::Fatal::Stopped) => Arc::from("it was shut down"),
            Err(fatal) => {
                let reason = fatal.to_string();
                tracing::error!(shard = %self.shard, %reason, "replica stopped");
                Arc::from(reason)
            }
        };
        self.telemetry.leading.set(0.0);
        if let Some(proposer) = self.proposer.upgrade() {
            proposer.stop(&reason);
        }
        self.role.send_modify(|role| {
            role.state = ReplicaState::Stopped { reason };
            role.leader = None;
        });
    }
}
