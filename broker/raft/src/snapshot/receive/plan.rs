//! What is to be asked for next, and what was and is not here yet. Pure.

use std::collections::VecDeque;

use tidemill_shard::SnapshotInstall;

use super::{PIECE_BYTES_MAX, Part, Range, WINDOW_BYTES};

/// The parts that are missing, in order; the one that is being asked for; the ranges that were.
pub(super) struct Plan {
    sizes: Sizes,
    todo: VecDeque<Part>,
    current: Option<Current>,
    /// In the order in which they come.
    asked: VecDeque<Range>,
    asked_bytes: usize,
}

struct Sizes {
    chunks: Vec<u64>,
    segments: Vec<u64>,
}

impl Sizes {
    fn of(&self, part: Part) -> u64 {
        let found = match part {
            Part::Chunk(number) => self.chunks.get(number as usize),
            Part::Segment(number) => self.segments.get(number as usize),
        };
        found.copied().unwrap_or(0)
    }
}

/// The part that is being asked for, and from where on.
struct Current {
    part: Part,
    position: u64,
    bytes: u64,
}

impl Plan {
    /// The state first: it is small, and nothing stands without it.
    pub(super) fn new(install: &mut SnapshotInstall) -> Self {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let chunks = install.missing_chunks().map(|chunk| Part::Chunk(number(chunk)));
        let segments = install.missing_segments().map(|segment| Part::Segment(number(segment)));
        let todo = chunks.chain(segments).collect();
        let manifest = install.manifest();
        let sizes = Sizes {
            chunks: manifest.chunks.iter().map(|chunk| chunk.bytes).collect(),
            segments: manifest.segments.iter().map(|segment| segment.end.bytes).collect(),
        };
        Self { sizes, todo, current: None, asked: VecDeque::new(), asked_bytes: 0 }
    }

    pub(super) fn parts(&self) -> usize {
        self.todo.len()
    }

    /// Asked again only when half of the window is free, so that few messages ask for much.
    pub(super) fn wants_more(&self) -> bool {
        let left = self.current.is_some() || !self.todo.is_empty();
        left && self.asked_bytes <= WINDOW_BYTES / 2
    }

    /// Whether another piece may be asked for.
    pub(super) fn has_room(&self) -> bool {
        self.asked_bytes + PIECE_BYTES_MAX <= WINDOW_BYTES
    }

    /// The next piece of the part that is being asked for.
    pub(super) fn next_range(&mut self) -> Option<Range> {
        let current = self.current.as_mut()?;
        let bytes = current.bytes.saturating_sub(current.position).min(PIECE_BYTES_MAX as u64);
        let range = Range { part: current.part, position: current.position, bytes: bytes as u32 };
        current.position += bytes;
        if current.position >= current.bytes {
            self.current = None;
        }
        self.asked_bytes += bytes as usize;
        self.asked.push_back(range);
        Some(range)
    }

    /// Turns to the next part, from its start.
    pub(super) fn next_part(&mut self) -> Option<Part> {
        let part = self.todo.pop_front()?;
        self.current = Some(Current { part, position: 0, bytes: self.sizes.of(part) });
        Some(part)
    }

    /// The present part's beginning is here already.
    pub(super) fn resume(&mut self, position: u64) {
        if let Some(current) = &mut self.current {
            current.position = position;
        }
    }

    /// Whether nothing of the present part is left to ask for.
    pub(super) fn is_all_here(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.position >= current.bytes)
    }

    /// Nothing of the present part is to be asked for.
    pub(super) fn skip(&mut self) {
        self.current = None;
    }

    /// The range that comes next.
    pub(super) fn expect(&mut self) -> Option<Range> {
        let range = self.asked.pop_front()?;
        self.asked_bytes -= range.bytes as usize;
        Some(range)
    }

    /// Whether a range is its part's last.
    pub(super) fn ends(&self, range: Range) -> bool {
        range.position + u64::from(range.bytes) >= self.sizes.of(range.part)
    }

    /// The part is to be fetched once more.
    pub(super) fn again(&mut self, part: Part) {
        self.todo.push_back(part);
    }
}
