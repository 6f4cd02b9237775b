//! Frames, in the log's order, become the shards' state. Sans-IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_protocol::{LogIndex, ShardId};

use super::block::Role;
use super::doubt::{Doubt, DoubtReason};
use super::entry::EntryId;
use super::frame::{Frame, FrameKind, Position};
use super::recovery::RecoveredShard;
use super::scan::{Accept, Segment};
use super::shard_log::{Slot, SlotAt};
use super::state::{LiveSegment, SegmentPlace, State};

/// The state that grows frame by frame.
pub(super) struct Fold {
    state: State,
    pub(super) first_live: u64,
    pub(super) closed: bool,
    frames: u64,
    /// Entries that a shard's log skipped: fine if they prove to be purged, or carried forward, by the end.
    skipped_to: BTreeMap<ShardId, u64>,
    /// Entries of which only the copy was found, by shard and index: they go before those that the log holds.
    carried: BTreeMap<ShardId, BTreeMap<u64, (EntryId, Slot)>>,
    /// Shards of which entries were left out, because those before them are missing.
    left_out: BTreeSet<ShardId>,
    /// Whether there were segments before the first one that was read.
    follows_others: bool,
    replicated: bool,
    boot_id: Option<[u8; 16]>,
}

/// What is left beside the state.
pub(super) struct FoldEnd {
    pub(super) shards: BTreeMap<ShardId, RecoveredShard>,
    pub(super) first_live: u64,
    pub(super) closed: bool,
    pub(super) frames: u64,
}

impl Fold {
    pub(super) fn new(cache_bytes: usize, first_live: u64) -> Self {
        Self {
            state: State::new(cache_bytes),
            first_live,
            closed: false,
            frames: 0,
            skipped_to: BTreeMap::new(),
            carried: BTreeMap::new(),
            left_out: BTreeSet::new(),
            follows_others: false,
            replicated: false,
            boot_id: None,
        }
    }

    /// The next segment begins.
    pub(super) fn enter(&mut self, segment: &Segment) {
        let header = &segment.header;
        if self.state.segments.is_empty() {
            self.follows_others = header.previous.is_some();
        }
        self.replicated = header.replicated;
        self.boot_id = header.boot_id;
        self.state.segments.push_back(LiveSegment {
            place: Arc::new(SegmentPlace {
                number: header.number,
                path: segment.file.path.clone(),
                file: Arc::clone(&segment.file.file),
                first_sequence: header.first_sequence,
                salt: header.salt,
                blocks: header.blocks,
            }),
            live: BTreeMap::new(),
        });
    }

    /// Takes in a frame; false where it makes no sense after those before.
    pub(super) fn frame(&mut self, frame: &Frame, role: Role) -> Accept {
        let header = &frame.header;
        let shard = header.shard;
        let note = (!frame.payload.is_empty()).then(|| frame.payload.clone());
        self.frames += 1;
        if role == Role::Data {
            self.closed = false;
        }
        match header.kind {
            FrameKind::Entry | FrameKind::Carried => return self.original_or_copy(frame),
            FrameKind::Vote => self.state.shard(shard).vote = note,
            FrameKind::Committed => self.state.shard(shard).committed = note,
            FrameKind::SnapshotInstalled => self.state.shard(shard).snapshot_installed = note,
            FrameKind::TruncateAfter => {
                self.truncate_from(shard, header.id.index.get().saturating_add(1));
            }
            FrameKind::TruncateAll => self.truncate_from(shard, 0),
            FrameKind::Purge => {
                let freed = self.state.purge(shard, header.id);
                self.state.apply_freed(&freed);
            }
            FrameKind::Forget => {
                let freed = self.state.forget(shard, 0);
                self.state.apply_freed(&freed);
                self.state.shards.remove(&shard);
                self.skipped_to.remove(&shard);
                self.carried.remove(&shard);
            }
            FrameKind::Doubtful => match Doubt::decode(&frame.payload, header.id) {
                Some(doubt) => self.state.shard(shard).doubt = Some(doubt),
                None => return false,
            },
            FrameKind::DoubtAccepted => {
                self.state.shard(shard).doubt = None;
                self.skipped_to.remove(&shard);
            }
            FrameKind::Release => self.first_live = self.first_live.max(header.id.index.get()),
            FrameKind::Close => self.closed = true,
        }
        true
    }

    fn truncate_from(&mut self, shard: ShardId, from: u64) {
        let freed = self.state.truncate_from(shard, from, 0);
        self.state.apply_freed(&freed);
        if let Some(carried) = self.carried.get_mut(&shard) {
            carried.split_off(&from);
        }
    }

    /// An entry, in either kind of frame, unless it was purged.
    fn original_or_copy(&mut self, frame: &Frame) -> Accept {
        let header = &frame.header;
        let Ok(payload_bytes) = u32::try_from(frame.payload.len()) else {
            return false;
        };
        if self.state.shard(header.shard).purged.is_some_and(|purged| header.id.index <= purged.index) {
            return true;
        }
        match header.kind {
            FrameKind::Carried => self.carried(frame, payload_bytes),
            _ => self.entry(frame, payload_bytes),
        }
    }

    /// An entry's copy: as of here the shard has it, whether its original was found or not.
    fn carried(&mut self, frame: &Frame, payload_bytes: u32) -> Accept {
        let id = frame.header.id;
        let shard = frame.header.shard;
        let index = id.index.get();
        let log = self.state.shard(shard);
        match (log.id_of(index), log.slot(index).map(Slot::at)) {
            (Some(held), Some(SlotAt::Stored(from))) if held == id => {
                let freed = self.state.moved(shard, index, from, frame.position);
                self.state.apply_freed(&freed);
                true
            }
            // What follows the entry can't be older than it, so it is found too, or was carried as well.
            (None, _) if log.first_index().is_none_or(|first| index < first) => {
                let slot = Slot::new(SlotAt::Stored(frame.position), payload_bytes);
                self.carried.entry(shard).or_default().insert(index, (id, slot));
                true
            }
            _ => false,
        }
    }

    /// Puts entries of which only the copy was found before those that follow them. Once all frames are taken in.
    ///
    /// ```text
    ///   purged to 2, copies of 3 4 5 6 7 8, and 9 10 11 12:  3 to 12
    ///   purged to 2, copies of 3 4 5,       and 9 10 11 12:  3 to 5: 6 to 8 are lost, and what is behind means nothing
    ///   purged to 2, copies of     5 6 7 8, and 9 10 11 12:  5 to 12: the purge that comes up to 5 may be what was lost
    /// ```
    pub(super) fn settle(&mut self) {
        for (shard, mut carried) in std::mem::take(&mut self.carried) {
            let log = self.state.shard(shard);
            if let Some(purged) = log.purged {
                carried = carried.split_off(&purged.index.get().saturating_add(1));
            }
            let Some((lowest, _)) = carried.first_key_value() else {
                continue;
            };
            let begin = log.purged.map_or(*lowest, |purged| purged.index.get().saturating_add(1));
            let run = (begin..).zip(carried.keys()).take_while(|(expected, index)| expected == *index);
            let run_end = begin + run.count() as u64;
            let is_whole = carried.keys().next_back().is_some_and(|last| *last < run_end)
                && log.first_index().is_none_or(|first| first == run_end);
            if run_end > begin && !is_whole {
                let freed = self.state.drop_entries(shard);
                self.state.apply_freed(&freed);
                self.left_out.insert(shard);
                carried.split_off(&run_end);
            }
            for (index, (id, slot)) in carried.into_iter().rev() {
                match self.state.shard(shard).first_index() {
                    Some(first) if first != index + 1 => break,
                    _ => self.state.prepend(shard, id, slot),
                }
            }
            // The end looks whether something before the first is missing.
            if let Some(first) = self.state.shard(shard).first_index().filter(|first| *first > begin) {
                self.skipped_to.insert(shard, first - 1);
            }
        }
    }

    fn entry(&mut self, frame: &Frame, payload_bytes: u32) -> Accept {
        let shard = frame.header.shard;
        let index = frame.header.id.index.get();
        let is_known =
            |carried: &BTreeMap<u64, _>| carried.last_key_value().is_some_and(|(last, _)| index <= *last);
        if self.carried.get(&shard).is_some_and(is_known) {
            return false;
        }
        match self.state.shard(shard).expected_next() {
            Some(expected) if index < expected => return false,
            Some(expected) if index > expected => {
                // Entries between lie in segments that are released; the purge that allowed it comes later, or they were
                // carried forward.
                let freed = self.state.drop_entries(shard);
                self.state.apply_freed(&freed);
                let purged = self.state.shard(shard).purged.take();
                self.skipped_to.insert(shard, index - 1);
                self.append(frame, payload_bytes);
                self.state.shard(shard).purged = purged;
                return true;
            }
            _ => {}
        }
        self.append(frame, payload_bytes);
        true
    }

    fn append(&mut self, frame: &Frame, payload_bytes: u32) {
        let shard = frame.header.shard;
        // Whatever is in a file may leave the cache.
        self.state.shard(shard).set_evictable_below(u64::MAX);
        let slot = Slot::new(SlotAt::Stored(frame.position), payload_bytes);
        self.state.append(shard, frame.header.id, slot, frame.payload.clone().into());
    }

    /// Whether writes that were acknowledged unflushed may be gone with the machine's power.
    pub(super) fn power_loss(&self, boot_id: Option<[u8; 16]>) -> bool {
        let rebooted = matches!((self.boot_id, boot_id), (Some(then), Some(now)) if then != now);
        self.replicated && !self.closed && rebooted
    }

    /// Every shard may have lost something. A purge is among what may be lost, and the segments that it freed are gone all
    /// the same: then what a shard has begins behind a gap, and of what is behind that nothing is sure.
    pub(super) fn doubt_all(&mut self, damage: &Doubt) {
        for log in self.state.shards.values_mut() {
            let begin = match log.purged {
                Some(purged) => purged.index.get() + 1,
                None if self.follows_others => 0,
                // Nothing was before it: a log may begin anywhere.
                None => u64::MAX,
            };
            let is_gap = log.first_index().is_some_and(|first| first > begin);
            let sure_to = if is_gap { log.purged } else { log.last() };
            log.doubt.get_or_insert_with(|| Doubt { sure_to, ..damage.clone() });
        }
    }

    /// The end of the log, at `end` in `segment`. `used` are the segments that remain.
    pub(super) fn finish(
        mut self,
        segment: u64,
        end: Position,
        used: &[Segment],
        report: &mut Vec<String>,
    ) -> (State, FoldEnd) {
        let mut inconsistent = Vec::new();
        for (shard, skipped_to) in &self.skipped_to {
            let log = self.state.shard(*shard);
            let first = log.first_index().unwrap_or(skipped_to + 1);
            if log.purged.is_none_or(|purged| purged.index.get() + 1 < first) {
                inconsistent.push((*shard, log.purged));
            }
        }
        for shard in &self.left_out {
            inconsistent.push((*shard, self.state.shard(*shard).last()));
        }
        for (shard, sure_to) in inconsistent {
            let log = self.state.shard(shard);
            if log.doubt.is_none() {
                let doubt = Doubt {
                    reason: DoubtReason::Inconsistent,
                    segment,
                    block_sequence: end.sequence,
                    sure_to,
                };
                report.push(format!("shard {shard}: {doubt}"));
                log.doubt = Some(doubt);
            }
        }
        let first_live = self.first_live;
        let is_kept =
            |number: u64| number >= first_live && used.iter().any(|kept| kept.header.number == number);
        self.state.segments.retain(|segment| is_kept(segment.place.number));
        let mut shards = BTreeMap::new();
        for (shard, log) in &mut self.state.shards {
            log.finish_recovery();
            let recovered = RecoveredShard {
                vote: log.vote.clone(),
                committed: log.committed.clone(),
                snapshot_installed: log.snapshot_installed.clone(),
                purged: log.purged,
                first: log.first_index().map(LogIndex::new),
                last: log.last(),
                doubtful: log.doubt.clone(),
            };
            shards.insert(*shard, recovered);
        }
        self.state.enforce_cache_limit();
        let end = FoldEnd { shards, first_live, closed: self.closed, frames: self.frames };
        (self.state, end)
    }
}
