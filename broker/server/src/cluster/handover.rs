//! Who leads: leads are spread as planned, and handed over before a broker stops.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tidemill_controller::Controller;
use tidemill_protocol::{LogIndex, NodeId, ShardId};
use tidemill_raft::Replica;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shards::Shards;
use crate::view::ViewReader;

/// How often it is looked whether another should lead.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So long the planned leader must have been fit to lead: one that comes and goes is left alone.
const FIT_FOR: Duration = Duration::from_secs(5);
/// After a lead was handed over, or could not be, so long nothing is tried with its shard.
const REST: Duration = Duration::from_secs(15);
/// A follower that lacks no more entries is fit to lead; the transfer waits for the rest.
const CLOSE_ENTRIES: u64 = 1024;
/// Heard of within this time, it is there.
const PRESENT_WITHIN: Duration = Duration::from_secs(1);
/// How long a stop waits for others to lead.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);

/// Hands leads over to the planned leaders.
pub(crate) async fn spread(shards: Shards, view: ViewReader, stopping: CancellationToken) {
    let mut fit_since: BTreeMap<ShardId, (NodeId, Instant)> = BTreeMap::new();
    let mut rests_until: BTreeMap<ShardId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopping.cancelled() => return,
        }
        let now = view.now();
        for (shard, replica) in shards.iter() {
            let Some(planned) = planned_leader(now.controller(), shard, &replica) else {
                fit_since.remove(&shard);
                continue;
            };
            if !is_fit(&replica, planned) {
                fit_since.remove(&shard);
                continue;
            }
            let since = *fit_since.entry(shard).or_insert_with(|| (planned, Instant::now()));
            let rests = rests_until.get(&shard).is_some_and(|until| Instant::now() < *until);
            if since.0 != planned || since.1.elapsed() < FIT_FOR || rests {
                if since.0 != planned {
                    fit_since.insert(shard, (planned, Instant::now()));
                }
                continue;
            }
            rests_until.insert(shard, Instant::now() + REST);
            match replica.transfer_leadership(planned).await {
                Ok(()) => tracing::info!(%shard, to = %planned, "the lead goes to the planned leader"),
                Err(error) => tracing::info!(%shard, to = %planned, %error, "the lead stays"),
            }
        }
    }
}

/// The one that should lead a shard instead of this broker, which does.
fn planned_leader(controller: &Controller, shard: ShardId, replica: &Replica) -> Option<NodeId> {
    let leads = replica.watch().borrow().is_leader();
    let planned = *controller.shard(shard)?.replicas.first()?;
    (leads && planned != replica.node() && replica.members().voters.contains(&planned)).then_some(planned)
}

fn is_fit(replica: &Replica, node: NodeId) -> bool {
    let last = replica.status().last_entry.map_or(0, |id| id.index.get());
    replica.followers().get(&node).is_some_and(|progress| {
        let behind = last.saturating_sub(progress.matched.map_or(0, LogIndex::get));
        behind <= CLOSE_ENTRIES && progress.last_ack.is_some_and(|ago| ago <= PRESENT_WITHIN)
    })
}

/// Hands every lead over to whoever is closest to it, and waits a while until others lead: before this broker stops.
pub(crate) async fn hand_over_all(shards: &Shards) {
    let leads: Vec<_> = shards.iter().filter(|(_, replica)| replica.watch().borrow().is_leader()).collect();
    let handing = join_all(leads.iter().map(|(shard, replica)| hand_over(*shard, replica)));
    let _ = tokio::time::timeout(HAND_OVER_PATIENCE, handing).await;
}

async fn hand_over(shard: ShardId, replica: &Replica) {
    /// A follower that just answered may be asked for the same again.
    const AGAIN_AFTER: Duration = Duration::from_millis(300);
    let mut role = replica.watch();
    loop {
        let Some(to) = fittest(replica) else {
            // Alone, or none is there: whoever comes back leads then.
            return;
        };
        if let Err(error) = replica.transfer_leadership(to).await {
            tracing::info!(%shard, %to, %error, "the lead is not handed over");
            return;
        }
        let given = async { role.wait_for(|role| !role.is_leader()).await.is_ok() };
        if tokio::time::timeout(AGAIN_AFTER, given).await.is_ok() {
            tracing::info!(%shard, %to, "the lead is handed over");
            return;
        }
    }
}

/// The voter that has most of the log, of those that are there.
fn fittest(replica: &Replica) -> Option<NodeId> {
    let members = replica.members();
    let followers = replica.followers();
    let there = followers.into_iter().filter(|(node, progress)| {
        members.voters.contains(node) && progress.last_ack.is_some_and(|ago| ago <= PRESENT_WITHIN)
    });
    there.max_by_key(|(_, progress)| progress.matched).map(|(node, _)| node)
}
