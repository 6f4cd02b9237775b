//! Entries back from memory or from the segments.

use std::io;
use std::sync::Arc;

use tidemill_protocol::{LogIndex, ShardId};

use super::block::{self, BLOCK_BYTES, PAYLOAD_BYTES, Role};
use super::entry::{EntryId, WalEntry};
use super::error::WalReadError;
use super::frame::{FRAME_OVERHEAD_BYTES, Frame, FrameAssembler, Position};
use super::state::{Found, SegmentPlace, State};
use crate::fs::AlignedBuffer;

/// What one read fetches at least, so that neighbours come along.
const WINDOW_BLOCKS: u32 = 64;

/// Reads entries `from..to`; see [`super::Wal::read`].
pub(super) fn read(
    state: &parking_lot::Mutex<State>,
    shard: ShardId,
    from: LogIndex,
    to_exclusive: LogIndex,
    bytes_max: usize,
) -> Result<Vec<WalEntry>, WalReadError> {
    if from >= to_exclusive {
        return Ok(Vec::new());
    }
    let found = state.lock().find(shard, from.get(), to_exclusive.get(), bytes_max);
    if found.is_empty() {
        return Err(WalReadError::NotFound { shard, index: from });
    }
    let mut window = None;
    let mut entries = Vec::with_capacity(found.len());
    for found in found {
        match fetch_found(state, &mut window, shard, found)? {
            Some(entry) => entries.push(entry),
            None if entries.is_empty() => return Err(WalReadError::NotFound { shard, index: from }),
            None => break,
        }
    }
    Ok(entries)
}

/// An entry that was found, from wherever it is by now; `None` where it is no longer in the log.
fn fetch_found(
    state: &parking_lot::Mutex<State>,
    window: &mut Option<Window>,
    shard: ShardId,
    mut found: Found,
) -> Result<Option<WalEntry>, WalReadError> {
    loop {
        let (place, segment) = match found {
            Found::Cached(entry) => return Ok(Some(entry)),
            Found::Stored { id, position, payload_bytes, segment } => {
                (Place { shard, id, position, payload_bytes }, segment)
            }
        };
        let error = match fetch(window, &place, segment) {
            Ok(entry) => return Ok(Some(entry)),
            Err(error) => error,
        };
        // A segment may be recycled under a reader. Then the entry is gone from the log as well, or was carried forward:
        // once for each time round the log, so that this comes to an end.
        let state = state.lock();
        if state.is_still(shard, place.id, place.position) {
            return Err(error);
        }
        match state.find_id(shard, place.id) {
            Some(elsewhere) => found = elsewhere,
            None => return Ok(None),
        }
    }
}

/// The entry `id` as it is in the log now; `None` where it is there no longer.
pub(super) fn read_one(
    state: &parking_lot::Mutex<State>,
    window: &mut Option<Window>,
    shard: ShardId,
    id: EntryId,
) -> Result<Option<WalEntry>, WalReadError> {
    let found = state.lock().find_id(shard, id);
    found.map_or(Ok(None), |found| fetch_found(state, window, shard, found))
}

struct Place {
    shard: ShardId,
    id: EntryId,
    position: Position,
    payload_bytes: u32,
}

/// Some blocks of a segment, fetched together.
pub(super) struct Window {
    segment: Arc<SegmentPlace>,
    first: u32,
    count: u32,
    bytes: AlignedBuffer,
}

fn fetch(
    window: &mut Option<Window>,
    place: &Place,
    segment: Arc<SegmentPlace>,
) -> Result<WalEntry, WalReadError> {
    let index = place.id.index;
    let damaged = || WalReadError::Damaged { shard: place.shard, index, path: segment.path.clone() };
    let frame_bytes = FRAME_OVERHEAD_BYTES + place.payload_bytes as usize;
    let blocks = (usize::from(place.position.offset) + frame_bytes).div_ceil(PAYLOAD_BYTES);
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    let first = u32::try_from(place.position.sequence - segment.first_sequence).map_err(|_| damaged())?;
    if !window.as_ref().is_some_and(|window| window.covers(&segment, first, blocks)) {
        let fetched = Window::fetch(&segment, first, blocks, window.take());
        *window = Some(fetched.map_err(|source| WalReadError::Io {
            shard: place.shard,
            index,
            source: Arc::new(source),
        })?);
    }
    let frame = window.as_ref().and_then(|window| window.frame(place.position, first, blocks, frame_bytes));
    let header = frame.as_ref().map(|frame| frame.header);
    let is_it = header.is_some_and(|header| {
        header.kind.holds_entry() && header.shard == place.shard && header.id == place.id
    });
    match frame.filter(|_| is_it) {
        Some(frame) => Ok(WalEntry { id: place.id, payload: frame.payload.into() }),
        None => Err(damaged()),
    }
}

impl Window {
    fn fetch(segment: &Arc<SegmentPlace>, first: u32, blocks: u32, old: Option<Self>) -> io::Result<Self> {
        let count = blocks.max(WINDOW_BLOCKS).min(segment.blocks.saturating_sub(first));
        let wanted = count as usize * BLOCK_BYTES;
        let mut bytes = match old {
            Some(old) if old.bytes.len() >= wanted => old.bytes,
            _ => AlignedBuffer::zeroed(wanted),
        };
        let target = bytes.get_mut(..wanted).unwrap_or_default();
        segment.file.read_exact_at(u64::from(first) * BLOCK_BYTES as u64, target)?;
        Ok(Self { segment: Arc::clone(segment), first, count, bytes })
    }

    fn covers(&self, segment: &Arc<SegmentPlace>, first: u32, blocks: u32) -> bool {
        self.segment.number == segment.number
            && first >= self.first
            && first.saturating_add(blocks) <= self.first + self.count
    }

    fn frame(&self, position: Position, first: u32, blocks: u32, frame_bytes: usize) -> Option<Frame> {
        let mut assembler = FrameAssembler::new(frame_bytes);
        let start = (first - self.first) as usize * BLOCK_BYTES;
        let bytes = self.bytes.get(start..start + blocks as usize * BLOCK_BYTES)?;
        let mut skip = usize::from(position.offset);
        for (sequence, bytes) in (position.sequence..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let (trailer, payload) = block::open(bytes)?;
            let is_its = trailer.salt == self.segment.salt
                && trailer.sequence == sequence
                && trailer.role == Role::Data;
            if !is_its {
                return None;
            }
            assembler.push(sequence, skip, payload.get(skip..)?);
            skip = 0;
            if let Some(frame) = assembler.next().ok()? {
                return Some(frame);
            }
        }
        None
    }
}
