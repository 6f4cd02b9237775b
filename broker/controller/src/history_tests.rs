//! Random histories of brokers and replicas.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidemill_protocol::{LogIndex, NodeId, ShardId, Term};

use crate::brokers::BrokerStart;
use crate::command::ControllerCommand as Command;
use crate::settings::ClusterSettings;
use crate::shards::ReportedMembers;
use crate::state::Controller;
use crate::testing::*;

fn any_command() -> impl Strategy<Value = Command> {
    let broker = || 1u32..6;
    let shard = || (0u16..4).prop_map(ShardId::new);
    prop_oneof![
        (broker(), 1u32..5, 0u128..9, 0u64..4).prop_map(|(broker, incarnation, dir, starts)| {
            Command::Register(BrokerStart { incarnation, directory: directory(dir), ..start(broker, starts) })
        }),
        (broker(), 0u64..4, any::<bool>()).prop_map(|(broker, starts, alive)| Command::SetAlive {
            broker: id(broker),
            starts,
            alive
        }),
        (0u8..6, proptest::option::of(broker())).prop_map(|(secret, broker)| token(secret, broker)),
        (0u8..6, broker(), 0u128..9)
            .prop_map(|(secret, broker, dir)| Command::Join(request(secret, broker, dir))),
        broker().prop_map(|broker| Command::Drain { broker: id(broker) }),
        broker().prop_map(|broker| Command::Undrain { broker: id(broker) }),
        broker().prop_map(|broker| Command::Remove { broker: id(broker) }),
        (shard(), proptest::collection::vec(broker().prop_map(id), 0..4)).prop_map(|(shard, replicas)| {
            // The version is filled in where it is applied.
            Command::AssignReplicas { shard, replicas, expected_version: 0 }
        }),
        (shard(), broker(), 1u32..5)
            .prop_map(|(shard, broker, life)| Command::ReplaceReplica { shard, old: node(broker, life) }),
        (shard(), 0u64..9).prop_map(|(shard, index)| Command::ReportMembers {
            shard,
            members: ReportedMembers {
                voters: [node(1, 1)].into(),
                learners: BTreeSet::new(),
                leader: None,
                term: Term::new(1),
                index: LogIndex::new(index),
            },
        }),
        any::<bool>().prop_map(|few| {
            let replication_factor_max = if few { 1 } else { 3 };
            Command::SetSettings(ClusterSettings { replication_factor_max, ..ClusterSettings::default() })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_happens_lives_are_never_mixed_up(
        commands in proptest::collection::vec((any_command(), any::<bool>()), 1..80),
    ) {
        let mut controller = cluster(3, 3);
        let mut lives = Lives::default();
        let mut stored = BTreeMap::new();
        let mut removed: BTreeSet<NodeId> = BTreeSet::new();
        for (mut command, checkpoint) in commands {
            if let Command::AssignReplicas { shard, expected_version, .. } = &mut command {
                *expected_version = controller.shard(*shard).map_or(0, |record| record.version);
            }
            let epochs: BTreeMap<_, _> = controller.brokers().map(|b| (b.broker, b.epoch)).collect();
            let before = controller.version();
            let outcome = controller.apply(&command, NOW);
            prop_assert!(outcome.is_ok() || controller.version() == before);
            lives.watch(&controller);
            for record in controller.brokers() {
                prop_assert!(epochs.get(&record.broker).is_none_or(|epoch| *epoch <= record.epoch));
                if !record.is_member() {
                    removed.insert(NodeId::new(record.broker, record.incarnation));
                }
            }
            for life in &removed {
                let (broker, incarnation) = (life.broker().get(), life.incarnation());
                let known = controller.broker(life.broker()).expect("removed ones are remembered");
                let dir = known.directory.unwrap_or(directory(1));
                let again = BrokerStart { incarnation, directory: dir, ..start(broker, 99) };
                prop_assert!(controller.clone().apply(&Command::Register(again), NOW).is_err());
            }
            if checkpoint {
                stored.extend(controller.take_changes());
            }
        }
        stored.extend(controller.take_changes());
        let objects = stored.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let restored = Controller::restore(objects).expect("restores");
        prop_assert_eq!(&restored.header, &controller.header);
        prop_assert_eq!(&restored.brokers, &controller.brokers);
        prop_assert_eq!(&restored.shards, &controller.shards);
        prop_assert_eq!(&restored.join_tokens, &controller.join_tokens);
        prop_assert_eq!(&restored.cluster_wide, &controller.cluster_wide);
    }
}
