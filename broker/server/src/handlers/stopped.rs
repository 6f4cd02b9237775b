//! Replicas that have stopped on brokers that live. The controller counts brokers, and takes these for well; what they say of themselves
//! tells.

use std::collections::BTreeSet;

use tidemill_protocol::messages::{ClusterStatus, Error, ShardPlacement};
use tidemill_protocol::{BrokerId, ErrorCode};

use super::status;
use crate::context::Context;

/// A replica that has stopped, as its broker says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stopped {
    shard: u32,
    broker: u32,
    reason: String,
}

/// Of what brokers say of themselves.
pub(super) fn stopped<'a>(said: impl Iterator<Item = &'a ClusterStatus>) -> BTreeSet<Stopped> {
    let of = |status: &'a ClusterStatus| {
        let stopped = status.shards.iter().filter(|shard| shard.state == "stopped");
        stopped.map(|shard| Stopped {
            shard: shard.shard,
            broker: status.broker_id,
            reason: shard.reason.clone(),
        })
    };
    said.flat_map(of).collect()
}

/// What is at risk by them, for people.
pub(super) fn risks(stopped: &BTreeSet<Stopped>) -> impl Iterator<Item = String> {
    stopped.iter().map(|Stopped { shard, broker, reason }| {
        format!(
            "shard {shard} has stopped on broker {broker}, whose process lives: {reason}; see to that broker's disk and log, and start it again"
        )
    })
}

/// Voters of a shard that work without one of the brokers, and all of them.
fn working_without(
    shard: &ShardPlacement,
    status: &ClusterStatus,
    stopped: &BTreeSet<Stopped>,
    broker: u32,
) -> (usize, usize) {
    let lives = |id: u32| status.brokers.iter().any(|record| record.broker_id == id && record.alive);
    let has_stopped = |id: u32| stopped.iter().any(|one| (one.shard, one.broker) == (shard.shard, id));
    let voters = shard.replicas.iter().filter(|replica| replica.voter);
    let works = |id: u32| id != broker && lives(id) && !has_stopped(id);
    (voters.clone().filter(|replica| works(replica.broker_id)).count(), voters.count())
}

fn check_without(
    status: &ClusterStatus,
    stopped: &BTreeSet<Stopped>,
    broker: u32,
    what: &str,
) -> Result<(), Error> {
    for shard in &status.placement {
        let votes = shard.replicas.iter().any(|replica| replica.voter && replica.broker_id == broker);
        let Some(of) = stopped.iter().find(|one| one.shard == shard.shard).filter(|_| votes) else {
            continue;
        };
        let (working, voters) = working_without(shard, status, stopped, broker);
        if 2 * working <= voters {
            return Err(Error::new(
                ErrorCode::ClusterChangeRefused,
                format!(
                    "{what} would leave shard {} with {working} working of {voters} replicas, which is no majority: it has stopped on broker {} \
                     ({}); see to that broker first",
                    shard.shard, of.broker, of.reason
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses what takes the replicas of a broker away where those that are left would be no majority, since others have stopped. `what` is
/// that, for people.
pub(crate) async fn check_working_without(
    context: &Context,
    broker: BrokerId,
    what: &str,
) -> Result<(), Error> {
    let (status, stopped) = status::with_stopped(context).await;
    check_without(&status, &stopped, broker.get(), what)
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::messages::{BrokerStatus, ShardReplica, ShardStatus};

    use super::*;

    fn of_broker(broker_id: u32, shards: &[(u32, &str)]) -> ClusterStatus {
        let shard = |(shard, state): &(u32, &str)| ShardStatus {
            shard: *shard,
            state: (*state).to_owned(),
            reason: "EIO".to_owned(),
            ..ShardStatus::default()
        };
        ClusterStatus { broker_id, shards: shards.iter().map(shard).collect(), ..ClusterStatus::default() }
    }

    /// Three brokers, of which 1 and 2 live, and each of which votes in shards 1 and 2.
    fn cluster() -> ClusterStatus {
        let replica = |broker_id| ShardReplica { broker_id, voter: true, ..ShardReplica::default() };
        let shard = |shard| ShardPlacement {
            shard,
            replicas: (1..=3).map(replica).collect(),
            ..ShardPlacement::default()
        };
        let broker = |broker_id| BrokerStatus { broker_id, alive: broker_id != 3, ..BrokerStatus::default() };
        ClusterStatus {
            brokers: (1..=3).map(broker).collect(),
            placement: vec![shard(1), shard(2)],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn a_stopped_replica_is_told_and_counts_for_no_majority() {
        let said =
            [of_broker(1, &[(1, "leader"), (2, "leader")]), of_broker(2, &[(1, "follower"), (2, "stopped")])];
        let found = stopped(said.iter());
        let told: Vec<String> = risks(&found).collect();
        assert!(
            matches!(&told[..], [one] if one.starts_with("shard 2 has stopped on broker 2") && one.contains("EIO"))
        );
        let refused = check_without(&cluster(), &found, 3, "removing broker 3").expect_err("1 of 3 is left");
        assert_eq!(refused.error_code(), Some(ErrorCode::ClusterChangeRefused));
        assert!(refused.message.contains("shard 2 with 1 working of 3"), "{refused}");
        assert!(check_without(&cluster(), &BTreeSet::new(), 3, "removing broker 3").is_ok());
    }

    #[test]
    fn where_a_majority_works_a_broker_may_go() {
        let mut four = cluster();
        four.brokers.push(BrokerStatus { broker_id: 4, alive: true, ..BrokerStatus::default() });
        let replica = ShardReplica { broker_id: 4, voter: true, ..ShardReplica::default() };
        for shard in &mut four.placement {
            shard.replicas.retain(|replica| replica.broker_id != 1);
            shard.replicas.extend([replica, ShardReplica { broker_id: 1, ..replica }]);
            shard.replicas.push(ShardReplica { broker_id: 5, ..replica });
        }
        four.brokers.push(BrokerStatus { broker_id: 5, alive: true, ..BrokerStatus::default() });
        let found = stopped([of_broker(2, &[(2, "stopped")])].iter());
        assert!(check_without(&four, &found, 3, "removing broker 3").is_ok(), "three of five work");
    }
}
