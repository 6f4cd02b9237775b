//! The first block of a segment: which life this is, and what came before it.
//!
//! ```text
//!  segment  | header | preamble ...        | data ...                                   |
//!  block    0        1        1 + preamble_blocks                              `blocks`
//!
//!  header payload (little endian)
//!   0 +-------------------------------------------+
//!     | "TMWALSEG"                                |
//!   8 +-------------+------------+----------------+---------------------+
//!     | version u16 | durability | boot id given  | blocks u32          |
//!  16 +-------------+------------+----------------+---------------------+
//!     | number u64                                                      |
//!  24 +-----------------------------------------------------------------+
//!     | previous segment's number u64, 0 for none                       |
//!  32 +-----------------------------------------------------------------+
//!     | where the log ended in it: block sequence u64                   |
//!  40 +---------------------+-------+-------------+---------------------+
//!     | ... and offset u16  | 0 u16               | chain u32           |
//!  48 +---------------------+---------------------+---------------------+
//!     | first live segment's number u64                                 |
//!  56 +---------------------------------+-------------------------------+
//!     | preamble blocks u32             | 0 u32                         |
//!  64 +---------------------------------+-------------------------------+
//!     | boot id, 16 bytes                                               |
//!  80 +-----------------------------------------------------------------+
//! ```
//!
//! Sequence, salt and `flushed` are in the block's trailer. The preamble is made of ordinary frames that repeat
//! each shard's vote, committed position, purge point, installed snapshot and doubt: what would be lost with the
//! segments that are recycled. Truncations need no repeating: segments are recycled oldest first, so a truncation
//! never goes before the entries it removed. The preamble's chain starts from the salt; the data's goes on from the
//! last frame before, `chain`.
//!
//! After a recovery the log goes on in a new segment, and this header then records for good where the old one ends:
//! whatever lies behind in it, valid or not, is no part of the log.

use bytes::{Buf, BufMut};

use super::block::{self, Role};
use super::frame::Position;

const MAGIC: &[u8; 8] = b"TMWALSEG";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 80;

/// A segment's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) first_sequence: u64,
    pub(super) salt: u32,
    /// From the trailer: what was on the device when this life began.
    pub(super) flushed: u64,
    pub(super) blocks: u32,
    pub(super) replicated: bool,
    pub(super) boot_id: Option<[u8; 16]>,
    pub(super) previous: Option<PreviousSegment>,
    /// Crc of the last frame before this segment's data.
    pub(super) chain: u32,
    pub(super) first_live: u64,
    pub(super) preamble_blocks: u32,
}

/// Where the log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreviousSegment {
    pub(super) number: u64,
    /// No frame that begins here or later is part of the log.
    pub(super) end: Position,
}

/// What block 0 of a file is.
#[derive(Debug)]
pub(super) enum HeaderBlock {
    /// A header of this format.
    Header(SegmentHeader),
    /// Erased, torn, or never a segment.
    None,
    /// A header of a format that we don't know.
    Newer(u16),
}

impl SegmentHeader {
    /// The payload of the header's block; the trailer adds the rest.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.put_slice(MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u8(u8::from(self.replicated));
        bytes.put_u8(u8::from(self.boot_id.is_some()));
        bytes.put_u32_le(self.blocks);
        bytes.put_u64_le(self.number);
        let previous = self.previous.unwrap_or(PreviousSegment { number: 0, end: Position::block(0) });
        bytes.put_u64_le(previous.number);
        bytes.put_u64_le(previous.end.sequence);
        bytes.put_u16_le(previous.end.offset);
        bytes.put_u16_le(0);
        bytes.put_u32_le(self.chain);
        bytes.put_u64_le(self.first_live);
        bytes.put_u32_le(self.preamble_blocks);
        bytes.put_u32_le(0);
        bytes.put_slice(&self.boot_id.unwrap_or_default());
        assert_eq!(bytes.len(), HEADER_BYTES);
        bytes
    }

    /// Reads a file's block 0.
    pub(super) fn decode(block: &[u8]) -> HeaderBlock {
        let Some((trailer, mut payload)) = block::open(block) else {
            // A file without a header is free to be overwritten: another release's must not look like one.
            return block::foreign_version(block).map_or(HeaderBlock::None, HeaderBlock::Newer);
        };
        if trailer.role != Role::Header || !payload.starts_with(MAGIC) {
            return HeaderBlock::None;
        }
        payload.advance(MAGIC.len());
        match payload.try_get_u16_le() {
            Ok(VERSION) => {}
            Ok(version) => return HeaderBlock::Newer(version),
            Err(_) => return HeaderBlock::None,
        }
        if payload.len() != HEADER_BYTES - MAGIC.len() - 2 {
            return HeaderBlock::None;
        }
        let replicated = payload.get_u8() != 0;
        let has_boot_id = payload.get_u8() != 0;
        let blocks = payload.get_u32_le();
        let number = payload.get_u64_le();
        let previous_number = payload.get_u64_le();
        let end = Position { sequence: payload.get_u64_le(), offset: payload.get_u16_le() };
        payload.advance(2);
        let chain = payload.get_u32_le();
        let first_live = payload.get_u64_le();
        let preamble_blocks = payload.get_u32_le();
        payload.advance(4);
        let mut boot_id = [0; 16];
        payload.copy_to_slice(&mut boot_id);
        HeaderBlock::Header(Self {
            number,
            first_sequence: trailer.sequence,
            salt: trailer.salt,
            flushed: trailer.flushed,
            blocks,
            replicated,
            boot_id: has_boot_id.then_some(boot_id),
            previous: (previous_number != 0).then_some(PreviousSegment { number: previous_number, end }),
            chain,
            first_live,
            preamble_blocks,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gather::{Gather, SealAs};
    use super::*;

    proptest! {
        #[test]
        fn headers_come_back(
            words in any::<[u64; 6]>(),
            halves in any::<[u32; 4]>(),
            replicated: bool,
            boot_id in proptest::option::of(any::<[u8; 16]>()),
            offset: u16,
        ) {
            let [number, first_sequence, flushed, previous, sequence, first_live] = words;
            let header = SegmentHeader {
                number,
                first_sequence,
                salt: halves[0],
                flushed,
                blocks: halves[1],
                replicated,
                boot_id,
                previous: (previous != 0)
                    .then_some(PreviousSegment { number: previous, end: Position { sequence, offset } }),
                chain: halves[2],
                first_live,
                preamble_blocks: halves[3],
            };
            let mut gather = Gather::new(0);
            gather.lone_block(&header.encode());
            let seal_as = SealAs { first_sequence, flushed, salt: halves[0] };
            let block = gather.seal(&seal_as, |_| Role::Header);
            let HeaderBlock::Header(decoded) = SegmentHeader::decode(block) else { panic!("a header") };
            prop_assert_eq!(decoded, header);
        }
    }

    #[test]
    fn a_data_block_is_no_header() {
        let mut gather = Gather::new(0);
        gather.lone_block(MAGIC);
        let seal_as = SealAs { first_sequence: 0, flushed: 0, salt: 0 };
        assert!(matches!(SegmentHeader::decode(gather.seal(&seal_as, |_| Role::Data)), HeaderBlock::None));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut gather = Gather::new(0);
        gather.lone_block(&[&MAGIC[..], &2_u16.to_le_bytes()].concat());
        let seal_as = SealAs { first_sequence: 0, flushed: 0, salt: 0 };
        assert!(matches!(
            SegmentHeader::decode(gather.seal(&seal_as, |_| Role::Header)),
            HeaderBlock::Newer(2)
        ));
    }
}
