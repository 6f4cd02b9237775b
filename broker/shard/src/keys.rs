//! Keys of the state store's rows: bytes whose order is the order that scans want.
//!
//! ```text
//! space u8 | identity: fixed-width big-endian numbers | for task rows: the plugin's own key
//!
//!  1 shard             -                                   12 segment end   topic partition, base offset (local)
//!  2 topic             topic                               32 task state    deployment, partition, key
//!  3 partition         topic, partition                    33 timer         deployment, partition, key
//!  4 producer          topic, partition, producer          34 timer by time deployment, partition, time, key
//!  5 routed producer   topic, producer                     35 expiry        deployment, partition, time, key
//!  6 group             name                                36 outbox item   stream, number
//!  7 controller        the controller's own
//!  8 deployment        deployment
//!  9 task              deployment, partition
//! 10 outbox            stream
//! 11 inbox             stream
//! ```
//! Spaces below 32 are objects: all of them are in memory. Those from 32 on are rows that may be many.

use tidemill_protocol::{DeploymentId, Offset, PartitionId, ProducerId, Timestamp, TopicId, TopicPartition};

use crate::unit::OutboxStream;

pub(crate) mod space {
    pub(crate) const SHARD: u8 = 1;
    pub(crate) const TOPIC: u8 = 2;
    pub(crate) const PARTITION: u8 = 3;
    pub(crate) const PRODUCER: u8 = 4;
    pub(crate) const ROUTED: u8 = 5;
    pub(crate) const GROUP: u8 = 6;
    pub(crate) const CONTROLLER: u8 = 7;
    pub(crate) const DEPLOYMENT: u8 = 8;
    pub(crate) const TASK: u8 = 9;
    pub(crate) const OUTBOX: u8 = 10;
    pub(crate) const INBOX: u8 = 11;
    pub(crate) const SEGMENT_END: u8 = 12;
    /// The first space that is not held in memory.
    pub(crate) const ROWS: u8 = 32;
    pub(crate) const STATE: u8 = 32;
    pub(crate) const TIMER: u8 = 33;
    pub(crate) const TIMER_BY_TIME: u8 = 34;
    pub(crate) const EXPIRY: u8 = 35;
    pub(crate) const OUTBOX_ITEM: u8 = 36;
}

/// Something of fixed width in a key; its bytes sort as it does.
pub(crate) trait KeyPart: Sized {
    fn put(&self, key: &mut Vec<u8>);
    /// Takes it off the front; `None` where there are too few bytes.
    fn take(key: &mut &[u8]) -> Option<Self>;
}

fn take_chunk<const N: usize>(key: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, rest) = key.split_first_chunk::<N>()?;
    *key = rest;
    Some(*chunk)
}

impl KeyPart for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

impl KeyPart for u64 {
    fn put(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.to_be_bytes());
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        take_chunk(key).map(Self::from_be_bytes)
    }
}

/// Signed numbers sort rightly with their sign bit flipped.
impl KeyPart for i64 {
    fn put(&self, key: &mut Vec<u8>) {
        (self.cast_unsigned() ^ (1 << 63)).put(key);
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        u64::take(key).map(|bits| (bits ^ (1 << 63)).cast_signed())
    }
}

impl KeyPart for PartitionId {
    fn put(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.get().to_be_bytes());
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        take_chunk(key).map(u32::from_be_bytes).map(Self::new)
    }
}

impl KeyPart for TopicId {
    fn put(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.bytes());
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        Self::from_slice(&take_chunk::<16>(key)?)
    }
}

macro_rules! number_parts {
    ($($name:ident: $inner:ty),*) => {$(
        impl KeyPart for $name {
            fn put(&self, key: &mut Vec<u8>) {
                self.get().put(key);
            }

            fn take(key: &mut &[u8]) -> Option<Self> {
                <$inner>::take(key).map(Self::new)
            }
        }
    )*};
}
number_parts!(DeploymentId: u64, ProducerId: i64, Offset: i64, Timestamp: i64);

impl KeyPart for TopicPartition {
    fn put(&self, key: &mut Vec<u8>) {
        self.topic.put(key);
        self.partition.put(key);
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        Some(Self { topic: TopicId::take(key)?, partition: PartitionId::take(key)? })
    }
}

impl KeyPart for OutboxStream {
    fn put(&self, key: &mut Vec<u8>) {
        self.deployment.put(key);
        self.incarnation.put(key);
        self.source.put(key);
        self.target.put(key);
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        Some(Self {
            deployment: DeploymentId::take(key)?,
            incarnation: u64::take(key)?,
            source: PartitionId::take(key)?,
            target: TopicPartition::take(key)?,
        })
    }
}

impl<A: KeyPart, B: KeyPart> KeyPart for (A, B) {
    fn put(&self, key: &mut Vec<u8>) {
        self.0.put(key);
        self.1.put(key);
    }

    fn take(key: &mut &[u8]) -> Option<Self> {
        Some((A::take(key)?, B::take(key)?))
    }
}

/// Identity of a task in keys.
pub(crate) type TaskKey = (DeploymentId, PartitionId);

/// A row's key: a space and an identity.
pub(crate) fn key(space: u8, identity: &impl KeyPart) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(space);
    identity.put(&mut key);
    key
}

/// A row's key: a space, an identity, and bytes of somebody's own.
pub(crate) fn key_with(space: u8, identity: &impl KeyPart, own: &[u8]) -> Vec<u8> {
    let mut key = key(space, identity);
    key.extend_from_slice(own);
    key
}

/// The least key greater than all that begin with `prefix`; `None` where there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if let Some(next) = last.checked_add(1) {
            key.push(next);
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn stream(
        (deployment, incarnation, source, topic, partition): (u64, u64, u32, u128, u32),
    ) -> OutboxStream {
        OutboxStream {
            deployment: DeploymentId::new(deployment),
            incarnation,
            source: PartitionId::new(source),
            target: TopicPartition::new(TopicId::new(Uuid::from_u128(topic)), PartitionId::new(partition)),
        }
    }

    type Stream = (u64, u64, u32, u128, u32);

    proptest! {
        #[test]
        fn keys_read_back_and_sort_as_what_they_name(a: (Stream, i64), b: (Stream, i64)) {
            let [a, b] = [a, b].map(|(s, time)| (stream(s), Timestamp::new(time)));
            let [key_a, key_b] = [a, b].map(|identity| key(space::OUTBOX_ITEM, &identity));
            prop_assert_eq!(a.cmp(&b), key_a.cmp(&key_b));
            let mut rest = &key_a[1..];
            prop_assert_eq!(<(OutboxStream, Timestamp)>::take(&mut rest), Some(a));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn what_begins_with_a_prefix_ends_before_the_next(prefix: Vec<u8>, tail: Vec<u8>) {
            let whole = [prefix.clone(), tail].concat();
            match after_prefix(&prefix) {
                Some(after) => prop_assert!(whole < after),
                None => prop_assert!(prefix.iter().all(|byte| *byte == 0xff)),
            }
        }
    }

    #[test]
    fn a_key_that_is_too_short_is_not_read() {
        assert_eq!(OutboxStream::take(&mut &[0_u8; 39][..]), None);
    }
}
