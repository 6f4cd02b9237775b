//! The newtypes that everything else speaks in.
//!
//! Two axes, two types: [`LogIndex`] counts Raft entries of a shard, blank and membership ones included;
//! [`Offset`] counts records of a partition. Only the shard's state maps one to the other, and nothing converts
//! between them implicitly.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the plain number.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The plain number, for codecs and display.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Position of a record in its partition, from 0. `-1` on the wire where none is assigned.
    Offset(i64)
);
number!(
    /// Position of an entry in a shard's Raft log, from 0.
    LogIndex(u64)
);
number!(
    /// Raft's term of a shard.
    Term(u64)
);
number!(
    /// The clients' word for a reign of a partition's leader.
    LeaderEpoch(i32)
);
number!(
    /// Number of a partition in its topic, from 0.
    PartitionId(u32)
);
number!(
    /// A broker of the cluster.
    BrokerId(u32)
);
number!(
    /// A shard: one Raft group. 0 is the controller.
    ShardId(u16)
);
number!(
    /// Identity of an idempotent producer; `-1` in a batch that has none.
    ProducerId(i64)
);
number!(
    /// Fences older instances of the same producer.
    ProducerEpoch(i16)
);
number!(
    /// Sequence number of a record from one producer to one partition (KIP-98): wraps from `i32::MAX` to 0.
    Sequence(i32)
);
number!(
    /// A deployment: a plugin version bound to a place. Given out by the controller, never reused.
    DeploymentId(u64)
);
number!(
    /// Milliseconds since 1970-01-01 UTC.
    Timestamp(i64)
);

impl Offset {
    /// The first offset of any partition.
    pub const ZERO: Self = Self(0);
    /// What stands in a batch whose offset is not assigned yet.
    pub const UNASSIGNED: Self = Self(-1);

    /// The offset `count` records later, saturating.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add_unsigned(count))
    }

    /// Number of offsets from `earlier` to `self`; 0 where `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        if self.0 <= earlier.0 { 0 } else { self.0.abs_diff(earlier.0) }
    }
}

impl LogIndex {
    /// The entry after this one, saturating.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl ProducerId {
    /// What stands in a batch without a producer.
    pub const NONE: Self = Self(-1);
}

impl Sequence {
    /// The sequence `count` records later, wrapping at `i32::MAX` to 0 as Kafka's does.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        let sum = (self.0 as i64 + count as i64) % (i32::MAX as i64 + 1);
        Self(sum as i32)
    }
}

impl ShardId {
    /// The shard whose state is the cluster's metadata.
    pub const CONTROLLER: Self = Self(0);
}

impl Timestamp {
    /// `duration_ms` milliseconds later, saturating.
    #[must_use]
    pub const fn plus_ms(self, duration_ms: i64) -> Self {
        Self(self.0.saturating_add(duration_ms))
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps the 16 bytes.
            #[must_use]
            pub const fn new(value: Uuid) -> Self {
                Self(value)
            }

            /// The identity as a UUID.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The 16 bytes, as on the wire and on disk.
            #[must_use]
            pub const fn bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// From the wire: exactly 16 bytes, otherwise `None`.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

identity!(
    /// A topic, for its whole life; a topic created again under the same name has another.
    TopicId
);
identity!(
    /// A cluster, from `cluster init` on.
    ClusterId
);
identity!(
    /// A broker's data directory, from its first use on: an emptied one has another.
    DirectoryId
);

/// One partition of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number in it.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Joins the two.
    #[must_use]
    pub const fn new(topic: TopicId, partition: PartitionId) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_as_kafkas_do() {
        assert_eq!(Sequence::new(i32::MAX).plus(1), Sequence::new(0));
        assert_eq!(Sequence::new(i32::MAX - 1).plus(3), Sequence::new(1));
        assert_eq!(Sequence::new(5).plus(3), Sequence::new(8));
    }

    #[test]
    fn offsets_count_records_between_them() {
        assert_eq!(Offset::new(7).since(Offset::new(3)), 4);
        assert_eq!(Offset::new(3).since(Offset::new(7)), 0);
        assert_eq!(Offset::new(3).plus(4), Offset::new(7));
    }
}
