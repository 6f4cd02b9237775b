//! What is said to be at risk while plans are under way.

use tidemill_protocol::ShardId;

use super::world::World;
use crate::command::ControllerCommand;
use crate::planner::plan;
use crate::risks::{Risk, risks};
use crate::shards::ShardRecord;
use crate::testing::*;

/// The shards of which a risk is told that `of` knows.
fn shards_of(world: &World, of: impl Fn(Risk) -> Option<ShardId>) -> Vec<ShardId> {
    let mut shards: Vec<ShardId> = risks(&world.controller).into_iter().filter_map(of).collect();
    shards.sort_unstable();
    shards
}

fn all_shards(world: &World) -> Vec<ShardId> {
    world.controller.shards().map(|shard| shard.shard).collect()
}

#[test]
fn a_rack_that_replicas_share_is_told_where_there_are_others() {
    let shared = |risk| match risk {
        Risk::SharedRack { shard } => Some(shard),
        _ => None,
    };
    let mut world = World::new(&["a", "a", "a"], 6);
    assert_eq!(shards_of(&world, shared), [], "there is no other");
    world.join(4, "b");
    world.join(5, "c");
    assert_eq!(shards_of(&world, shared), all_shards(&world));
    world.converge();
    assert_eq!(shards_of(&world, shared), []);
}

#[test]
fn a_replica_that_has_no_vote_yet_is_catching_up() {
    let arriving = |world: &World| {
        let found = risks(&world.controller).into_iter();
        let of = found.filter_map(|risk| match risk {
            Risk::CatchingUp { shard, node } => Some((shard, node)),
            _ => None,
        });
        let mut nodes: Vec<_> = of.collect();
        nodes.sort_unstable();
        nodes
    };
    let mut world = World::new(&[""], 3);
    world.join(2, "");
    world.join(3, "");
    assert_eq!(arriving(&world), [], "nothing is planned for them");
    let planned = plan(&world.controller, world.now(), &world.liveness());
    assert_eq!(planned.len(), 4);
    for command in &planned {
        assert!(world.apply(command));
    }
    let expected: Vec<_> =
        all_shards(&world).into_iter().flat_map(|shard| [(shard, node(2, 1)), (shard, node(3, 1))]).collect();
    assert_eq!(arriving(&world), expected);
    world.follow();
    assert_eq!(arriving(&world), []);
}

#[test]
fn a_broker_that_was_let_in_is_expected_until_it_comes_up() {
    let mut world = World::new(&["", "", ""], 2);
    assert!(world.apply(&token(7, Some(4))));
    assert!(world.apply(&ControllerCommand::Join(request(7, 4, 400))));
    assert_eq!(risks(&world.controller), [Risk::BrokerExpected { broker: id(4) }]);
    world.register(id(4), directory(400), 1, "");
    assert_eq!(risks(&world.controller), []);
}

#[test]
fn a_shard_whose_leader_is_dead_has_none() {
    let unled = |risk| match risk {
        Risk::NoLeader { shard } => Some(shard),
        _ => None,
    };
    let mut world = World::new(&["", "", ""], 6);
    assert_eq!(shards_of(&world, unled), []);
    let leads = |shard: &&ShardRecord| shard.brokers().next() == Some(id(2));
    let led: Vec<ShardId> = world.controller.shards().filter(leads).map(|shard| shard.shard).collect();
    assert!(!led.is_empty() && led.len() < 7, "{led:?}");
    world.up.remove(&id(2));
    world.is_known_to_be_down(id(2));
    assert_eq!(shards_of(&world, unled), led);
    world.converge();
    assert_eq!(shards_of(&world, unled), [], "others lead");
}

#[test]
fn who_votes_until_its_successor_does_is_counted() {
    let has_few = |risk| match risk {
        Risk::UnderReplicated { shard, .. } => Some(shard),
        _ => None,
    };
    let held = |world: &World| {
        risks(&world.controller).into_iter().find_map(|risk| match risk {
            Risk::Draining { replicas, .. } => Some(replicas),
            _ => None,
        })
    };
    let mut world = World::new(&["", "", ""], 6);
    world.join(4, "");
    assert!(world.apply(&ControllerCommand::Drain { broker: id(2) }));
    assert_eq!(held(&world), Some(7));
    let planned = plan(&world.controller, world.now(), &world.liveness());
    assert!(!planned.is_empty());
    for command in &planned {
        assert!(world.apply(command));
    }
    assert!(world.unsettled() > 0);
    assert_eq!(shards_of(&world, has_few), [], "three vote and live in each");
    assert_eq!(held(&world), Some(7), "none of it has been let go");
    world.up.remove(&id(3));
    world.is_known_to_be_down(id(3));
    assert_eq!(shards_of(&world, has_few), all_shards(&world));
}
