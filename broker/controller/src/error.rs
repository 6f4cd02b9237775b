//! Why a command was refused.

use serde::{Deserialize, Deserializer, Serialize};

use crate::membership_error::MembershipError;

/// Why a command was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ControllerError {
    /// Before the cluster is formed.
    #[error("the cluster is still being formed: a majority of its brokers must have started; try again")]
    NotInitialised,
    /// It is formed once.
    #[error("the cluster is initialised already, as {0}")]
    AlreadyInitialised(String),
    /// No such topic.
    #[error("there is no topic '{0}'; `tidemill topic list` shows the topics")]
    UnknownTopic(String),
    /// The name is taken.
    #[error(
        "there is a topic '{0}' already; choose another name, or say --if-not-exists where that one will do"
    )]
    TopicExists(String),
    /// Settings out of range, or the wrong number of partitions.
    #[error("topic '{topic}' can't be so: {reason}")]
    InvalidTopic {
        /// Which topic.
        topic: String,
        /// What to change.
        reason: String,
    },
    /// A deployment uses it.
    #[error("topic '{topic}' is used by deployment '{deployment}'; delete that first")]
    TopicInUse {
        /// Which topic.
        topic: String,
        /// Who uses it.
        deployment: String,
    },
    /// A deployment uses it.
    #[error("plugin '{plugin}' is used by deployment '{deployment}'; delete that first")]
    PluginInUse {
        /// Which plugin and version.
        plugin: String,
        /// Who uses it.
        deployment: String,
    },
    /// No such plugin or version.
    #[error("there is no plugin '{0}'; `tidemill plugin list` shows what was uploaded")]
    UnknownPlugin(String),
    /// A version is immutable.
    #[error(
        "plugin '{plugin}' has a version '{version}' already, with other contents; choose another version"
    )]
    PluginExists {
        /// The plugin.
        plugin: String,
        /// The version.
        version: String,
    },
    /// No such deployment.
    #[error("there is no deployment '{0}'; `tidemill deployment list` shows the deployments")]
    UnknownDeployment(String),
    /// The name is taken by another deployment than the one asked for.
    #[error(
        "there is a deployment '{deployment}' already, with another {differs}; choose another name, or delete it first"
    )]
    DeploymentExists {
        /// The name.
        deployment: String,
        /// Which part of what is asked for is not as it stands, and how it is on both sides.
        differs: String,
    },
    /// It does not fit together.
    #[error("deployment '{deployment}' can't be so: {reason}")]
    InvalidDeployment {
        /// Which deployment.
        deployment: String,
        /// What to change.
        reason: String,
    },
    /// A bound of the cluster.
    #[error("the cluster holds at most {limit} {what}")]
    TooMany {
        /// Of what.
        #[serde(deserialize_with = "bounded_kind")]
        what: Kind,
        /// How many.
        limit: usize,
    },
    /// Of brokers or replicas.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Under another name: serde takes `&'static str` for text that is borrowed from what is read.
type Kind = &'static str;

/// What the cluster holds a bounded number of; a newer release may bound more.
fn bounded_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    const KINDS: [&str; 7] = [
        "topics",
        "partitions",
        "plugin versions",
        "deployments",
        "brokers",
        "join tokens",
        "members of a shard's group",
    ];
    let kind = String::deserialize(deserializer)?;
    Ok(KINDS.into_iter().find(|known| *known == kind).unwrap_or("things of this kind"))
}
