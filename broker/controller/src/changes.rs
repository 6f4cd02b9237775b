//! Metadata as key-value objects: what a checkpoint stores.
//!
//! ```text
//! key:   kind u8 | identity
//!          0 header     empty                     4 deployment    id u64 be
//!          1 broker     id u32 be                 5 shard         id u16 be
//!          2 topic      id 16 bytes               6 join token    hash 32 bytes
//!          3 plugin     "name\0version"           7 cluster-wide  empty
//! value: format u8 (1; of brokers 1 or 2) | postcard of the record
//! ```
//!
//! A broker's format 1 is [`BrokerRegistration`], its format 2 [`BrokerRecord`]. One that format 1 says all of is still
//! stored in it, so that entries of an older release lead to the bytes that they led to then.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_protocol::{BrokerId, DeploymentId, ShardId, TopicId};

use crate::brokers::BrokerRecord;
use crate::cluster::BrokerRegistration;
use crate::plugin::PluginRecord;

/// One object that changed: its key, and its value or `None` where it is gone.
pub type Change = (Bytes, Option<Bytes>);

/// Stored metadata that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by a newer release, or damaged.
    #[error("stored metadata object of kind {kind} has format {format}, this release does not read it")]
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
const BROKER_FORMAT: u8 = 2;

/// Identifies an object; ordered, so that changes come out in the same order on every replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectKey {
    /// Identity, counters, version.
    Header,
    Broker(BrokerId),
    Topic(TopicId),
    Plugin(String, String),
    Deployment(DeploymentId),
    Shard(ShardId),
    JoinToken([u8; 32]),
    /// Settings and feature level.
    ClusterWide,
}

impl ObjectKey {
    pub(crate) const HEADER: u8 = 0;
    pub(crate) const BROKER: u8 = 1;
    pub(crate) const TOPIC: u8 = 2;
    pub(crate) const PLUGIN: u8 = 3;
    pub(crate) const DEPLOYMENT: u8 = 4;
    pub(crate) const SHARD: u8 = 5;
    pub(crate) const JOIN_TOKEN: u8 = 6;
    pub(crate) const CLUSTER_WIDE: u8 = 7;

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
            Self::Shard(id) => {
                key.push(Self::SHARD);
                key.extend_from_slice(&id.get().to_be_bytes());
            }
            Self::JoinToken(hash) => {
                key.push(Self::JOIN_TOKEN);
                key.extend_from_slice(hash);
            }
            Self::ClusterWide => key.push(Self::CLUSTER_WIDE),
        }
        key.into()
    }
}

pub(crate) fn encode_value<T: Serialize>(record: &T) -> Bytes {
    encode_as(FORMAT, record)
}

pub(crate) fn encode_broker(record: &BrokerRecord) -> Bytes {
    match record.first_form() {
        Some(registration) => encode_as(FORMAT, &registration),
        None => encode_as(BROKER_FORMAT, record),
    }
}

fn encode_as<T: Serialize>(format: u8, record: &T) -> Bytes {
    postcard::to_extend(record, vec![format]).expect("plain structs always encode into memory").into()
}

pub(crate) fn decode_value<T: DeserializeOwned>(kind: u8, value: &[u8]) -> Result<T, RestoreError> {
    match split_format(kind, value)? {
        (FORMAT, rest) => decode_whole(kind, rest),
        (format, _) => Err(RestoreError::Format { kind, format }),
    }
}

pub(crate) fn decode_broker(value: &[u8]) -> Result<BrokerRecord, RestoreError> {
    let kind = ObjectKey::BROKER;
    match split_format(kind, value)? {
        (FORMAT, rest) => decode_whole::<BrokerRegistration>(kind, rest).map(BrokerRecord::from),
        (BROKER_FORMAT, rest) => decode_whole(kind, rest),
        (format, _) => Err(RestoreError::Format { kind, format }),
    }
}

fn split_format(kind: u8, value: &[u8]) -> Result<(u8, &[u8]), RestoreError> {
    match value.split_first() {
        Some((&format, rest)) => Ok((format, rest)),
        None => Err(RestoreError::Damaged { kind, reason: "it is empty".into() }),
    }
}

fn decode_whole<T: DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<T, RestoreError> {
    match postcard::take_from_bytes(bytes) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err(RestoreError::Damaged { kind, reason: "something follows it".into() }),
        Err(error) => Err(RestoreError::Damaged { kind, reason: error.to_string() }),
    }
}
