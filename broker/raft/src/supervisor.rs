//! Watches over a replica: announces its role, expires its proposals, gives up on those of a leader that is cut off, and says why it ended.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, RaftMetrics, ServerState};
use tidemill_protocol::{NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::beat::Beat;
use crate::config::RaftTiming;
use crate::contact::{Contact, Heard};
use crate::members::GroupMembers;
use crate::proposer::Proposer;
use crate::shared_log::SharedLog;
use crate::state_machine::{Machine, StateMachine};
use crate::status::{ReplicaRole, ReplicaState};
use crate::telemetry::StateTelemetry;
use crate::types::TypeConfig;

/// Starts watching. The task ends with the replica; it keeps none of it alive.
#[allow(clippy::disallowed_methods, reason = "openraft runs in tasks; this one ends with its core")]
pub(crate) fn spawn(
    shard: ShardId,
    raft: &Arc<Raft<TypeConfig, StateMachine>>,
    proposer: &Arc<Proposer>,
    health: Health,
    (timing, beat): (RaftTiming, Beat),
) -> (watch::Receiver<ReplicaRole>, watch::Receiver<GroupMembers>) {
    let server = raft.server_metrics();
    let (role, watched) = watch::channel(ReplicaRole::of(&server.borrow_watched()));
    let (members, watched_members) =
        watch::channel(GroupMembers::of(&server.borrow_watched().committed_membership_config));
    let supervisor = Supervisor {
        shard,
        server,
        metrics: raft.metrics(),
        raft: Arc::downgrade(raft),
        proposer: Arc::downgrade(proposer),
        health,
        role,
        members,
        telemetry: StateTelemetry::new(shard),
        contact: Contact::new(timing),
    };
    let interval = proposer.sweep_interval().min(Contact::look_interval(timing));
    tokio::spawn(supervisor.run(tokio::time::interval_at(beat.next(interval), interval)));
    (watched, watched_members)
}

/// Where a failure shows that openraft does not notice by itself while nothing is written or applied.
pub(crate) struct Health {
    pub(crate) log: Arc<SharedLog>,
    pub(crate) machine: Arc<Machine>,
}

impl Health {
    fn failure(&self) -> Option<Arc<str>> {
        self.machine.poisoned().or_else(|| self.log_failure())
    }

    fn log_failure(&self) -> Option<Arc<str>> {
        self.log.wal().poisoned().map(|error| Arc::from(error.to_string()))
    }
}

struct Supervisor {
    shard: ShardId,
    raft: Weak<Raft<TypeConfig, StateMachine>>,
    health: Health,
    server: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    proposer: Weak<Proposer>,
    role: watch::Sender<ReplicaRole>,
    members: watch::Sender<GroupMembers>,
    telemetry: StateTelemetry,
    contact: Contact,
}

impl Supervisor {
    async fn run(mut self, mut sweep: tokio::time::Interval) {
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.announce();
        loop {
            // In a set order; roles change rarely.
            tokio::select! {
                biased;
                changed = self.server.changed() => match changed {
                    Ok(()) => self.announce(),
                    // The core is gone, and with it the sender.
                    Err(_) => break,
                },
                _ = sweep.tick() => {
                    if let Some(proposer) = self.proposer.upgrade() {
                        proposer.sweep(Instant::now());
                        self.look_for_quorum(&proposer);
                    }
                    self.telemetry.write_behind_lag.set(self.health.machine.write_behind_lag_bytes() as f64);
                    if let Some(reason) = self.health.failure() {
                        self.give_up(&reason).await;
                    }
                }
            }
        }
        self.ended();
    }

    fn announce(&mut self) {
        let (role, members) = {
            let server = self.server.borrow_watched();
            (ReplicaRole::of(&server), GroupMembers::of(&server.committed_membership_config))
        };
        self.members.send_if_modified(|current| {
            let changed = *current != members;
            if changed {
                let (voters, learners) = (listed(&members.voters), listed(&members.learners));
                let joint = members.joint;
                tracing::info!(shard = %self.shard, voters, learners, joint, "the shard's members changed");
                *current = members;
            }
            changed
        });
        if !role.is_leader()
            && let Some(proposer) = self.proposer.upgrade()
        {
            // Who does lead is openraft's to say.
            proposer.regain();
        }
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

    /// openraft's leader keeps what it took until it hears of another one, be it for hours.
    fn look_for_quorum(&mut self, proposer: &Proposer) {
        let heard = {
            let metrics = self.metrics.borrow_watched();
            let voters = metrics.membership_config.membership().voter_ids();
            Heard {
                leading: (metrics.state == ServerState::Leader).then_some(metrics.current_term),
                alone: voters.eq([metrics.id]),
                acked: metrics.last_quorum_acked.map(|acked| acked.into_inner().elapsed()),
            }
        };
        let lost = self.contact.is_lost(&heard, Instant::now());
        if lost && !proposer.is_cut_off() {
            tracing::warn!(shard = %self.shard, "no majority of the shard's replicas answers: nothing is written until one does");
            proposer.cut_off();
        } else if !lost && proposer.is_cut_off() {
            tracing::info!(shard = %self.shard, "a majority answers, or somebody else leads");
            proposer.regain();
        }
    }

    /// Ends a replica whose log or state has failed.
    async fn give_up(&self, reason: &Arc<str>) {
        if let Some(proposer) = self.proposer.upgrade() {
            proposer.stop(reason, self.others_vote());
        }
        if let Some(raft) = self.raft.upgrade() {
            drop(raft.shutdown().await);
        }
    }

    fn others_vote(&self) -> bool {
        self.members.borrow().has_voters_beside(self.metrics.borrow_watched().id)
    }

    fn ended(&self) {
        let failure = self.health.failure();
        // A shard that stops by itself says so itself.
        if self.health.machine.poisoned().is_none()
            && let Some(reason) = self.health.log_failure()
        {
            tracing::error!(shard = %self.shard, reason = &*reason, "the shard stops");
            metrics::counter!("tidemill_shards_stopped_total").increment(1);
        }
        let reason: Arc<str> = match &self.metrics.borrow_watched().running_state {
            _ if failure.is_some() => failure.unwrap_or_default(),
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
            proposer.stop(&reason, self.others_vote());
        }
        self.role.send_modify(|role| {
            role.state = ReplicaState::Stopped { reason };
            role.leader = None;
        });
    }
}

/// Node ids as people read them: `1.1, 2.1`.
fn listed(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
