//! What `tidemill cluster status` adds where nothing is wrong, and a newcomer may take things for better or worse than they are.

use tidemill_client::messages::{BrokerStatus, ClusterStatus, ShardReplica};

use super::status::holds;

/// What is worth knowing and no risk; nothing where too little is known.
pub(super) fn notes(status: &ClusterStatus) -> Vec<String> {
    if status.placement.is_empty() {
        return Vec::new();
    }
    let dead = status.brokers.iter().filter(|broker| is_dead_and_empty(status, broker));
    let of_dead = dead.map(|broker| {
        let id = broker.broker_id;
        format!(
            "broker {id} is dead and holds nothing: start it again, or take it out with `tidemill cluster remove {id}`"
        )
    });
    of_dead.chain(few_copies(status)).collect()
}

fn is_dead_and_empty(status: &ClusterStatus, broker: &BrokerStatus) -> bool {
    let is_dead = !broker.alive && broker.starts > 0 && broker.state != "removed";
    is_dead && !status.placement.iter().any(|shard| holds(shard, broker.broker_id))
}

/// With fewer brokers than a shard may have replicas nothing is at risk that was not meant to be; one may not know what was meant.
fn few_copies(status: &ClusterStatus) -> Option<String> {
    let wanted = usize::try_from(status.settings.as_ref()?.replication_factor).ok()?;
    if status.brokers.iter().filter(|broker| broker.state != "removed").count() >= wanted {
        return None;
    }
    let voters = |replicas: &[ShardReplica]| -> Vec<u32> {
        let voters = replicas.iter().filter(|replica| replica.voter);
        voters.map(|replica| replica.broker_id).collect()
    };
    let held: Vec<Vec<u32>> = status.placement.iter().map(|shard| voters(&shard.replicas)).collect();
    let copies = held.first()?.len();
    if held.iter().any(|voters| voters.len() != copies) {
        return None;
    }
    let has = match held.first()?.as_slice() {
        [one] if held.iter().all(|voters| voters.as_slice() == [*one]) => format!("1 copy, on broker {one}"),
        [_] => "1 copy".to_owned(),
        _ => format!("{copies} copies"),
    };
    Some(format!("each shard has {has}; from {wanted} brokers on it has {wanted}"))
}

#[cfg(test)]
mod tests {
    use tidemill_client::messages::{ClusterSettings, ShardPlacement};

    use super::*;

    fn broker(id: u32, alive: bool) -> BrokerStatus {
        BrokerStatus {
            broker_id: id,
            alive,
            starts: 1,
            state: "active".to_owned(),
            ..BrokerStatus::default()
        }
    }

    fn status(brokers: Vec<BrokerStatus>, voters: &[u32]) -> ClusterStatus {
        let voter = |id: &u32| ShardReplica { broker_id: *id, voter: true, ..ShardReplica::default() };
        let shard = |number: u32| ShardPlacement {
            shard: number,
            replicas: voters.iter().map(voter).collect(),
            planned: voters.to_vec(),
            ..ShardPlacement::default()
        };
        ClusterStatus {
            brokers,
            placement: vec![shard(0), shard(1)],
            settings: Some(ClusterSettings { replication_factor: 3, ..ClusterSettings::default() }),
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn how_many_copies_there_are_is_said_where_they_are_few() {
        let alone = status(vec![broker(1, true)], &[1]);
        let one_copy = "each shard has 1 copy, on broker 1; from 3 brokers on it has 3";
        assert_eq!(notes(&alone), [one_copy]);
        let with_second = status(vec![broker(1, true), broker(2, true)], &[1]);
        assert_eq!(notes(&with_second), [one_copy], "the second holds nothing yet");
        let two = status(vec![broker(1, true), broker(2, true)], &[1, 2]);
        assert_eq!(notes(&two), ["each shard has 2 copies; from 3 brokers on it has 3"]);
        let three = (1..=3).map(|id| broker(id, true)).collect();
        assert_eq!(notes(&status(three, &[1, 2, 3])), [""; 0]);
        let unknown = ClusterStatus { placement: Vec::new(), ..alone };
        assert_eq!(notes(&unknown), [""; 0]);
    }

    #[test]
    fn who_is_dead_and_holds_nothing_is_named() {
        let brokers = || (1..=4).map(|id| broker(id, id != 4)).collect::<Vec<_>>();
        let [dead] = notes(&status(brokers(), &[1, 2, 3])).try_into().expect("one note");
        assert!(dead.starts_with("broker 4 is dead and holds nothing"), "{dead}");
        assert!(dead.ends_with("`tidemill cluster remove 4`"), "{dead}");
        assert_eq!(notes(&status(brokers(), &[1, 2, 4])), [""; 0], "what it holds is at risk");
        let mut removed = brokers();
        removed[3].state = "removed".to_owned();
        assert_eq!(notes(&status(removed, &[1, 2, 3])), [""; 0]);
    }
}
