//! What the controller decided enters a shard: topics and deployments, rising versions only.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_controller::Bounds;
use tidemill_coordinator::GroupCommand;
use tidemill_partition::Partition;
use tidemill_protocol::{Offset, TopicId, TopicPartition};

use super::{Context, Effect, Effects};
use crate::keys::TaskKey;
use crate::result::{UnitError, UnitResult};
use crate::state::{DeploymentState, State, TaskState, TopicState};
use crate::unit::{AdoptDeployment, AdoptTopic, AdoptedStatus, StartAt, TaskStatus};

impl State {
    pub(super) fn adopt_topic(
        &mut self,
        adopt: &AdoptTopic,
        context: Context,
        effects: &mut Effects,
    ) -> UnitResult {
        let known = self.topics.get(&adopt.topic);
        // Deletion is final: a topic made again has another id.
        if let Some(known) =
            known.filter(|known| known.deleted_at.is_some() || known.version >= adopt.version)
        {
            return UnitResult::Stale { version: known.version };
        }
        if adopt.partitions.iter().any(|number| number.get() >= Bounds::TOPIC_PARTITIONS_MAX) {
            let most = Bounds::TOPIC_PARTITIONS_MAX;
            return UnitResult::Refused(UnitError::Invalid(format!("a topic has at most {most} partitions")));
        }
        let here: BTreeSet<_> =
            known.map(|known| known.partitions.iter().copied().collect()).unwrap_or_default();
        effects.metadata_changed = true;
        let mut topic = TopicState {
            version: adopt.version,
            name: adopt.name.clone(),
            config: adopt.config,
            partitions: Vec::new(),
            deleted_at: None,
        };
        if adopt.deleted {
            topic.deleted_at = Some(context.now);
            for number in here {
                let partition = TopicPartition::new(adopt.topic, number);
                self.partitions.remove(partition);
                effects.list.push(Effect::Deleted { partition });
            }
            self.forget_topic(adopt.topic, context);
        } else {
            let wanted: BTreeSet<_> = adopt.partitions.iter().copied().collect();
            for number in wanted.difference(&here) {
                let partition = TopicPartition::new(adopt.topic, *number);
                self.partitions.create(partition);
                effects.list.push(Effect::Created { partition, config: adopt.config });
            }
            for number in &here {
                let partition = TopicPartition::new(adopt.topic, *number);
                effects.list.push(Effect::Configured { partition, config: adopt.config });
            }
            topic.partitions = wanted.union(&here).copied().collect();
        }
        self.topics.insert(adopt.topic, topic);
        UnitResult::Adopted
    }

    /// What else hangs on a topic that is gone.
    fn forget_topic(&mut self, topic: TopicId, context: Context) {
        self.groups.apply(&GroupCommand::ForgetTopic { topic }, context.now);
        let routed: Vec<_> = self.routed.iter().map(|(key, _)| *key).filter(|(of, _)| *of == topic).collect();
        for key in routed {
            self.forget_routed(key);
        }
        let inboxes: Vec<_> = self
            .inboxes
            .iter()
            .map(|(stream, _)| *stream)
            .filter(|stream| stream.target.topic == topic)
            .collect();
        for stream in inboxes {
            self.inboxes.remove(&stream);
        }
    }

    pub(super) fn adopt_deployment(
        &mut self,
        adopt: &AdoptDeployment,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        let known = self.deployments.get(&adopt.deployment);
        let known = known.map(|known| (known.version, known.epoch, known.status));
        if let Some((version, ..)) = known
            .filter(|(version, _, status)| *status == AdoptedStatus::Deleted || *version >= adopt.version)
        {
            return Ok(UnitResult::Stale { version });
        }
        let tasks =
            if adopt.status == AdoptedStatus::Deleted { Vec::new() } else { self.planned_tasks(adopt)? };
        effects.metadata_changed = true;
        let resumed =
            adopt.status == AdoptedStatus::Running && known.is_some_and(|(_, epoch, _)| epoch != adopt.epoch);
        if resumed {
            self.resume_tasks(adopt);
        }
        for (key, task) in tasks {
            self.tasks.insert(key, task);
        }
        let deployment = DeploymentState {
            version: adopt.version,
            epoch: adopt.epoch,
            status: adopt.status,
            state_bytes_max: adopt.state_bytes_max,
            outbox_bytes_max: adopt.outbox_bytes_max,
            adopted_at: context.now,
        };
        self.deployments.insert(adopt.deployment, deployment);
        Ok(UnitResult::Adopted)
    }

    /// A deployment that runs again takes its stopped tasks along.
    fn resume_tasks(&mut self, adopt: &AdoptDeployment) {
        let stopped: Vec<TaskKey> = self
            .tasks_of(adopt.deployment)
            .filter(|(_, task)| task.status != TaskStatus::Running)
            .map(|(key, _)| *key)
            .collect();
        for key in stopped {
            if let Some(task) = self.tasks.get_mut(&key) {
                task.status = TaskStatus::Running;
            }
        }
    }

    /// The tasks that are new or read something new, as they will be.
    fn planned_tasks(&self, adopt: &AdoptDeployment) -> Result<Vec<(TaskKey, TaskState)>, UnitError> {
        let mut planned = Vec::new();
        for assignment in &adopt.tasks {
            let key = (adopt.deployment, assignment.partition);
            let known = self.tasks.get(&key);
            let mut task = known.cloned().unwrap_or_else(|| TaskState {
                incarnation: adopt.version,
                status: TaskStatus::Running,
                positions: BTreeMap::new(),
                state_bytes: 0,
                timers: 0,
                expiring: 0,
            });
            let before = task.positions.len();
            for (source, start) in &assignment.sources {
                if !task.positions.contains_key(source) {
                    let (_, partition) = self.target(*source)?;
                    task.positions.insert(*source, start_offset(partition, *start));
                }
            }
            if known.is_none() || task.positions.len() != before {
                if adopt.status == AdoptedStatus::Running {
                    task.status = TaskStatus::Running;
                }
                planned.push((key, task));
            }
        }
        Ok(planned)
    }

    pub(super) fn set_task_status(
        &mut self,
        key: TaskKey,
        epoch: u32,
        status: &TaskStatus,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        let deployment = self.deployments.get(&key.0).filter(|known| known.status != AdoptedStatus::Deleted);
        let deployment = deployment.ok_or(UnitError::UnknownTask)?;
        if deployment.epoch != epoch {
            return Err(UnitError::WrongDeploymentEpoch { current: deployment.epoch });
        }
        let task = self.tasks.get_mut(&key).ok_or(UnitError::UnknownTask)?;
        task.status = status.clone();
        effects.metadata_changed = true;
        Ok(UnitResult::Done)
    }
}

fn start_offset(partition: &Partition, start: StartAt) -> Offset {
    let header = partition.header();
    match start {
        StartAt::Offset(offset) => offset.clamp(header.log_start, header.log_end),
        StartAt::Earliest => header.log_start,
        StartAt::Latest => header.log_end,
    }
}
