//! What is at risk in a cluster, for `tidemill cluster status`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, NodeId, ShardId, Timestamp};

use crate::brokers::BrokerState;
use crate::counted::counted;
use crate::shards::{ShardRecord, is_majority};
use crate::state::Controller;

/// How bad a [`Risk`] is; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// Work under way.
    Note,
    /// One failure more than was planned for may cost availability.
    Warning,
    /// Something can't be written now.
    Critical,
}

/// Something that is not as it should be. Its text says what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Risk {
    /// Nothing can be written to a shard.
    #[error(
        "shard {shard} has {alive} of its {voters} voters alive, which is no majority: nothing can be written to \
         it; bring its brokers back"
    )]
    NoMajority {
        /// Which shard.
        shard: ShardId,
        /// Who is there.
        alive: usize,
        /// Of how many.
        voters: usize,
    },
    /// Nothing can be written to a shard, as far as the broker that is asked can tell: the controller may not be able to say so.
    #[error(
        "the broker that was asked reaches {reached} of the {voters} voters of shard {shard}, which is no majority: nothing can be \
         written to it from here; bring the other brokers back, or look at the network between them"
    )]
    NoMajorityReached {
        /// Which shard.
        shard: ShardId,
        /// Who is there.
        reached: usize,
        /// Of how many.
        voters: usize,
    },
    /// A broker that counts as alive does not answer the one that is asked.
    #[error("broker {broker} does not answer the broker that was asked")]
    Unreached {
        /// Which broker.
        broker: BrokerId,
    },
    /// A shard survives fewer failures than it should.
    #[error("shard {shard} has {} voting and alive, and should have {wanted}", counted(*alive, "replica"))]
    UnderReplicated {
        /// Which shard.
        shard: ShardId,
        /// Who is there.
        alive: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A replica is not yet where it can vote.
    #[error("broker {}'s new replica of shard {shard} is catching up", node.broker())]
    CatchingUp {
        /// Which shard.
        shard: ShardId,
        /// Which replica.
        node: NodeId,
    },
    /// A shard has no leader that is alive.
    #[error("shard {shard} has no known leader that is alive; if that lasts, look at its brokers' logs")]
    NoLeader {
        /// Which shard.
        shard: ShardId,
    },
    /// Replicas fail together.
    #[error("replicas of shard {shard} share a rack, though there are others")]
    SharedRack {
        /// Which shard.
        shard: ShardId,
    },
    /// A broker is silent.
    #[error(
        "broker {broker} is down and holds {}; start it again, or, where its disk is lost, bring it back empty with \
         a token of `tidemill cluster add --broker {broker}`{}",
        counted(*replicas, "replica"),
        or_remove(*broker, *is_replaceable)
    )]
    BrokerDead {
        /// Which broker.
        broker: BrokerId,
        /// The log's time since when.
        since: Timestamp,
        /// How many replicas it has.
        replicas: usize,
        /// Whether there are others who can take all of them.
        is_replaceable: bool,
    },
    /// A broker was let in, or was there at formation, and was never seen.
    #[error("broker {broker} has not come up yet; start it")]
    BrokerExpected {
        /// Which broker.
        broker: BrokerId,
    },
    /// A broker empties.
    #[error("broker {broker} is being drained and holds {} still", counted(*replicas, "replica"))]
    Draining {
        /// Which broker.
        broker: BrokerId,
        /// How many replicas it has.
        replicas: usize,
    },
}

/// Where nobody can take its replicas, a removal leaves shards with fewer for good: no advice.
fn or_remove(broker: BrokerId, is_replaceable: bool) -> String {
    if is_replaceable {
        format!("; `tidemill cluster remove {broker}` where it never comes back")
    } else {
        String::new()
    }
}

impl Risk {
    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::NoMajority { .. } | Self::NoMajorityReached { .. } => Severity::Critical,
            Self::Unreached { .. }
            | Self::UnderReplicated { .. }
            | Self::NoLeader { .. }
            | Self::BrokerDead { .. }
            | Self::BrokerExpected { .. }
            | Self::SharedRack { .. } => Severity::Warning,
            Self::CatchingUp { .. } | Self::Draining { .. } => Severity::Note,
        }
    }
}

/// What is at risk, the worst first; empty where all is well.
#[must_use]
pub fn risks(controller: &Controller) -> Vec<Risk> {
    let mut found: Vec<Risk> = controller.shards().flat_map(|shard| of_shard(controller, shard)).collect();
    found.extend(of_brokers(controller));
    found.sort_by_key(|risk| std::cmp::Reverse(risk.severity()));
    found
}

/// What is at risk by the connections of one broker: `reaches` says whether it has one to another, or is that one. Without a majority the controller
/// can't write down that brokers are silent, so what it last said is not enough.
#[must_use]
pub fn risks_from(controller: &Controller, reaches: impl Fn(BrokerId) -> bool) -> Vec<Risk> {
    let mut found = Vec::new();
    for record in controller.shards() {
        let (shard, voters) = (record.shard, record.voters());
        let reached = voters.iter().filter(|node| reaches(node.broker())).count();
        let (alive, all) = controller.alive_voters(record);
        // Else it is said already.
        if !is_majority(reached, voters.len()) && is_majority(alive, all) {
            found.push(Risk::NoMajorityReached { shard, reached, voters: voters.len() });
        }
    }
    let silent = controller.brokers().filter(|record| record.is_member() && record.alive);
    let silent = silent.map(|record| record.broker).filter(|broker| !reaches(*broker));
    found.extend(silent.map(|broker| Risk::Unreached { broker }));
    found
}

fn of_shard(controller: &Controller, record: &ShardRecord) -> Vec<Risk> {
    let shard = record.shard;
    let mut found = Vec::new();
    let (alive, voters) = controller.alive_voters(record);
    if !is_majority(alive, voters) {
        found.push(Risk::NoMajority { shard, alive, voters });
    }
    let voting = record.voters();
    let most = usize::from(controller.settings().replication_factor_max);
    let members = controller.brokers().filter(|broker| broker.state == BrokerState::Active).count();
    let few = if record.replicas.len() == 1 { 1 } else { most };
    let wanted = if members >= most { most.max(record.replicas.len()) } else { few };
    // Who votes and lives counts until it is let go, whoever is planned: the shard survives failures with it.
    if alive < wanted {
        found.push(Risk::UnderReplicated { shard, alive, wanted });
    }
    let arriving = record.replicas.iter().filter(|node| !voting.contains(node));
    found.extend(arriving.map(|node| Risk::CatchingUp { shard, node: *node }));
    let leader = record.members.as_ref().and_then(|members| members.leader);
    if !leader.is_some_and(|leader| controller.is_alive_in(record, leader)) {
        found.push(Risk::NoLeader { shard });
    }
    if shares_a_rack(controller, record) {
        found.push(Risk::SharedRack { shard });
    }
    found
}

fn shares_a_rack(controller: &Controller, record: &ShardRecord) -> bool {
    let domain = |broker: BrokerId| controller.broker(broker).map(|record| record.fault_domain());
    let held: BTreeSet<_> = record.brokers().map(domain).collect();
    let eligible = controller.eligible_brokers().map(|broker| domain(broker.broker));
    held.len() < record.replicas.len() && eligible.collect::<BTreeSet<_>>().len() > held.len()
}

fn of_brokers(controller: &Controller) -> impl Iterator<Item = Risk> {
    let is_replaceable = |broker: BrokerId| {
        let others = controller.eligible_brokers().filter(|other| other.broker != broker).count();
        controller.held_by(broker).all(|shard| shard.replicas.len() <= others)
    };
    controller.brokers().filter(|record| record.is_member()).flat_map(move |record| {
        let broker = record.broker;
        let replicas = controller.shards().filter(|shard| is_in(shard, broker)).count();
        let silent = match (record.alive, record.starts) {
            (true, _) => None,
            (false, 0) => Some(Risk::BrokerExpected { broker }),
            // Whatever it had is elsewhere.
            (false, _) if replicas == 0 => None,
            (false, _) => Some(Risk::BrokerDead {
                broker,
                since: record.alive_changed_at,
                replicas,
                is_replaceable: is_replaceable(broker),
            }),
        };
        let drained = record.state == BrokerState::Draining && replicas > 0;
        silent.into_iter().chain(drained.then_some(Risk::Draining { broker, replicas }))
    })
}

/// Whether a broker has a replica of a shard, or is to have one. Who only follows the controller holds nothing that would be missed.
fn is_in(shard: &ShardRecord, broker: BrokerId) -> bool {
    let learners = shard.members.iter().flat_map(|members| &members.learners);
    let copies = learners.copied().filter(|_| shard.shard != ShardId::CONTROLLER);
    let mut all = shard.replicas.iter().copied().chain(shard.voters()).chain(copies);
    all.any(|node| node.broker() == broker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, id};

    #[test]
    fn one_replica_is_told_from_several() {
        let under = |alive| Risk::UnderReplicated { shard: ShardId::new(4), alive, wanted: 3 }.to_string();
        assert_eq!(under(0), "shard 4 has 0 replicas voting and alive, and should have 3");
        assert_eq!(under(1), "shard 4 has 1 replica voting and alive, and should have 3");
        assert_eq!(under(2), "shard 4 has 2 replicas voting and alive, and should have 3");

        let dead = |replicas| {
            Risk::BrokerDead { broker: id(2), since: NOW, replicas, is_replaceable: true }.to_string()
        };
        assert!(dead(1).starts_with("broker 2 is down and holds 1 replica; start it again"), "{}", dead(1));
        assert!(dead(5).starts_with("broker 2 is down and holds 5 replicas; start it again"), "{}", dead(5));
        let advice =
            "`tidemill cluster add --broker 2`; `tidemill cluster remove 2` where it never comes back";
        assert!(dead(1).ends_with(advice), "{}", dead(1));

        let node = NodeId::new(id(1), 2);
        let arriving = Risk::CatchingUp { shard: ShardId::new(4), node }.to_string();
        assert_eq!(arriving, "broker 1's new replica of shard 4 is catching up");

        let draining = |replicas| Risk::Draining { broker: id(2), replicas }.to_string();
        assert_eq!(draining(1), "broker 2 is being drained and holds 1 replica still");
        assert_eq!(draining(2), "broker 2 is being drained and holds 2 replicas still");
    }
}
