//! What the data directories under `tests/fixtures` are made of: a unit of every kind, each of which does something.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_controller::{
    BrokerRegistration, ClusterIdentity, ConfigKey, ControllerCommand, DeploymentKind, DeploymentSpec,
    Durability, FailurePolicy, Name, PluginKind, PluginUpload, TopicConfig, TopicOverrides,
};
use tidemill_protocol::record_batch::{
    BatchBuilder, BatchLimits, BuilderOptions, Compression, ProducerFields, RecordBatch,
};
use tidemill_protocol::{
    BrokerId, ClusterId, DeploymentId, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, ShardId,
    Timestamp, TopicId, TopicPartition,
};
use tidemill_shard::{
    AdoptDeployment, AdoptTopic, AdoptedStatus, FilterPass, OutboxStream, PositionStep, Progress,
    RoutedAppend, StartAt, StateWrite, TaskAssignment, TaskOutput, TaskStatus, TimerWrite, Unit, UnitResult,
};

use super::fixture::commit_position;

pub(super) const CONTROLLER: ShardId = ShardId::CONTROLLER;
/// Has something of everything.
pub(super) const MAIN: ShardId = ShardId::new(1);
/// Makes no checkpoint.
pub(super) const QUIET: ShardId = ShardId::new(2);

/// The time that the fixture's clock shows.
const NOW_MS: i64 = 1_700_000_000_000;
const DEPLOYMENT: DeploymentId = DeploymentId::new(5);
const PRODUCER: ProducerId = ProducerId::new(700);

const fn partition(topic: u8, number: u32) -> TopicPartition {
    TopicPartition::new(TopicId::new(uuid::Uuid::from_bytes([topic; 16])), PartitionId::new(number))
}

/// What the task reads.
pub(super) const SOURCE: TopicPartition = partition(1, 0);
const NEAR: TopicPartition = partition(2, 0);
/// In no shard of these.
const FAR: TopicPartition = partition(3, 0);

pub(super) fn is_done(result: &UnitResult) -> bool {
    !matches!(
        result,
        UnitResult::Refused(_)
            | UnitResult::ProgressRefused(_)
            | UnitResult::OutOfOrder { .. }
            | UnitResult::Stale { .. }
            | UnitResult::Control(Err(_))
    )
}

fn batch(records: &[&[u8]], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BuilderOptions { compression, ..BuilderOptions::default() });
    for (number, value) in (0_i64..).zip(records) {
        builder.append(Timestamp::new(NOW_MS - 50 + number), Some(&b"key"[..]), Some(*value), []).unwrap();
    }
    builder.build().unwrap()
}

fn produced(sequence: i32, value: &[u8]) -> Bytes {
    let fields =
        ProducerFields { id: PRODUCER, epoch: ProducerEpoch::new(1), base_sequence: Sequence::new(sequence) };
    let batch = RecordBatch::decode(batch(&[value], Compression::None), &BatchLimits::STORED).unwrap();
    batch.with_producer(fields).into_bytes()
}

fn append(partition: TopicPartition, batch: Bytes) -> Unit {
    Unit::Append { partition, batch, leader_epoch: None }
}

fn adopt(topic: u8, partitions: u32, segment_bytes: u64) -> Unit {
    Unit::AdoptTopic(AdoptTopic {
        topic: partition(topic, 0).topic,
        version: 3,
        name: format!("topic-{topic}"),
        config: TopicConfig { segment_bytes, ..TopicConfig::default() },
        partitions: (0..partitions).map(PartitionId::new).collect(),
        deleted: false,
    })
}

fn step(from: i64, to: i64) -> Progress {
    let positions = vec![PositionStep { source: SOURCE, expected: Offset::new(from), next: Offset::new(to) }];
    Progress {
        deployment: DEPLOYMENT,
        epoch: 1,
        partition: SOURCE.partition,
        positions,
        state: Vec::new(),
        timers: Vec::new(),
        fired: Vec::new(),
        outputs: Vec::new(),
    }
}

fn write(key: &'static str, value: &'static str, expires_at: Option<i64>) -> StateWrite {
    StateWrite {
        key: Bytes::from(key),
        value: Some(Bytes::from(value)),
        expires_at: expires_at.map(Timestamp::new),
    }
}

fn emit(target: TopicPartition, value: &'static str) -> TaskOutput {
    TaskOutput { target, batch: batch(&[value.as_bytes()], Compression::None) }
}

pub(super) fn of_quiet_shard() -> Vec<Unit> {
    vec![
        adopt(9, 1, 1 << 20),
        append(partition(9, 0), batch(&[b"quiet"], Compression::None)),
        commit_position("quiet", 4),
    ]
}

pub(super) fn before_checkpoint() -> Vec<Unit> {
    let routed = RoutedAppend {
        topic: SOURCE.topic,
        producer: ProducerId::new(701),
        epoch: ProducerEpoch::new(0),
        topic_sequence: 0,
        filtered: Some(FilterPass { filter: DeploymentId::new(6), now: Timestamp::new(NOW_MS) }),
        batches: vec![(PartitionId::new(1), batch(&[b"routed"], Compression::None))],
    };
    let refused = Unit::Refuse {
        partition: SOURCE,
        producer: PRODUCER,
        epoch: ProducerEpoch::new(1),
        base_sequence: Sequence::new(1),
        record_count: 2,
    };
    let assignment =
        TaskAssignment { partition: SOURCE.partition, sources: vec![(SOURCE, StartAt::Earliest)] };
    let deployed = AdoptDeployment {
        deployment: DEPLOYMENT,
        version: 2,
        epoch: 1,
        status: AdoptedStatus::Running,
        tasks: vec![assignment],
        state_bytes_max: 10_000,
        outbox_bytes_max: 10_000,
    };
    let progress = Progress {
        state: vec![write("count", "1", None), write("soon", "gone", Some(NOW_MS + 60_000))],
        timers: vec![TimerWrite { key: Bytes::from("timer"), at: Some(Timestamp::new(NOW_MS + 5_000)) }],
        outputs: vec![emit(NEAR, "near"), emit(FAR, "far"), emit(FAR, "farther")],
        ..step(0, 3)
    };
    let delivery = OutboxStream {
        deployment: DeploymentId::new(44),
        incarnation: 1,
        source: PartitionId::new(2),
        target: NEAR,
    };
    let mut units = vec![
        adopt(1, 2, 120_000),
        adopt(2, 1, 1 << 20),
        append(SOURCE, batch(&[b"one", b"two"], Compression::None)),
        append(SOURCE, batch(&[&[b'z'; 3_000][..], b"four"], Compression::Zstd)),
        append(SOURCE, produced(0, b"with a producer")),
        refused,
        append(SOURCE, produced(3, b"behind what was refused")),
        Unit::RoutedAppend(routed),
        commit_position("group", 2),
        Unit::AdoptDeployment(deployed),
        Unit::Progress(progress),
        Unit::Deliver { stream: delivery, number: 1, batch: batch(&[b"delivered"], Compression::None) },
        Unit::AdvanceLogStart { partition: SOURCE, offset: Offset::new(1) },
    ];
    // More than a segment of the partition, and more than one of the log.
    units.extend((0..40).map(|_| append(SOURCE, batch(&[&[b'.'; 9_000][..]], Compression::None))));
    units
}

/// `incarnation` is the task's.
pub(super) fn after_checkpoint(incarnation: u64) -> Vec<Unit> {
    let far = OutboxStream { deployment: DEPLOYMENT, incarnation, source: SOURCE.partition, target: FAR };
    vec![
        append(SOURCE, batch(&[b"after the checkpoint"], Compression::Lz4)),
        Unit::Progress(Progress { state: vec![write("count", "2", None)], ..step(3, 6) }),
        Unit::Delivered { stream: far, up_to: 1 },
        commit_position("group", 6),
        Unit::TaskStatus {
            deployment: DEPLOYMENT,
            epoch: 1,
            partition: SOURCE.partition,
            status: TaskStatus::Paused { reason: "somebody asked for it".to_owned() },
        },
        Unit::Tick,
    ]
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(super) fn of_controller() -> Vec<Unit> {
    let identity = ClusterIdentity {
        cluster: ClusterId::new(uuid::Uuid::from_u128(77)),
        data_shards: 2,
        durability: Durability::Fsync,
    };
    let upload = PluginUpload {
        name: name("filter"),
        version: Some(name("1")),
        kind: PluginKind::Filter,
        digest: [7; 32],
        size: 12_345,
        summary: "passes what it likes".to_owned(),
        config: vec![ConfigKey {
            name: "field".to_owned(),
            doc: "which one".to_owned(),
            required: false,
            default: Some("id".to_owned()),
        }],
    };
    let deployment = DeploymentSpec {
        name: name("bouncer"),
        kind: DeploymentKind::ProduceFilter,
        plugin: name("filter"),
        version: None,
        config: BTreeMap::from([("field".to_owned(), "name".to_owned())]),
        topics: vec![name("events")],
        targets: Vec::new(),
        start: tidemill_controller::StartAt::Earliest,
        policy: FailurePolicy::Skip,
        dead_letter: None,
        attempts: 3,
        backoff_ms: 100,
        memory_bytes_max: 16 << 20,
        drop_rejected: true,
    };
    let commands = [
        ControllerCommand::InitCluster(identity),
        registration(1),
        create("events", 1, TopicOverrides { retention_ms: Some(60_000), ..TopicOverrides::default() }),
        create("short-lived", 2, TopicOverrides::default()),
        ControllerCommand::AllocateProducerIds { count: 1_000 },
        ControllerCommand::RegisterPlugin(upload),
        ControllerCommand::CreateDeployment(deployment),
        ControllerCommand::DeleteTopic { name: name("short-lived") },
    ];
    commands.into_iter().map(Unit::Control).collect()
}

pub(super) fn of_controller_later() -> Vec<Unit> {
    vec![Unit::Control(registration(2)), Unit::Control(create("later", 3, TopicOverrides::default()))]
}

fn registration(incarnation: u64) -> ControllerCommand {
    ControllerCommand::RegisterBroker(BrokerRegistration {
        broker: BrokerId::new(1),
        incarnation,
        addresses: vec!["127.0.0.1:4000".to_owned()],
        software: "tidemill/0.1.0".to_owned(),
    })
}

fn create(topic: &str, id: u128, overrides: TopicOverrides) -> ControllerCommand {
    ControllerCommand::CreateTopic {
        id: TopicId::new(uuid::Uuid::from_u128(id)),
        name: name(topic),
        partitions: 3,
        overrides,
        with: None,
        if_not_exists: false,
    }
}

/// Something that a shard of the fixture takes, as often as it comes.
pub(super) fn more_of(shard: ShardId) -> Unit {
    match shard {
        CONTROLLER => Unit::Control(ControllerCommand::AllocateProducerIds { count: 10 }),
        MAIN => append(SOURCE, batch(&[b"more"], Compression::Snappy)),
        _ => append(partition(9, 0), batch(&[b"more"], Compression::Gzip)),
    }
}
