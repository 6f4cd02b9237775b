//! How a data directory came to belong to its cluster, and what follows for its first start.

use std::path::Path;

use tidemill_net::ClusterCa;
use tidemill_protocol::{BrokerId, ClusterId};
use uuid::Uuid;

use super::{ClusterPlan, Joined, join};
use crate::config::{BrokerConfig, ConfigError, DurabilitySetting, SHARDS_DEFAULT};
use crate::data_dir::Meta;
use crate::peers::messages::KnownBroker;
use crate::start_error::StartError;

/// Where an empty data directory belongs.
pub(crate) enum Origin {
    /// It is a cluster of its own, which others may join.
    Alone,
    /// It forms a cluster with others, as `tidemill cluster init` planned.
    Formed(ClusterPlan),
    /// A cluster took it in.
    Joined(Joined),
}

impl Origin {
    /// Finds out what the settings say of an empty data directory; joins, if they say so.
    pub(crate) async fn of(config: &BrokerConfig) -> Result<Self, StartError> {
        let tls = config.data_dir.join("tls");
        if let Some(token) = &config.join {
            let broker = BrokerId::new(config.broker_id);
            // Before the token is shown, which is used by that.
            let fixed = [("shards", config.shards.is_some()), ("durability", config.durability.is_some())];
            if let Some((setting, _)) = fixed.into_iter().find(|(_, is_set)| *is_set) {
                let reason =
                    "the cluster that it joins has fixed it: leave it out of the settings".to_owned();
                return Err(ConfigError::Invalid { setting, reason }.into());
            }
            let joined = join(&config.data_dir, broker, &config.rack, token, &config.peers.seeds).await?;
            return Ok(Self::Joined(joined));
        }
        let Some(directory) = &config.cluster else {
            // Whoever names others wants to be with them: a cluster of its own is easily begun, and hard to notice and undo.
            return match config.peers.seeds.is_empty() {
                true => Ok(Self::Alone),
                false => Err(StartError::NoOrigin { path: config.data_dir.display().to_string() }),
            };
        };
        let plan = ClusterPlan::read(directory)?;
        let broker = BrokerId::new(config.broker_id);
        if !plan.brokers.contains(&broker) {
            return Err(StartError::NotPlanned { broker, directory: directory.clone() });
        }
        copy_authority(directory, &tls)?;
        Ok(Self::Formed(plan))
    }

    /// The identity of a new data directory.
    pub(crate) fn meta(&self, config: &BrokerConfig) -> Meta {
        let alone = |cluster, shards, durability| Meta::new(cluster, config.broker_id, shards, durability);
        match self {
            Self::Alone => alone(
                ClusterId::new(Uuid::new_v4()),
                config.shards.unwrap_or(SHARDS_DEFAULT),
                config.durability.unwrap_or(DurabilitySetting::Fsync),
            ),
            Self::Formed(plan) => {
                Meta { forming: plan.brokers.clone(), ..alone(plan.cluster, plan.shards, plan.durability) }
            }
            Self::Joined(joined) => Meta {
                incarnation: joined.incarnation,
                directory: joined.directory,
                forming: Vec::new(),
                ..alone(joined.cluster, joined.shards, joined.durability)
            },
        }
    }

    /// Brokers that are known from the beginning.
    pub(crate) fn known(&self) -> &[KnownBroker] {
        match self {
            Self::Joined(joined) => &joined.known,
            Self::Alone | Self::Formed(_) => &[],
        }
    }
}

/// The authority that `cluster init` made becomes this broker's, too.
fn copy_authority(directory: &Path, tls: &Path) -> Result<(), StartError> {
    let planned = ClusterCa::open(directory)?;
    ClusterCa::from_pem(tls, planned.certificate_pem(), planned.key_pem())?;
    Ok(())
}
