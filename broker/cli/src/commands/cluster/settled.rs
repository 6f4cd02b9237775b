//! Whether a cluster has come to rest: `tidemill cluster status --settled`.
//!
//! What is at risk is the controller's word, which misses a broker only when it has been away for some seconds. Whoever restarts one
//! broker after the other must know that the last one is back: in every group, with all that it should have, and with its leads.

use tidemill_client::messages::{ClusterStatus, ShardPlacement, ShardReplica};
use tidemill_protocol::ShardId;

use super::status::planned;
use crate::text::counted;

/// Followers that are there answer five times a second.
const SILENT_MS_MAX: i64 = 1_000;
/// Under load a follower always lacks what is on its way to it: a few entries, each of many batches.
const BEHIND_MAX: u64 = 100;

/// What is not as it should be for good, beside what is at risk; empty where nothing moves.
pub(super) fn unsettled(status: &ClusterStatus) -> Vec<String> {
    if status.placement.is_empty() {
        return vec!["the broker that was asked does not know the shards yet".to_owned()];
    }
    status.placement.iter().flat_map(|shard| of_shard(status, shard)).collect()
}

fn of_shard(status: &ClusterStatus, shard: &ShardPlacement) -> Vec<String> {
    let number = shard.shard;
    let mut found = Vec::new();
    if shard.leader == 0 {
        found.push(format!("shard {number} has no known leader"));
    }
    let planned = planned(shard);
    if !planned.is_empty() {
        found.push(format!("shard {number} is not yet with brokers {planned}, the first leading"));
    }
    // Who is not there is at risk already, and may stay away.
    let is_alive = |replica: &&ShardReplica| {
        status.brokers.iter().any(|broker| broker.broker_id == replica.broker_id && broker.alive)
    };
    let of_replica = |replica: &ShardReplica| {
        let why = unsettled_replica(shard, replica)?;
        Some(format!("shard {number}: broker {} {why}", replica.broker_id))
    };
    found.extend(shard.replicas.iter().filter(is_alive).filter_map(of_replica));
    found
}

fn unsettled_replica(shard: &ShardPlacement, replica: &ShardReplica) -> Option<String> {
    // Every broker follows the controller's shard, for good without a vote where it is not planned to have one.
    let follows_only =
        shard.shard == u32::from(ShardId::CONTROLLER.get()) && !shard.planned.contains(&replica.broker_id);
    match replica {
        ShardReplica { silent_ms, .. } if *silent_ms < 0 => {
            Some("was not heard of yet by the leader".to_owned())
        }
        ShardReplica { silent_ms, .. } if *silent_ms > SILENT_MS_MAX => {
            Some(format!("has been silent for {} s", silent_ms / 1000))
        }
        ShardReplica { behind, .. } if *behind > BEHIND_MAX => Some(format!("lacks {behind} entries")),
        ShardReplica { voter: false, .. } if !follows_only => Some("has no vote yet".to_owned()),
        _ => None,
    }
}

/// The first of them, and how many more there are.
pub(super) fn words(unsettled: &[String]) -> Option<String> {
    let (first, others) = unsettled.split_first()?;
    let more = match others.len() {
        0 => String::new(),
        others => format!("; and {} more", counted(others, "thing")),
    };
    Some(format!("not settled: {first}{more}"))
}

#[cfg(test)]
mod tests {
    use tidemill_client::messages::BrokerStatus;

    use super::*;

    fn voter(id: u32) -> ShardReplica {
        ShardReplica { broker_id: id, incarnation: 1, voter: true, ..ShardReplica::default() }
    }

    /// Three brokers, of which the third may be away, and one shard of theirs.
    fn found(number: u32, leader: u32, third_is_alive: bool, third: ShardReplica) -> Vec<String> {
        let broker = |id: u32| BrokerStatus {
            broker_id: id,
            alive: id != 3 || third_is_alive,
            ..BrokerStatus::default()
        };
        let shard = ShardPlacement {
            shard: number,
            leader,
            replicas: vec![voter(1), voter(2), third],
            planned: vec![1, 2, 3],
            ..ShardPlacement::default()
        };
        let brokers = (1..=3).map(broker).collect();
        unsettled(&ClusterStatus { brokers, placement: vec![shard], ..ClusterStatus::default() })
    }

    #[test]
    fn a_cluster_is_settled_when_everyone_is_heard_and_has_what_it_should_have() {
        assert!(found(1, 1, true, voter(3)).is_empty());
        let busy = ShardReplica { behind: BEHIND_MAX, silent_ms: 200, ..voter(3) };
        assert!(found(1, 1, true, busy).is_empty(), "load alone is not unrest");
        let lagging = ShardReplica { behind: 120, ..voter(3) };
        assert_eq!(found(1, 1, true, lagging), ["shard 1: broker 3 lacks 120 entries"]);
        assert!(found(1, 1, false, lagging).is_empty(), "who is dead is at risk already");
        let silent = ShardReplica { silent_ms: 3_400, ..voter(3) };
        assert_eq!(found(1, 1, true, silent), ["shard 1: broker 3 has been silent for 3 s"]);
        let unheard = ShardReplica { silent_ms: -1, ..voter(3) };
        assert_eq!(found(1, 1, true, unheard), ["shard 1: broker 3 was not heard of yet by the leader"]);
        assert_eq!(found(1, 2, true, voter(3)), ["shard 1 is not yet with brokers 1 2 3, the first leading"]);
        assert_eq!(found(1, 0, true, voter(3))[0], "shard 1 has no known leader");
    }

    #[test]
    fn a_learner_is_on_its_way_unless_it_follows_the_controller() {
        let learner = ShardReplica { voter: false, ..voter(3) };
        assert_eq!(found(1, 1, true, learner)[1], "shard 1: broker 3 has no vote yet");
        let shard = ShardPlacement { planned: vec![1, 2], ..ShardPlacement::default() };
        assert_eq!(unsettled_replica(&shard, &learner), None);
        let elsewhere = ShardPlacement { shard: 4, ..shard };
        assert!(unsettled_replica(&elsewhere, &learner).is_some());
        assert_eq!(unsettled(&ClusterStatus::default()).len(), 1, "nothing is known, which is no rest");
    }

    #[test]
    fn one_thing_is_named_and_the_others_are_counted() {
        assert_eq!(words(&[]), None);
        let two = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(words(&two[..1]), Some("not settled: a".to_owned()));
        assert_eq!(words(&two), Some("not settled: a; and 2 things more".to_owned()));
    }
}
