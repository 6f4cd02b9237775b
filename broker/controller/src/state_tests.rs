use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemill_protocol::{ClusterId, ShardId};
use uuid::Uuid;

use super::*;
use crate::cluster::Durability;
use crate::deployment::{DeploymentKind, DeploymentSpec, DeploymentStatus, FailurePolicy, StartAt};
use crate::plugin::PluginKind;
use crate::testing::{create, name, spec, topic_id, upload};
use crate::topic::{PAST_FILTERS_MAX, TopicOverrides};

const NOW: Timestamp = Timestamp::new(1_700_000_000_000);

fn started() -> Controller {
    let mut controller = Controller::default();
    let identity = ClusterIdentity {
        cluster: ClusterId::new(Uuid::from_u128(7)),
        data_shards: 3,
        durability: Durability::Fsync,
    };
    controller.apply(&ControllerCommand::InitCluster(identity), NOW).expect("init");
    controller
}

fn apply(controller: &mut Controller, command: ControllerCommand) -> ControllerReply {
    controller.apply(&command, NOW).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn refused(controller: &mut Controller, command: ControllerCommand) -> String {
    let before = controller.version();
    let error = controller.apply(&command, NOW).expect_err("should be refused");
    assert_eq!(controller.version(), before, "a refusal changes nothing");
    error.to_string()
}

#[test]
fn nothing_works_before_init_and_init_works_once() {
    let mut controller = Controller::default();
    assert!(matches!(controller.apply(&create(1, "t", 1, None), NOW), Err(ControllerError::NotInitialised)));
    let mut controller = started();
    let again = ClusterIdentity {
        cluster: ClusterId::new(Uuid::from_u128(8)),
        data_shards: 1,
        durability: Durability::Fsync,
    };
    assert!(refused(&mut controller, ControllerCommand::InitCluster(again)).contains("already"));
}

#[test]
fn partitions_go_round_robin_and_co_partitioned_topics_share_shards() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 4, None));
    apply(&mut controller, create(2, "skips", 2, None));
    apply(&mut controller, create(3, "likes", 0, Some("plays")));
    let shards = |topic: &str| -> Vec<u16> {
        controller.topic_by_name(topic).expect(topic).shards.iter().map(|shard| shard.get()).collect()
    };
    assert_eq!(shards("plays"), [1, 2, 3, 1]);
    assert_eq!(shards("skips"), [2, 3], "goes on where the last topic ended");
    assert_eq!(shards("likes"), shards("plays"));
    let plays = controller.topic_by_name("plays").expect("plays");
    let held: Vec<u32> = plays.partitions_of(ShardId::new(1)).map(|partition| partition.get()).collect();
    assert_eq!(held, [0, 3]);
}

#[test]
fn bad_topics_are_refused_with_what_to_change() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 2, None));
    assert!(refused(&mut controller, create(2, "plays", 1, None)).contains("already"));
    assert!(refused(&mut controller, create(2, "none", 0, None)).contains("between 1"));
    assert!(refused(&mut controller, create(2, "many", 10_001, None)).contains("between 1"));
    assert!(refused(&mut controller, create(2, "x", 3, Some("plays"))).contains("has 2 partitions"));
    assert!(refused(&mut controller, create(2, "x", 0, Some("nope"))).contains("no topic 'nope'"));
    let overrides = TopicOverrides { segment_bytes: Some(1), ..TopicOverrides::default() };
    let alter = ControllerCommand::AlterTopic { name: name("plays"), overrides };
    assert!(refused(&mut controller, alter).contains("64 KiB"));
    // The same proposal twice answers the same topic.
    apply(&mut controller, create(1, "plays", 2, None));
}

#[test]
fn a_topic_in_use_stays_and_a_deleted_one_frees_its_name() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 2, None));
    apply(&mut controller, upload("count", PluginKind::Consumer, 1));
    let deploy = spec("counts", DeploymentKind::Consumer, "count", &["plays"]);
    apply(&mut controller, ControllerCommand::CreateDeployment(deploy));
    let delete = ControllerCommand::DeleteTopic { name: name("plays") };
    assert!(refused(&mut controller, delete.clone()).contains("'counts'"));
    apply(&mut controller, ControllerCommand::DeleteDeployment { name: name("counts") });
    apply(&mut controller, delete);
    assert!(controller.topic_by_name("plays").is_none());
    assert!(controller.topic(topic_id(1)).is_some_and(|topic| topic.deleted));
    apply(&mut controller, create(2, "plays", 1, None));
    apply(&mut controller, ControllerCommand::ForgetTopic { id: topic_id(1) });
    assert!(controller.topic(topic_id(1)).is_none());
    apply(&mut controller, ControllerCommand::ForgetTopic { id: topic_id(2) });
    assert!(controller.topic(topic_id(2)).is_some(), "a live topic is never forgotten");
}

#[test]
fn plugin_versions_are_immutable_and_counted() {
    let mut controller = started();
    let version = |reply: ControllerReply| match reply {
        ControllerReply::Plugin(record) => record.version.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(version(apply(&mut controller, upload("f", PluginKind::Filter, 1))), "1");
    assert_eq!(version(apply(&mut controller, upload("f", PluginKind::Filter, 2))), "2");
    assert_eq!(version(apply(&mut controller, upload("f", PluginKind::Filter, 1))), "1", "same bytes");
    let ControllerCommand::RegisterPlugin(mut other) = upload("f", PluginKind::Filter, 3) else {
        unreachable!("built above")
    };
    other.version = Some(name("2"));
    assert!(refused(&mut controller, ControllerCommand::RegisterPlugin(other)).contains("other contents"));
    assert_eq!(controller.plugin("f", None).expect("newest").version.as_str(), "2");
}

#[test]
fn deployments_must_fit() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 3, None));
    apply(&mut controller, create(2, "other", 2, None));
    apply(&mut controller, upload("place", PluginKind::Partitioner, 1));
    apply(&mut controller, upload("count", PluginKind::Consumer, 2));
    let mut refuse =
        |spec: DeploymentSpec| refused(&mut controller, ControllerCommand::CreateDeployment(spec));

    let wrong_world = spec("d", DeploymentKind::Consumer, "place", &["plays"]);
    assert!(refuse(wrong_world).contains("a consumer is needed"));
    let unknown = spec("d", DeploymentKind::Consumer, "nope", &["plays"]);
    assert!(refuse(unknown).contains("no plugin 'nope'"));
    let apart = spec("d", DeploymentKind::Consumer, "count", &["plays", "other"]);
    assert!(refuse(apart).contains("not co-partitioned"));
    let twice = spec("d", DeploymentKind::Consumer, "count", &["plays", "plays"]);
    assert!(refuse(twice).contains("twice"));
    let mut circle = spec("d", DeploymentKind::Consumer, "count", &["plays"]);
    circle.targets = vec![name("plays")];
    assert!(refuse(circle).contains("feed itself"));
    let mut letterless = spec("d", DeploymentKind::Consumer, "count", &["plays"]);
    letterless.policy = FailurePolicy::DeadLetter;
    assert!(refuse(letterless).contains("needs a dead-letter topic"));
    let two = spec("d", DeploymentKind::Partitioner, "place", &["plays", "other"]);
    assert!(refuse(two).contains("exactly one topic"));
}

#[test]
fn a_partitioner_binding_has_an_epoch_that_rises() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 3, None));
    apply(&mut controller, upload("place", PluginKind::Partitioner, 1));
    let binding = |controller: &Controller| controller.topic_by_name("plays").expect("plays").partitioner;
    let deploy = |deployment: &str| {
        ControllerCommand::CreateDeployment(spec(
            deployment,
            DeploymentKind::Partitioner,
            "place",
            &["plays"],
        ))
    };
    assert_eq!(binding(&controller), PartitionerBindingOf(None, 0).into());
    apply(&mut controller, deploy("p"));
    assert_eq!(binding(&controller), PartitionerBindingOf(Some(0), 1).into());
    assert!(refused(&mut controller, deploy("q")).contains("'p' in that place"));
    apply(&mut controller, ControllerCommand::DeleteDeployment { name: name("p") });
    assert_eq!(binding(&controller), PartitionerBindingOf(None, 2).into());
}

#[test]
fn a_topic_remembers_its_last_filters_and_their_deployments_stay_as_long() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 3, None));
    apply(&mut controller, upload("keep", PluginKind::Filter, 1));
    for number in 0..PAST_FILTERS_MAX as u64 + 2 {
        let deployment = format!("f-{number}");
        let spec = spec(&deployment, DeploymentKind::ProduceFilter, "keep", &["plays"]);
        apply(&mut controller, ControllerCommand::CreateDeployment(spec));
        let topic = controller.topic_by_name("plays").expect("plays");
        assert_eq!(topic.produce_filter, Some(DeploymentId::new(number)));
        apply(&mut controller, ControllerCommand::DeleteDeployment { name: name(&deployment) });
    }
    let topic = controller.topic_by_name("plays").expect("plays").clone();
    assert_eq!(topic.produce_filter, None);
    let remembered: Vec<u64> = topic.past_filters.iter().map(|id| id.get()).collect();
    assert_eq!(remembered, (2..PAST_FILTERS_MAX as u64 + 2).collect::<Vec<_>>());
    for id in [1, 2].map(DeploymentId::new) {
        apply(&mut controller, ControllerCommand::ForgetDeployment { id });
        assert_eq!(controller.deployment(id).is_some(), topic.remembers(id), "{id}");
    }
}

struct PartitionerBindingOf(Option<u64>, u32);

impl From<PartitionerBindingOf> for crate::topic::PartitionerBinding {
    fn from(PartitionerBindingOf(deployment, epoch): PartitionerBindingOf) -> Self {
        Self { deployment: deployment.map(DeploymentId::new), epoch }
    }
}

#[test]
fn producer_ids_are_never_given_twice() {
    let mut controller = started();
    let mut next = 0;
    for count in [1, 0, 10, 0, 100_000, 1_000_000] {
        let ControllerReply::ProducerIds(block) =
            apply(&mut controller, ControllerCommand::AllocateProducerIds { count })
        else {
            panic!("a block")
        };
        assert_eq!(block.first.get(), next);
        assert!(block.count <= Bounds::PRODUCER_IDS_MAX);
        next += i64::from(block.count);
        assert_eq!(controller.producer_ids_end().get(), next);
    }
}

fn any_command() -> impl Strategy<Value = ControllerCommand> {
    let short = prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        (0u128..6, short.clone(), 0u32..4, proptest::option::of(short.clone()))
            .prop_map(|(id, topic, partitions, with)| create(id, topic, partitions, with)),
        short.clone().prop_map(|topic| ControllerCommand::DeleteTopic { name: name(topic) }),
        (0u128..6).prop_map(|id| ControllerCommand::ForgetTopic { id: topic_id(id) }),
        (1u32..50).prop_map(|count| ControllerCommand::AllocateProducerIds { count }),
        (short.clone(), 0u8..3).prop_map(|(plugin, digest)| upload(plugin, PluginKind::Consumer, digest)),
        (short.clone(), 0u8..3).prop_map(|(plugin, digest)| upload(plugin, PluginKind::Partitioner, digest)),
        short
            .clone()
            .prop_map(|plugin| ControllerCommand::DeletePlugin { name: name(plugin), version: None }),
        (short.clone(), short.clone(), short.clone(), any::<bool>()).prop_map(|(d, p, t, consumer)| {
            let kind = if consumer { DeploymentKind::Consumer } else { DeploymentKind::Partitioner };
            ControllerCommand::CreateDeployment(spec(d, kind, p, &[t]))
        }),
        (short.clone(), any::<bool>()).prop_map(|(deployment, run)| ControllerCommand::SetDeploymentStatus {
            name: name(deployment),
            status: if run { DeploymentStatus::Running } else { DeploymentStatus::Paused },
        }),
        short.prop_map(|deployment| ControllerCommand::DeleteDeployment { name: name(deployment) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is stored piece by piece reads back as the same state, whenever it is stored.
    #[test]
    fn stored_changes_rebuild_the_state(commands in proptest::collection::vec((any_command(), any::<bool>()), 1..80)) {
        let mut controller = started();
        let mut stored = BTreeMap::new();
        let mut store = |controller: &mut Controller| {
            for (key, value) in controller.take_changes() {
                match value {
                    Some(value) => stored.insert(key, value),
                    None => stored.remove(&key),
                };
            }
            stored.clone()
        };
        for (command, checkpoint) in commands {
            let before = controller.version();
            let outcome = controller.apply(&command, NOW);
            prop_assert!(outcome.is_ok() || controller.version() == before);
            if checkpoint {
                store(&mut controller);
            }
        }
        let objects = store(&mut controller);
        let restored = Controller::restore(objects).expect("restores");
        prop_assert_eq!(&restored.header, &controller.header);
        prop_assert_eq!(&restored.topics, &controller.topics);
        prop_assert_eq!(&restored.plugins, &controller.plugins);
        prop_assert_eq!(&restored.deployments, &controller.deployments);
        prop_assert_eq!(&restored.topic_names, &controller.topic_names);
        prop_assert_eq!(&restored.deployment_names, &controller.deployment_names);
        for topic in controller.topics() {
            let bound = topic.partitioner.deployment.and_then(|id| controller.deployment(id));
            prop_assert!(bound.is_none_or(|deployment| !deployment.deleted && deployment.uses(topic.id)));
        }
    }
}

#[test]
fn another_deployment_of_a_name_is_refused_with_both_sides() {
    let mut controller = started();
    apply(&mut controller, create(1, "plays", 1, None));
    apply(&mut controller, upload("count", PluginKind::Consumer, 1));
    let first = spec("d", DeploymentKind::Consumer, "count", &["plays"]);
    apply(&mut controller, ControllerCommand::CreateDeployment(first.clone()));
    let asked = |spec: DeploymentSpec| refused(&mut controller, ControllerCommand::CreateDeployment(spec));
    let secret = BTreeMap::from([("secret".to_owned(), "hush".to_owned())]);
    let start = StartAt::Offsets(Vec::new());
    let refusals: Vec<String> = [
        DeploymentSpec { policy: FailurePolicy::Skip, ..first.clone() },
        DeploymentSpec { attempts: 4, ..first.clone() },
        DeploymentSpec { start, ..first.clone() },
        DeploymentSpec { config: secret, ..first },
    ]
    .into_iter()
    .map(asked)
    .collect();
    let policy = "another failure policy: it has `pause`, asked for was `skip`";
    assert!(refusals[0].contains(policy), "{refusals:?}");
    assert!(refusals[1].contains("it has `3`, asked for was `4`"), "{refusals:?}");
    assert!(refusals[2].contains("it has `earliest`, asked for was `offset by partition"), "{refusals:?}");
    assert!(refusals[3].contains("`secret` is not the same"), "{refusals:?}");
    assert!(!refusals[3].contains("hush"), "{refusals:?}");
}

#[test]
fn foreign_objects_are_refused() {
    let newer = (Bytes::from_static(&[0]), Bytes::from_static(&[9, 9]));
    assert!(matches!(Controller::restore([newer]), Err(RestoreError::Format { kind: 0, format: 9 })));
    let damaged = (Bytes::from_static(&[2; 17]), Bytes::from_static(&[1, 255]));
    assert!(matches!(Controller::restore([damaged]), Err(RestoreError::Damaged { kind: 2, .. })));
}
