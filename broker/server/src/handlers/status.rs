//! How the broker is doing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use tidemill_controller::{BrokerState, Controller, Risk, risks, risks_from};
use tidemill_protocol::messages::{
    BrokerStatus, ClusterSettings, ClusterStatus, MetricsReply, ShardPlacement, ShardReplica, ShardStatus,
};
use tidemill_protocol::{BrokerId, LogIndex, ShardId};
use tidemill_raft::{Replica, ReplicaState};

use super::stopped::{self, Stopped};
use crate::cluster::forming;
use crate::context::Context;
use crate::peers::messages::{Purpose, StatusOpen};

/// How long another broker may take to say how it is.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How the cluster is: what the controller says, and what each broker that answers says of itself.
pub(crate) async fn cluster(context: &Context) -> ClusterStatus {
    with_stopped(context).await.0
}

/// The same, and the replicas that have stopped.
pub(super) async fn with_stopped(context: &Context) -> (ClusterStatus, BTreeSet<Stopped>) {
    let mut status = own(context);
    let view = context.fresh_view().await;
    let controller = view.controller();
    let others = others(context, controller).await;
    let said: Vec<&ClusterStatus> = std::iter::once(&status).chain(others.values()).collect();
    let stopped = stopped::stopped(said.iter().copied());
    let of_disks: Vec<String> = said.iter().flat_map(|said| of_disk(said)).collect();
    let mut placement: BTreeMap<u32, ShardPlacement> = BTreeMap::new();
    for shard in said.iter().flat_map(|status| &status.placement) {
        let newer = placement.get(&shard.shard).is_none_or(|known| known.term < shard.term);
        if newer {
            placement.insert(shard.shard, shard.clone());
        }
    }
    for record in controller.shards() {
        let shard = u32::from(record.shard.get());
        let entry = placement.entry(shard).or_insert_with(|| unled(context, record.shard));
        entry.planned = record.replicas.iter().map(|node| node.broker().get()).collect();
    }
    status.placement = placement.into_values().collect();
    let reached = context.reached();
    status.brokers = brokers(context, controller, &status, &others, &reached);
    status.risks = match controller.identity() {
        Some(_) => at_risk(controller, &reached, &status.placement),
        None => vec![forming::risk(context)],
    };
    status.risks.extend(stopped::risks(&stopped));
    status.risks.extend(of_disks);
    let settings = controller.settings();
    status.settings = Some(ClusterSettings {
        rebuild_delay_ms: settings.rebuild_delay_ms,
        snapshot_bytes_per_second: settings.snapshot_bytes_per_second.unwrap_or(0),
        replication_factor: u32::from(settings.replication_factor_max),
    });
    (status, stopped)
}

/// What this broker sees by its connections, and what the controller knew, where neither that nor a shard's leader says otherwise.
fn at_risk(
    controller: &Controller,
    reached: &BTreeSet<BrokerId>,
    placement: &[ShardPlacement],
) -> Vec<String> {
    let seen_from_here = risks_from(controller, |broker| reached.contains(&broker));
    let cut_off: BTreeSet<ShardId> = seen_from_here
        .iter()
        .filter_map(|risk| match risk {
            Risk::NoMajorityReached { shard, .. } => Some(*shard),
            _ => None,
        })
        .collect();
    let voters = |shard: ShardId| {
        let placed = placement.iter().find(|placed| placed.shard == u32::from(shard.get()));
        placed.into_iter().flat_map(|placed| placed.replicas.iter().filter(|replica| replica.voter))
    };
    let is_outdated = |risk: &Risk| match risk {
        Risk::UnderReplicated { shard, wanted, .. } => {
            let alive = voters(*shard).filter(|replica| counts(controller, *shard, replica)).count();
            cut_off.contains(shard) || alive >= *wanted
        }
        Risk::CatchingUp { shard, node } => voters(*shard).any(|replica| {
            (replica.broker_id, replica.incarnation) == (node.broker().get(), node.incarnation())
        }),
        _ => false,
    };
    let known = risks(controller).into_iter().filter(|risk| !is_outdated(risk));
    seen_from_here.into_iter().chain(known).map(|risk| risk.to_string()).collect()
}

/// Whether a voter can be counted on, as far as the controller knows: a life that was replaced can't.
fn counts(controller: &Controller, shard: ShardId, replica: &ShardReplica) -> bool {
    let broker = BrokerId::new(replica.broker_id);
    let is_last = controller.shard(shard).and_then(|record| record.used.get(&broker).copied())
        == Some(replica.incarnation);
    is_last && controller.broker(broker).is_some_and(|record| record.alive && record.is_member())
}

/// What is at risk by the disk of one broker, as it says itself.
fn of_disk(said: &ClusterStatus) -> Vec<String> {
    let broker = said.broker_id;
    let mut found = Vec::new();
    if said.disk_full {
        found.push(format!(
            "broker {broker} has given up its reserve, for retention alone: nothing is produced to the shards that it holds, and it refuses \
             positions; free space on its disk"
        ));
    } else if said.produce_refused {
        found.push(format!(
            "the disk of broker {broker} is nearly full ({} bytes are free): nothing is produced to the shards that it holds, and hosted \
             consumers wait; free space on it",
            said.disk_free_bytes
        ));
    }
    if said.segments_unrepaired > 0 {
        found.push(format!(
            "broker {broker} has damaged segments that no other broker's copy mended ({}); its log says which",
            said.segments_unrepaired
        ));
    }
    found
}

/// What the other brokers say of themselves, as far as they answer.
async fn others(context: &Context, controller: &Controller) -> BTreeMap<BrokerId, ClusterStatus> {
    let Some(peers) = &context.peers else { return BTreeMap::new() };
    let me = BrokerId::new(context.meta.broker_id);
    let asked = controller.brokers().map(|record| record.broker).filter(|broker| *broker != me);
    let answers = join_all(asked.map(|broker| async move {
        let asked = peers.ask(broker, Purpose::Status(StatusOpen {}));
        let answer = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
        Some((broker, answer.ok()?.ok()?))
    }));
    answers.await.into_iter().flatten().collect()
}

fn brokers(
    context: &Context,
    controller: &Controller,
    status: &ClusterStatus,
    others: &BTreeMap<BrokerId, ClusterStatus>,
    reached: &BTreeSet<BrokerId>,
) -> Vec<BrokerStatus> {
    let replicas_of = |broker: u32| {
        // Who only follows the controller, as every broker does, holds nothing that would be missed.
        let counts = |shard: &ShardPlacement, replica: &ShardReplica| shard.shard != 0 || replica.voter;
        let of = status.placement.iter().flat_map(|shard| {
            shard.replicas.iter().filter(move |replica| replica.broker_id == broker && counts(shard, replica))
        });
        u32::try_from(of.count()).unwrap_or(u32::MAX)
    };
    let leads_of = |broker: u32| {
        let of = status.placement.iter().filter(|shard| shard.leader == broker);
        u32::try_from(of.count()).unwrap_or(u32::MAX)
    };
    // Else what the controller said last may be of long ago.
    let is_current = controller.shard(ShardId::CONTROLLER).is_none_or(|record| {
        let voters = record.voters();
        let heard = voters.iter().filter(|node| reached.contains(&node.broker())).count();
        2 * heard > voters.len()
    });
    controller
        .brokers()
        .map(|record| {
            let id = record.broker.get();
            let said = if id == context.meta.broker_id { Some(status) } else { others.get(&record.broker) };
            BrokerStatus {
                broker_id: id,
                incarnation: record.incarnation,
                addresses: record.addresses.clone(),
                peer_addresses: record.peer_addresses.clone(),
                rack: record.rack.clone(),
                software: record.software.clone(),
                alive: record.alive && (is_current || reached.contains(&record.broker)),
                state: match record.state {
                    BrokerState::Active => "active",
                    BrokerState::Draining => "draining",
                    BrokerState::Removed => "removed",
                }
                .to_owned(),
                starts: record.starts,
                replicas: replicas_of(id),
                leaders: leads_of(id),
                disk_free_bytes: said.map_or(0, |said| said.disk_free_bytes),
            }
        })
        .collect()
}

/// A shard whose leader said nothing: its members as this broker knows them.
fn unled(context: &Context, shard: ShardId) -> ShardPlacement {
    let known = context.leader(shard);
    let record = context.view.now();
    let members = record.controller().shard(shard).and_then(|record| record.members.clone());
    let voters = members.iter().flat_map(|members| members.voters.iter().map(|node| (*node, true)));
    let learners = members.iter().flat_map(|members| members.learners.iter().map(|node| (*node, false)));
    let replicas = voters.chain(learners).map(|(node, voter)| ShardReplica {
        broker_id: node.broker().get(),
        incarnation: node.incarnation(),
        voter,
        behind: 0,
        silent_ms: -1,
    });
    ShardPlacement {
        shard: u32::from(shard.get()),
        leader: known.map_or(0, |leader| leader.node.broker().get()),
        term: known.map_or(0, |leader| leader.term.get()),
        committed: 0,
        replicas: replicas.collect(),
        planned: Vec::new(),
    }
}

/// A shard that this broker leads, as it sees its followers.
fn led(replica: &Replica) -> ShardPlacement {
    let status = replica.status();
    let last = status.last_entry.map_or(0, |id| id.index.get());
    let (members, followers) = (replica.members(), replica.followers());
    let all = members.voters.iter().chain(&members.learners);
    let replicas = all.map(|node| {
        let progress = followers.get(node);
        let matched = progress.and_then(|progress| progress.matched).map_or(0, LogIndex::get);
        let silent = progress.and_then(|progress| progress.last_ack);
        let own = *node == replica.node();
        ShardReplica {
            broker_id: node.broker().get(),
            incarnation: node.incarnation(),
            voter: members.voters.contains(node),
            behind: if own { 0 } else { last.saturating_sub(matched) },
            silent_ms: match silent {
                _ if own => 0,
                Some(ago) => i64::try_from(ago.as_millis()).unwrap_or(i64::MAX),
                None => -1,
            },
        }
    });
    ShardPlacement {
        shard: u32::from(replica.shard_id().get()),
        leader: replica.node().broker().get(),
        term: status.term.get(),
        committed: status.last_applied.map_or(0, |id| id.index.get()),
        replicas: replicas.collect(),
        planned: Vec::new(),
    }
}

/// How this broker is, and the shards that it leads.
pub(crate) fn own(context: &Context) -> ClusterStatus {
    let space = context.disk.space();
    let shards = context
        .shards
        .iter()
        .map(|(shard, replica)| {
            let status = replica.status();
            let (state, reason) = match status.state {
                ReplicaState::Leader => ("leader", String::new()),
                ReplicaState::Follower => ("follower", String::new()),
                ReplicaState::Learner => ("learner", String::new()),
                ReplicaState::Candidate => ("candidate", String::new()),
                ReplicaState::Stopped { reason } => ("stopped", reason.to_string()),
            };
            ShardStatus {
                shard: u32::from(shard.get()),
                state: state.to_owned(),
                term: status.term.get(),
                applied: status.last_applied.map_or(0, |id| id.index.get()),
                checkpointed: status.checkpointed.map_or(0, |id| id.index.get()),
                reason,
                partitions: u32::try_from(replica.shard().partitions().len()).unwrap_or(u32::MAX),
            }
        })
        .collect();
    ClusterStatus {
        cluster_id: bytes::Bytes::copy_from_slice(&context.meta.cluster.bytes()),
        broker_id: context.meta.broker_id,
        durability: context.meta.durability.to_string(),
        shards,
        disk_free_bytes: space.map_or(0, |space| space.free),
        disk_total_bytes: space.map_or(0, |space| space.total),
        produce_refused: context.disk.is_nearly_full(),
        disk_full: context.disk.is_full(),
        wal_bytes: context.wal.bytes(),
        segments_unrepaired: context.segments_unrepaired.load(Ordering::Relaxed),
        placement: context
            .shards
            .iter()
            .filter(|(_, replica)| replica.watch().borrow().is_leader())
            .map(|(_, replica)| led(&replica))
            .collect(),
        ..ClusterStatus::default()
    }
}

pub(crate) fn metrics(context: &Context) -> MetricsReply {
    MetricsReply { prometheus: context.metrics.render() }
}

#[cfg(test)]
mod tests {
    use tidemill_controller::{BrokerStart, ControllerCommand, ReportedMembers};
    use tidemill_protocol::{ClusterId, DirectoryId, NodeId, Term, Timestamp};
    use uuid::Uuid;

    use super::*;
    use crate::cluster::steering;
    use crate::config::DurabilitySetting;
    use crate::data_dir::Meta;

    #[test]
    fn disks_are_at_risk_as_their_brokers_say() {
        let well = ClusterStatus { broker_id: 2, disk_free_bytes: 70, ..ClusterStatus::default() };
        assert_eq!(of_disk(&well), Vec::<String>::new());
        let nearly = ClusterStatus { produce_refused: true, segments_unrepaired: 3, ..well };
        let [room, damage] = of_disk(&nearly).try_into().expect("two");
        assert!(room.starts_with("the disk of broker 2 is nearly full (70 bytes are free)"), "{room}");
        assert!(damage.starts_with("broker 2 has damaged segments") && damage.contains("(3)"), "{damage}");
        let full = ClusterStatus { disk_full: true, segments_unrepaired: 0, ..nearly };
        assert!(matches!(&of_disk(&full)[..], [one] if one.starts_with("broker 2 has given up its reserve")));
    }

    /// A cluster of these brokers as its controller has it, who have all registered.
    fn formed(brokers: &[BrokerId]) -> Controller {
        let meta = Meta::new(ClusterId::new(Uuid::from_u128(1)), 1, 1, DurabilitySetting::Fsync);
        let meta = Meta { forming: brokers.to_vec(), ..meta };
        let mut controller = Controller::default();
        let now = Timestamp::new(1_700_000_000_000);
        controller.apply(&steering::forming(&meta), now).expect("formed");
        for broker in brokers {
            let start = BrokerStart {
                broker: *broker,
                incarnation: 1,
                directory: DirectoryId::new(Uuid::from_u128(u128::from(broker.get()))),
                starts: 1,
                addresses: Vec::new(),
                peer_addresses: Vec::new(),
                rack: String::new(),
                software: String::new(),
                features: 1,
            };
            controller.apply(&ControllerCommand::Register(start), now).expect("registered");
        }
        controller
    }

    fn placed(shard: u32, voters: &[u32]) -> ShardPlacement {
        let voter = |id: &u32| ShardReplica {
            broker_id: *id,
            incarnation: 1,
            voter: true,
            ..ShardReplica::default()
        };
        ShardPlacement { shard, replicas: voters.iter().map(voter).collect(), ..ShardPlacement::default() }
    }

    /// How many are up to date, the controller wrote down when it could: who reaches no majority says only that.
    #[test]
    fn what_was_known_of_a_shard_is_left_out_where_no_majority_is_reached() {
        let brokers = [1, 2].map(BrokerId::new);
        let alone = at_risk(&formed(&brokers), &BTreeSet::from([brokers[0]]), &[]);
        assert!(alone.iter().any(|risk| risk.contains("reaches 1 of the 2 voters")), "{alone:?}");
        assert!(!alone.iter().any(|risk| risk.contains("voting and alive")), "{alone:?}");
    }

    /// The controller hears of a shard's members a moment later than they are.
    #[test]
    fn who_votes_by_the_leaders_word_is_not_said_to_be_missing() {
        let brokers = [1, 2, 3].map(BrokerId::new);
        let mut controller = formed(&brokers);
        let members = ReportedMembers {
            voters: BTreeSet::from([NodeId::new(brokers[0], 1)]),
            learners: BTreeSet::new(),
            leader: Some(NodeId::new(brokers[0], 1)),
            term: Term::new(1),
            index: LogIndex::new(1),
        };
        let report = ControllerCommand::ReportMembers { shard: ShardId::new(1), members };
        controller.apply(&report, Timestamp::new(1_700_000_000_000)).expect("reported");
        let of_shard_1 = |placement: &[ShardPlacement]| {
            let found = at_risk(&controller, &BTreeSet::from(brokers), placement);
            let of_it = found.into_iter().filter(|risk| {
                risk.contains("shard 1 ") && risk.contains("voting and alive")
                    || risk.contains("of shard 1 is catching up")
            });
            of_it.count()
        };
        assert_eq!(of_shard_1(&[]), 3, "one votes, two arrive");
        assert_eq!(of_shard_1(&[placed(1, &[1, 2])]), 2, "two vote, one arrives");
        assert_eq!(of_shard_1(&[placed(1, &[1, 2, 3])]), 0);
        assert_eq!(of_shard_1(&[placed(2, &[1, 2, 3])]), 3, "of another shard");
    }
}
