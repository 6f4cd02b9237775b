//! What is left when a majority is lost for good.

use tidemill_protocol::ShardId;

use crate::apply_loss::INCARNATIONS_LEFT_OUT;
use crate::brokers::BrokerState;
use crate::command::{ControllerCommand as Command, ControllerReply as Reply};
use crate::planner::{Liveness, plan};
use crate::state::Controller;
use crate::testing::*;

fn accept(survivor: u32, incarnation: u32, shards: &[u16]) -> Command {
    let shards = shards.iter().copied().map(ShardId::new).collect();
    Command::AcceptLoss { survivor: id(survivor), incarnation, shards }
}

#[test]
fn the_survivor_is_alone_and_its_shards_have_one_replica_each() {
    let mut controller = cluster(3, 2);
    twice(&mut controller, accept(2, 5, &[0, 1, 2]));
    for shard in controller.shards() {
        assert_eq!(shard.replicas, [node(2, 5)], "shard {}", shard.shard);
        assert!(shard.observers.is_empty() && shard.members.is_none());
        assert_eq!(shard.voters(), [node(2, 5)].into());
    }
    let states: Vec<BrokerState> = controller.brokers().map(|broker| broker.state).collect();
    assert_eq!(states, [BrokerState::Removed, BrokerState::Active, BrokerState::Removed]);
    assert!(controller.brokers().all(|broker| broker.broker == id(2) || !broker.alive));
    // The directory lives on as what it was.
    twice(&mut controller, Command::Register(start(2, 2)));
    let again = refused(&mut controller, Command::Register(start(1, 9)));
    assert!(again.contains("was removed from the cluster"), "{again}");
}

#[test]
fn nobody_comes_back_under_an_incarnation_that_may_have_been_given() {
    let mut controller = cluster(3, 2);
    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    apply(&mut controller, token(1, Some(2)));
    let Reply::Joined { incarnation } = apply(&mut controller, Command::Join(request(1, 2, 40))) else {
        panic!("it joins")
    };
    assert_eq!(incarnation, 2 + INCARNATIONS_LEFT_OUT);
    let own = controller.shard(ShardId::CONTROLLER).expect("the controller's");
    assert_eq!((&own.replicas[..], &own.observers[..]), (&[node(1, 2)][..], &[node(2, incarnation)][..]));
    // The survivor's next replica has another id, too.
    let replace = Command::ReplaceReplica { shard: ShardId::new(1), old: node(1, 2) };
    assert_eq!(apply(&mut controller, replace), Reply::Replica(node(1, 3)));
}

#[test]
fn once_others_have_joined_it_changes_nothing_any_more() {
    let mut controller = cluster(3, 2);
    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    apply(&mut controller, token(1, Some(2)));
    apply(&mut controller, Command::Join(request(1, 2, 40)));
    let version = controller.version();
    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    assert_eq!(controller.version(), version);
    assert!(controller.broker(id(2)).expect("known").is_member());
}

#[test]
fn what_the_survivor_has_not_keeps_its_lost_replicas() {
    let mut controller = cluster(4, 4);
    let lacking = controller.shards().find(|shard| !shard.brokers().any(|broker| broker == id(1)));
    let lacking = lacking.expect("four brokers share").clone();
    let held: Vec<u16> =
        controller.shards().filter(|s| s.shard != lacking.shard).map(|s| s.shard.get()).collect();
    apply(&mut controller, accept(1, 2, &held));
    let left = controller.shard(lacking.shard).expect("still known");
    assert_eq!((&left.replicas, &left.members), (&lacking.replicas, &lacking.members));
    // And nothing is planned for it: nobody could carry it out.
    let heard = Liveness::default();
    assert!(!plan(&controller, NOW, &heard).iter().any(|command| matches!(command,
        Command::AssignReplicas { shard, .. } if *shard == lacking.shard)));
}

#[test]
fn it_is_refused_as_a_whole() {
    let mut controller = cluster(3, 2);
    assert!(refused(&mut controller, accept(9, 2, &[0])).contains("no broker 9"));
    assert!(refused(&mut controller, accept(1, 2, &[0, 7])).contains("no shard 7"));
    assert!(refused(&mut controller, accept(1, 2, &[1, 2])).contains("has no replica of it"));
    assert!(refused(&mut Controller::default(), accept(1, 2, &[0])).contains("still being formed"));
}
