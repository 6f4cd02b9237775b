//! Metadata as key-value objects: what a checkpoint stores.
//!
//! ```text
//! key:   kind u8 | identity (topic id 16 | plugin "name\0version" | deployment id u64 be | broker id u32 be | empty)
//! value: format u8 (1) | postcard of the record
//! ```

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_protocol::{BrokerId, DeploymentId, TopicId};

use crate::plugin::PluginRecord;

/// One object that changed: its key, and its value or `None` where it is gone.
pub type Change = (Bytes, Option<Bytes>);

/// Stored metadata that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by a newer release, or damaged.
    #[error("stored metadata object of kind {kind} has format {format}, this release reads format 1")]
    Format {
        /// First byte of the key.
        kind: u8,
        /// First byte of the value.
        format: u8,
    },
    /// Damaged.
    #[error("stored metadata object of kind {kind} is damaged: {reason}")]
    Damaged {
        /// First byte of the key.
        kind: u8,
        /// What did not decode.
        reason: String,
    },
}

const FORMAT: u8 = 1;

/// Identifies an object; ordered, so that changes come out in the same order on every replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectKey {
    /// Identity, counters, version.
    Header,
    Broker(BrokerId),
    Topic(TopicId),
    Plugin(String, String),
    Deployment(DeploymentId),
}

impl ObjectKey {
    pub(crate) const HEADER: u8 = 0;
    pub(crate) const BROKER: u8 = 1;
    pub(crate) const TOPIC: u8 = 2;
    pub(crate) const PLUGIN: u8 = 3;
    pub(crate) const DEPLOYMENT: u8 = 4;

    pub(crate) fn plugin(record: &PluginRecord) -> Self {
        Self::Plugin(record.name.to_string(), record.version.to_string())
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut key = Vec::with_capacity(32);
        match self {
            Self::Header => key.push(Self::HEADER),
            Self::Broker(id) => {
                key.push(Self::BROKER);
                key.extend_from_slice(&id.get().to_be_bytes());
            }
            Self::Topic(id) => {
                key.push(Self::TOPIC);
                key.extend_from_slice(&id.bytes());
            }
            Self::Plugin(name, version) => {
                key.push(Self::PLUGIN);
                key.extend_from_slice(name.as_bytes());
                key.push(0);
                key.extend_from_slice(version.as_bytes());
            }
            Self::Deployment(id) => {
                key.push(Self::DEPLOYMENT);
                key.extend_from_slice(&id.get().to_be_bytes());
            }
        }
        key.into()
    }
}

pub(crate) fn encode_value<T: Serialize>(record: &T) -> Bytes {
    postcard::to_extend(record, vec![FORMAT]).expect("plain structs always encode into memory").into()
}

pub(crate) fn decode_value<T: DeserializeOwned>(kind: u8, value: &[u8]) -> Result<T, RestoreError> {
    match value.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((record, [])) => Ok(record),
            Ok(_) => Err(RestoreError::Damaged { kind, reason: "something follows it".into() }),
            Err(error) => Err(RestoreError::Damaged { kind, reason: error.to_string() }),
        },
        Some((&format, _)) => Err(RestoreError::Format { kind, format }),
        None => Err(RestoreError::Damaged { kind, reason: "it is empty".into() }),
    }
}
