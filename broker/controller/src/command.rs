//! What may be asked of the controller, and its answers.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{BrokerId, DeploymentId, NodeId, ShardId, Timestamp, TopicId};

use crate::brokers::{BrokerRecord, BrokerStart, JoinRequest};
use crate::cluster::{BrokerRegistration, ClusterIdentity};
use crate::deployment::{DeploymentRecord, DeploymentSpec, DeploymentStatus};
use crate::names::Name;
use crate::plugin::{PluginRecord, PluginUpload};
use crate::producer_ids::ProducerIdBlock;
use crate::settings::{ClusterSettings, SettingsChange};
use crate::shards::{ReportedMembers, ShardRecord};
use crate::topic::{TopicOverrides, TopicRecord};

/// A change of the cluster's metadata.
///
/// Commands stand in logs: new ones come at the end, old ones stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerCommand {
    /// Once, before anything else, as releases before the second say it: in old logs only.
    InitCluster(ClusterIdentity),
    /// At each start of a broker, as releases before the second say it.
    RegisterBroker(BrokerRegistration),
    /// A new topic.
    CreateTopic {
        /// Random, from who proposes.
        id: TopicId,
        /// Must be free.
        name: Name,
        /// At least 1.
        partitions: u32,
        /// Laid over the defaults.
        overrides: TopicOverrides,
        /// Co-partitioned with this one: same count, same shards.
        with: Option<Name>,
        /// Answer the existing topic where there is one of the name.
        if_not_exists: bool,
    },
    /// Other settings.
    AlterTopic {
        /// Which topic.
        name: Name,
        /// Laid over what stands.
        overrides: TopicOverrides,
    },
    /// Refused while a deployment uses it.
    DeleteTopic {
        /// Which topic.
        name: Name,
    },
    /// Every shard has adopted the deletion: forget it.
    ForgetTopic {
        /// The deleted topic.
        id: TopicId,
    },
    /// A block of producer ids.
    AllocateProducerIds {
        /// How many, at most 100,000. 0 stands in old logs only: it told from where on ids were not given out.
        count: u32,
    },
    /// A new version of a plugin.
    RegisterPlugin(PluginUpload),
    /// Refused while a deployment uses it.
    DeletePlugin {
        /// The plugin.
        name: Name,
        /// `None`: every version.
        version: Option<Name>,
    },
    /// A plugin version bound to a place.
    CreateDeployment(DeploymentSpec),
    /// Pause, resume, or fail.
    SetDeploymentStatus {
        /// Which deployment.
        name: Name,
        /// What it is from now on.
        status: DeploymentStatus,
    },
    /// Ends a deployment and its state.
    DeleteDeployment {
        /// Which deployment.
        name: Name,
    },
    /// Every shard has adopted the deletion: forget it.
    ForgetDeployment {
        /// The deleted deployment.
        id: DeploymentId,
    },
    /// Once, before anything else: the brokers with which the cluster begins, be it one.
    FormCluster {
        /// As in the cluster's file.
        identity: ClusterIdentity,
        /// The brokers of the beginning; their replicas lie as `initial_placement` says.
        brokers: Vec<BrokerId>,
    },
    /// At each start of a broker.
    Register(BrokerStart),
    /// What the controller's leader hears, or does not.
    SetAlive {
        /// Which broker.
        broker: BrokerId,
        /// Its start that this is about; ignored if it registered another since.
        starts: u64,
        /// Whether it is heard of.
        alive: bool,
    },
    /// Lets one broker in, once.
    CreateJoinToken {
        /// Of the token's secret.
        hash: [u8; 32],
        /// Whom it is for; `None`: whoever is new, or not alive.
        broker: Option<BrokerId>,
        /// The log's time of its end.
        expires_at: Timestamp,
    },
    /// A broker comes in by a token.
    Join(JoinRequest),
    /// Its replicas move to others. Refused where those are too few.
    Drain {
        /// Which broker.
        broker: BrokerId,
    },
    /// It may hold replicas again.
    Undrain {
        /// Which broker.
        broker: BrokerId,
    },
    /// It goes for good. Refused where a shard would lose its majority.
    Remove {
        /// Which broker.
        broker: BrokerId,
    },
    /// Which brokers are to hold a shard; who is there already keeps its node id, others get one that is new there.
    AssignReplicas {
        /// Which shard.
        shard: ShardId,
        /// The first is the preferred leader.
        replicas: Vec<BrokerId>,
        /// The shard's version that this goes by.
        expected_version: u64,
    },
    /// What a shard's leader says of its group.
    ReportMembers {
        /// Which shard.
        shard: ShardId,
        /// Later terms and indexes only.
        members: ReportedMembers,
    },
    /// A replica can't be trusted any more: it comes back under a new node id.
    ReplaceReplica {
        /// Which shard.
        shard: ShardId,
        /// The one that is over.
        old: NodeId,
    },
    /// What the operator sets for the whole cluster, all of it: in old logs only, [`Self::AlterSettings`] came after it.
    SetSettings(ClusterSettings),
    /// Behaviour that every broker's release knows by now. Nobody proposes it yet.
    RaiseFeatureLevel {
        /// It never falls.
        level: u32,
    },
    /// A majority is lost for good, and the operator goes on with what one broker has: nobody else is part of the cluster any
    /// more. Once it has been applied, it changes nothing a second time.
    AcceptLoss {
        /// Whose replicas are left.
        survivor: BrokerId,
        /// Under which each of them goes on: one that it never had.
        incarnation: u32,
        /// The shards of which it has a replica, the controller's among them.
        shards: Vec<ShardId>,
    },
    /// What the operator changes of the settings; two who change different ones at once don't undo each other.
    AlterSettings(SettingsChange),
}

/// What a [`ControllerCommand`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerReply {
    /// Done, and nothing to say.
    Done,
    /// The topic as it is now.
    Topic(Box<TopicRecord>),
    /// The block.
    ProducerIds(ProducerIdBlock),
    /// The version as registered.
    Plugin(Box<PluginRecord>),
    /// The versions that are gone.
    PluginsDeleted(Vec<PluginRecord>),
    /// The deployment as it is now.
    Deployment(Box<DeploymentRecord>),
    /// The broker as it is now.
    Broker(Box<BrokerRecord>),
    /// It is in.
    Joined {
        /// The life of its data directory.
        incarnation: u32,
    },
    /// The shard as it is now.
    Shard(Box<ShardRecord>),
    /// The node id under which the replica goes on.
    Replica(NodeId),
}
