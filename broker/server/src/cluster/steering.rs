//! What the controller's leader does for the cluster: forms it, sees who is there, and has carried out what should be next.
//!
//! The controller itself is pure: what time and silence mean is decided here, by the broker that leads it, and becomes a command.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_controller::{ClusterIdentity, ControllerCommand, Durability, Liveness, plan};
use tidemill_protocol::BrokerId;
use tidemill_raft::Replica;
use tidemill_shard::{Unit, UnitResult};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::DurabilitySetting;
use crate::data_dir::Meta;
use crate::machine::Clock;
use crate::shards::Shards;

/// How often it is looked what is next.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Steers the cluster for as long as its controller is led here.
pub(crate) async fn steer(shards: Shards, meta: Meta, clock: Clock, stopping: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let epoch = Instant::now();
    let mut leading_since: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stopping.cancelled() => return,
        }
        let Some(replica) = shards.controller().filter(|replica| replica.watch().borrow().is_leader()) else {
            leading_since = None;
            continue;
        };
        let since = *leading_since.get_or_insert_with(Instant::now);
        // What this broker sees may be an older state until the barrier is through.
        if replica.read_barrier().await.is_err() {
            continue;
        }
        let Some(controller) = replica.shard().controller() else { continue };
        let commands = match controller.identity() {
            None => vec![forming(&meta)],
            Some(_) => plan(&controller, clock(), &liveness(&replica, epoch, since)),
        };
        for command in commands {
            tracing::info!(?command, "the controller steers");
            match replica.propose(Unit::Control(command)).await {
                Ok(UnitResult::Control(Err(refused))) => {
                    tracing::warn!(%refused, "what was planned is refused");
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "steering will be tried again");
                    break;
                }
            }
        }
    }
}

/// The cluster's first command.
pub(crate) fn forming(meta: &Meta) -> ControllerCommand {
    ControllerCommand::FormCluster { identity: identity(meta), brokers: meta.forming.clone() }
}

fn identity(meta: &Meta) -> ClusterIdentity {
    ClusterIdentity {
        cluster: meta.cluster,
        data_shards: meta.shards,
        durability: match meta.durability {
            DurabilitySetting::Fsync => Durability::Fsync,
            DurabilitySetting::Replicated => Durability::Replicated,
        },
    }
}

/// When each broker was heard of last: every broker follows the controller, so its leader hears from all of them.
fn liveness(replica: &Replica, epoch: Instant, leading_since: Instant) -> Liveness {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let now_ms = millis(epoch.elapsed());
    let mut heard_at_ms: BTreeMap<BrokerId, u64> = BTreeMap::new();
    for (node, progress) in replica.followers() {
        let Some(ago) = progress.last_ack else { continue };
        let at = now_ms.saturating_sub(millis(ago));
        let latest = heard_at_ms.entry(node.broker()).or_insert(at);
        *latest = at.max(*latest);
    }
    heard_at_ms.insert(replica.node().broker(), now_ms);
    let listening_since_ms = now_ms.saturating_sub(millis(leading_since.elapsed()));
    Liveness { now_ms, listening_since_ms, heard_at_ms }
}
