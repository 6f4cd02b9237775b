//! One shard's part of the log, in memory: where each entry is, and the recent ones themselves.
//!
//! ```text
//!   purged      first                     cached from            last
//!     v           v                           v                   v
//!  ...| gone      |  slots: place in the file | slots + payloads  |
//!                                    evictable_below ^ (what is applied)
//! ```
//!
//! Invariant: the cached entries are the log's last ones, without gaps; an entry that is not written yet, or not
//! applied, is among them.

use std::collections::VecDeque;

use bytes::Bytes;
use tidemill_protocol::{LogIndex, Term};

use super::doubt::Doubt;
use super::entry::{EntryBytes, EntryId};
use super::frame::Position;
use super::gather::frame_bytes;

/// What an entry costs in the cache beside its payload, roughly.
const CACHED_OVERHEAD_BYTES: usize = 64;

/// One shard's entries and notes.
#[derive(Default)]
pub(super) struct ShardLog {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) snapshot_installed: Option<Bytes>,
    pub(super) purged: Option<EntryId>,
    pub(super) doubt: Option<Doubt>,
    /// Index of the first slot; meaningless without slots.
    first: u64,
    slots: VecDeque<Slot>,
    /// What the slots' entries take in a segment, written together.
    bytes_framed: u64,
    reigns: VecDeque<Reign>,
    cached: VecDeque<EntryBytes>,
    cached_bytes: usize,
    evictable_below: u64,
    flushed: Option<u64>,
    truncated: Option<Truncated>,
}

/// Entries from `first` on have this term and leader, up to the next reign.
struct Reign {
    first: u64,
    term: Term,
    leader_node: u64,
}

/// The last truncation, so that a flush of what it removed is not taken for one of what came after.
struct Truncated {
    serial: u64,
    /// Number of the first index that is gone.
    from: u64,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    at: u64,
    pub(super) payload_bytes: u32,
}

/// Where an entry is, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotAt {
    /// Queued under this serial number.
    Queued(u64),
    /// Written.
    Stored(Position),
}

const QUEUED: u64 = 1 << 63;
const OFFSET_BITS: u32 = 12;

impl Slot {
    /// A slot is 16 bytes, whatever number of entries wait for their purge.
    pub(super) fn new(at: SlotAt, payload_bytes: u32) -> Self {
        let at = match at {
            SlotAt::Queued(serial) => QUEUED | serial,
            SlotAt::Stored(position) => position.sequence << OFFSET_BITS | u64::from(position.offset),
        };
        Self { at, payload_bytes }
    }

    /// What its entry takes in a segment.
    pub(super) fn bytes_framed(self) -> u64 {
        frame_bytes(self.payload_bytes as usize) as u64
    }

    pub(super) fn at(self) -> SlotAt {
        if self.at & QUEUED != 0 {
            SlotAt::Queued(self.at & !QUEUED)
        } else {
            let offset = u16::try_from(self.at & ((1 << OFFSET_BITS) - 1)).unwrap_or(0);
            SlotAt::Stored(Position { sequence: self.at >> OFFSET_BITS, offset })
        }
    }
}

impl ShardLog {
    /// An empty log in place of one that was forgotten: frames before `serial` were the old one's.
    pub(super) fn after_forget(serial: u64) -> Self {
        Self { truncated: Some(Truncated { serial, from: 0 }), ..Self::default() }
    }

    pub(super) fn first_index(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The last entry, or the one purged to where none is left.
    pub(super) fn last(&self) -> Option<EntryId> {
        if self.slots.is_empty() { self.purged } else { self.id_of(self.end() - 1) }
    }

    /// The only index that the next entry may have; `None` where any may.
    pub(super) fn expected_next(&self) -> Option<u64> {
        self.last().map(|last| last.index.get().saturating_add(1))
    }

    pub(super) fn id_of(&self, index: u64) -> Option<EntryId> {
        if self.slots.is_empty() || !(self.first..self.end()).contains(&index) {
            return None;
        }
        let after = self.reigns.partition_point(|reign| reign.first <= index);
        let reign = self.reigns.get(after.checked_sub(1)?)?;
        Some(EntryId { term: reign.term, leader_node: reign.leader_node, index: LogIndex::new(index) })
    }

    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// What all entries take in a segment, written together.
    pub(super) fn bytes_framed(&self) -> u64 {
        self.bytes_framed
    }

    /// Payload bytes of the entries from `index` on.
    pub(super) fn bytes_from(&self, index: u64) -> u64 {
        let passed = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.slots.iter().skip(passed).map(|slot| u64::from(slot.payload_bytes)).sum()
    }

    fn cached_from(&self) -> u64 {
        self.end() - self.cached.len() as u64
    }

    pub(super) fn cached_payload(&self, index: u64) -> Option<&EntryBytes> {
        if self.slots.is_empty() {
            return None;
        }
        self.cached.get(usize::try_from(index.checked_sub(self.cached_from())?).ok()?)
    }

    pub(super) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Adds the next entry; its index has been checked. Bytes added to the cache.
    pub(super) fn append(&mut self, id: EntryId, slot: Slot, payload: EntryBytes) -> usize {
        let index = id.index.get();
        assert!(self.expected_next().is_none_or(|expected| expected == index), "entries follow each other");
        if self.slots.is_empty() {
            self.first = index;
            self.reigns.clear();
        }
        if self.reigns.back().is_none_or(|reign| (reign.term, reign.leader_node) != (id.term, id.leader_node))
        {
            self.reigns.push_back(Reign { first: index, term: id.term, leader_node: id.leader_node });
        }
        let bytes = cost(&payload);
        self.bytes_framed += slot.bytes_framed();
        self.slots.push_back(slot);
        self.cached.push_back(payload);
        self.cached_bytes += bytes;
        bytes
    }

    /// Removes entries from index `from` on, the newest first; tells each one's slot. Bytes that left the cache.
    pub(super) fn truncate_from(&mut self, from: u64, serial: u64, mut removed: impl FnMut(Slot)) -> usize {
        let before = self.cached_bytes;
        while !self.slots.is_empty() && self.end() > from {
            if let Some(slot) = self.slots.pop_back() {
                self.bytes_framed -= slot.bytes_framed();
                removed(slot);
            }
            self.cached_bytes -= self.cached.pop_back().map_or(0, |payload| cost(&payload));
        }
        while self.reigns.back().is_some_and(|reign| reign.first >= from) {
            self.reigns.pop_back();
        }
        // The lesser of both is right for flushes of frames before either, and those in between wait for the next.
        let earlier = self.truncated.as_ref().map_or(from, |truncated| truncated.from);
        self.truncated = Some(Truncated { serial, from: from.min(earlier) });
        self.flushed = self.flushed.and_then(|flushed| flushed.min(from.checked_sub(1)?).into());
        before - self.cached_bytes
    }

    /// Forgets entries up to and with `id`; tells each one's slot. Bytes that left the cache.
    pub(super) fn purge(&mut self, id: EntryId, mut removed: impl FnMut(Slot)) -> usize {
        let before = self.cached_bytes;
        if self.purged.is_some_and(|purged| purged.index >= id.index) {
            return 0;
        }
        while !self.slots.is_empty() && self.first <= id.index.get() {
            if self.cached.len() == self.slots.len() {
                self.cached_bytes -= self.cached.pop_front().map_or(0, |payload| cost(&payload));
            }
            if let Some(slot) = self.slots.pop_front() {
                self.bytes_framed -= slot.bytes_framed();
                removed(slot);
            }
            self.first += 1;
        }
        while self.reigns.get(1).is_some_and(|next| next.first <= self.first) {
            self.reigns.pop_front();
        }
        self.purged = Some(id);
        before - self.cached_bytes
    }

    /// Forgets all entries, keeping the purge point behind which the log may go on anywhere: recovery's way over a
    /// stretch that lies in released segments.
    pub(super) fn drop_entries(&mut self, removed: impl FnMut(Slot)) {
        self.truncate_from(0, 0, removed);
        self.truncated = None;
        self.flushed = None;
    }

    /// An entry that was queued is written; whether it is still the log's.
    pub(super) fn stored(&mut self, index: u64, serial: u64, position: Position) -> bool {
        let Some(place) = index.checked_sub(self.first).and_then(|place| usize::try_from(place).ok()) else {
            return false;
        };
        match self.slots.get_mut(place) {
            Some(slot) if slot.at() == SlotAt::Queued(serial) => {
                *slot = Slot::new(SlotAt::Stored(position), slot.payload_bytes);
                true
            }
            _ => false,
        }
    }

    /// An entry that was carried forward lies elsewhere now; whether it still is the log's.
    pub(super) fn moved(&mut self, index: u64, from: Position, to: Position) -> bool {
        let Some(place) = index.checked_sub(self.first).and_then(|place| usize::try_from(place).ok()) else {
            return false;
        };
        match self.slots.get_mut(place) {
            Some(slot) if slot.at() == SlotAt::Stored(from) => {
                *slot = Slot::new(SlotAt::Stored(to), slot.payload_bytes);
                true
            }
            _ => false,
        }
    }

    /// Adds the entry before the first, in recovery: it was carried forward to behind those that follow it.
    pub(super) fn prepend(&mut self, id: EntryId, slot: Slot) {
        let index = id.index.get();
        if self.slots.is_empty() {
            self.reigns.clear();
        } else {
            assert!(index + 1 == self.first, "entries follow each other");
        }
        match self.reigns.front_mut() {
            Some(reign) if (reign.term, reign.leader_node) == (id.term, id.leader_node) => {
                reign.first = index
            }
            _ => self.reigns.push_front(Reign { first: index, term: id.term, leader_node: id.leader_node }),
        }
        self.first = index;
        self.bytes_framed += slot.bytes_framed();
        self.slots.push_front(slot);
    }

    /// Indexes of the entries that lie before block `sequence`, lowest first.
    pub(super) fn stored_before(&self, sequence: u64) -> impl Iterator<Item = u64> {
        let is_before =
            move |slot: &Slot| matches!(slot.at(), SlotAt::Stored(position) if position.sequence < sequence);
        (self.first..).zip(&self.slots).filter(move |(_, slot)| is_before(slot)).map(|(index, _)| index)
    }

    /// The entry `index`, queued under `serial`, is on the device with all before it.
    pub(super) fn set_flushed(&mut self, index: u64, serial: u64) {
        let index = match &self.truncated {
            Some(truncated) if serial < truncated.serial => {
                truncated.from.checked_sub(1).map(|kept| index.min(kept))
            }
            _ => Some(index),
        };
        self.flushed = self.flushed.max(index);
    }

    /// The last entry that is known to be on the device.
    pub(super) fn flushed(&self) -> Option<EntryId> {
        self.flushed.and_then(|flushed| self.id_of(flushed)).max(self.purged)
    }

    pub(super) fn set_evictable_below(&mut self, index: u64) {
        self.evictable_below = self.evictable_below.max(index);
    }

    /// After recovery everything is in files: what is there may leave the cache, what comes must be applied first.
    pub(super) fn finish_recovery(&mut self) {
        self.evictable_below = if self.slots.is_empty() { 0 } else { self.end() };
        self.flushed = self.evictable_below.checked_sub(1);
    }

    /// Whether the oldest cached entry may leave the cache.
    pub(super) fn can_evict(&self) -> bool {
        let from = self.cached_from();
        !self.cached.is_empty()
            && from < self.evictable_below
            && self.slot(from).is_some_and(|slot| matches!(slot.at(), SlotAt::Stored(_)))
    }

    /// Drops the oldest cached payload. Bytes that left the cache.
    pub(super) fn evict(&mut self) -> usize {
        let bytes = self.cached.pop_front().map_or(0, |payload| cost(&payload));
        self.cached_bytes -= bytes;
        bytes
    }
}

fn cost(payload: &EntryBytes) -> usize {
    payload.len() + CACHED_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64, term: u64) -> EntryId {
        EntryId { term: Term::new(term), leader_node: 1, index: LogIndex::new(index) }
    }

    fn log_of(indexes: std::ops::Range<u64>, term: u64, serial: u64) -> ShardLog {
        let mut log = ShardLog::default();
        fill(&mut log, indexes, term, serial);
        log
    }

    fn fill(log: &mut ShardLog, indexes: std::ops::Range<u64>, term: u64, serial: u64) {
        for index in indexes {
            log.append(
                id(index, term),
                Slot::new(SlotAt::Queued(serial + index), 1),
                Bytes::from("x").into(),
            );
        }
    }

    #[test]
    fn slots_pack_both_forms() {
        for at in [
            SlotAt::Queued(0),
            SlotAt::Queued(u64::MAX >> 1),
            SlotAt::Stored(Position { sequence: (1 << 50) + 3, offset: 4063 }),
        ] {
            assert_eq!(Slot::new(at, 9).at(), at);
        }
    }

    #[test]
    fn identities_follow_reigns_through_truncation_and_purge() {
        let mut log = log_of(5..10, 1, 0);
        fill(&mut log, 10..15, 2, 0);
        assert_eq!((log.id_of(9), log.id_of(10), log.id_of(15)), (Some(id(9, 1)), Some(id(10, 2)), None));
        let mut removed = 0;
        log.truncate_from(8, 100, |_| removed += 1);
        assert_eq!((removed, log.last()), (7, Some(id(7, 1))));
        fill(&mut log, 8..12, 3, 100);
        log.purge(id(8, 3), |_| {});
        assert_eq!((log.first_index(), log.last(), log.id_of(8)), (Some(9), Some(id(11, 3)), None));
        assert_eq!(log.id_of(9), Some(id(9, 3)));
        log.purge(id(20, 4), |_| {});
        assert_eq!((log.first_index(), log.last(), log.expected_next()), (None, Some(id(20, 4)), Some(21)));
        assert_eq!(log.cached_bytes(), 0);
    }

    #[test]
    fn a_flush_of_what_was_truncated_says_nothing_about_its_successors() {
        let mut log = log_of(1..11, 1, 0);
        log.truncate_from(6, 50, |_| {});
        fill(&mut log, 6..11, 2, 50);
        log.set_flushed(10, 10);
        assert_eq!(log.flushed(), Some(id(5, 1)));
        log.set_flushed(10, 60);
        assert_eq!(log.flushed(), Some(id(10, 2)));
    }

    #[test]
    fn only_the_applied_and_written_leave_the_cache() {
        let mut log = log_of(1..4, 1, 0);
        assert!(!log.can_evict());
        log.set_evictable_below(3);
        assert!(!log.can_evict(), "queued");
        for index in 1..4 {
            assert!(log.stored(index, index, Position::block(index)));
        }
        assert!(!log.stored(1, 1, Position::block(9)), "written once only");
        while log.can_evict() {
            log.evict();
        }
        assert!(log.cached_payload(2).is_none() && log.cached_payload(3).is_some());
    }
}
