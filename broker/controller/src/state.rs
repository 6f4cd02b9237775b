//! The controller's state, its readers, and the door through which commands come in.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, DeploymentId, ProducerId, ShardId, Timestamp, TopicId};

use crate::brokers::{BrokerRecord, JoinTokenRecord};
use crate::changes::{
    Change, ObjectKey, RestoreError, decode_broker, decode_value, encode_broker, encode_value,
};
use crate::cluster::ClusterIdentity;
use crate::command::{ControllerCommand, ControllerReply};
use crate::deployment::DeploymentRecord;
use crate::error::ControllerError;
use crate::plugin::PluginRecord;
use crate::producer_ids::ProducerIdBlock;
use crate::settings::ClusterWide;
use crate::shards::ShardRecord;
use crate::topic::TopicRecord;

/// How much metadata a cluster holds; part of the replicated behaviour, so the same everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Bounds;

impl Bounds {
    /// Topics, deleted ones not yet forgotten included.
    pub const TOPICS_MAX: usize = 10_000;
    /// Partitions of one topic.
    pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;
    /// Partitions of all topics.
    pub const PARTITIONS_MAX: usize = 100_000;
    /// Versions of all plugins.
    pub const PLUGIN_VERSIONS_MAX: usize = 10_000;
    /// Deployments, deleted ones not yet forgotten included.
    pub const DEPLOYMENTS_MAX: usize = 10_000;
    /// Source topics, and target topics, of one deployment.
    pub const DEPLOYMENT_TOPICS_MAX: usize = 64;
    /// Bytes of a deployment's configuration, keys and values.
    pub const CONFIG_BYTES_MAX: usize = 64 << 10;
    /// Producer ids in one block.
    pub const PRODUCER_IDS_MAX: u32 = 100_000;
    /// Tries of a batch.
    pub const ATTEMPTS_MAX: u32 = 1000;
    /// Brokers, removed ones included.
    pub const BROKERS_MAX: usize = 1000;
    /// Addresses of a broker, of each kind.
    pub const BROKER_ADDRESSES_MAX: usize = 16;
    /// Bytes of an address, of a rack's name or of a software version.
    pub const BROKER_WORD_BYTES_MAX: usize = 255;
    /// Join tokens that are not forgotten yet.
    pub const JOIN_TOKENS_MAX: usize = 1000;
    /// Replicas of a shard.
    pub const REPLICAS_MAX: usize = 7;
}

/// What changes with nearly every command, as one stored object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) identity: Option<ClusterIdentity>,
    pub(crate) version: u64,
    pub(crate) next_producer_id: i64,
    pub(crate) next_deployment_id: u64,
    pub(crate) next_plugin_number: u64,
    /// The shard where the next topic's partition 0 goes, counted from 0 over the data shards.
    pub(crate) next_shard: u16,
}

/// The cluster's metadata.
#[derive(Debug, Clone, Default)]
pub struct Controller {
    pub(crate) header: Header,
    pub(crate) brokers: BTreeMap<BrokerId, BrokerRecord>,
    pub(crate) shards: BTreeMap<ShardId, ShardRecord>,
    pub(crate) join_tokens: BTreeMap<[u8; 32], JoinTokenRecord>,
    pub(crate) cluster_wide: ClusterWide,
    pub(crate) topics: BTreeMap<TopicId, TopicRecord>,
    pub(crate) plugins: BTreeMap<(String, String), PluginRecord>,
    pub(crate) deployments: BTreeMap<DeploymentId, DeploymentRecord>,
    /// Names of what is not deleted: derived, never stored.
    pub(crate) topic_names: BTreeMap<String, TopicId>,
    pub(crate) deployment_names: BTreeMap<String, DeploymentId>,
    changed: BTreeSet<ObjectKey>,
}

impl Controller {
    /// Applies one command: all of it or, on an error, nothing.
    ///
    /// `now` is the log's time, the same on every replica.
    ///
    /// # Errors
    /// [`ControllerError`] says what stands in the way and what to do.
    pub fn apply(
        &mut self,
        command: &ControllerCommand,
        now: Timestamp,
    ) -> Result<ControllerReply, ControllerError> {
        let begins =
            matches!(command, ControllerCommand::InitCluster(_) | ControllerCommand::FormCluster { .. });
        if self.header.identity.is_none() && !begins {
            return Err(ControllerError::NotInitialised);
        }
        match command {
            ControllerCommand::InitCluster(identity) => self.init_cluster(identity),
            ControllerCommand::RegisterBroker(registration) => Ok(self.register_broker(registration)),
            ControllerCommand::CreateTopic { id, name, partitions, overrides, with, if_not_exists } => {
                self.create_topic(*id, name, *partitions, overrides, with.as_ref(), *if_not_exists)
            }
            ControllerCommand::AlterTopic { name, overrides } => self.alter_topic(name, overrides),
            ControllerCommand::DeleteTopic { name } => self.delete_topic(name),
            ControllerCommand::ForgetTopic { id } => Ok(self.forget_topic(*id)),
            ControllerCommand::AllocateProducerIds { count } => Ok(self.allocate_producer_ids(*count)),
            ControllerCommand::RegisterPlugin(upload) => self.register_plugin(upload, now),
            ControllerCommand::DeletePlugin { name, version } => self.delete_plugin(name, version.as_ref()),
            ControllerCommand::CreateDeployment(spec) => self.create_deployment(spec, now),
            ControllerCommand::SetDeploymentStatus { name, status } => {
                self.set_deployment_status(name, status)
            }
            ControllerCommand::DeleteDeployment { name } => self.delete_deployment(name),
            ControllerCommand::ForgetDeployment { id } => Ok(self.forget_deployment(*id)),
            ControllerCommand::FormCluster { identity, brokers } => self.form_cluster(identity, brokers, now),
            ControllerCommand::Register(start) => self.register(start, now),
            ControllerCommand::SetAlive { broker, starts, alive } => {
                self.set_alive(*broker, *starts, *alive, now)
            }
            ControllerCommand::CreateJoinToken { hash, broker, expires_at } => {
                self.create_join_token(*hash, *broker, *expires_at, now)
            }
            ControllerCommand::Join(request) => self.join(request, now),
            ControllerCommand::Drain { broker } => self.drain(*broker),
            ControllerCommand::Undrain { broker } => self.undrain(*broker),
            ControllerCommand::Remove { broker } => self.remove(*broker, now),
            ControllerCommand::AssignReplicas { shard, replicas, expected_version } => {
                self.assign_replicas(*shard, replicas, *expected_version)
            }
            ControllerCommand::ReportMembers { shard, members } => self.report_members(*shard, members),
            ControllerCommand::ReplaceReplica { shard, old } => self.replace_replica(*shard, *old),
            ControllerCommand::SetSettings(settings) => self.set_settings(settings),
            ControllerCommand::RaiseFeatureLevel { level } => self.raise_feature_level(*level),
            ControllerCommand::AcceptLoss { survivor, incarnation, shards } => {
                self.accept_loss(*survivor, *incarnation, shards, now)
            }
            ControllerCommand::AlterSettings(change) => self.alter_settings(change),
        }
    }

    pub(crate) fn init_cluster(
        &mut self,
        identity: &ClusterIdentity,
    ) -> Result<ControllerReply, ControllerError> {
        if let Some(existing) = &self.header.identity {
            return Err(ControllerError::AlreadyInitialised(existing.cluster.to_string()));
        }
        let identity = ClusterIdentity { data_shards: identity.data_shards.max(1), ..identity.clone() };
        self.header.identity = Some(identity);
        self.next_version();
        Ok(ControllerReply::Done)
    }

    fn allocate_producer_ids(&mut self, count: u32) -> ControllerReply {
        let count = count.min(Bounds::PRODUCER_IDS_MAX);
        let first = ProducerId::new(self.header.next_producer_id);
        self.header.next_producer_id += i64::from(count);
        self.note_change(ObjectKey::Header);
        ControllerReply::ProducerIds(ProducerIdBlock { first, count })
    }

    /// Ids below were given out, those from here on were not.
    #[must_use]
    pub fn producer_ids_end(&self) -> ProducerId {
        ProducerId::new(self.header.next_producer_id)
    }

    /// Raises the version, which stands for the change that is under way.
    pub(crate) fn next_version(&mut self) -> u64 {
        self.header.version += 1;
        self.note_change(ObjectKey::Header);
        self.header.version
    }

    pub(crate) fn note_change(&mut self, key: ObjectKey) {
        self.changed.insert(key);
    }

    /// The number of data shards; 0 before the cluster is formed.
    pub(crate) fn data_shards(&self) -> u16 {
        self.header.identity.as_ref().map_or(0, |identity| identity.data_shards)
    }

    /// What `cluster init` fixed; `None` before.
    #[must_use]
    pub fn identity(&self) -> Option<&ClusterIdentity> {
        self.header.identity.as_ref()
    }

    /// Rises with each change that clients or shards should hear of.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.header.version
    }

    /// A topic by id, a deleted one that is not yet forgotten included.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&TopicRecord> {
        self.topics.get(&id)
    }

    /// A topic by name, deleted ones left out.
    #[must_use]
    pub fn topic_by_name(&self, name: &str) -> Option<&TopicRecord> {
        self.topics.get(self.topic_names.get(name)?)
    }

    /// Every topic by id, deleted ones that are not yet forgotten included.
    pub fn topics(&self) -> impl Iterator<Item = &TopicRecord> {
        self.topics.values()
    }

    /// Every uploaded plugin version, by name and version.
    pub fn plugins(&self) -> impl Iterator<Item = &PluginRecord> {
        self.plugins.values()
    }

    /// One version of a plugin; without a version the newest.
    #[must_use]
    pub fn plugin(&self, name: &str, version: Option<&str>) -> Option<&PluginRecord> {
        match version {
            Some(version) => self.plugins.get(&(name.to_owned(), version.to_owned())),
            None => self.plugin_versions(name).max_by_key(|record| record.number),
        }
    }

    pub(crate) fn plugin_versions<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a PluginRecord> + use<'a, 'n> {
        let from = (name.to_owned(), String::new());
        self.plugins.range(from..).map(|(_, record)| record).take_while(move |r| r.name.as_str() == name)
    }

    /// Every deployment by id, deleted ones that are not yet forgotten included.
    pub fn deployments(&self) -> impl Iterator<Item = &DeploymentRecord> {
        self.deployments.values()
    }

    /// A deployment by id.
    #[must_use]
    pub fn deployment(&self, id: DeploymentId) -> Option<&DeploymentRecord> {
        self.deployments.get(&id)
    }

    /// A deployment by name, deleted ones left out.
    #[must_use]
    pub fn deployment_by_name(&self, name: &str) -> Option<&DeploymentRecord> {
        self.deployments.get(self.deployment_names.get(name)?)
    }

    /// The shard where a consumer group's committed positions live.
    #[must_use]
    pub fn shard_of_group(&self, group: &str) -> Option<ShardId> {
        // FNV-1a: fixed for ever, since groups stay where it puts them.
        let hash = group.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let slot = hash.checked_rem(u64::from(self.data_shards()))?;
        Some(ShardId::new(u16::try_from(slot).ok()? + 1))
    }

    /// The objects that changed since the last call, in a fixed order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|key| {
                let value = match &key {
                    ObjectKey::Header => Some(encode_value(&self.header)),
                    ObjectKey::Broker(id) => self.brokers.get(id).map(encode_broker),
                    ObjectKey::Topic(id) => self.topics.get(id).map(encode_value),
                    ObjectKey::Plugin(name, version) => {
                        self.plugins.get(&(name.clone(), version.clone())).map(encode_value)
                    }
                    ObjectKey::Deployment(id) => self.deployments.get(id).map(encode_value),
                    ObjectKey::Shard(id) => self.shards.get(id).map(encode_value),
                    ObjectKey::JoinToken(hash) => self.join_tokens.get(hash).map(encode_value),
                    ObjectKey::ClusterWide => Some(encode_value(&self.cluster_wide)),
                };
                (key.encode(), value)
            })
            .collect()
    }

    /// Rebuilds the state from stored objects, in any order.
    ///
    /// # Errors
    /// [`RestoreError`] where an object does not read.
    pub fn restore(objects: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<Self, RestoreError> {
        let mut controller = Self::default();
        for (key, value) in objects {
            let kind = key.first().copied().unwrap_or(u8::MAX);
            match kind {
                ObjectKey::HEADER => controller.header = decode_value(kind, &value)?,
                ObjectKey::BROKER => {
                    let record = decode_broker(&value)?;
                    controller.brokers.insert(record.broker, record);
                }
                ObjectKey::TOPIC => {
                    let record: TopicRecord = decode_value(kind, &value)?;
                    controller.topics.insert(record.id, record);
                }
                ObjectKey::PLUGIN => {
                    let record: PluginRecord = decode_value(kind, &value)?;
                    let key = (record.name.to_string(), record.version.to_string());
                    controller.plugins.insert(key, record);
                }
                ObjectKey::DEPLOYMENT => {
                    let record: DeploymentRecord = decode_value(kind, &value)?;
                    controller.deployments.insert(record.id, record);
                }
                ObjectKey::SHARD => {
                    let record: ShardRecord = decode_value(kind, &value)?;
                    controller.shards.insert(record.shard, record);
                }
                ObjectKey::JOIN_TOKEN => {
                    let record: JoinTokenRecord = decode_value(kind, &value)?;
                    controller.join_tokens.insert(record.hash, record);
                }
                ObjectKey::CLUSTER_WIDE => controller.cluster_wide = decode_value(kind, &value)?,
                _ => return Err(RestoreError::Damaged { kind, reason: "no such kind of object".into() }),
            }
        }
        for topic in controller.topics.values().filter(|topic| !topic.deleted) {
            controller.topic_names.insert(topic.name.to_string(), topic.id);
        }
        for deployment in controller.deployments.values().filter(|deployment| !deployment.deleted) {
            controller.deployment_names.insert(deployment.spec.name.to_string(), deployment.id);
        }
        Ok(controller)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
