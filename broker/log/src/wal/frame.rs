//! A frame: one thing that happened to one shard.
//!
//! ```text
//!  0 +--------------------+------+---------+-----------+
//!    | payload bytes u32  | kind | version | shard u16 |
//!  8 +--------------------+------+---------+-----------+
//!    | index u64                                       |
//! 16 +-------------------------------------------------+
//!    | term u64                                        |
//! 24 +-------------------------------------------------+
//!    | leader node u64                                 |
//! 32 +--------------------+----------------------------+
//!    | previous crc32     | payload ...
//!    +--------------------+----------------------------+
//!    | crc32 of all before|
//!    +--------------------+
//! ```
//!
//! Little endian. Frames follow each other without padding over the payloads of a write's blocks; no frame reaches
//! from one write into the next. The previous frame's crc chains all frames of the log, over segments and shards,
//! so that neither a lost nor an exchanged frame goes unseen. The checksum comes last because a header that crosses
//! blocks could not be patched once its first block is done.

use bytes::{Buf, Bytes, BytesMut};
use tidemill_protocol::{LogIndex, ShardId, Term};

use super::crc;
use super::entry::EntryId;

/// Bytes before a frame's payload.
pub(super) const HEADER_BYTES: usize = 36;
/// The checksum after it.
pub(super) const CRC_BYTES: usize = 4;
/// What a frame takes beyond its payload.
pub(super) const FRAME_OVERHEAD_BYTES: usize = HEADER_BYTES + CRC_BYTES;

const VERSION: u8 = 1;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// An entry was appended.
    Entry = 1,
    /// The vote changed; the payload is the new one.
    Vote = 2,
    /// The committed position changed; the payload is the new one.
    Committed = 3,
    /// Entries after the named one are gone.
    TruncateAfter = 4,
    /// All entries are gone; the log goes on where it was purged to.
    TruncateAll = 5,
    /// Entries up to and with the named one are no longer needed.
    Purge = 6,
    /// A snapshot was installed; the payload tells which.
    SnapshotInstalled = 7,
    /// Everything about the shard is forgotten.
    Forget = 8,
    /// What is known of the shard is doubtful; the payload tells why.
    Doubtful = 9,
    /// Whoever is responsible accepted the loss that the doubt was about.
    DoubtAccepted = 10,
    /// Segments below `index` are no longer part of the log.
    Release = 11,
    /// The log was closed in good order.
    Close = 12,
    /// An entry that is still needed, once more, so that the segment it lay in need not stay.
    Carried = 13,
}

impl FrameKind {
    pub(super) const ALL: [Self; 13] = [
        Self::Entry,
        Self::Vote,
        Self::Committed,
        Self::TruncateAfter,
        Self::TruncateAll,
        Self::Purge,
        Self::SnapshotInstalled,
        Self::Forget,
        Self::Doubtful,
        Self::DoubtAccepted,
        Self::Release,
        Self::Close,
        Self::Carried,
    ];

    /// Whether its payload is an entry's.
    #[must_use]
    pub const fn holds_entry(self) -> bool {
        matches!(self, Self::Entry | Self::Carried)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What stands before a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: u32,
    pub(super) kind: FrameKind,
    pub(super) shard: ShardId,
    /// The entry that the frame is about; zeros where it is about none.
    pub(super) id: EntryId,
    pub(super) previous_crc: u32,
}

/// No entry.
pub(super) const NO_ENTRY: EntryId = EntryId { term: Term::new(0), leader_node: 0, index: LogIndex::new(0) };
/// The shard in frames of the log itself.
pub(super) const NO_SHARD: ShardId = ShardId::new(u16::MAX);

impl FrameHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields: [&[u8]; 7] = [
            &self.payload_bytes.to_le_bytes(),
            &[self.kind as u8, VERSION],
            &self.shard.get().to_le_bytes(),
            &self.id.index.get().to_le_bytes(),
            &self.id.term.get().to_le_bytes(),
            &self.id.leader_node.to_le_bytes(),
            &self.previous_crc.to_le_bytes(),
        ];
        for (target, source) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *target = *source;
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let payload_bytes = bytes.try_get_u32_le().ok()?;
        let kind = FrameKind::from_byte(bytes.try_get_u8().ok()?)?;
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let shard = ShardId::new(bytes.try_get_u16_le().ok()?);
        let index = LogIndex::new(bytes.try_get_u64_le().ok()?);
        let term = Term::new(bytes.try_get_u64_le().ok()?);
        let leader_node = bytes.try_get_u64_le().ok()?;
        let previous_crc = bytes.try_get_u32_le().ok()?;
        Some(Self { payload_bytes, kind, shard, id: EntryId { term, leader_node, index }, previous_crc })
    }
}

/// Where a frame begins: a block's sequence and a place in its payload. Ordered as the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) sequence: u64,
    pub(super) offset: u16,
}

impl Position {
    /// Behind all that a log will ever hold.
    pub(super) const END: Self = Self { sequence: u64::MAX, offset: u16::MAX };

    /// The beginning of a block.
    pub(super) const fn block(sequence: u64) -> Self {
        Self { sequence, offset: 0 }
    }
}

/// A frame as read back, its checksum verified.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    pub(super) payload: Bytes,
    pub(super) crc: u32,
    pub(super) position: Position,
    /// Just after the frame: in the block where it ends.
    pub(super) end: Position,
}

/// Bytes that are no frame though their blocks are sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadFrame {
    pub(super) position: Position,
}

/// Puts frames together from the payloads of consecutive blocks. Sans-IO.
pub(super) struct FrameAssembler {
    pending: BytesMut,
    frame_bytes_max: usize,
    /// Where the pending bytes begin.
    start: Position,
    /// The block pushed last, and how many of the pending bytes came before it.
    sequence: u64,
    carried: usize,
    /// Where in the block's payload the pushed bytes begin.
    base: usize,
    consumed: usize,
}

impl FrameAssembler {
    /// Takes frames of at most `frame_bytes_max` as possible; a longer length is damage, not an allocation.
    pub(super) fn new(frame_bytes_max: usize) -> Self {
        Self {
            pending: BytesMut::new(),
            frame_bytes_max,
            start: Position::block(0),
            sequence: 0,
            carried: 0,
            base: 0,
            consumed: 0,
        }
    }

    /// Adds what a block holds from `offset` of its payload on. All frames must have been taken before.
    pub(super) fn push(&mut self, sequence: u64, offset: usize, bytes: &[u8]) {
        self.start = self.next_start();
        if self.pending.is_empty() {
            self.start = at(sequence, offset);
        }
        self.sequence = sequence;
        self.base = offset;
        self.carried = self.pending.len();
        self.consumed = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// Whether a frame has begun that is not complete.
    pub(super) fn is_within_frame(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Where the next frame, complete or not, begins.
    pub(super) fn next_start(&self) -> Position {
        if self.consumed < self.carried {
            self.start
        } else {
            at(self.sequence, self.base + self.consumed - self.carried)
        }
    }

    /// The next complete frame; `None` where more blocks are needed.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, BadFrame> {
        let position = self.next_start();
        let Some(header) = self.pending.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header).ok_or(BadFrame { position })?;
        let checked = HEADER_BYTES.saturating_add(header.payload_bytes as usize);
        let total = checked.saturating_add(CRC_BYTES);
        if total > self.frame_bytes_max {
            return Err(BadFrame { position });
        }
        if self.pending.len() < total {
            self.pending.reserve(total - self.pending.len());
            return Ok(None);
        }
        let mut bytes = self.pending.split_to(total).freeze();
        let mut stored = bytes.split_off(checked);
        let crc = crc::extend(0, &bytes);
        if stored.get_u32_le() != crc {
            return Err(BadFrame { position });
        }
        bytes.advance(HEADER_BYTES);
        self.consumed += total;
        let end = at(self.sequence, self.base + self.consumed - self.carried);
        Ok(Some(Frame { header, payload: bytes, crc, position, end }))
    }
}

fn at(sequence: u64, offset: usize) -> Position {
    // Offsets within a block fit; the clamp only spares a panic path.
    Position { sequence, offset: u16::try_from(offset).unwrap_or(u16::MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn headers() -> impl Strategy<Value = FrameHeader> {
        let kinds = proptest::sample::select(&FrameKind::ALL[..]);
        (kinds, any::<u16>(), any::<[u64; 3]>(), any::<u32>()).prop_map(
            |(kind, shard, [index, term, leader_node], previous_crc)| FrameHeader {
                payload_bytes: 0,
                kind,
                shard: ShardId::new(shard),
                id: EntryId { term: Term::new(term), leader_node, index: LogIndex::new(index) },
                previous_crc,
            },
        )
    }

    fn encoded(header: &FrameHeader, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in proptest::collection::vec((headers(), proptest::collection::vec(any::<u8>(), 0..200)), 1..8),
            cut in 1_usize..120,
        ) {
            let frames: Vec<_> = frames
                .into_iter()
                .map(|(header, payload)| {
                    (FrameHeader { payload_bytes: u32::try_from(payload.len()).unwrap(), ..header }, payload)
                })
                .collect();
            let stream: Vec<u8> = frames.iter().flat_map(|(header, payload)| encoded(header, payload)).collect();
            let mut assembler = FrameAssembler::new(1000);
            let mut got = Vec::new();
            let mut expected_start = 0;
            for (sequence, piece) in (5_u64..).zip(stream.chunks(cut)) {
                assembler.push(sequence, 0, piece);
                while let Some(frame) = assembler.next().unwrap() {
                    let start = at(5 + (expected_start / cut) as u64, expected_start % cut);
                    prop_assert_eq!(frame.position, start);
                    expected_start += FRAME_OVERHEAD_BYTES + frame.payload.len();
                    got.push((frame.header, frame.payload.to_vec()));
                }
            }
            prop_assert!(!assembler.is_within_frame());
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn a_flipped_bit_never_yields_a_frame(
            header in headers(),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            bit: usize,
        ) {
            let header = FrameHeader { payload_bytes: u32::try_from(payload.len()).unwrap(), ..header };
            let mut bytes = encoded(&header, &payload);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut assembler = FrameAssembler::new(1 << 20);
            assembler.push(1, 0, &bytes);
            prop_assert!(!matches!(assembler.next(), Ok(Some(_))));
        }
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let header = FrameHeader {
            payload_bytes: u32::MAX,
            kind: FrameKind::Entry,
            shard: ShardId::new(1),
            id: NO_ENTRY,
            previous_crc: 0,
        };
        let mut assembler = FrameAssembler::new(1000);
        assembler.push(7, 0, &header.encode());
        assert_eq!(assembler.next().unwrap_err(), BadFrame { position: Position::block(7) });
    }
}
