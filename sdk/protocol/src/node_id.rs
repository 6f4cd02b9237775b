//! Who takes part in a shard's Raft group.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::BrokerId;

/// One life of a replica: a broker and the incarnation under which it joined.
///
/// What a replica once acknowledged, the group counts on for ever. A replica whose log lost its tail is therefore
/// not repaired but retired, and the broker comes back under its next incarnation: a node id is never reused.
///
/// In the log and on the wire it is one `u64`: the broker in the upper half, the incarnation in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(u64);

impl NodeId {
    /// The given life of a broker; the first one is incarnation 1.
    #[must_use]
    pub const fn new(broker: BrokerId, incarnation: u32) -> Self {
        Self(((broker.get() as u64) << 32) | incarnation as u64)
    }

    /// The id as it stands in a log or frame.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The plain number, for codecs.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The broker behind it.
    #[must_use]
    pub const fn broker(self) -> BrokerId {
        BrokerId::new((self.0 >> 32) as u32)
    }

    /// Which of the broker's lives.
    #[must_use]
    pub const fn incarnation(self) -> u32 {
        (self.0 & u32::MAX as u64) as u32
    }
}

impl From<u64> for NodeId {
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.broker(), self.incarnation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_and_incarnation_survive_the_packing() {
        let node = NodeId::new(BrokerId::new(7), 3);
        assert_eq!(node.broker(), BrokerId::new(7));
        assert_eq!(node.incarnation(), 3);
        assert_eq!(NodeId::from_raw(node.get()), node);
        assert_eq!(node.to_string(), "7.3");
        assert!(NodeId::new(BrokerId::new(1), u32::MAX) < NodeId::new(BrokerId::new(2), 0));
    }
}
