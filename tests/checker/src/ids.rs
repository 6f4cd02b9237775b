use std::fmt;

use serde::{Deserialize, Serialize};

/// Producers of a history are numbered below this.
pub const PRODUCERS_MAX: u32 = 1 << 20;
/// Records of a producer are numbered below this.
pub const SEQUENCES_MAX: u64 = 1 << 36;
/// Offsets are below this.
pub const OFFSETS_MAX: u64 = 1 << 40;
/// A run, or a span, has at most this many records.
pub const RUN_RECORDS_MAX: u32 = 1 << 20;
/// Partitions of a history, over all topics.
pub const PARTITIONS_MAX: usize = 1 << 16;

const SEQUENCE_BITS: u32 = 36;

/// A record, whatever its bytes: the value that stands for it in a history, and is in it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u32, u64)", into = "(u32, u64)")]
pub struct RecordId {
    /// Number of the producer. A producer that begins anew is another one.
    pub producer: u32,
    /// Counts the producer's records from 0, in the order in which they are sent, over all partitions.
    pub sequence: u64,
}

impl RecordId {
    /// The record of this producer and sequence.
    #[must_use]
    pub const fn new(producer: u32, sequence: u64) -> Self {
        Self { producer, sequence }
    }

    /// In 56 bits.
    pub(crate) const fn packed(self) -> u64 {
        ((self.producer as u64) << SEQUENCE_BITS) | self.sequence
    }

    pub(crate) const fn unpacked(packed: u64) -> Self {
        Self { producer: (packed >> SEQUENCE_BITS) as u32, sequence: packed & (SEQUENCES_MAX - 1) }
    }
}

impl From<(u32, u64)> for RecordId {
    fn from((producer, sequence): (u32, u64)) -> Self {
        Self { producer, sequence }
    }
}

impl From<RecordId> for (u32, u64) {
    fn from(id: RecordId) -> Self {
        (id.producer, id.sequence)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of producer {}", self.sequence, self.producer)
    }
}

/// A partition of a topic; `topic-7` in a history.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: u32,
}

impl TopicPartition {
    /// That partition of that topic.
    #[must_use]
    pub fn new(topic: &str, partition: u32) -> Self {
        Self { topic: topic.to_owned(), partition }
    }
}

impl TryFrom<String> for TopicPartition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.rsplit_once('-').and_then(|(topic, number)| Some((topic, number.parse().ok()?)));
        let (topic, partition) = parts.ok_or_else(|| format!("{text:?} is no topic-number"))?;
        Ok(Self::new(topic, partition))
    }
}

impl From<TopicPartition> for String {
    fn from(partition: TopicPartition) -> Self {
        partition.to_string()
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Records of one producer that follow each other; `[producer, first sequence, count]` in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u32)", into = "(u32, u64, u32)")]
pub struct Span {
    /// The first.
    pub first: RecordId,
    /// How many.
    pub count: u32,
}

impl Span {
    /// One record.
    #[must_use]
    pub const fn one(id: RecordId) -> Self {
        Self { first: id, count: 1 }
    }

    /// The records, in order.
    pub fn ids(self) -> impl Iterator<Item = RecordId> {
        let RecordId { producer, sequence } = self.first;
        (sequence..sequence + u64::from(self.count)).map(move |sequence| RecordId { producer, sequence })
    }
}

impl From<(u32, u64, u32)> for Span {
    fn from((producer, sequence, count): (u32, u64, u32)) -> Self {
        Self { first: RecordId { producer, sequence }, count }
    }
}

impl From<Span> for (u32, u64, u32) {
    fn from(span: Span) -> Self {
        (span.first.producer, span.first.sequence, span.count)
    }
}

/// Records that lie behind each other in a partition and followed each other at their producer;
/// `[first offset, producer, first sequence, count]` in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u64, u32)", into = "(u64, u32, u64, u32)")]
pub struct Run {
    /// Where the first lies.
    pub offset: u64,
    /// Which they are.
    pub span: Span,
}

impl Run {
    /// One record.
    #[must_use]
    pub const fn one(offset: u64, id: RecordId) -> Self {
        Self { offset, span: Span::one(id) }
    }

    /// The runs of these records, in their order.
    pub fn gather(records: impl IntoIterator<Item = (u64, RecordId)>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for (offset, id) in records {
            if let Some(last) = runs.last_mut()
                && last.span.count < RUN_RECORDS_MAX
                && offset == last.offset + u64::from(last.span.count)
                && id.producer == last.span.first.producer
                && id.sequence == last.span.first.sequence + u64::from(last.span.count)
            {
                last.span.count += 1;
            } else {
                runs.push(Self::one(offset, id));
            }
        }
        runs
    }

    /// The records with their offsets, in order.
    pub fn records(self) -> impl Iterator<Item = (u64, RecordId)> {
        (self.offset..).zip(self.span.ids())
    }
}

impl From<(u64, u32, u64, u32)> for Run {
    fn from((offset, producer, sequence, count): (u64, u32, u64, u32)) -> Self {
        Self { offset, span: Span { first: RecordId { producer, sequence }, count } }
    }
}

impl From<Run> for (u64, u32, u64, u32) {
    fn from(run: Run) -> Self {
        (run.offset, run.span.first.producer, run.span.first.sequence, run.span.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_each_other_is_one_run() {
        let id = RecordId::new;
        let records =
            [(4, id(1, 7)), (5, id(1, 8)), (7, id(1, 9)), (8, id(1, 11)), (9, id(2, 12)), (10, id(2, 13))];
        let runs = Run::gather(records);
        assert_eq!(runs.iter().map(|run| run.span.count).collect::<Vec<_>>(), [2, 1, 1, 2]);
        assert_eq!(runs.into_iter().flat_map(Run::records).collect::<Vec<_>>(), records);
    }

    #[test]
    fn ids_pack_and_names_read_back() {
        for id in [RecordId::new(0, 0), RecordId::new(PRODUCERS_MAX - 1, SEQUENCES_MAX - 1)] {
            assert_eq!(RecordId::unpacked(id.packed()), id);
            assert!(id.packed() < 1 << 56);
        }
        let name = TopicPartition::new("a-b", 3);
        assert_eq!(TopicPartition::try_from(name.to_string()), Ok(name));
        assert!(TopicPartition::try_from("ab".to_owned()).is_err());
    }
}
