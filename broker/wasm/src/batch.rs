//! What goes into a plugin.

use bytes::Bytes;

use crate::bindings::tidemill::plugin::types;

/// Bytes of one record's entry in a batch's index.
pub const INDEX_ENTRY_BYTES: usize = 32;
/// A part's length in an index: the part is null.
pub const LENGTH_NULL: u32 = u32::MAX;
/// A part's length in an index: the part was not asked for, and is not in the data. In what a filter answers: as in the input.
pub const LENGTH_ABSENT: u32 = u32::MAX - 1;

/// Records for a plugin to read, of one partition. The layout of `data` and `index` is that of `types.batch` in
/// `wit/plugin.wit`: 8 little-endian `u32` per record. Only the parts that the plugin asked for need to be in `data`.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Counts in the context's topics.
    pub topic: u32,
    /// The partition that the records are of.
    pub partition: u32,
    /// Offset of the first record; -1 where none is assigned yet.
    pub base_offset: i64,
    /// The least timestamp of the batch, milliseconds since 1970.
    pub base_timestamp: i64,
    /// The log's own time of this call, milliseconds since 1970.
    pub now: i64,
    /// The parts' bytes.
    pub data: Bytes,
    /// 32 bytes per record.
    pub index: Bytes,
}

impl Batch {
    /// How many records the batch has.
    #[must_use]
    pub fn records(&self) -> u32 {
        u32::try_from(self.index.len() / INDEX_ENTRY_BYTES).unwrap_or(u32::MAX)
    }

    pub(crate) fn to_guest(&self) -> types::Batch<'_> {
        types::Batch {
            topic: self.topic,
            partition: self.partition,
            base_offset: self.base_offset,
            base_timestamp: self.base_timestamp,
            now: self.now,
            data: &self.data,
            index: &self.index,
        }
    }
}

/// A timer that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The key that it was set with.
    pub key: Vec<u8>,
    /// When it was to fire, milliseconds since 1970 by the log's time.
    pub at: i64,
}

/// Where a plugin runs and how it is configured: what `lifecycle.init` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The deployment's name.
    pub deployment: String,
    /// The topics read, in the order that `Batch::topic` counts.
    pub topics: Vec<String>,
    /// The topics that may be emitted to, in the order that `TaskHost::emit` counts.
    pub targets: Vec<String>,
    /// Configuration keys and values.
    pub config: Vec<(String, String)>,
}

/// Which parts of a record a plugin asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fields {
    /// The record's key.
    pub key: bool,
    /// The record's value.
    pub value: bool,
    /// The record's headers.
    pub headers: bool,
}

impl Fields {
    /// All parts.
    pub const ALL: Self = Self { key: true, value: true, headers: true };

    pub(crate) fn from_guest(fields: types::Fields) -> Self {
        Self {
            key: fields.contains(types::Fields::KEY),
            value: fields.contains(types::Fields::VALUE),
            headers: fields.contains(types::Fields::HEADERS),
        }
    }
}
