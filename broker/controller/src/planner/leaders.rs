//! Which replica should lead each shard: evenly over brokers that are alive and stay.

use std::collections::BTreeMap;

use tidemill_protocol::{BrokerId, ShardId};

use crate::brokers::BrokerState;
use crate::command::ControllerCommand;
use crate::placement::{even_leaders, put_first};
use crate::shards::ShardRecord;
use crate::state::Controller;

pub(super) fn plan(controller: &Controller) -> Vec<ControllerCommand> {
    let candidates: BTreeMap<ShardId, Vec<BrokerId>> =
        controller.shards().map(|shard| (shard.shard, candidates(controller, shard))).collect();
    let mut leaders: BTreeMap<ShardId, BrokerId> = BTreeMap::new();
    // The controller's shard is no burden like the others: whoever can leads it.
    let (own, data): (BTreeMap<_, _>, BTreeMap<_, _>) =
        candidates.into_iter().partition(|(shard, _)| *shard == ShardId::CONTROLLER);
    leaders.extend(own.into_iter().filter_map(|(shard, able)| Some((shard, *able.first()?))));
    leaders.extend(even_leaders(&data));
    // With a removed broker in it a plan must change before its order can.
    let is_whole = |shard: &&ShardRecord| {
        shard.brokers().all(|broker| controller.broker(broker).is_some_and(|record| record.is_member()))
    };
    let of = |(shard, leader)| order(controller.shard(shard).filter(is_whole)?, leader);
    leaders.into_iter().filter_map(of).collect()
}

/// Who could lead a shard, its preferred leader first if it is one of them.
fn candidates(controller: &Controller, shard: &ShardRecord) -> Vec<BrokerId> {
    let voters = shard.voters();
    // Who is expected counts too, or a new cluster's leads would follow the order in which its brokers come up.
    let able = |broker: BrokerId| {
        let record = controller.broker(broker);
        record
            .is_some_and(|record| record.state == BrokerState::Active && (record.alive || record.starts == 0))
    };
    let nodes = shard.replicas.iter().filter(|node| voters.contains(node) && able(node.broker()));
    nodes.map(|node| node.broker()).collect()
}

fn order(shard: &ShardRecord, leader: BrokerId) -> Option<ControllerCommand> {
    let mut replicas: Vec<BrokerId> = shard.brokers().collect();
    if replicas.first() == Some(&leader) {
        return None;
    }
    put_first(&mut replicas, leader);
    Some(ControllerCommand::AssignReplicas { shard: shard.shard, replicas, expected_version: shard.version })
}
