//! Hosted tasks, played: one of each shard takes steps over the shard's topic and emits to the next shard; somebody delivers what it
//! emits. Either asks whichever broker, as two brokers that both believe to host the task would.
//!
//! ```text
//!   shard n, events      --step: from, to-->  outbox of shard n  --deliver-->  shard n + 1, outputs
//! ```
//! Each step over a source must be in the target once, in order, and none is missing up to where the task stands ([`Ledger`]).
//!
//! [`Ledger`]: crate::ledger::Ledger

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt;
use tidemill_protocol::{DeploymentId, Offset, PartitionId, ShardId, TopicId, TopicPartition};
use tidemill_shard::{
    AdoptDeployment, AdoptTopic, AdoptedStatus, OutboxItem, PositionStep, Progress, ProgressRefusal, StartAt,
    TaskAssignment, TaskOutput, Unit, UnitResult,
};

use super::SHARDS;
use super::clients::{Client, PARTITIONS, PAUSE_MS, batch_of, topic_of};
use crate::ledger::{Step, Violation};

/// Each task is number 0 of its deployment.
pub(super) const TASK: PartitionId = PartitionId::new(0);
const EPOCH: u32 = 1;
/// More than a run ever emits: a full outbox is not what is looked at here.
const BYTES_MAX: u64 = 64 << 20;
/// Items that are delivered before the outbox hears of it.
const ITEMS_AT_ONCE: usize = 3;

/// The deployment whose task is in a shard.
pub(super) fn deployment_of(shard: ShardId) -> DeploymentId {
    DeploymentId::new(u64::from(shard.get()) + 1)
}

/// Where the task of a shard emits to.
pub(super) fn target_of(shard: ShardId) -> (ShardId, TopicPartition) {
    let at = SHARDS.iter().position(|other| *other == shard).unwrap_or(0);
    let target = SHARDS[(at + 1) % SHARDS.len()];
    let byte = u8::try_from(target.get()).unwrap_or(u8::MAX).wrapping_add(200);
    let topic = TopicId::from_slice(&[byte; 16]).unwrap_or_else(|| unreachable!("16 bytes are an id"));
    (target, TopicPartition::new(topic, PartitionId::new(0)))
}

impl Client {
    /// Takes step after step until all is to end, then lets `emits` say so.
    pub(crate) async fn run_task(mut self, emits: Arc<AtomicBool>) {
        let (target_shard, target) = target_of(self.shard);
        let outputs = AdoptTopic {
            topic: target.topic,
            name: "outputs".to_owned(),
            partitions: vec![target.partition],
            ..self.topic()
        };
        self.write(self.shard, &Unit::AdoptTopic(self.topic())).await;
        self.write(target_shard, &Unit::AdoptTopic(outputs)).await;
        self.write(self.shard, &Unit::AdoptDeployment(self.deployment())).await;
        while !self.world.is_ending() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let Some((progress, step)) = self.next_step(target) else { continue };
            if let Some(output) = progress.outputs.first() {
                self.ledger.lock().send_step(&output.batch, step);
            }
            match self.write(self.shard, &Unit::Progress(progress)).await {
                // Refused: another attempt at it was there first, or what the broker showed was old.
                Some(
                    UnitResult::Progressed
                    | UnitResult::ProgressRefused(ProgressRefusal::WrongPosition { .. }),
                ) => {}
                Some(other) => return self.was_told(&format!("{other:?} of step {step:?}")),
                None => return,
            }
        }
        emits.store(false, Ordering::Relaxed);
    }

    /// Delivers what the shard's task emits, until it emits no more and all is delivered.
    pub(crate) async fn deliver(mut self, emits: Arc<AtomicBool>) {
        let (target_shard, _) = target_of(self.shard);
        while self.world.violation().is_none() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
            let over = !emits.load(Ordering::Relaxed);
            let Some(items) = self.outbox(over).await else { continue };
            if items.is_empty() && over {
                return;
            }
            let mut delivered = None;
            for OutboxItem { stream, number, batch } in items {
                match self.write(target_shard, &Unit::Deliver { stream, number, batch }).await {
                    Some(UnitResult::Delivered { last }) if last >= number => {
                        delivered = Some((stream, number))
                    }
                    Some(other) => {
                        return self.was_told(&format!("{other:?} of item {number} of {stream:?}"));
                    }
                    None => return,
                }
            }
            let Some((stream, up_to)) = delivered else { continue };
            match self.write(self.shard, &Unit::Delivered { stream, up_to }).await {
                Some(UnitResult::Done) => {}
                Some(other) => {
                    return self.was_told(&format!("{other:?} of {stream:?}, delivered to {up_to}"));
                }
                None => return,
            }
        }
    }

    pub(super) fn was_told(&self, what: &str) {
        self.world.broken(Violation::Cluster(format!("{} was told {what}", self.name)));
    }

    /// What some broker has of the outbox; surely all of it if it must be current.
    async fn outbox(&mut self, current: bool) -> Option<Vec<OutboxItem>> {
        let at = self.somebody(self.shard)?;
        let replica = at.replicas.get(&self.shard).cloned()?;
        if current {
            at.until_it_ends(replica.read_barrier()).await?.ok()?;
        }
        // The disk of a broker that ends reads nothing more.
        replica.shard().outbox_next(ITEMS_AT_ONCE).ok()
    }

    /// A step over what some broker shows behind the task's position in one of its sources.
    fn next_step(&mut self, target: TopicPartition) -> Option<(Progress, Step)> {
        let at = self.somebody(self.shard)?;
        let shard = at.replicas.get(&self.shard)?.shard();
        let view = shard.task_now(deployment_of(self.shard), TASK)?;
        let first = self.rng.random_range(0..view.positions.len().max(1));
        let (source, expected) = view.positions.into_iter().nth(first)?;
        let end = shard.partition(source)?.high_watermark;
        let most = u64::try_from(end.get() - expected.get()).ok().filter(|most| *most > 0)?;
        let next = expected.plus(self.rng.random_range(1..=most.min(4)));
        let step = Step { source, from: expected, to: next };
        let batch = batch_of(format!("{source} {expected} {next}").as_bytes(), None);
        let progress = Progress {
            deployment: deployment_of(self.shard),
            epoch: EPOCH,
            partition: TASK,
            positions: vec![PositionStep { source, expected, next }],
            state: Vec::new(),
            timers: Vec::new(),
            fired: Vec::new(),
            outputs: vec![TaskOutput { target, batch }],
        };
        Some((progress, step))
    }

    pub(super) fn deployment(&self) -> AdoptDeployment {
        let sources = (0..PARTITIONS).map(PartitionId::new);
        let source =
            |partition| (TopicPartition::new(topic_of(self.shard), partition), StartAt::Offset(Offset::ZERO));
        AdoptDeployment {
            deployment: deployment_of(self.shard),
            version: 1,
            epoch: EPOCH,
            status: AdoptedStatus::Running,
            tasks: vec![TaskAssignment { partition: TASK, sources: sources.map(source).collect() }],
            state_bytes_max: BYTES_MAX,
            outbox_bytes_max: BYTES_MAX,
        }
    }
}
