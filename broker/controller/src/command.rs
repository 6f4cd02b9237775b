//! What may be asked of the controller, and its answers.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{DeploymentId, TopicId};

use crate::cluster::{BrokerRegistration, ClusterIdentity};
use crate::deployment::{DeploymentRecord, DeploymentSpec, DeploymentStatus};
use crate::names::Name;
use crate::plugin::{PluginRecord, PluginUpload};
use crate::producer_ids::ProducerIdBlock;
use crate::topic::{TopicOverrides, TopicRecord};

/// A change of the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerCommand {
    /// Once, before anything else.
    InitCluster(ClusterIdentity),
    /// At each start of a broker.
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
        /// How many, at most 100,000. None: it only tells from where on ids were not given out.
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
}

/// What a [`ControllerCommand`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}
