//! The plugin registry: names, immutable versions, digests. The bytes lie in each broker's artifacts.

use serde::{Deserialize, Serialize};
use tidemill_protocol::Timestamp;

use crate::names::Name;

/// Which world a component exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PluginKind {
    /// Places records.
    Partitioner,
    /// Passes, drops or rewrites records.
    Filter,
    /// Runs in the broker as a hosted consumer.
    Consumer,
}

impl PluginKind {
    /// For people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Partitioner => "partitioner",
            Self::Filter => "filter",
            Self::Consumer => "consumer",
        }
    }
}

/// A key of a plugin's configuration, as the plugin describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigKey {
    /// The key.
    pub name: String,
    /// For people.
    pub doc: String,
    /// A deployment without it is refused.
    pub required: bool,
    /// What stands where it is not given.
    pub default: Option<String>,
}

/// An upload, after the component was checked and compiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginUpload {
    /// The plugin.
    pub name: Name,
    /// `None`: the next whole number.
    pub version: Option<Name>,
    /// Which world it exports.
    pub kind: PluginKind,
    /// blake3 of the component.
    pub digest: [u8; 32],
    /// Bytes of the component.
    pub size: u64,
    /// One line, the plugin's own.
    pub summary: String,
    /// Its configuration keys.
    pub config: Vec<ConfigKey>,
}

/// An uploaded version: never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginRecord {
    /// The plugin.
    pub name: Name,
    /// Its version.
    pub version: Name,
    /// Rises with each upload of the cluster; the newest version of a plugin has the highest.
    pub number: u64,
    /// Which world it exports.
    pub kind: PluginKind,
    /// blake3 of the component.
    pub digest: [u8; 32],
    /// Bytes of the component.
    pub size: u64,
    /// The log's time of the upload.
    pub uploaded_at: Timestamp,
    /// One line, the plugin's own.
    pub summary: String,
    /// Its configuration keys.
    pub config: Vec<ConfigKey>,
}
