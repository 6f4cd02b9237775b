mod at_risk;
mod random;
mod world;

use std::collections::BTreeMap;

use tidemill_protocol::ShardId;

use super::liveness::{ALIVE_WITHIN_MS, DEAD_AFTER_MS};
use super::replicas::SHARDS_MOVING_MAX;
use super::*;
use crate::risks::{Risk, Severity, risks, risks_from};
use crate::settings::ClusterSettings;
use crate::testing::*;
use world::{World, racks};

#[test]
fn a_new_cluster_has_nothing_to_plan_and_nothing_at_risk() {
    for brokers in 1..8 {
        let mut world = World::new(&vec![""; brokers], 12);
        assert_eq!(world.converge(), 0, "{brokers} brokers");
        // Two survive no more failures than one.
        let at_risk = if brokers == 2 { 13 } else { 0 };
        assert_eq!(risks(&world.controller).len(), at_risk, "{brokers} brokers");
    }
}

#[test]
fn who_is_asked_says_whom_it_does_not_reach() {
    let mut world = World::new(&["", "", ""], 2);
    assert!(risks_from(&world.controller, |_| true).is_empty());
    let one_away = risks_from(&world.controller, |broker| broker != id(2));
    assert_eq!(one_away, [Risk::Unreached { broker: id(2) }]);
    let alone = risks_from(&world.controller, |broker| broker == id(1));
    let lost =
        alone.iter().filter(|risk| matches!(risk, Risk::NoMajorityReached { reached: 1, voters: 3, .. }));
    assert_eq!(lost.count(), 3, "the controller's shard and two more: {alone:?}");
    assert!(alone.iter().any(|risk| risk.severity() == Severity::Critical));
    // What the controller knows is not said twice.
    for broker in 2..=3 {
        let silent = ControllerCommand::SetAlive { broker: id(broker), starts: 1, alive: false };
        assert!(world.apply(&silent));
    }
    assert!(risks_from(&world.controller, |broker| broker == id(1)).is_empty());
}

#[test]
fn a_broker_is_dead_after_its_silence_and_alive_when_it_is_heard() {
    let mut world = World::new(&["", "", ""], 2);
    world.up.remove(&id(2));
    let silent = |world: &World, silence_ms: u64| Liveness {
        heard_at_ms: [(id(1), world.now_ms), (id(2), world.now_ms - silence_ms), (id(3), world.now_ms)]
            .into(),
        ..world.liveness()
    };
    let at = world.now();
    assert!(plan(&world.controller, at, &silent(&world, DEAD_AFTER_MS)).is_empty());
    let dead = plan(&world.controller, at, &silent(&world, DEAD_AFTER_MS + 1));
    assert_eq!(dead, [ControllerCommand::SetAlive { broker: id(2), starts: 1, alive: false }]);
    assert!(world.apply(&dead[0]));
    assert!(matches!(risks(&world.controller)[..], [Risk::UnderReplicated { .. }, ..]));
    while let [command, ..] = &plan(&world.controller, at, &silent(&world, ALIVE_WITHIN_MS + 1))[..] {
        assert!(
            matches!(command, ControllerCommand::AssignReplicas { .. }),
            "leads go elsewhere: {command:?}"
        );
        world.apply(command);
    }
    let alive = plan(&world.controller, at, &silent(&world, ALIVE_WITHIN_MS));
    assert_eq!(alive, [ControllerCommand::SetAlive { broker: id(2), starts: 1, alive: true }]);
    // Whom only an earlier leader heard is no news.
    let stale = Liveness { listening_since_ms: world.now_ms, ..silent(&world, 50_000) };
    assert!(plan(&world.controller, at, &stale).is_empty());
    // A new leader of the controller gives everybody time to be heard.
    let fresh = Liveness { now_ms: 50_000, listening_since_ms: 45_000, heard_at_ms: BTreeMap::new() };
    let begun = plan(&World::new(&["", "", ""], 2).controller, at, &fresh);
    assert!(begun.is_empty(), "{begun:?}");
}

#[test]
fn one_broker_grows_to_three_with_all_its_shards() {
    let mut world = World::new(&[""], 12);
    world.join(2, "");
    assert_eq!(world.converge(), 0, "two would be weaker than one, and moving would be for nothing");
    world.join(3, "");
    let first = plan(&world.controller, world.now(), &world.liveness());
    assert_eq!(first.len(), SHARDS_MOVING_MAX);
    world.converge();
    assert!(world.shards_have(3) && world.spread(true) == 0, "{:?}", world.counts(true));
    assert!(risks(&world.controller).is_empty());
}

#[test]
fn a_fourth_broker_takes_its_share_and_a_drained_one_holds_nothing() {
    let mut world = World::new(&["", "", ""], 12);
    world.join(4, "");
    let commands = world.converge();
    assert!(commands <= 9 + 12, "nine replicas move, and some leads: {commands}");
    assert!(world.spread(false) == 0 && world.spread(true) == 0);
    assert!(world.apply(&ControllerCommand::Drain { broker: id(2) }));
    assert!(risks(&world.controller).iter().any(|risk| matches!(risk, Risk::Draining { .. })));
    world.converge();
    assert_eq!(world.holds(2), 0);
    assert!(world.shards_have(3) && risks(&world.controller).is_empty());
    let own = world.controller.shard(ShardId::CONTROLLER).unwrap();
    assert!(own.observers.contains(&node(2, 1)), "it follows the controller until it is removed");
    assert!(world.apply(&ControllerCommand::Remove { broker: id(2) }));
    assert_eq!(world.converge(), 0);
}

#[test]
fn a_dead_brokers_replicas_are_rebuilt_after_the_delay_and_not_before() {
    let mut world = World::new(&["", "", "", ""], 12);
    world.up.remove(&id(4));
    let held = world.holds(4);
    world.wait_ms(DEAD_AFTER_MS + 1);
    let dead = ControllerCommand::SetAlive { broker: id(4), starts: 1, alive: false };
    assert!(world.apply(&dead));
    world.converge();
    assert_eq!(world.holds(4), held);
    assert_eq!(advises_removal(&world), [true], "the other three can take all that it has");
    world.wait_ms(world.controller.settings().rebuild_delay_ms);
    world.converge();
    assert_eq!(world.holds(4), 0);
    assert!(world.shards_have(3));
    assert_eq!(risks(&world.controller), [], "nothing lacks what it held");
    world.restart(4);
    world.converge();
    assert!(world.spread(false) <= 1 && world.spread(true) <= 1);
}

/// Of each dead broker, whether the advice is to remove it where it never comes back.
fn advises_removal(world: &World) -> Vec<bool> {
    let found = risks(&world.controller);
    let dead = found.iter().filter(|risk| matches!(risk, Risk::BrokerDead { .. }));
    dead.map(|risk| risk.to_string().contains("tidemill cluster remove")).collect()
}

#[test]
fn one_of_three_that_is_removed_leaves_two_until_another_comes() {
    let mut world = World::new(&["", "", ""], 4);
    world.up.remove(&id(3));
    world.is_known_to_be_down(id(3));
    assert_eq!(advises_removal(&world), [false], "two would be left, for good");
    assert!(world.apply(&ControllerCommand::Remove { broker: id(3) }));
    world.converge();
    assert!(world.shards_have(2));
    let found = risks(&world.controller);
    assert!(found.iter().all(|risk| matches!(risk, Risk::UnderReplicated { alive: 2, wanted: 3, .. })));
    assert_eq!(found.len(), 5);
    world.join(4, "");
    world.converge();
    assert!(world.shards_have(3) && risks(&world.controller).is_empty());
}

#[test]
fn nothing_is_planned_for_a_shard_that_lost_its_majority() {
    let mut world = World::new(&["", "", "", "", ""], 10);
    for broker in [1, 2] {
        world.up.remove(&id(broker));
        assert!(world.apply(&ControllerCommand::SetAlive { broker: id(broker), starts: 1, alive: false }));
    }
    world.wait_ms(world.controller.settings().rebuild_delay_ms);
    world.converge();
    let lost: Vec<ShardId> = risks(&world.controller)
        .into_iter()
        .filter_map(|risk| match risk {
            Risk::NoMajority { shard, .. } => Some(shard),
            _ => None,
        })
        .collect();
    assert!(lost.contains(&ShardId::CONTROLLER), "{lost:?}");
    assert_eq!(risks(&world.controller)[0].severity(), Severity::Critical);
    for shard in world.controller.shards() {
        let is_rebuilt = shard.brokers().all(|broker| broker.get() > 2);
        assert_ne!(lost.contains(&shard.shard), is_rebuilt, "{shard:?}");
    }
}

#[test]
fn replicas_go_to_distinct_racks() {
    let mut world = World::new(&["a", "a", "a"], 6);
    world.join(4, "b");
    world.join(5, "c");
    world.converge();
    for shard in world.controller.shards() {
        assert_eq!(racks(&world, shard).len(), 3, "{shard:?}");
    }
    assert!(risks(&world.controller).is_empty());
}

#[test]
fn one_replica_each_is_a_setting() {
    let mut world = World::new(&["", "", "", ""], 8);
    let settings = ClusterSettings { replication_factor_max: 1, ..ClusterSettings::default() };
    assert!(world.apply(&ControllerCommand::SetSettings(settings)));
    world.converge();
    assert!(world.shards_have(1) && world.spread(false) == 0, "{:?}", world.counts(false));
}
