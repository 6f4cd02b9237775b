//! What tests of brokers and replicas say in one word.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_protocol::{
    BrokerId, ClusterId, DirectoryId, LogIndex, NodeId, ShardId, Term, Timestamp, TopicId,
};
use uuid::Uuid;

use crate::brokers::{BrokerStart, JoinRequest};
use crate::cluster::{ClusterIdentity, Durability};
use crate::command::{ControllerCommand, ControllerReply};
use crate::deployment::{DeploymentKind, DeploymentSpec, FailurePolicy, StartAt};
use crate::names::Name;
use crate::plugin::{PluginKind, PluginUpload};
use crate::shards::{ReportedMembers, ShardRecord};
use crate::state::Controller;
use crate::topic::TopicOverrides;

pub(crate) const NOW: Timestamp = Timestamp::new(1_700_000_000_000);
pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

pub(crate) fn identity(data_shards: u16) -> ClusterIdentity {
    let cluster = ClusterId::new(Uuid::from_u128(7));
    ClusterIdentity { cluster, data_shards, durability: Durability::Fsync }
}

pub(crate) fn id(broker: u32) -> BrokerId {
    BrokerId::new(broker)
}

pub(crate) fn node(broker: u32, incarnation: u32) -> NodeId {
    NodeId::new(id(broker), incarnation)
}

pub(crate) fn directory(number: u128) -> DirectoryId {
    DirectoryId::new(Uuid::from_u128(number))
}

/// A start of a broker's first directory, whose number is the broker's.
pub(crate) fn start(broker: u32, starts: u64) -> BrokerStart {
    BrokerStart {
        broker: id(broker),
        incarnation: 1,
        directory: directory(u128::from(broker)),
        starts,
        addresses: vec![format!("127.0.0.1:{}", 4000 + broker)],
        peer_addresses: vec![format!("127.0.0.1:{}", 5000 + broker)],
        rack: String::new(),
        software: "tidemill/0.2.0".into(),
        features: 1,
    }
}

pub(crate) fn form(count: u32, data_shards: u16) -> ControllerCommand {
    ControllerCommand::FormCluster { identity: identity(data_shards), brokers: (1..=count).map(id).collect() }
}

/// A cluster of so many brokers, all of them up, and its groups as planned.
pub(crate) fn cluster(count: u32, data_shards: u16) -> Controller {
    let mut controller = Controller::default();
    apply(&mut controller, form(count, data_shards));
    for broker in 1..=count {
        apply(&mut controller, ControllerCommand::Register(start(broker, 1)));
    }
    settle(&mut controller);
    controller
}

/// Every shard's leader reports that its group is as planned.
pub(crate) fn settle(controller: &mut Controller) {
    for shard in controller.shards().cloned().collect::<Vec<_>>() {
        apply(controller, report_as_planned(&shard));
    }
}

pub(crate) fn report_as_planned(shard: &ShardRecord) -> ControllerCommand {
    let index = shard.members.as_ref().map_or(0, |members| members.index.get() + 1);
    ControllerCommand::ReportMembers {
        shard: shard.shard,
        members: ReportedMembers {
            voters: shard.replicas.iter().copied().collect(),
            learners: shard.observers.iter().copied().collect(),
            leader: shard.replicas.first().copied(),
            term: Term::new(1),
            index: LogIndex::new(index),
        },
    }
}

pub(crate) fn token(secret: u8, broker: Option<u32>) -> ControllerCommand {
    let expires_at = NOW.plus_ms(DAY_MS);
    ControllerCommand::CreateJoinToken { hash: [secret; 32], broker: broker.map(id), expires_at }
}

pub(crate) fn request(secret: u8, broker: u32, directory_number: u128) -> JoinRequest {
    JoinRequest {
        hash: [secret; 32],
        broker: id(broker),
        directory: directory(directory_number),
        addresses: vec![format!("127.0.0.1:{}", 4000 + broker)],
        peer_addresses: vec![format!("127.0.0.1:{}", 5000 + broker)],
        rack: String::new(),
    }
}

pub(crate) fn down(broker: u32) -> ControllerCommand {
    ControllerCommand::SetAlive { broker: id(broker), starts: 1, alive: false }
}

pub(crate) fn assign(controller: &Controller, shard: u16, brokers: &[u32]) -> ControllerCommand {
    let shard = ShardId::new(shard);
    let expected_version = controller.shard(shard).map_or(0, |record| record.version);
    let replicas = brokers.iter().copied().map(id).collect();
    ControllerCommand::AssignReplicas { shard, replicas, expected_version }
}

pub(crate) fn replicas(controller: &Controller, shard: u16) -> Vec<NodeId> {
    controller.shard(ShardId::new(shard)).expect("a shard").replicas.clone()
}

pub(crate) fn apply(controller: &mut Controller, command: ControllerCommand) -> ControllerReply {
    controller.apply(&command, NOW).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub(crate) fn refused(controller: &mut Controller, command: ControllerCommand) -> String {
    refused_at(controller, command, NOW)
}

pub(crate) fn refused_at(controller: &mut Controller, command: ControllerCommand, now: Timestamp) -> String {
    controller.take_changes();
    let error = controller.apply(&command, now).expect_err("should be refused");
    assert!(controller.take_changes().is_empty(), "a refusal changes nothing: {error}");
    error.to_string()
}

/// Applies it twice: the second time changes nothing and answers the same.
pub(crate) fn twice(controller: &mut Controller, command: ControllerCommand) -> ControllerReply {
    let first = apply(controller, command.clone());
    controller.take_changes();
    let again = apply(controller, command.clone());
    assert_eq!(first, again, "{command:?}");
    assert!(controller.take_changes().is_empty(), "the second time changes nothing: {command:?}");
    first
}

/// Lives of replicas that are, and that were once and must not come back, by shard.
#[derive(Default)]
pub(crate) struct Lives {
    present: BTreeMap<ShardId, BTreeSet<NodeId>>,
    gone: BTreeMap<ShardId, BTreeSet<NodeId>>,
}

impl Lives {
    pub(crate) fn watch(&mut self, controller: &Controller) {
        for shard in controller.shards() {
            let all: Vec<NodeId> = shard.replicas.iter().chain(&shard.observers).copied().collect();
            let brokers: BTreeSet<_> = all.iter().map(|node| node.broker()).collect();
            assert_eq!(brokers.len(), all.len(), "two replicas on one broker: {shard:?}");
            assert!(!shard.replicas.is_empty());
            let all: BTreeSet<NodeId> = all.into_iter().collect();
            let gone = self.gone.entry(shard.shard).or_default();
            assert!(gone.is_disjoint(&all), "a node id came back: {shard:?}, {gone:?}");
            let before = self.present.insert(shard.shard, all.clone()).unwrap_or_default();
            gone.extend(before.difference(&all));
            for node in &all {
                let record = controller.broker(node.broker()).expect("replicas lie on known brokers");
                assert!(node.incarnation() < record.next_incarnation);
            }
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

pub(crate) fn topic_id(number: u128) -> TopicId {
    TopicId::new(Uuid::from_u128(number))
}

pub(crate) fn create(number: u128, topic: &str, partitions: u32, with: Option<&str>) -> ControllerCommand {
    ControllerCommand::CreateTopic {
        id: topic_id(number),
        name: name(topic),
        partitions,
        overrides: TopicOverrides::default(),
        with: with.map(name),
        if_not_exists: false,
    }
}

pub(crate) fn upload(plugin: &str, kind: PluginKind, digest: u8) -> ControllerCommand {
    ControllerCommand::RegisterPlugin(PluginUpload {
        name: name(plugin),
        version: None,
        kind,
        digest: [digest; 32],
        size: 10,
        summary: "s".into(),
        config: Vec::new(),
    })
}

pub(crate) fn spec(deployment: &str, kind: DeploymentKind, plugin: &str, topics: &[&str]) -> DeploymentSpec {
    DeploymentSpec {
        name: name(deployment),
        kind,
        plugin: name(plugin),
        version: None,
        config: BTreeMap::new(),
        topics: topics.iter().map(|topic| name(topic)).collect(),
        targets: Vec::new(),
        start: StartAt::Earliest,
        policy: FailurePolicy::Pause,
        dead_letter: None,
        attempts: 3,
        backoff_ms: 10,
        memory_bytes_max: 1 << 20,
        drop_rejected: false,
    }
}
