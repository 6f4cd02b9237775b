//! All shards' logs and the segments that hold them, in memory. Behind one short lock; no I/O under it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use tidemill_protocol::ShardId;

use super::block::BLOCK_BYTES;
use super::entry::{EntryBytes, EntryId, WalEntry};
use super::frame::Position;
use super::scan::SegmentFile;
use super::shard_log::{ShardLog, Slot, SlotAt};
use crate::fs::StorageFile;

/// The log's memory.
pub(super) struct State {
    pub(super) shards: BTreeMap<ShardId, ShardLog>,
    /// Oldest first; the last one is being written.
    pub(super) segments: VecDeque<LiveSegment>,
    cached_bytes: usize,
    cache_bytes_max: usize,
}

/// A segment that holds, or may hold, entries.
pub(super) struct LiveSegment {
    pub(super) place: Arc<SegmentPlace>,
    /// Entries per shard that are neither purged nor truncated.
    pub(super) live: BTreeMap<ShardId, u64>,
}

/// Where a segment lies, for readers.
pub(super) struct SegmentPlace {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn StorageFile>,
    pub(super) first_sequence: u64,
    pub(super) salt: u32,
    pub(super) blocks: u32,
}

/// Entries that a purge or truncation took out of segments: they count as gone only once its frame is flushed.
#[derive(Debug, Default)]
pub(super) struct Freed(Vec<(u64, ShardId, u64)>);

/// An entry that a reader asked for.
pub(super) enum Found {
    Cached(WalEntry),
    Stored { id: EntryId, position: Position, payload_bytes: u32, segment: Arc<SegmentPlace> },
}

impl State {
    pub(super) fn new(cache_bytes_max: usize) -> Self {
        Self { shards: BTreeMap::new(), segments: VecDeque::new(), cached_bytes: 0, cache_bytes_max }
    }

    /// Bytes of the segments that hold entries or are being written.
    pub(super) fn segments_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.place.bytes()).sum()
    }

    pub(super) fn shard(&mut self, shard: ShardId) -> &mut ShardLog {
        self.shards.entry(shard).or_default()
    }

    pub(super) fn append(&mut self, shard: ShardId, id: EntryId, slot: Slot, payload: EntryBytes) {
        self.cached_bytes += self.shard(shard).append(id, slot, payload);
        if let SlotAt::Stored(position) = slot.at() {
            self.count_live(shard, position);
        }
        self.enforce_cache_limit();
    }

    pub(super) fn truncate_from(&mut self, shard: ShardId, from: u64, serial: u64) -> Freed {
        self.remove(shard, |log, removed| log.truncate_from(from, serial, removed))
    }

    pub(super) fn purge(&mut self, shard: ShardId, id: EntryId) -> Freed {
        self.remove(shard, |log, removed| log.purge(id, removed))
    }

    /// Empties a shard's log without a trace, in recovery.
    pub(super) fn drop_entries(&mut self, shard: ShardId) -> Freed {
        self.remove(shard, |log, removed| {
            let before = log.cached_bytes();
            log.drop_entries(removed);
            before
        })
    }

    /// Forgets a shard, its vote included. Frames with lesser serial numbers were its old self's.
    pub(super) fn forget(&mut self, shard: ShardId, serial: u64) -> Freed {
        let freed = self.drop_entries(shard);
        self.shards.insert(shard, ShardLog::after_forget(serial));
        freed
    }

    fn remove(
        &mut self,
        shard: ShardId,
        remove: impl FnOnce(&mut ShardLog, &mut dyn FnMut(Slot)) -> usize,
    ) -> Freed {
        let mut freed = Freed::default();
        let segments = &self.segments;
        let log = self.shards.entry(shard).or_default();
        let uncached = remove(log, &mut |slot| {
            if let SlotAt::Stored(position) = slot.at()
                && let Some(segment) = find(segments, position)
            {
                freed.add(segment.place.number, shard);
            }
        });
        self.cached_bytes = self.cached_bytes.saturating_sub(uncached);
        freed
    }

    /// A queued entry is written at `position`.
    pub(super) fn stored(&mut self, shard: ShardId, index: u64, serial: u64, position: Position) {
        let is_current = self.shards.get_mut(&shard).is_some_and(|log| log.stored(index, serial, position));
        if is_current {
            self.count_live(shard, position);
        }
    }

    /// An entry that was carried forward lies at `to` now. What that frees, once it is flushed.
    pub(super) fn moved(&mut self, shard: ShardId, index: u64, from: Position, to: Position) -> Freed {
        let mut freed = Freed::default();
        if self.shards.get_mut(&shard).is_some_and(|log| log.moved(index, from, to)) {
            self.count_live(shard, to);
            if let Some(segment) = find(&self.segments, from) {
                freed.add(segment.place.number, shard);
            }
        }
        freed
    }

    /// Adds the entry before a shard's first, in recovery.
    pub(super) fn prepend(&mut self, shard: ShardId, id: EntryId, slot: Slot) {
        self.shard(shard).prepend(id, slot);
        if let SlotAt::Stored(position) = slot.at() {
            self.count_live(shard, position);
        }
    }

    fn count_live(&mut self, shard: ShardId, position: Position) {
        let place = segment_index(&self.segments, position);
        if let Some(segment) = place.and_then(|place| self.segments.get_mut(place)) {
            *segment.live.entry(shard).or_default() += 1;
        }
    }

    /// The frames that removed these entries are flushed.
    pub(super) fn apply_freed(&mut self, freed: &Freed) {
        for (number, shard, count) in &freed.0 {
            let Some(segment) = self.segments.iter_mut().find(|segment| segment.place.number == *number)
            else {
                continue;
            };
            if let Some(live) = segment.live.get_mut(shard) {
                *live = live.saturating_sub(*count);
                if *live == 0 {
                    segment.live.remove(shard);
                }
            }
        }
    }

    /// Number of the first segment that must stay: the first that holds live entries, or the one being written.
    ///
    /// What recovery left out of a shard in doubt, because entries before it are missing, keeps no segment. Nobody will
    /// ever have it again: when a segment can be released the log has gone on in a new one, whose header says for good
    /// where the old part ends. What is missing lies behind that end or in no file, so every later recovery leaves out the
    /// same, and either answer to the doubt ends it. And it can't be carried forward, being no part of the shard's log: a
    /// shard that nobody decides about would stop all others at the log's bound. What was cut off goes by the same rule,
    /// with the first flush of the new segment.
    pub(super) fn first_needed(&self) -> Option<u64> {
        let active = self.segments.back()?;
        let needed = self.segments.iter().find(|segment| !segment.live.is_empty()).unwrap_or(active);
        Some(needed.place.number)
    }

    pub(super) fn set_applied(&mut self, shard: ShardId, index: u64) {
        if let Some(log) = self.shards.get_mut(&shard) {
            log.set_evictable_below(index.saturating_add(1));
        }
        self.enforce_cache_limit();
    }

    /// Evicts from whichever shard holds most, until the limit is kept or nothing may leave.
    pub(super) fn enforce_cache_limit(&mut self) {
        while self.cached_bytes > self.cache_bytes_max {
            let candidates = self.shards.values_mut().filter(|log| log.can_evict());
            let Some(log) = candidates.max_by_key(|log| log.cached_bytes()) else {
                return;
            };
            while self.cached_bytes > self.cache_bytes_max && log.can_evict() {
                self.cached_bytes = self.cached_bytes.saturating_sub(log.evict());
            }
        }
    }

    /// The entries `from..to`, at least one and otherwise at most `bytes_max` of payload.
    pub(super) fn find(&self, shard: ShardId, from: u64, to: u64, bytes_max: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        let Some(log) = self.shards.get(&shard) else {
            return found;
        };
        for index in from..to {
            let (Some(id), Some(slot)) = (log.id_of(index), log.slot(index)) else {
                break;
            };
            bytes = bytes.saturating_add(slot.payload_bytes as usize);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let Some(entry) = self.found(log, id, slot) else {
                break;
            };
            found.push(entry);
        }
        found
    }

    fn found(&self, log: &ShardLog, id: EntryId, slot: Slot) -> Option<Found> {
        Some(match (log.cached_payload(id.index.get()), slot.at()) {
            (Some(payload), _) => Found::Cached(WalEntry { id, payload: payload.clone() }),
            (None, SlotAt::Stored(position)) => {
                let segment = Arc::clone(&find(&self.segments, position)?.place);
                Found::Stored { id, position, payload_bytes: slot.payload_bytes, segment }
            }
            (None, SlotAt::Queued(_)) => unreachable!("a queued entry is cached"),
        })
    }

    /// The entry `id`, wherever it is by now.
    pub(super) fn find_id(&self, shard: ShardId, id: EntryId) -> Option<Found> {
        let log = self.shards.get(&shard)?;
        let is_it = log.id_of(id.index.get()) == Some(id);
        self.found(log, id, log.slot(id.index.get()).filter(|_| is_it)?)
    }

    /// A shard's entries that lie in the oldest segment, and where: at least one and otherwise at most `bytes_max` of
    /// payload. None where that segment is the one being written.
    pub(super) fn in_oldest(&self, shard: ShardId, bytes_max: usize) -> Vec<(EntryId, Position)> {
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        let (Some(log), Some(next)) = (self.shards.get(&shard), self.segments.get(1)) else {
            return found;
        };
        for index in log.stored_before(next.place.first_sequence) {
            let (Some(id), Some(slot)) = (log.id_of(index), log.slot(index)) else {
                break;
            };
            bytes = bytes.saturating_add(slot.payload_bytes as usize);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            if let SlotAt::Stored(position) = slot.at() {
                found.push((id, position));
            }
        }
        found
    }

    /// Whether the whole range can be had without touching a file.
    pub(super) fn is_cached(&self, shard: ShardId, from: u64, to: u64) -> bool {
        let Some(log) = self.shards.get(&shard) else {
            return false;
        };
        // The cached part is the log's end, so its first entry decides.
        from < to && log.cached_payload(from).is_some() && log.id_of(to - 1).is_some()
    }

    /// Whether `index` still is the entry `id` in the same place: else a reader raced with a purge or truncation.
    pub(super) fn is_still(&self, shard: ShardId, id: EntryId, position: Position) -> bool {
        self.shards.get(&shard).is_some_and(|log| {
            log.id_of(id.index.get()) == Some(id)
                && log.slot(id.index.get()).is_some_and(|slot| slot.at() == SlotAt::Stored(position))
        })
    }

    /// Shards with live entries in the oldest segment.
    pub(super) fn pinning_shards(&self) -> Vec<ShardId> {
        match (self.segments.front(), self.segments.len()) {
            (Some(oldest), 2..) => oldest.live.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// Counts anew what is kept counted. Only where nothing is queued or unflushed.
    #[cfg(test)]
    pub(super) fn assert_counts(&self) {
        let mut live = BTreeMap::new();
        let mut cached_bytes = 0;
        for (shard, log) in &self.shards {
            cached_bytes += log.cached_bytes();
            let slots = log.first_index().into_iter().flat_map(|first| first..);
            let mut bytes_framed = 0;
            for slot in slots.map_while(|index| log.slot(index)) {
                bytes_framed += slot.bytes_framed();
                if let SlotAt::Stored(position) = slot.at() {
                    let segment =
                        find(&self.segments, position).expect("an entry lies in a segment that is held");
                    *live.entry((segment.place.number, *shard)).or_default() += 1;
                }
            }
            assert_eq!(log.bytes_framed(), bytes_framed, "shard {shard}");
        }
        let kept = self.segments.iter().flat_map(|segment| {
            segment.live.iter().map(|(shard, count)| ((segment.place.number, *shard), *count))
        });
        assert_eq!(kept.collect::<BTreeMap<_, u64>>(), live);
        assert_eq!(self.cached_bytes, cached_bytes);
    }

    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }
}

impl SegmentPlace {
    fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }

    pub(super) fn segment_file(&self) -> SegmentFile {
        SegmentFile { path: self.path.clone(), file: Arc::clone(&self.file), blocks: self.blocks }
    }

    pub(super) fn holds(&self, position: Position) -> bool {
        (self.first_sequence..self.first_sequence + u64::from(self.blocks)).contains(&position.sequence)
    }
}

impl Freed {
    fn add(&mut self, segment: u64, shard: ShardId) {
        match self.0.last_mut() {
            Some((last, _, count)) if *last == segment => *count += 1,
            _ => self.0.push((segment, shard, 1)),
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// The last segment that begins at or before `position`. One that did not use all its blocks seems to reach into the
/// next by its length alone, so only the beginnings decide.
fn segment_index(segments: &VecDeque<LiveSegment>, position: Position) -> Option<usize> {
    segments.partition_point(|segment| segment.place.first_sequence <= position.sequence).checked_sub(1)
}

fn find(segments: &VecDeque<LiveSegment>, position: Position) -> Option<&LiveSegment> {
    segments.get(segment_index(segments, position)?).filter(|segment| segment.place.holds(position))
}
