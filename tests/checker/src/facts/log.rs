use std::collections::{BTreeMap, BTreeSet};

use crate::event::SealedSegment;
use crate::ids::RecordId;
use crate::pages::{Bits, Pages};

/// What lies at an offset, in eight bytes: flags below, the record above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    const PRESENT: u64 = 1;
    /// The record was acknowledged here.
    pub(crate) const ACKNOWLEDGED: u64 = 2;
    /// It was read here.
    pub(crate) const READ: u64 = 4;
    /// A replica has it here in the end.
    pub(crate) const STORED: u64 = 8;

    pub(crate) const fn new(id: RecordId, flags: u64) -> Self {
        Self((id.packed() << 8) | flags | Self::PRESENT)
    }

    pub(crate) const fn id(self) -> RecordId {
        RecordId::unpacked(self.0 >> 8)
    }

    pub(crate) const fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(crate) const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }
}

/// The largest offset that was acknowledged, and the largest of other producers than that one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Latest {
    pub(crate) of_all: Option<(u64, RecordId)>,
    of_others: Option<(u64, RecordId)>,
}

impl Latest {
    pub(crate) fn acknowledged(&mut self, offset: u64, id: RecordId) {
        let is_larger = |known: Option<(u64, RecordId)>| known.is_none_or(|(known, _)| known < offset);
        let is_same = self.of_all.is_some_and(|(_, known)| known.producer == id.producer);
        if is_larger(self.of_all) {
            if !is_same {
                self.of_others = self.of_all;
            }
            self.of_all = Some((offset, id));
        } else if !is_same && is_larger(self.of_others) {
            self.of_others = Some((offset, id));
        }
    }

    /// The largest of other producers than this one.
    pub(crate) fn but_of(self, producer: u32) -> Option<(u64, RecordId)> {
        if self.of_all.is_some_and(|(_, id)| id.producer == producer) { self.of_others } else { self.of_all }
    }
}

/// Offsets that a consumer passed over, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Skip {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) how: Passed,
    /// It reads committed records only.
    pub(crate) is_committed: bool,
}

/// See [`Skip`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Passed {
    WithinPoll,
    BetweenPolls,
    /// It said that there is nothing more.
    AtEnd,
}

/// A partition's log, as far as anybody was told of it.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Pages,
    /// Behind the last entry.
    pub(crate) end: u64,
    /// The largest start that anybody was told.
    pub(crate) log_start: u64,
    /// Offsets of records with other bytes than were sent.
    pub(crate) damaged: BTreeSet<u64>,
    /// The largest offset that was acknowledged.
    pub(crate) latest: Latest,
    /// What was passed over, with the first who did.
    pub(crate) skips: BTreeMap<Skip, u32>,
    /// Final reads, by broker.
    pub(crate) replicas: BTreeMap<u32, Replica>,
}

/// A replica, as it was read after things settled.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    pub(crate) log_start: u64,
    pub(crate) end: u64,
    pub(crate) segments: Vec<SealedSegment>,
    /// Offsets that have a record.
    pub(crate) has: Bits,
}

impl Log {
    pub(crate) fn get(&self, offset: u64) -> Option<Entry> {
        let entry = self.entries.get(offset);
        (entry != 0).then_some(Entry(entry))
    }

    pub(crate) fn set(&mut self, offset: u64, entry: Entry) {
        self.end = self.end.max(offset + 1);
        *self.entries.entry(offset) = entry.0;
    }

    pub(crate) fn iter(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Entry)> {
        self.entries.iter(from..to).map(|(offset, entry)| (offset, Entry(entry)))
    }

    pub(crate) fn is_read_at(&self, offset: u64, id: RecordId) -> bool {
        self.get(offset).is_some_and(|entry| entry.id() == id && entry.is(Entry::READ))
    }

    /// Whether replicas were read in the end.
    pub(crate) fn is_settled(&self) -> bool {
        !self.replicas.is_empty()
    }
}
