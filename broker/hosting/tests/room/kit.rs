//! What the tests share: a room with its compiler, one task on a shard in memory, records.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidemill_hosting::*;
use tidemill_protocol::record_batch::{BatchBuilder, BatchLimits, BuilderOptions, Header, RecordBatch};
use tidemill_protocol::{DeploymentId, Offset, PartitionId, Timestamp, TopicId, TopicPartition};

use crate::faulty::FaultyPort;

/// How long an event is waited for, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const EPOCH: u32 = 3;
pub(crate) const DEPLOYMENT: DeploymentId = DeploymentId::new(7);
pub(crate) const PARTITION: PartitionId = PartitionId::new(0);

pub(crate) fn partition_of(topic: u8) -> TopicPartition {
    let id = TopicId::from_slice(&[topic; 16]).expect("16 bytes make an id");
    TopicPartition::new(id, PARTITION)
}

/// What the task reads, what it emits to, and where records go that it can't handle.
pub(crate) fn source() -> TopicPartition {
    partition_of(1)
}

pub(crate) fn target() -> TopicPartition {
    partition_of(2)
}

pub(crate) fn dead_letter() -> TopicPartition {
    partition_of(3)
}

/// A room, without any port.
pub(crate) struct Room {
    pub(crate) hosting: Hosting,
    pub(crate) directory: TempDir,
}

impl Room {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let hosting = Hosting::start(HostingConfig {
            artifacts_dir: directory.path().join("artifacts"),
            digests_file: directory.path().join("digests"),
            worker: WorkerCommand {
                program: env!("CARGO_BIN_EXE_tidemill-hosting-compile-worker").into(),
                args: vec![],
            },
            // Short, so that what never ends does not take long.
            call_time: Duration::from_millis(100),
            task_call_time: Duration::from_millis(100),
            memory_bytes_max: 64 << 20,
            compile_time: PATIENCE,
            compile_memory_bytes_max: 4 << 30,
            component_bytes_max: 1 << 20,
            log_bytes_max: 1 << 20,
            clock: Arc::new(|| Timestamp::new(0)),
        })
        .expect("a room");
        Self { hosting, directory }
    }

    /// Uploads a component, for a deployment of it.
    pub(crate) async fn plugin(&self, component: Vec<u8>) -> PluginPlan {
        let checked = self.hosting.check_upload(component.into()).await.expect("a plugin");
        PluginPlan {
            deployment: "tested".to_owned(),
            deployment_id: Some(DEPLOYMENT),
            digest: checked.digest,
            kind: checked.kind,
            config: [].into(),
            topics: vec!["source".to_owned()],
            targets: Vec::new(),
            memory_bytes_max: 64 << 20,
        }
    }
}

/// A task that runs.
pub(crate) struct Stage {
    pub(crate) room: Room,
    pub(crate) port: Arc<FaultyPort>,
    pub(crate) plan: TaskPlan,
}

/// A task in the making: of one source, with one target in the same shard, and room for everything.
pub(crate) struct StageOptions {
    pub(crate) policy: TaskPolicy,
    pub(crate) attempts: u32,
    pub(crate) backoff_ms: u32,
    pub(crate) limits: MemoryLimits,
    /// Its target is in another shard.
    pub(crate) remote: bool,
    /// What it reads besides.
    pub(crate) second_source: Option<TopicPartition>,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            policy: TaskPolicy::Skip,
            attempts: 1,
            backoff_ms: 1,
            limits: MemoryLimits { state_bytes_max: 1 << 30, outbox_bytes_max: 1 << 30 },
            remote: false,
            second_source: None,
        }
    }
}

pub(crate) fn target_plan(name: &str, partition: TopicPartition) -> TargetPlan {
    TargetPlan { topic: partition.topic, name: name.to_owned(), partitions: 1, partitioner: None }
}

pub(crate) fn to_dead_letter() -> TaskPolicy {
    TaskPolicy::DeadLetter(Box::new(target_plan("failed", dead_letter())))
}

impl StageOptions {
    /// Sets the stage; the task does not run yet.
    pub(crate) async fn set(self, component: Vec<u8>) -> Stage {
        let room = Room::new();
        let port = FaultyPort::new(self.limits);
        let mut plugin = room.plugin(component).await;
        plugin.targets = vec!["target".to_owned()];
        let sources: Vec<TopicPartition> = [source()].into_iter().chain(self.second_source).collect();
        let local = if self.remote { None } else { Some(target()) };
        for partition in sources.iter().copied().chain(local).chain([dead_letter()]) {
            port.shard.create_partition(partition);
        }
        let positions: Vec<_> = sources.iter().map(|source| (*source, Offset::ZERO)).collect();
        port.shard.create_task(DEPLOYMENT, PARTITION, EPOCH, &positions);
        room.hosting.connect(Arc::clone(&port) as Arc<dyn TaskPort>);
        let plan = TaskPlan {
            plugin: Arc::new(plugin),
            epoch: EPOCH,
            partition: PARTITION,
            sources: (0..).zip(sources).collect(),
            targets: vec![target_plan("target", target())],
            policy: self.policy,
            attempts: self.attempts,
            backoff_ms: self.backoff_ms,
        };
        Stage { room, port, plan }
    }

    /// Sets the stage, puts records into the source and lets the task run.
    pub(crate) async fn play(self, component: Vec<u8>, keys: &[Option<&str>]) -> Stage {
        let stage = self.set(component).await;
        stage.append(keys, 1000);
        stage.run();
        stage
    }
}

impl Stage {
    pub(crate) fn run(&self) {
        self.room.hosting.reconcile(vec![self.plan.clone()]);
    }

    pub(crate) fn append(&self, keys: &[Option<&str>], now: i64) {
        self.port.shard.append(source(), &batch(keys, now), Timestamp::new(now));
    }

    pub(crate) fn task(&self) -> MemoryTask {
        self.port.shard.task(DEPLOYMENT, PARTITION).expect("the task is there")
    }

    pub(crate) fn position(&self) -> i64 {
        self.task().positions.first().map_or(-1, |(_, at)| at.get())
    }

    /// Waits until the task stands behind so many records.
    pub(crate) async fn reaches(&self, position: i64) {
        let reached = || self.position() == position && self.port.is_noted();
        eventually(&format!("the task reaches {position}"), reached).await;
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.room.hosting.counters(DEPLOYMENT).get(name).copied().unwrap_or(0)
    }

    /// Waits until the task has stopped itself. Answers why.
    pub(crate) async fn stops(&self) -> String {
        let runs = || self.task().state == TaskRunState::Running;
        eventually("it stops", || !runs()).await;
        match self.task().state {
            TaskRunState::Paused(reason) => reason,
            TaskRunState::Running => panic!("it runs again"),
        }
    }

    /// Waits until a counter has this value; it may not pass it.
    pub(crate) async fn counts(&self, name: &str, value: u64) {
        eventually(&format!("{name} becomes {value}"), || self.counter(name) >= value).await;
        assert_eq!(self.counter(name), value, "{name}");
    }

    /// Everything in the deployment's log.
    pub(crate) fn log(&self) -> String {
        let page = self.room.hosting.logs(DEPLOYMENT, 0, 1000);
        page.lines.iter().map(|line| format!("{} {}\n", line.level, line.message)).collect()
    }

    /// Keys (or values where there is none) of what is in a partition of the shard.
    pub(crate) fn contents(&self, partition: TopicPartition) -> Vec<String> {
        let batches = self.port.shard.batches(partition, 0);
        batches.iter().flat_map(names).collect()
    }

    pub(crate) fn attempts(&self) -> Vec<crate::faulty::Attempt> {
        self.port.attempts()
    }

    /// How many records each step went past.
    pub(crate) fn step_sizes(&self) -> Vec<u64> {
        let steps = self.attempts().into_iter().flat_map(|attempt| attempt.step.positions);
        steps.map(|step| step.next.since(step.expected)).collect()
    }
}

/// A batch of records with these keys (`None` is null) and the value `v`.
pub(crate) fn batch(keys: &[Option<&str>], timestamp: i64) -> RecordBatch {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    for key in keys {
        let key = key.map(str::as_bytes);
        let headers = [Header::new("of", b"test")];
        builder.append(Timestamp::new(timestamp), key, Some(b"v"), headers).expect("it fits");
    }
    builder.build_batch().expect("a batch")
}

/// Keys `0`, `1`, `2` and so on, with a null one at each of these places.
pub(crate) fn keys_but(count: usize, nulls: &[usize]) -> Vec<Option<&'static str>> {
    const NAMES: [&str; 16] =
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
    (0..count).map(|at| (!nulls.contains(&at)).then_some(NAMES[at])).collect()
}

/// Headers that every record of the log has, and those that were added, as text.
pub(crate) fn headers_of(batch: &Bytes) -> Vec<(String, String)> {
    let limits = BatchLimits::default();
    let batch = RecordBatch::decode(batch.clone(), &limits).expect("it decodes");
    let records = batch.records(&limits).expect("it reads");
    let record = records.iter().next().expect("a record").expect("it reads");
    let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    record.headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
}

fn names(batch: &Bytes) -> Vec<String> {
    let limits = BatchLimits::default().allowing_gaps();
    let batch = RecordBatch::decode(batch.clone(), &limits).expect("it decodes");
    let records = batch.records(&limits).expect("it reads");
    records
        .iter()
        .map(|record| {
            let record = record.expect("it reads");
            let name = record.key.or(record.value).unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        })
        .collect()
}

/// Waits for an event.
pub(crate) async fn eventually(what: &str, happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "within {PATIENCE:?} not: {what}");
}
