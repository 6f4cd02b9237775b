//! What must hold once all is mended: everybody comes to the same state, and what was acknowledged is there.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_log::segment::SegmentEnd;
use tidemill_protocol::{BrokerId, Offset, ShardId, TopicPartition};
use tidemill_raft::Replica;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::SHARDS;
use super::clients::topic_of;
use super::controller::is_settled;
use super::director::Director;
use super::router::keeper_of;
use super::tasks::{TASK, deployment_of};
use super::world::Running;
use crate::ledger::Violation;

/// How long it may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until all is settled, and compares everything.
pub(crate) async fn settle(director: &mut Director, clients: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + PATIENCE;
    let world = director.world.clone();
    while !clients.iter().all(JoinHandle::is_finished) || !is_even(director) {
        director.until(Instant::now() + LOOK_INTERVAL).await;
        director.replace_lost();
        if world.violation().is_some() {
            return;
        }
        if Instant::now() > deadline {
            let clients = clients.iter().filter(|client| !client.is_finished()).count();
            let told = format!(
                "{PATIENCE:?} after all was mended {clients} clients still wait, and the shards are: {}",
                describe(director)
            );
            return world.broken(Violation::Cluster(told));
        }
    }
    if let Err(violation) = compare(director).await {
        world.broken(violation);
    }
}

/// Those that keep a shard, and run.
fn keepers(director: &Director, shard: ShardId) -> Vec<(BrokerId, Replica)> {
    let wanted = director.world.wanted(shard);
    let here = director.world.running().into_iter().filter_map(|running| {
        let replica = running.replicas.get(&shard)?.clone();
        wanted.contains(&replica.node()).then_some((running.broker, replica))
    });
    here.collect()
}

/// Whether all that should keep a shard have applied the same.
fn is_even(director: &Director) -> bool {
    let stopped = director.world.running().iter().any(Running::has_stopped);
    !stopped
        && SHARDS.iter().all(|shard| {
            let keepers = keepers(director, *shard);
            let applied = |replica: &Replica| replica.status().last_applied;
            let first = keepers.first().and_then(|(_, replica)| applied(replica));
            is_settled(&director.world, *shard)
                && keepers.len() == director.world.wanted(*shard).len()
                && first.is_some()
                && keepers
                    .iter()
                    .all(|(_, replica)| applied(replica) == first && replica.status().last_entry == first)
        })
}

fn describe(director: &Director) -> String {
    let shards = SHARDS.iter().map(|shard| {
        let replicas =
            keepers(director, *shard).into_iter().map(|(_, replica)| format!("{:?}", replica.status()));
        format!("{:?} {}", director.world.wanted(*shard), replicas.collect::<Vec<_>>().join("; "))
    });
    shards.collect::<Vec<_>>().join(" | ")
}

async fn compare(director: &Director) -> Result<(), Violation> {
    let mut positions: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
    let mut steps_to: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
    for shard in SHARDS {
        let mut all: Option<(BrokerId, blake3::Hash)> = None;
        let mut sealed: BTreeMap<(TopicPartition, Offset), (BrokerId, SegmentEnd)> = BTreeMap::new();
        for (broker, replica) in keepers(director, shard) {
            let is_here = |partition: TopicPartition| {
                partition.topic == topic_of(shard) || keeper_of(partition) == Some(shard)
            };
            let held = director.ledger.lock().check(&replica.shard(), is_here)?;
            let batches = held.batches;
            steps_to.extend(held.steps_to);
            positions.extend(
                replica
                    .shard()
                    .task_now(deployment_of(shard), TASK)
                    .into_iter()
                    .flat_map(|task| task.positions),
            );
            let (other, expected) = *all.get_or_insert((broker, batches));
            if batches != expected {
                let told = format!("shard {shard}: {broker} and {other} hold different batches");
                return Err(Violation::Cluster(told));
            }
            let failed = |what: String| Violation::Cluster(format!("shard {shard} at {broker}: {what}"));
            replica.checkpoint().await.map_err(|error| failed(error.to_string()))?;
            let snapshot = replica.shard().snapshot().map_err(|error| failed(error.to_string()))?;
            for segment in snapshot.manifest().segments.iter().filter(|segment| segment.end.sealed) {
                let place = (segment.partition, segment.end.base_offset);
                let (other, end) = *sealed.entry(place).or_insert((broker, segment.end));
                let same = |end: SegmentEnd| (end.next_offset, end.bytes, end.batches, end.digest);
                if same(end) != same(segment.end) {
                    return Err(failed(format!("its segment {place:?} differs from that of {other}")));
                }
            }
        }
    }
    // A task stands at the beginning as long as it has taken no step.
    positions.retain(|_, position| *position > Offset::ZERO);
    if positions != steps_to {
        let told =
            format!("tasks stand at {positions:?}, and what they emitted was delivered up to {steps_to:?}");
        return Err(Violation::Cluster(told));
    }
    Ok(())
}
