//! Why a change of brokers or replicas was refused.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, NodeId, ShardId};

use crate::counted::counted;

/// Why a change of brokers or replicas was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MembershipError {
    /// No such broker.
    #[error("there is no broker {0}; `tidemill cluster status` shows the brokers")]
    UnknownBroker(BrokerId),
    /// It registers without having been let in.
    #[error(
        "broker {0} is not part of this cluster; make a token with `tidemill cluster add` and start it with \
         `--join`, on an empty data directory"
    )]
    NotInvited(BrokerId),
    /// It was removed, and comes all the same.
    #[error(
        "broker {0} was removed from the cluster; to bring it back, start it on an empty data directory with a \
         token from `tidemill cluster add`"
    )]
    Removed(BrokerId),
    /// It was removed, and what is asked concerns members.
    #[error("broker {0} was removed already; `tidemill cluster status` shows who is there")]
    RemovedAlready(BrokerId),
    /// A life that is over.
    #[error(
        "incarnation {incarnation} of broker {broker} is over: {current} has taken its place; stop it, or start \
         it on an empty data directory with a token from `tidemill cluster add`"
    )]
    OldIncarnation {
        /// Which broker.
        broker: BrokerId,
        /// Who came.
        incarnation: u32,
        /// Whom the cluster knows.
        current: u32,
    },
    /// A life that was never given.
    #[error(
        "incarnation {incarnation} of broker {broker} was never given, the cluster knows {current}: its data \
         directory is of another cluster, or of a later state of this one"
    )]
    UnknownIncarnation {
        /// Which broker.
        broker: BrokerId,
        /// Who came.
        incarnation: u32,
        /// Whom the cluster knows.
        current: u32,
    },
    /// The right name, and not its data.
    #[error(
        "an empty directory under a known broker id: broker {0} has another data directory; start it on that \
         one, or add it again with a join token from `tidemill cluster add`"
    )]
    OtherDirectory(BrokerId),
    /// Its release is too old.
    #[error(
        "broker {broker} knows features up to level {features}, the cluster is at {level}; start it with a newer \
         release"
    )]
    FeaturesTooOld {
        /// Which broker.
        broker: BrokerId,
        /// What it knows.
        features: u32,
        /// What it must know.
        level: u32,
    },
    /// What it says of itself can't be.
    #[error("broker {broker} can't be registered so: {reason}")]
    InvalidBroker {
        /// Which broker.
        broker: BrokerId,
        /// What to change.
        reason: String,
    },
    /// No such token.
    #[error(
        "the cluster does not know this join token, or has forgotten it; make another with `tidemill cluster add`"
    )]
    UnknownToken,
    /// Too late.
    #[error("this join token has expired; make another with `tidemill cluster add`")]
    TokenExpired,
    /// It lets one broker in, once.
    #[error(
        "this join token was used already, by broker {0}; make another with `tidemill cluster add`, each lets one \
         broker in"
    )]
    TokenUsed(BrokerId),
    /// It is for somebody else.
    #[error(
        "this join token is for broker {expected}, not for broker {broker}; start that one with it, or make \
         another with `tidemill cluster add`"
    )]
    TokenOfAnother {
        /// Whom it is for.
        expected: BrokerId,
        /// Who came.
        broker: BrokerId,
    },
    /// A token that names nobody takes no member's place, dead or alive.
    #[error(
        "there is a broker {0} already, and the token names none; choose another id (`tidemill cluster status` shows which are taken), or, \
         where that broker's data directory is lost, a token for it: `tidemill cluster add --broker {0}`"
    )]
    IdInUse(BrokerId),
    /// The same secret twice.
    #[error("there is a join token of this hash already, with other terms; make another")]
    TokenExists,
    /// A drained broker's replicas need a place.
    #[error(
        "broker {broker} can't be drained: shard {shard} has {}, and only {} alive; add a broker first \
         (`tidemill cluster add`), or bring back the one that is down",
        counted(*replicas, "replica"),
        others_are(*others)
    )]
    NowhereToGo {
        /// Which broker.
        broker: BrokerId,
        /// The first shard that stands in the way.
        shard: ShardId,
        /// How many replicas it has.
        replicas: usize,
        /// How many others could hold one.
        others: usize,
    },
    /// A shard would be without a majority.
    #[error(
        "broker {broker} can't be removed: without it shard {shard} has {alive} of its {voters} voters alive, \
         which is no majority; bring the others back, or drain it first (`tidemill cluster drain {broker}`): where nobody \
         else can take its replicas, add a broker before that (`tidemill cluster add`)"
    )]
    QuorumLost {
        /// Which broker.
        broker: BrokerId,
        /// The first shard that stands in the way.
        shard: ShardId,
        /// Who would be left.
        alive: usize,
        /// Of how many.
        voters: usize,
    },
    /// A cluster has at least one broker.
    #[error("broker {0} is the last one; a cluster can't be without any")]
    LastBroker(BrokerId),
    /// No such shard.
    #[error("there is no shard {0}; `tidemill cluster status` shows the shards")]
    UnknownShard(ShardId),
    /// Somebody was faster.
    #[error("shard {shard} is at version {version} by now, not at {expected}; look again and repeat")]
    StaleVersion {
        /// Which shard.
        shard: ShardId,
        /// What was asked for.
        expected: u64,
        /// What is.
        version: u64,
    },
    /// Replicas that can't be.
    #[error("shard {shard} can't have these replicas: {reason}")]
    InvalidReplicas {
        /// Which shard.
        shard: ShardId,
        /// What to change.
        reason: String,
    },
    /// Who is to be replaced is not there.
    #[error("shard {shard} has no replica {node}, and had none that was replaced")]
    UnknownReplica {
        /// Which shard.
        shard: ShardId,
        /// Which replica.
        node: NodeId,
    },
    /// Settings out of range.
    #[error("the cluster can't be set so: {0}")]
    InvalidSettings(String),
    /// A cluster that can't be formed.
    #[error("the cluster can't be formed so: {0}")]
    InvalidCluster(String),
    /// Levels only rise.
    #[error("the feature level is {current} and never falls, so not to {level}")]
    LevelFalls {
        /// What was asked for.
        level: u32,
        /// What is.
        current: u32,
    },
    /// A broker does not know it.
    #[error(
        "the feature level can't be {level}: broker {broker} knows up to {features}; start it with a newer \
         release, or remove it"
    )]
    LevelUnknown {
        /// What was asked for.
        level: u32,
        /// Who does not know it.
        broker: BrokerId,
        /// What it knows; 0 where it has not said yet.
        features: u32,
    },
    /// A token that names a broker does not push it out while it lives.
    #[error(
        "broker {0} is alive, or was a moment ago; where its data directory is to be given up, stop it first: some seconds after it went \
         silent it counts as dead"
    )]
    StillAlive(BrokerId),
    /// What an old life promised would be gone, and too few are left who know it.
    #[error(
        "broker {broker} can't come back with an empty data directory yet: without what it had shard {shard} has {alive} of its {voters} voters \
         alive, which is no majority; bring the others back first, or see `tidemill cluster recover --help` where they are lost for good"
    )]
    JoinLosesQuorum {
        /// Which broker.
        broker: BrokerId,
        /// The first shard that stands in the way.
        shard: ShardId,
        /// Who is left.
        alive: usize,
        /// Of how many.
        voters: usize,
    },
    /// A broker that lives and holds replicas is emptied first.
    #[error(
        "broker {broker} is alive and holds {}: removing it is for good, and leaves its shards with fewer; drain it first \
         (`tidemill cluster drain {broker}`), or stop it where it is to go at once",
        counted(*replicas, "replica")
    )]
    StillServes {
        /// Which broker.
        broker: BrokerId,
        /// How many replicas it has.
        replicas: usize,
    },
}

fn others_are(others: usize) -> String {
    let verb = if others == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(others, "other active broker"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::id;

    #[test]
    fn one_replica_is_told_from_several() {
        let nowhere = |replicas, others| {
            let (broker, shard) = (id(2), ShardId::new(4));
            MembershipError::NowhereToGo { broker, shard, replicas, others }.to_string()
        };
        for (said, expected) in [
            (nowhere(1, 0), "shard 4 has 1 replica, and only 0 other active brokers are alive; add a broker"),
            (nowhere(2, 1), "shard 4 has 2 replicas, and only 1 other active broker is alive; add a broker"),
            (
                nowhere(3, 2),
                "shard 4 has 3 replicas, and only 2 other active brokers are alive; add a broker",
            ),
        ] {
            assert!(said.starts_with("broker 2 can't be drained: ") && said.contains(expected), "{said}");
        }

        let serves = |replicas| MembershipError::StillServes { broker: id(2), replicas }.to_string();
        assert!(serves(1).starts_with("broker 2 is alive and holds 1 replica: removing it"), "{}", serves(1));
        assert!(
            serves(3).starts_with("broker 2 is alive and holds 3 replicas: removing it"),
            "{}",
            serves(3)
        );
    }
}
