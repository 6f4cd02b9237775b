//! What comes out of a plugin, after it has been checked.

use bytes::Bytes;

use crate::batch::{LENGTH_ABSENT, LENGTH_NULL};

/// A placement's "any partition": the broker keeps the batch together.
pub const ANY_PARTITION: u32 = u32::MAX;
/// Bytes of one record's entry in the index of records that a plugin made.
pub const OUTPUT_ENTRY_BYTES: usize = 40;
const NO_ORDINAL: u32 = u32::MAX;
const NO_PARTITION: u32 = u32::MAX;

/// A record that the plugin will not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The record's place in the batch, from 0.
    pub ordinal: u32,
    /// Why, in the plugin's words; bounded.
    pub reason: String,
}

/// A partitioner's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// One per record: below the partition count, or [`ANY_PARTITION`].
    pub partitions: Vec<u32>,
    /// Ordinals strictly increase.
    pub rejections: Vec<Rejection>,
}

/// A filter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which records pass, and with which contents.
    pub selection: Selection,
    /// Ordinals strictly increase.
    pub rejections: Vec<Rejection>,
}

/// Which records of a batch pass a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them, unchanged.
    KeepAll,
    /// None of them.
    DropAll,
    /// Those whose bit is set, unchanged.
    Keep(Bitmap),
    /// Those named by the records' ordinals, with other contents.
    Replace(Records),
}

/// One bit per record, least significant first. Bits past the last record are clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    pub(crate) bytes: Vec<u8>,
}

impl Bitmap {
    /// Whether the record's bit is set; false past the last record.
    #[must_use]
    pub fn keeps(&self, ordinal: u32) -> bool {
        let byte = self.bytes.get(ordinal as usize / 8).copied().unwrap_or(0);
        byte >> (ordinal % 8) & 1 == 1
    }

    /// How many records are kept.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    /// The kept records' ordinals, rising.
    pub fn ordinals(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.bytes).flat_map(|(at, &byte)| {
            let mut left = byte;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(at * 8 + bit)
            })
        })
    }
}

/// A task's answer to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many records, from the batch's start, were handled.
    pub processed: u32,
    /// Ordinals strictly increase and are below `processed`.
    pub rejections: Vec<Rejection>,
}

/// Records that a plugin made: checked, so that every part lies within the data, headers are well formed, and what the parts add
/// up to is bounded (several records may point to the same bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    pub(crate) data: Bytes,
    pub(crate) index: Vec<u8>,
    pub(crate) referenced_bytes: usize,
}

/// One record that a plugin made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeRecord<'a> {
    /// The record's key.
    pub key: Part<'a>,
    /// The record's value.
    pub value: Part<'a>,
    /// Encoded as in a Kafka v2 record, the count first; null is no headers.
    pub headers: Part<'a>,
    /// The input record that it comes from; in what a filter answers, always there.
    pub ordinal: Option<u32>,
    /// Milliseconds since 1970; none is the input record's, else now.
    pub timestamp: Option<i64>,
    /// Where to; none is as the target topic partitions. Not checked against the target, and always none in a filter's answer.
    pub partition: Option<u32>,
}

/// A part of a record that a plugin made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// As the input record has it. Only in a filter's answer.
    AsInput,
    /// Null; of headers: none.
    Null,
    /// These bytes.
    Bytes(&'a [u8]),
}

impl Records {
    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len() / OUTPUT_ENTRY_BYTES
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all parts together, counting bytes that several records share once for each.
    #[must_use]
    pub fn referenced_bytes(&self) -> usize {
        self.referenced_bytes
    }

    /// The bytes that the parts lie in.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The records, in the plugin's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MadeRecord<'_>> + '_ {
        self.index.chunks_exact(OUTPUT_ENTRY_BYTES).map(|entry| {
            let entry = OutputEntry::read(entry);
            MadeRecord {
                key: self.part(entry.key),
                value: self.part(entry.value),
                headers: self.part(entry.headers),
                ordinal: (entry.ordinal != NO_ORDINAL).then_some(entry.ordinal),
                timestamp: (entry.timestamp != -1).then_some(entry.timestamp),
                partition: (entry.partition != NO_PARTITION).then_some(entry.partition),
            }
        })
    }

    fn part(&self, span: Span) -> Part<'_> {
        match span.length {
            LENGTH_NULL => Part::Null,
            LENGTH_ABSENT => Part::AsInput,
            length => {
                let start = span.offset as usize;
                // Checked when the records were made; an empty part is the answer to what can't be.
                Part::Bytes(self.data.get(start..start + length as usize).unwrap_or_default())
            }
        }
    }
}

/// An index entry, as it lies in a plugin's answer:
///
/// ```text
/// 0             8               16                24        28               36          40
/// | key: offset, length | value | headers         | ordinal | timestamp lo, hi | partition |
/// ```
#[derive(Clone, Copy)]
pub(crate) struct OutputEntry {
    pub(crate) key: Span,
    pub(crate) value: Span,
    pub(crate) headers: Span,
    pub(crate) ordinal: u32,
    pub(crate) timestamp: i64,
    pub(crate) partition: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

impl OutputEntry {
    /// `entry` is [`OUTPUT_ENTRY_BYTES`] long.
    pub(crate) fn read(entry: &[u8]) -> Self {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&entry[at * 4..at * 4 + 4]);
            u32::from_le_bytes(bytes)
        };
        let span = |at: usize| Span { offset: word(at), length: word(at + 1) };
        Self {
            key: span(0),
            value: span(2),
            headers: span(4),
            ordinal: word(6),
            timestamp: (u64::from(word(7)) | u64::from(word(8)) << 32).cast_signed(),
            partition: word(9),
        }
    }

    pub(crate) fn has_ordinal(&self) -> bool {
        self.ordinal != NO_ORDINAL
    }

    pub(crate) fn has_partition(&self) -> bool {
        self.partition != NO_PARTITION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_names_its_ordinals() {
        let bitmap = Bitmap { bytes: vec![0b1000_0001, 0, 0b10] };
        assert_eq!(bitmap.ordinals().collect::<Vec<_>>(), [0, 7, 17]);
        assert_eq!(bitmap.count(), 3);
        assert!(bitmap.keeps(17));
        assert!(!bitmap.keeps(18));
        assert!(!bitmap.keeps(1_000));
    }
}
