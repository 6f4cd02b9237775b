//! Deployments: created, paused, resumed, deleted, forgotten.

use tidemill_protocol::{DeploymentId, Timestamp, TopicId};

use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::deployment::{DeploymentKind, DeploymentRecord, DeploymentSpec, DeploymentStatus, FailurePolicy};
use crate::error::ControllerError;
use crate::names::Name;
use crate::plugin::PluginRecord;
use crate::state::{Bounds, Controller};

impl Controller {
    pub(crate) fn create_deployment(
        &mut self,
        spec: &DeploymentSpec,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let name = spec.name.to_string();
        if let Some(existing) = self.deployment_by_name(&name) {
            // The very same again: a request or proposal whose outcome was unknown came twice.
            let version = self.plugin_for(spec).ok().map(|plugin| plugin.version.clone());
            let version = version.or_else(|| spec.version.clone());
            let asked = DeploymentSpec { version, ..spec.clone() };
            return match asked.difference(&existing.spec) {
                None => Ok(ControllerReply::Deployment(Box::new(existing.clone()))),
                Some(differs) => Err(ControllerError::DeploymentExists { deployment: name, differs }),
            };
        }
        if self.deployments.len() >= Bounds::DEPLOYMENTS_MAX {
            return Err(ControllerError::TooMany { what: "deployments", limit: Bounds::DEPLOYMENTS_MAX });
        }
        let plugin = self.plugin_for(spec)?.clone();
        let topics = self.live_topics(&spec.topics)?;
        let targets = self.live_topics(&spec.targets)?;
        let dead_letter = spec.dead_letter.as_ref().map(|topic| self.live_topic(topic)).transpose()?;
        self.check_shape(spec, &topics, &targets, dead_letter)
            .map_err(|reason| ControllerError::InvalidDeployment { deployment: name.clone(), reason })?;

        let id = DeploymentId::new(self.header.next_deployment_id);
        self.header.next_deployment_id += 1;
        let bound = topics.first().copied();
        let record = DeploymentRecord {
            id,
            spec: DeploymentSpec { version: Some(plugin.version.clone()), ..spec.clone() },
            digest: plugin.digest,
            topics,
            targets,
            dead_letter,
            version: self.next_version(),
            epoch: 0,
            status: DeploymentStatus::Running,
            created_at: now,
            deleted: false,
        };
        self.deployment_names.insert(name, id);
        self.deployments.insert(id, record.clone());
        self.note_change(ObjectKey::Deployment(id));
        if let Some(topic) = bound {
            match spec.kind {
                DeploymentKind::Partitioner => self.bind_partitioner(topic, Some(id)),
                DeploymentKind::ProduceFilter => {
                    self.change_topic(topic, |topic| topic.produce_filter = Some(id));
                }
                DeploymentKind::SubscriptionFilter | DeploymentKind::Consumer => {}
            }
        }
        Ok(ControllerReply::Deployment(Box::new(record)))
    }

    fn plugin_for(&self, spec: &DeploymentSpec) -> Result<&PluginRecord, ControllerError> {
        let version = spec.version.as_ref().map(Name::as_str);
        let plugin = self.plugin(spec.plugin.as_str(), version).ok_or_else(|| {
            ControllerError::UnknownPlugin(match version {
                Some(version) => format!("{}@{version}", spec.plugin),
                None => spec.plugin.to_string(),
            })
        })?;
        if plugin.kind == spec.kind.plugin_kind() {
            return Ok(plugin);
        }
        Err(ControllerError::InvalidDeployment {
            deployment: spec.name.to_string(),
            reason: format!(
                "plugin '{}' is a {}, and a {} is needed here",
                plugin.name,
                plugin.kind.word(),
                spec.kind.plugin_kind().word()
            ),
        })
    }

    fn live_topics(&self, names: &[Name]) -> Result<Vec<TopicId>, ControllerError> {
        names.iter().map(|name| self.live_topic(name)).collect()
    }

    fn check_shape(
        &self,
        spec: &DeploymentSpec,
        topics: &[TopicId],
        targets: &[TopicId],
        dead_letter: Option<TopicId>,
    ) -> Result<(), String> {
        let config_bytes: usize = spec.config.iter().map(|(key, value)| key.len() + value.len()).sum();
        if config_bytes > Bounds::CONFIG_BYTES_MAX {
            return Err(format!("its configuration is {config_bytes} bytes, at most 64 KiB are kept"));
        }
        if spec.attempts > Bounds::ATTEMPTS_MAX {
            return Err(format!("at most {} attempts", Bounds::ATTEMPTS_MAX));
        }
        if topics.len().max(targets.len()) > Bounds::DEPLOYMENT_TOPICS_MAX {
            return Err(format!("at most {} topics and as many targets", Bounds::DEPLOYMENT_TOPICS_MAX));
        }
        if spec.kind != DeploymentKind::Consumer && (!targets.is_empty() || dead_letter.is_some()) {
            return Err("only a consumer has targets and a dead-letter topic".into());
        }
        match spec.kind {
            DeploymentKind::Partitioner | DeploymentKind::ProduceFilter => {
                self.check_binding(spec.kind, topics)
            }
            DeploymentKind::SubscriptionFilter if topics.is_empty() => Ok(()),
            DeploymentKind::SubscriptionFilter => Err("a subscription filter is bound to no topic".into()),
            DeploymentKind::Consumer => self.check_consumer(spec, topics, targets, dead_letter),
        }
    }

    fn check_binding(&self, kind: DeploymentKind, topics: &[TopicId]) -> Result<(), String> {
        let [topic] = topics else {
            return Err("it is bound to exactly one topic".into());
        };
        let topic = &self.topics[topic];
        let bound = match kind {
            DeploymentKind::Partitioner => topic.partitioner.deployment,
            _ => topic.produce_filter,
        };
        match bound.and_then(|id| self.deployment(id)) {
            Some(other) => Err(format!(
                "topic '{}' has '{}' in that place already; delete that deployment first",
                topic.name, other.spec.name
            )),
            None => Ok(()),
        }
    }

    fn check_consumer(
        &self,
        spec: &DeploymentSpec,
        topics: &[TopicId],
        targets: &[TopicId],
        dead_letter: Option<TopicId>,
    ) -> Result<(), String> {
        let Some((first, others)) = topics.split_first() else {
            return Err("a consumer reads at least one topic".into());
        };
        for other in others {
            let (first, other) = (&self.topics[first], &self.topics[other]);
            if first.shards != other.shards {
                return Err(format!(
                    "topics '{}' and '{}' are not co-partitioned; create one with `topic create --with`",
                    first.name, other.name
                ));
            }
        }
        for (i, topic) in topics.iter().enumerate() {
            if topics.iter().skip(i + 1).any(|other| other == topic) {
                return Err(format!("topic '{}' is named twice", self.topics[topic].name));
            }
            if targets.contains(topic) || dead_letter == Some(*topic) {
                return Err(format!("topic '{}' would feed itself", self.topics[topic].name));
            }
        }
        match (spec.policy, dead_letter) {
            (FailurePolicy::DeadLetter, None) => {
                Err("the dead-letter policy needs a dead-letter topic".into())
            }
            (FailurePolicy::Skip | FailurePolicy::Pause, Some(_)) => {
                Err("a dead-letter topic goes with the dead-letter policy".into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn set_deployment_status(
        &mut self,
        name: &Name,
        status: &DeploymentStatus,
    ) -> Result<ControllerReply, ControllerError> {
        let id = self.live_deployment(name)?;
        // Resuming bumps the epoch even where the deployment runs: it restarts tasks that paused themselves.
        let unchanged = self.deployments[&id].status == *status && *status != DeploymentStatus::Running;
        if unchanged {
            return Ok(ControllerReply::Deployment(Box::new(self.deployments[&id].clone())));
        }
        let record = self.change_deployment(id, |record| record.status = status.clone());
        Ok(ControllerReply::Deployment(Box::new(record)))
    }

    pub(crate) fn delete_deployment(&mut self, name: &Name) -> Result<ControllerReply, ControllerError> {
        let id = self.live_deployment(name)?;
        self.deployment_names.remove(name.as_str());
        let record = self.change_deployment(id, |record| record.deleted = true);
        if let Some(topic) = record.topics.first().copied().filter(|topic| self.topics.contains_key(topic)) {
            match record.spec.kind {
                DeploymentKind::Partitioner => self.bind_partitioner(topic, None),
                DeploymentKind::ProduceFilter => self.unbind_produce_filter(topic),
                DeploymentKind::SubscriptionFilter | DeploymentKind::Consumer => {}
            }
        }
        Ok(ControllerReply::Deployment(Box::new(record)))
    }

    pub(crate) fn forget_deployment(&mut self, id: DeploymentId) -> ControllerReply {
        // A topic that remembers it as a past partitioner or filter may still need its component.
        let remembered = self.topics.values().any(|topic| topic.remembers(id));
        if !remembered && self.deployments.get(&id).is_some_and(|record| record.deleted) {
            self.deployments.remove(&id);
            self.note_change(ObjectKey::Deployment(id));
            self.next_version();
        }
        ControllerReply::Done
    }

    fn live_deployment(&self, name: &Name) -> Result<DeploymentId, ControllerError> {
        self.deployment_names
            .get(name.as_str())
            .copied()
            .ok_or_else(|| ControllerError::UnknownDeployment(name.to_string()))
    }

    /// Changes a deployment that is known to be there, and gives it the next version and a later epoch.
    pub(crate) fn change_deployment(
        &mut self,
        id: DeploymentId,
        change: impl FnOnce(&mut DeploymentRecord),
    ) -> DeploymentRecord {
        let version = self.next_version();
        self.note_change(ObjectKey::Deployment(id));
        let record = self.deployments.get_mut(&id).expect("callers look the deployment up first");
        change(record);
        record.version = version;
        record.epoch = record.epoch.saturating_add(1);
        record.clone()
    }
}
