//! Reading segments from front to back: for recovery and for inspection.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::block::{self, BLOCK_BYTES, NO_FRAME, Role, Trailer};
use super::frame::{Frame, FrameAssembler, FrameKind, Position};
use super::header::{HeaderBlock, SegmentHeader};
use crate::fs::{AlignedBuffer, StorageFile};

/// Blocks fetched by one read.
const READ_AHEAD_BLOCKS: usize = 256;

/// A segment file, open.
#[derive(Clone)]
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn StorageFile>,
    /// Whole blocks in the file.
    pub(super) blocks: u32,
}

impl SegmentFile {
    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }
}

/// A segment file that holds a life of the log.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: SegmentFile,
    pub(super) header: SegmentHeader,
}

impl SegmentFile {
    pub(super) fn read_header(&self) -> io::Result<HeaderBlock> {
        if self.blocks == 0 {
            return Ok(HeaderBlock::None);
        }
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        self.file.read_exact_at(0, &mut block)?;
        Ok(SegmentHeader::decode(&block))
    }
}

/// Fetches a file's blocks with read-ahead.
pub(super) struct BlockReader<'a> {
    file: &'a SegmentFile,
    chunk: AlignedBuffer,
    first: u32,
    count: u32,
}

impl<'a> BlockReader<'a> {
    pub(super) fn new(file: &'a SegmentFile) -> Self {
        let blocks = READ_AHEAD_BLOCKS.min(file.blocks as usize);
        Self { file, chunk: AlignedBuffer::zeroed(blocks * BLOCK_BYTES), first: 0, count: 0 }
    }

    /// Block `number` of the file, `None` behind its end.
    pub(super) fn block(&mut self, number: u32) -> io::Result<Option<&[u8]>> {
        if number >= self.file.blocks {
            return Ok(None);
        }
        if !(self.first..self.first + self.count).contains(&number) {
            let capacity = u32::try_from(self.chunk.len() / BLOCK_BYTES).unwrap_or(u32::MAX);
            let count = capacity.min(self.file.blocks - number);
            self.count = 0;
            let bytes = self.chunk.get_mut(..count as usize * BLOCK_BYTES).unwrap_or_default();
            self.file.file.read_exact_at(u64::from(number) * BLOCK_BYTES as u64, bytes)?;
            self.first = number;
            self.count = count;
        }
        let start = (number - self.first) as usize * BLOCK_BYTES;
        Ok(self.chunk.get(start..start + BLOCK_BYTES))
    }

    /// The block's trailer and payload, `None` where it is not valid.
    pub(super) fn open(&mut self, number: u32) -> io::Result<Option<(Trailer, &[u8])>> {
        Ok(self.block(number)?.and_then(block::open))
    }
}

/// Why a scan of a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanStop {
    /// Where it was to end.
    Sealed,
    /// At a block that is not of this life, or not whole.
    BadBlock,
    /// At bytes that are no frame, do not follow the frame before, or make no sense in their place.
    BadFrame,
    /// At the end of the file.
    EndOfFile,
    /// In the preamble: the segment contributes nothing.
    BadPreamble,
}

/// Where a scan of a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScanEnd {
    pub(super) stop: ScanStop,
    /// Just after the last good frame.
    pub(super) end: Position,
    /// Crc of the last good frame.
    pub(super) chain: u32,
    /// The block whose proof of having been flushed makes the stop damage.
    pub(super) suspect: u64,
    /// Every block with a smaller sequence was on the device: the good blocks prove it.
    pub(super) flushed: u64,
}

/// Whether frame and place fit the log so far.
pub(super) type Accept = bool;

/// Walks the preamble and the data frames of a segment up to `until` (the next segment's word on where this one
/// ends) or the first thing that is wrong. `visit` gets each frame whose checksum and chain are right.
pub(super) fn scan(
    segment: &Segment,
    until: Option<Position>,
    visit: &mut dyn FnMut(&Frame, Role) -> Accept,
) -> io::Result<ScanEnd> {
    let header = &segment.header;
    let data_start = header.preamble_blocks.saturating_add(1);
    let mut reader = BlockReader::new(&segment.file);
    let mut run = Run { segment, reader: &mut reader, until: None, visit };
    let preamble = run.frames(1, data_start, Role::Preamble, header.salt)?;
    let data_begin = Position::block(header.first_sequence + u64::from(data_start));
    if preamble.stop != ScanStop::Sealed {
        // Without its preamble a segment says nothing: its data may build on state that only the preamble has.
        return Ok(ScanEnd { stop: ScanStop::BadPreamble, end: data_begin, chain: header.chain, ..preamble });
    }
    run.until = until;
    // The header's count, so that a file cut short ends in a bad block rather than in good order.
    let data = run.frames(data_start, header.blocks, Role::Data, header.chain)?;
    let ran_out = data.stop == ScanStop::Sealed && until.is_none();
    Ok(if ran_out { ScanEnd { stop: ScanStop::EndOfFile, ..data } } else { data })
}

struct Run<'a, 'b> {
    segment: &'a Segment,
    reader: &'b mut BlockReader<'a>,
    until: Option<Position>,
    visit: &'b mut dyn FnMut(&Frame, Role) -> Accept,
}

impl Run<'_, '_> {
    /// Walks blocks `first..end`; `Sealed` when it gets to the end or to `until`.
    fn frames(&mut self, first: u32, end: u32, role: Role, chain: u32) -> io::Result<ScanEnd> {
        let header = &self.segment.header;
        let mut assembler = FrameAssembler::new(header.blocks as usize * BLOCK_BYTES);
        let sequence_of = |number: u32| header.first_sequence + u64::from(number);
        let mut at = ScanEnd {
            stop: ScanStop::Sealed,
            end: Position::block(sequence_of(first)),
            chain,
            suspect: sequence_of(end),
            flushed: header.flushed,
        };
        for number in first..end {
            let sequence = sequence_of(number);
            if self.is_over(Position::block(sequence)) {
                return Ok(at);
            }
            let bad = |stop, suspect| ScanEnd { stop, suspect, ..at };
            let Some((trailer, payload)) = self.reader.open(number)? else {
                return Ok(bad(ScanStop::BadBlock, sequence));
            };
            if trailer.salt != header.salt || trailer.sequence != sequence || trailer.role != role {
                return Ok(bad(ScanStop::BadBlock, sequence));
            }
            if trailer.starts_write && assembler.is_within_frame() {
                return Ok(bad(ScanStop::BadFrame, assembler.next_start().sequence));
            }
            at.flushed = at.flushed.max(trailer.flushed);
            assembler.push(sequence, 0, payload);
            loop {
                if self.is_over(assembler.next_start()) {
                    return Ok(at);
                }
                let bad = |suspect| ScanEnd { stop: ScanStop::BadFrame, suspect, ..at };
                let frame = match assembler.next() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(frame) => return Ok(bad(frame.position.sequence)),
                };
                if frame.header.previous_crc != at.chain || !(self.visit)(&frame, role) {
                    return Ok(bad(frame.position.sequence));
                }
                at.chain = frame.crc;
                at.end = frame.end;
            }
        }
        if assembler.is_within_frame() {
            return Ok(ScanEnd { stop: ScanStop::BadFrame, suspect: assembler.next_start().sequence, ..at });
        }
        Ok(at)
    }

    fn is_over(&self, position: Position) -> bool {
        self.until.is_some_and(|until| position >= until)
    }
}

/// What valid blocks tell that lie behind the point where a scan stopped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behind {
    /// Everything below was on the device at some time.
    pub(super) flushed_max: u64,
    /// Segments below are no longer part of the log; 0 where no frame says so.
    pub(super) released_max: u64,
}

/// Reads the valid blocks of this life from block `first` on. Of its frames those count that begin before `end`: what is
/// behind is no part of the log.
pub(super) fn behind(segment: &Segment, first: u32, end: Position) -> io::Result<Behind> {
    let header = &segment.header;
    let mut reader = BlockReader::new(&segment.file);
    let mut releases = Releases::new(header.blocks, end);
    let mut flushed_max = 0;
    for number in first..segment.file.blocks {
        let sequence = header.first_sequence + u64::from(number);
        if let Some((trailer, payload)) = reader.open(number)?
            && trailer.salt == header.salt
            && trailer.sequence == sequence
        {
            flushed_max = trailer.flushed.max(flushed_max);
            releases.block(&trailer, payload);
        }
    }
    Ok(Behind { flushed_max, released_max: releases.max })
}

/// Finds frames that release segments, though what is before them can't be read.
///
/// ```text
///   | frames      | damaged | middle of a frame | first -> frame|frame | damaged | first -> frame ...
///     until there             skipped             read                           read
/// ```
///
/// Such a frame proves itself: its blocks are of this life and it has a checksum of its own. Only that it follows the frame
/// before is not proven, and what it says does not depend on that: it was queued after all that it builds on was flushed.
///
/// What a client put into an entry is never taken for a frame. Reading begins only where the writer noted, under the
/// block's checksum, that one begins, and from there each frame's length says where the next one does.
struct Releases {
    assembler: FrameAssembler,
    frame_bytes_max: usize,
    end: Position,
    /// Salt and sequence of the block that would go on where the last one ended.
    next: Option<(u32, u64)>,
    /// The furthest of them: segments below are released.
    max: u64,
}

impl Releases {
    /// Looks into blocks of a file of so many, for frames that begin before `end`.
    fn new(file_blocks: u32, end: Position) -> Self {
        let frame_bytes_max = file_blocks as usize * BLOCK_BYTES;
        Self { assembler: FrameAssembler::new(frame_bytes_max), frame_bytes_max, end, next: None, max: 0 }
    }

    /// The next valid block.
    fn block(&mut self, trailer: &Trailer, payload: &[u8]) {
        if trailer.role != Role::Data {
            return;
        }
        let follows = self.next == Some((trailer.salt, trailer.sequence));
        self.next = trailer.sequence.checked_add(1).map(|sequence| (trailer.salt, sequence));
        // No frame reaches over a gap, nor from one write into the next.
        if !follows || trailer.starts_write {
            self.start_anew();
        }
        let begin = if self.assembler.is_within_frame() { 0 } else { trailer.first_frame };
        if begin == NO_FRAME {
            return;
        }
        let begin = usize::from(begin);
        self.assembler.push(trailer.sequence, begin, payload.get(begin..).unwrap_or_default());
        loop {
            match self.assembler.next() {
                Ok(Some(frame)) => {
                    if frame.header.kind == FrameKind::Release && frame.position < self.end {
                        self.max = self.max.max(frame.header.id.index.get());
                    }
                }
                Ok(None) => return,
                Err(_bad) => return self.start_anew(),
            }
        }
    }

    fn start_anew(&mut self) {
        self.assembler = FrameAssembler::new(self.frame_bytes_max);
    }
}

/// What blocks in a file without a valid header tell: of a life whose header was torn, or damaged later.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remains {
    pub(super) sequence_max: u64,
    pub(super) flushed_max: u64,
    pub(super) released_max: u64,
}

/// Looks for blocks newer than `newer_than` in a file without a header. A life that was flushed begins with valid
/// blocks, so a few at the front decide whether the rest is worth reading.
pub(super) fn remains(file: &SegmentFile, newer_than: u64) -> io::Result<Option<Remains>> {
    const PROBE_BLOCKS: u32 = 16;
    let mut reader = BlockReader::new(file);
    let mut releases = Releases::new(file.blocks, Position::END);
    let mut found: Option<Remains> = None;
    for number in 1..file.blocks {
        if number > PROBE_BLOCKS && found.is_none() {
            break;
        }
        if let Some((trailer, payload)) = reader.open(number)?
            && trailer.sequence > newer_than
        {
            releases.block(&trailer, payload);
            let remains = found.get_or_insert_default();
            remains.sequence_max = remains.sequence_max.max(trailer.sequence);
            remains.flushed_max = remains.flushed_max.max(trailer.flushed);
            remains.released_max = releases.max;
        }
    }
    Ok(found)
}
