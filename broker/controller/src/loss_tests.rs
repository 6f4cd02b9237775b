//! What is left when a majority is lost for good.

use tidemill_protocol::ShardId;

use crate::apply_loss::INCARNATIONS_LEFT_OUT;
use crate::brokers::BrokerState;
use crate::command::{ControllerCommand as Command, ControllerReply as Reply};
use crate::deployment::{DeploymentKind, DeploymentStatus};
use crate::planner::{Liveness, plan};
use crate::plugin::PluginKind;
use crate::state::{Bounds, Controller};
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

/// A deployment on the topic `plays`.
fn deploy(deployment: &str, kind: DeploymentKind, plugin: &str) -> Command {
    Command::CreateDeployment(spec(deployment, kind, plugin, &["plays"]))
}

/// What is given out where everything is asked for once.
#[derive(Debug)]
struct Given {
    producer: i64,
    deployment: u64,
    plugin: u64,
    version: u64,
}

/// Asks for a block of producer ids, uploads a plugin and deploys it.
fn give(controller: &mut Controller, round: u8) -> Given {
    let allocate = Command::AllocateProducerIds { count: Bounds::PRODUCER_IDS_MAX };
    let Reply::ProducerIds(block) = apply(controller, allocate) else { panic!("a block") };
    let uploaded = apply(controller, upload("count", PluginKind::Consumer, round));
    let Reply::Plugin(plugin) = uploaded else { panic!("a plugin") };
    let deployed = apply(controller, deploy(&format!("d-{round}"), DeploymentKind::Consumer, "count"));
    let Reply::Deployment(deployment) = deployed else { panic!("a deployment") };
    assert_eq!(deployment.version, controller.version());
    Given {
        producer: block.first.get(),
        deployment: deployment.id.get(),
        plugin: plugin.number,
        version: deployment.version,
    }
}

#[test]
fn no_number_is_given_that_the_lost_may_have_given() {
    let mut controller = cluster(3, 2);
    apply(&mut controller, create(1, "plays", 2, None));
    give(&mut controller, 0);
    // The others go on without the survivor, which hears nothing of it.
    let mut others = controller.clone();
    for _ in 0..1000 {
        apply(&mut others, Command::AllocateProducerIds { count: Bounds::PRODUCER_IDS_MAX });
    }
    let given: Vec<Given> = (1..=100).map(|round| give(&mut others, round)).collect();
    let lost = given.last().expect("a hundred");
    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    assert!(controller.version() > others.version(), "clients and shards take it for news");
    for shard in controller.shards() {
        assert!(shard.version > others.version(), "shard {}", shard.shard);
    }
    let next = give(&mut controller, 200);
    assert!(next.producer >= lost.producer + i64::from(Bounds::PRODUCER_IDS_MAX), "{next:?}, {lost:?}");
    assert!(next.deployment > lost.deployment && next.plugin > lost.plugin, "{next:?}, {lost:?}");
    assert!(next.version > lost.version, "{next:?}, {lost:?}");
    assert_eq!(controller.plugin("count", None).expect("newest").number, next.plugin);
    // And all of it is stored.
    let changes = controller.take_changes();
    let objects = changes.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let restored = Controller::restore(objects).expect("restores");
    assert_eq!((&restored.header, &restored.topics), (&controller.header, &controller.topics));
    assert_eq!(restored.deployments, controller.deployments);
}

#[test]
fn what_shards_adopted_of_the_lost_gives_way_and_retries_are_placed_as_ever() {
    let mut controller = cluster(3, 2);
    apply(&mut controller, create(1, "plays", 2, None));
    apply(&mut controller, create(2, "gone", 2, None));
    apply(&mut controller, Command::DeleteTopic { name: name("gone") });
    apply(&mut controller, upload("place", PluginKind::Partitioner, 1));
    apply(&mut controller, upload("count", PluginKind::Consumer, 2));
    apply(&mut controller, deploy("p", DeploymentKind::Partitioner, "place"));
    apply(&mut controller, deploy("c", DeploymentKind::Consumer, "count"));
    let plays = |controller: &Controller| controller.topic_by_name("plays").expect("plays").clone();
    let before = plays(&controller);
    let mut others = controller.clone();
    apply(&mut others, Command::DeleteDeployment { name: name("p") });
    apply(&mut others, deploy("q", DeploymentKind::Partitioner, "place"));
    let pause = Command::SetDeploymentStatus { name: name("c"), status: DeploymentStatus::Paused };
    apply(&mut others, pause);
    let lost = plays(&others);
    let lost_task = others.deployment_by_name("c").expect("c").epoch;

    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    let after = plays(&controller);
    assert!(after.version > others.version() && after.partitioner.epoch > lost.partitioner.epoch);
    assert_eq!(after.partitioner.deployment, before.partitioner.deployment);
    let placed = |epoch: u32| after.partitioner_at(epoch);
    assert_eq!(placed(before.partitioner.epoch), Some(before.partitioner.deployment));
    assert_eq!(placed(lost.partitioner.epoch), None, "nobody knows who placed it");
    for deployment in controller.deployments() {
        assert!(deployment.version > others.version() && deployment.epoch > lost_task, "{deployment:?}");
        assert_eq!(deployment.status, DeploymentStatus::Running);
    }
    let gone = |controller: &Controller| controller.topic(topic_id(2)).cloned();
    assert_eq!(gone(&controller), gone(&others), "deleted is deleted");
}

#[test]
fn numbers_that_come_to_their_end_stay_there() {
    let mut controller = cluster(3, 2);
    controller.header.next_producer_id = i64::MAX - 1;
    controller.header.next_deployment_id = u64::MAX - 1;
    apply(&mut controller, accept(1, 2, &[0, 1, 2]));
    assert_eq!(controller.header.next_producer_id, i64::MAX);
    assert_eq!(controller.header.next_deployment_id, u64::MAX);
}
