//! How byte strings stand in an entry's head: short ones inline, batches not at all (they follow the head as they are).

use ::bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidemill_protocol::PartitionId;

/// A batch: nothing in the head.
pub(crate) mod body {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(_: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        <()>::deserialize(deserializer).map(|()| Bytes::new())
    }
}

/// Batches by partition: the partitions.
pub(crate) mod partition_bodies {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        batches: &[(PartitionId, Bytes)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(batches.iter().map(|(partition, _)| partition))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(PartitionId, Bytes)>, D::Error> {
        let partitions = Vec::<PartitionId>::deserialize(deserializer)?;
        Ok(partitions.into_iter().map(|partition| (partition, Bytes::new())).collect())
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

/// A byte string.
pub(crate) mod bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Inline(#[serde(with = "bytes")] Bytes);

/// A byte string or none.
pub(crate) mod optional_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        // A reference-counted clone.
        bytes.clone().map(Inline).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Inline>::deserialize(deserializer)?.map(|inline| inline.0))
    }
}

/// Timers: a key and a time each.
pub(crate) mod timers {
    use tidemill_protocol::Timestamp;

    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        timers: &[(Bytes, Timestamp)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(timers.iter().map(|(key, at)| (Inline(key.clone()), *at)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Bytes, Timestamp)>, D::Error> {
        let timers = Vec::<(Inline, Timestamp)>::deserialize(deserializer)?;
        Ok(timers.into_iter().map(|(key, at)| (key.0, at)).collect())
    }
}
