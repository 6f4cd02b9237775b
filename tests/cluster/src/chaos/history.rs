use std::fmt;

/// A record as its producer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Number of the producer among those of the topic.
    pub producer: u32,
    /// Counts the producer's records, over all partitions.
    pub sequence: u32,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of producer {}", self.sequence, self.producer)
    }
}

/// What a producer was told of a record. A producer's fates stand in the order of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is stored; where, in produce that is not routed.
    Acknowledged {
        /// Partition and offset.
        at: Option<(u32, i64)>,
    },
    /// It may or may not be stored.
    Unknown,
}

/// A record as it was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Its offset.
    pub offset: i64,
    /// Which it is.
    pub id: RecordId,
    /// What `count-by-field` counts.
    pub song: u32,
    /// What `route-by-field` looks at.
    pub device: u32,
    /// Whose record it is: its key.
    pub user: u32,
}
