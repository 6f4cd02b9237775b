use std::collections::BTreeSet;

use tidemill_protocol::{ClusterId, LogIndex, NodeId, ShardId, Term, Timestamp};
use uuid::Uuid;

use crate::brokers::{BrokerStart, BrokerState, JoinRequest};
use crate::command::{ControllerCommand as Command, ControllerReply as Reply};
use crate::placement::initial_placement;
use crate::settings::{ClusterSettings, SettingsChange};
use crate::shards::ReportedMembers;
use crate::state::Controller;
use crate::testing::*;

fn broker(controller: &Controller, number: u32) -> &crate::BrokerRecord {
    controller.broker(id(number)).expect("a broker")
}

#[test]
fn one_broker_brings_itself_in_and_has_every_shard() {
    let mut controller = Controller::default();
    let early = Command::Register(start(1, 1));
    assert!(refused(&mut controller, early.clone()).contains("still being formed"));
    apply(&mut controller, Command::InitCluster(identity(2)));
    let Reply::Broker(record) = twice(&mut controller, early) else { panic!("a broker") };
    assert!(record.alive && record.starts == 1 && record.directory == Some(directory(1)));
    assert_eq!(controller.shards().count(), 3);
    assert!(controller.shards().all(|shard| shard.replicas == [node(1, 1)] && shard.observers.is_empty()));
    let stranger = Command::Register(start(2, 1));
    assert!(refused(&mut controller, stranger).contains("tidemill cluster add"));
}

#[test]
fn a_formed_cluster_lies_as_every_broker_reckons() {
    let mut controller = Controller::default();
    let nobody = Command::FormCluster { identity: identity(2), brokers: vec![] };
    assert!(refused(&mut controller, nobody).contains("at least one"));
    let double = Command::FormCluster { identity: identity(2), brokers: vec![id(1), id(1)] };
    assert!(refused(&mut controller, double).contains("each broker once"));
    twice(&mut controller, form(5, 4));
    let planned: Vec<Vec<NodeId>> = controller.shards().map(|shard| shard.replicas.clone()).collect();
    assert_eq!(planned, initial_placement(&[1, 2, 3, 4, 5].map(id), 4, 3));
    let own = controller.shard(ShardId::CONTROLLER).expect("the controller's");
    assert_eq!((own.replicas.len(), &own.observers[..]), (3, &[node(4, 1), node(5, 1)][..]));
    assert!(controller.brokers().all(|broker| !broker.alive && broker.starts == 0));
    let mut other = identity(2);
    other.cluster = ClusterId::new(Uuid::from_u128(8));
    assert!(
        refused(&mut controller, Command::FormCluster { identity: other, brokers: vec![id(1)] })
            .contains("already")
    );
    assert!(refused(&mut controller, Command::InitCluster(identity(2))).contains("already"));
}

#[test]
fn who_registers_must_be_the_life_that_is_known() {
    let mut controller = cluster(3, 2);
    let mut refuse = |start: BrokerStart| refused(&mut controller, Command::Register(start));
    let emptied = BrokerStart { directory: directory(99), ..start(2, 2) };
    let refusal = refuse(emptied);
    assert!(refusal.contains("an empty directory under a known broker id") && refusal.contains("join token"));
    assert!(refuse(BrokerStart { incarnation: 2, ..start(2, 2) }).contains("never given"));
    assert!(refuse(BrokerStart { incarnation: 0, ..start(2, 2) }).contains("is over"));
    assert!(refuse(BrokerStart { features: 0, ..start(2, 2) }).contains("newer release"));
    assert!(refuse(BrokerStart { rack: "x".repeat(256), ..start(2, 2) }).contains("longer than 255"));
    assert!(
        refuse(BrokerStart { addresses: vec![String::new(); 17], ..start(2, 2) }).contains("more than 16")
    );
    assert!(refuse(start(9, 1)).contains("not part of this cluster"));

    let epoch = broker(&controller, 2).epoch;
    twice(&mut controller, Command::Register(start(2, 3)));
    assert!(broker(&controller, 2).epoch > epoch);
    // A late one is answered with who is registered, and undoes nothing.
    let Reply::Broker(record) = twice(&mut controller, Command::Register(start(2, 2))) else { panic!() };
    assert_eq!(record.starts, 3);
}

#[test]
fn silence_is_of_one_start_and_a_start_ends_it() {
    let mut controller = cluster(3, 2);
    let later = NOW.plus_ms(5);
    controller.apply(&down(2), later).expect("known");
    let known = broker(&controller, 2).clone();
    assert!(!known.alive && known.alive_changed_at == later && known.epoch == 2, "{known:?}");
    twice(&mut controller, down(2));
    assert_eq!(broker(&controller, 2), &known);
    twice(&mut controller, Command::Register(start(2, 2)));
    assert!(broker(&controller, 2).alive);
    twice(&mut controller, down(2));
    assert!(broker(&controller, 2).alive, "the silence was that of an earlier start");
    assert!(refused(&mut controller, down(9)).contains("no broker 9"));
}

#[test]
fn a_token_lets_one_broker_in_once() {
    let mut controller = cluster(3, 2);
    let join = |request: JoinRequest| Command::Join(request);
    assert!(refused(&mut controller, join(request(1, 4, 40))).contains("does not know this join token"));
    twice(&mut controller, token(1, None));
    assert!(refused(&mut controller, token(1, Some(4))).contains("other terms"));
    let late = NOW.plus_ms(DAY_MS);
    assert!(refused_at(&mut controller, join(request(1, 4, 40)), late).contains("expired"));
    for alive in [true, false] {
        if !alive {
            apply(&mut controller, down(2));
        }
        let taken = refused(&mut controller, join(request(1, 2, 40)));
        assert!(taken.contains("cluster add --broker 2"), "alive: {alive}: {taken}");
    }
    let joined = twice(&mut controller, join(request(1, 4, 40)));
    assert_eq!(joined, Reply::Joined { incarnation: 1 });
    let again = controller.apply(&join(request(1, 4, 40)), NOW);
    assert_eq!(again, Ok(Reply::Joined { incarnation: 1 }), "who did not hear the answer asks again");
    let mut without = controller.clone();
    twice(&mut without, Command::Remove { broker: id(4) });
    for (controller, at) in [(&mut without, NOW), (&mut controller, late)] {
        assert!(refused_at(controller, join(request(1, 4, 40)), at).contains("used already"), "at {at:?}");
    }
    assert!(refused(&mut controller, join(request(1, 4, 41))).contains("used already, by broker 4"));
    assert!(refused(&mut controller, join(request(1, 5, 40))).contains("used already, by broker 4"));
    twice(&mut controller, token(2, Some(6)));
    assert!(refused(&mut controller, join(request(2, 5, 50))).contains("for broker 6, not for broker 5"));

    let own = controller.shard(ShardId::CONTROLLER).expect("the controller's");
    assert_eq!(own.observers, [node(4, 1)], "it follows the controller at once");
    let registered = BrokerStart { directory: directory(40), ..start(4, 1) };
    twice(&mut controller, Command::Register(registered));
}

#[test]
fn a_wiped_broker_comes_back_as_its_next_life() {
    let mut controller = cluster(4, 4);
    apply(&mut controller, token(1, Some(2)));
    let held: Vec<ShardId> =
        controller.shards().filter(|s| s.node_of(id(2)).is_some()).map(|s| s.shard).collect();
    assert!(!held.is_empty());
    let early = refused(&mut controller, Command::Join(request(1, 2, 20)));
    assert!(early.contains("broker 2 is alive"), "it would be pushed out: {early}");
    apply(&mut controller, down(2));
    apply(&mut controller, down(3));
    let early = refused(&mut controller, Command::Join(request(1, 2, 20)));
    assert!(early.contains("no majority") && early.contains("cluster recover"), "{early}");
    apply(&mut controller, Command::Register(start(3, 2)));
    let joined = twice(&mut controller, Command::Join(request(1, 2, 20)));
    assert_eq!(joined, Reply::Joined { incarnation: 2 });
    for shard in held {
        let record = controller.shard(shard).expect("held");
        assert_eq!(record.node_of(id(2)), Some(node(2, 2)));
        assert!(!record.is_settled());
    }
    assert!(refused(&mut controller, Command::Register(start(2, 9))).contains("is over: 2 has taken"));
    let next = BrokerStart { incarnation: 2, directory: directory(20), ..start(2, 1) };
    twice(&mut controller, Command::Register(next));
    assert!(broker(&controller, 2).alive);
}

#[test]
fn old_tokens_make_room_and_their_number_is_bounded() {
    let mut controller = cluster(1, 1);
    let made = |number: usize, now: Timestamp| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        Command::CreateJoinToken { hash, broker: None, expires_at: now.plus_ms(1) }
    };
    for number in 0..crate::Bounds::JOIN_TOKENS_MAX {
        apply(&mut controller, made(number, NOW));
    }
    assert!(refused(&mut controller, made(5_000, NOW)).contains("at most 1000 join tokens"));
    let later = NOW.plus_ms(8 * DAY_MS);
    controller.apply(&made(5_000, later), later).expect("room");
    assert_eq!(controller.join_tokens().count(), 1);
}

#[test]
fn draining_needs_somewhere_to_go() {
    let mut controller = cluster(3, 2);
    let drain = |number| Command::Drain { broker: id(number) };
    let refusal = refused(&mut controller, drain(2));
    assert!(refusal.contains("3 replicas, and only 2 other"), "{refusal}");
    assert!(refused(&mut controller, drain(9)).contains("no broker 9"));
    let mut alone = cluster(1, 1);
    assert!(refused(&mut alone, drain(1)).contains("only 0 other"));

    let mut controller = cluster(4, 2);
    apply(&mut controller, down(3));
    assert!(refused(&mut controller, drain(2)).contains("only 2 other"), "a dead one takes nothing");
    apply(&mut controller, Command::Register(start(3, 2)));
    twice(&mut controller, drain(2));
    assert_eq!(broker(&controller, 2).state, BrokerState::Draining);
    assert!(refused(&mut controller, drain(1)).contains("only 2 other"), "a drained one takes nothing");
    twice(&mut controller, Command::Undrain { broker: id(2) });
    assert_eq!(broker(&controller, 2).state, BrokerState::Active);
    assert!(refused(&mut controller, Command::Undrain { broker: id(9) }).contains("no broker 9"));
}

#[test]
fn removing_needs_a_majority_without_it_and_is_for_good() {
    let remove = |number| Command::Remove { broker: id(number) };
    let mut alone = cluster(1, 1);
    assert!(refused(&mut alone, remove(1)).contains("the last one"));
    let mut controller = cluster(3, 2);
    apply(&mut controller, down(1));
    let refusal = refused(&mut controller, remove(2));
    assert!(refusal.contains("shard 0 has 1 of its 3 voters alive"), "{refusal}");
    assert!(refusal.contains("tidemill cluster drain 2"), "{refusal}");
    assert!(refused(&mut controller, remove(9)).contains("no broker 9"));
    twice(&mut controller, remove(1));
    assert!(!broker(&controller, 1).is_member());
    let mut whole = cluster(3, 2);
    assert!(refused(&mut whole, remove(1)).contains("holds 3 replicas"), "one that lives is drained first");

    let later = BrokerStart { starts: 50, ..start(1, 1) };
    assert!(refused(&mut controller, Command::Register(later)).contains("was removed"));
    for command in [Command::Drain { broker: id(1) }, Command::Undrain { broker: id(1) }] {
        assert!(refused(&mut controller, command).contains("was removed"));
    }
    twice(&mut controller, Command::SetAlive { broker: id(1), starts: 1, alive: true });
    assert!(!broker(&controller, 1).alive);
    let moved = assign(&controller, 1, &[2, 3]);
    apply(&mut controller, moved);
    let back = assign(&controller, 1, &[1, 2, 3]);
    assert!(refused(&mut controller, back).contains("drained or removed"));

    apply(&mut controller, token(1, None));
    let joined = twice(&mut controller, Command::Join(request(1, 1, 10)));
    assert_eq!(joined, Reply::Joined { incarnation: 2 }, "another life of it may come");
    assert!(refused(&mut controller, Command::Register(start(1, 51))).contains("is over"));
}

#[test]
fn a_broker_with_no_vote_goes_at_once() {
    let mut controller = cluster(3, 2);
    apply(&mut controller, token(1, None));
    apply(&mut controller, Command::Join(request(1, 4, 40)));
    twice(&mut controller, Command::Remove { broker: id(4) });
    assert!(controller.shard(ShardId::CONTROLLER).expect("the controller's").observers.is_empty());
}

#[test]
fn replicas_are_assigned_by_version_to_brokers_that_can_hold_them() {
    let mut controller = cluster(4, 2);
    let refuse = |controller: &mut Controller, brokers: &[u32]| {
        let command = assign(controller, 1, brokers);
        refused(controller, command)
    };
    assert!(refuse(&mut controller, &[]).contains("between 1 and 7"));
    assert!(refuse(&mut controller, &[1, 2, 1]).contains("named twice"));
    assert!(refuse(&mut controller, &[1, 2, 9]).contains("no broker 9"));
    let nowhere = assign(&controller, 9, &[1]);
    assert!(refused(&mut controller, nowhere).contains("no shard 9"));

    let held = replicas(&controller, 1);
    let stale = Command::AssignReplicas {
        shard: ShardId::new(1),
        replicas: vec![id(1), id(4)],
        expected_version: controller.shard(ShardId::new(1)).expect("a shard").version - 1,
    };
    assert!(refused(&mut controller, stale).contains("look again"));
    // The order alone: the same nodes.
    let turned: Vec<u32> = held.iter().rev().map(|node| node.broker().get()).collect();
    let order = assign(&controller, 1, &turned);
    twice(&mut controller, order);
    assert_eq!(replicas(&controller, 1), held.iter().rev().copied().collect::<Vec<_>>());
}

#[test]
fn who_comes_back_to_a_shard_comes_as_somebody_new() {
    let mut controller = cluster(4, 1);
    for brokers in [[1, 2, 3], [1, 2, 4], [1, 2, 3]] {
        let command = assign(&controller, 1, &brokers);
        twice(&mut controller, command);
    }
    assert_eq!(replicas(&controller, 1), [node(1, 1), node(2, 1), node(3, 2)]);
    // In the controller's shard it stayed all the while, without a vote.
    for brokers in [[1, 2, 4], [1, 2, 3]] {
        let command = assign(&controller, 0, &brokers);
        twice(&mut controller, command);
        let own = controller.shard(ShardId::CONTROLLER).expect("the controller's");
        let all: BTreeSet<NodeId> = own.replicas.iter().chain(&own.observers).copied().collect();
        assert_eq!(all, [1, 2, 3, 4].map(|broker| node(broker, 1)).into());
    }
}

#[test]
fn a_retired_replica_comes_back_under_a_new_id() {
    let mut controller = cluster(3, 2);
    let replace = |shard, old| Command::ReplaceReplica { shard: ShardId::new(shard), old };
    assert_eq!(twice(&mut controller, replace(1, node(2, 1))), Reply::Replica(node(2, 2)));
    assert_eq!(twice(&mut controller, replace(2, node(2, 1))), Reply::Replica(node(2, 3)));
    assert_eq!(twice(&mut controller, replace(1, node(2, 2))), Reply::Replica(node(2, 4)));
    assert_eq!(twice(&mut controller, replace(1, node(2, 1))), Reply::Replica(node(2, 4)), "the present one");
    assert!(replicas(&controller, 1).contains(&node(2, 4)));
    assert!(refused(&mut controller, replace(1, node(2, 9))).contains("no replica 2.9"));
    assert!(refused(&mut controller, replace(1, node(9, 1))).contains("no replica 9.1"));
    assert!(refused(&mut controller, replace(9, node(1, 1))).contains("no shard 9"));
    assert_eq!(broker(&controller, 2).incarnation, 1, "the directory's life goes on");
}

#[test]
fn reports_count_only_if_they_are_later() {
    let mut controller = cluster(3, 1);
    let report = |voters: &[u32], leader: Option<u32>, term, index| Command::ReportMembers {
        shard: ShardId::new(1),
        members: ReportedMembers {
            voters: voters.iter().map(|broker| node(*broker, 1)).collect(),
            learners: BTreeSet::new(),
            leader: leader.map(|broker| node(broker, 1)),
            term: Term::new(term),
            index: LogIndex::new(index),
        },
    };
    let reported = |controller: &Controller| {
        let members = controller.shard(ShardId::new(1)).and_then(|shard| shard.members.clone());
        members.map(|members| (members.voters.len(), members.term.get(), members.index.get()))
    };
    let planned = controller.shard(ShardId::new(1)).expect("a shard").version;
    twice(&mut controller, report(&[1, 2], Some(1), 2, 9));
    twice(&mut controller, report(&[1], Some(1), 2, 8));
    twice(&mut controller, report(&[1], Some(1), 1, 20));
    assert_eq!(reported(&controller), Some((2, 2, 9)));
    twice(&mut controller, report(&[1, 2, 3], Some(2), 3, 4));
    assert_eq!(reported(&controller), Some((3, 3, 4)), "what a fallen leader began may be undone");
    twice(&mut controller, report(&[1, 2, 3], None, 3, 4));
    assert_eq!(controller.shard(ShardId::new(1)).expect("a shard").version, planned);
    let nowhere = Command::ReportMembers {
        shard: ShardId::new(9),
        members: controller.shard(ShardId::new(1)).and_then(|shard| shard.members.clone()).expect("reported"),
    };
    assert!(refused(&mut controller, nowhere).contains("no shard 9"));
}

#[test]
fn settings_have_bounds_and_levels_only_rise() {
    let mut controller = cluster(3, 1);
    let defaults = ClusterSettings::default();
    let mut refuse = |settings: ClusterSettings| refused(&mut controller, Command::SetSettings(settings));
    assert!(
        refuse(ClusterSettings { replication_factor_max: 2, ..defaults.clone() }).contains("1 replica or 3")
    );
    assert!(
        refuse(ClusterSettings { rebuild_delay_ms: u64::MAX, ..defaults.clone() })
            .contains("at most 30 days")
    );
    let slow = ClusterSettings { snapshot_bytes_per_second: Some(1), ..defaults.clone() };
    assert!(refuse(slow).contains("per second"));
    let set = ClusterSettings { rebuild_delay_ms: 1_000, ..defaults };
    twice(&mut controller, Command::SetSettings(set.clone()));
    assert_eq!(controller.settings(), &set);
    let rate = |rate| SettingsChange { snapshot_bytes_per_second: Some(rate), ..SettingsChange::default() };
    twice(&mut controller, Command::AlterSettings(rate(1 << 20)));
    let delay = SettingsChange { rebuild_delay_ms: Some(2_000), ..SettingsChange::default() };
    twice(&mut controller, Command::AlterSettings(delay));
    let both = ClusterSettings { rebuild_delay_ms: 2_000, snapshot_bytes_per_second: Some(1 << 20), ..set };
    assert_eq!(controller.settings(), &both, "a change leaves the rest as it is");
    assert!(refused(&mut controller, Command::AlterSettings(rate(1))).contains("per second"));
    twice(&mut controller, Command::AlterSettings(rate(0)));
    assert_eq!(controller.settings().snapshot_bytes_per_second, None);

    let raise = |level| Command::RaiseFeatureLevel { level };
    assert!(refused(&mut controller, raise(2)).contains("broker 1 knows up to 1"));
    for broker in 1..=3 {
        apply(&mut controller, Command::Register(BrokerStart { features: 2, ..start(broker, 2) }));
    }
    twice(&mut controller, raise(2));
    assert_eq!(controller.feature_level(), 2);
    assert!(refused(&mut controller, raise(1)).contains("never falls"));
    assert!(refused(&mut controller, Command::Register(start(1, 3))).contains("the cluster is at 2"));
}
