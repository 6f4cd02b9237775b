//! What an operator sets for the whole cluster.

use serde::{Deserialize, Serialize};

use crate::changes::ObjectKey;
use crate::command::ControllerReply;
use crate::error::ControllerError;
use crate::membership_error::MembershipError;
use crate::state::Controller;

/// The longest that a dead broker may be waited for: 30 days.
const REBUILD_DELAY_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;
/// Slower, a snapshot would never end.
const SNAPSHOT_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// What an operator sets for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// How long a broker may be dead before its replicas are rebuilt elsewhere.
    pub rebuild_delay_ms: u64,
    /// What all snapshots of a broker may send, in bytes per second, and with them the entries that learners then lack; `None`: as much as
    /// goes. A learner gets more than is written meanwhile, however low it is.
    pub snapshot_bytes_per_second: Option<u64>,
    /// Replicas of each shard where there are brokers enough: 1 or 3.
    pub replication_factor_max: u8,
}

/// A change of some settings; `None`: as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// See [`ClusterSettings::rebuild_delay_ms`].
    pub rebuild_delay_ms: Option<u64>,
    /// See [`ClusterSettings::snapshot_bytes_per_second`]; 0 is as much as goes.
    pub snapshot_bytes_per_second: Option<u64>,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self { rebuild_delay_ms: 300_000, snapshot_bytes_per_second: None, replication_factor_max: 3 }
    }
}

impl ClusterSettings {
    fn changed(&self, change: &SettingsChange) -> Self {
        let rate = match change.snapshot_bytes_per_second {
            None => self.snapshot_bytes_per_second,
            Some(rate) => Some(rate).filter(|rate| *rate > 0),
        };
        Self {
            rebuild_delay_ms: change.rebuild_delay_ms.unwrap_or(self.rebuild_delay_ms),
            snapshot_bytes_per_second: rate,
            ..self.clone()
        }
    }

    fn check(&self) -> Result<(), MembershipError> {
        let refuse = |reason: String| Err(MembershipError::InvalidSettings(reason));
        if self.rebuild_delay_ms > REBUILD_DELAY_MS_MAX {
            return refuse("a rebuild delay is at most 30 days".to_owned());
        }
        if self.snapshot_bytes_per_second.is_some_and(|rate| rate < SNAPSHOT_BYTES_PER_SECOND_MIN) {
            return refuse(format!(
                "snapshots need at least {SNAPSHOT_BYTES_PER_SECOND_MIN} bytes per second to come to an end"
            ));
        }
        if !matches!(self.replication_factor_max, 1 | 3) {
            return refuse("a shard has 1 replica or 3: two survive no more failures than one does".into());
        }
        Ok(())
    }
}

/// Settings and level, as one stored object; not stored while it is as at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterWide {
    pub(crate) settings: ClusterSettings,
    pub(crate) feature_level: u32,
}

impl Default for ClusterWide {
    fn default() -> Self {
        Self { settings: ClusterSettings::default(), feature_level: 1 }
    }
}

impl Controller {
    /// What the operator set for the whole cluster.
    #[must_use]
    pub fn settings(&self) -> &ClusterSettings {
        &self.cluster_wide.settings
    }

    /// The level of behaviour that every broker must know; 1 at first.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.cluster_wide.feature_level
    }

    pub(crate) fn set_settings(
        &mut self,
        settings: &ClusterSettings,
    ) -> Result<ControllerReply, ControllerError> {
        settings.check()?;
        if self.cluster_wide.settings != *settings {
            self.cluster_wide.settings = settings.clone();
            self.note_change(ObjectKey::ClusterWide);
            self.next_version();
        }
        Ok(ControllerReply::Done)
    }

    pub(crate) fn alter_settings(
        &mut self,
        change: &SettingsChange,
    ) -> Result<ControllerReply, ControllerError> {
        self.set_settings(&self.cluster_wide.settings.changed(change))
    }

    pub(crate) fn raise_feature_level(&mut self, level: u32) -> Result<ControllerReply, ControllerError> {
        let current = self.feature_level();
        if level < current {
            return Err(MembershipError::LevelFalls { level, current }.into());
        }
        let behind = self.brokers().find(|broker| broker.is_member() && broker.features < level);
        if let Some(broker) = behind.filter(|_| level > current) {
            let (broker, features) = (broker.broker, broker.features);
            return Err(MembershipError::LevelUnknown { level, broker, features }.into());
        }
        if level > current {
            self.cluster_wide.feature_level = level;
            self.note_change(ObjectKey::ClusterWide);
            self.next_version();
        }
        Ok(ControllerReply::Done)
    }
}
