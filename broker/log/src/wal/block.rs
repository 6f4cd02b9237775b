//! The unit of writing and of proof: a 4 KiB block.
//!
//! ```text
//!    0 +--------------------------------------------------------------+
//!      | payload: pieces of frames, `used` bytes; the rest is padding |
//! 4064 +--------------------------------+-----------------------------+
//!      | sequence u64                   | flushed u64                 |
//! 4080 +---------------+-------+-------++--------------+--------------+
//!      | salt u32      | used  | first | flags u32     | crc32 u32    |
//! 4096 +---------------+-------+-------+---------------+--------------+
//! ```
//!
//! Little endian throughout. `sequence` counts blocks over the log's whole life and is never given twice; `salt` is
//! that of the segment's present life, so that neither bytes of an earlier life nor of a torn write that a recovery
//! cut off can pass. `flushed`: every block with a smaller sequence was on the device when this one was built, so any
//! later valid block proves it. It stands in each block rather than in each frame, so that a block in the middle of a
//! large entry proves as much as one where a frame begins. `first` is where in the payload the first frame begins
//! that begins here ([`NO_FRAME`] for none): from there a reader may go on though what is before is damaged. The crc32
//! covers `payload[..used]` and the trailer before it: it comes last so that one pass over the payload computes it while
//! it is copied.

use super::crc;

/// Size of a block.
pub(super) const BLOCK_BYTES: usize = 4096;
/// What a block carries of frames.
pub(super) const PAYLOAD_BYTES: usize = BLOCK_BYTES - TRAILER_BYTES;
/// `first` where no frame begins in a block.
pub(super) const NO_FRAME: u16 = u16::MAX;

const TRAILER_BYTES: usize = 32;
const CHECKED_BYTES: usize = TRAILER_BYTES - 4;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0xFF;

/// What a block is to the log, in its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Frames in the order they were queued.
    Data,
    /// The segment's header.
    Header,
    /// State repeated for what recycling would lose.
    Preamble,
}

impl Role {
    const fn bits(self) -> u32 {
        match self {
            Self::Data => 0,
            Self::Header => 0x200,
            Self::Preamble => 0x400,
        }
    }
}

/// The first block of a write: no frame reaches into it.
const STARTS_WRITE: u32 = 0x100;

/// The end of each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) sequence: u64,
    pub(super) flushed: u64,
    pub(super) salt: u32,
    pub(super) used: u16,
    pub(super) first_frame: u16,
    pub(super) starts_write: bool,
    pub(super) role: Role,
}

impl Trailer {
    fn encode(&self) -> [u8; CHECKED_BYTES] {
        let flags = VERSION | self.role.bits() | if self.starts_write { STARTS_WRITE } else { 0 };
        let mut bytes = [0; CHECKED_BYTES];
        let fields: [&[u8]; 6] = [
            &self.sequence.to_le_bytes(),
            &self.flushed.to_le_bytes(),
            &self.salt.to_le_bytes(),
            &self.used.to_le_bytes(),
            &self.first_frame.to_le_bytes(),
            &flags.to_le_bytes(),
        ];
        for (target, source) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *target = *source;
        }
        bytes
    }

    fn decode(bytes: &[u8; CHECKED_BYTES]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk()?;
        let (flushed, rest) = rest.split_first_chunk()?;
        let (salt, rest) = rest.split_first_chunk()?;
        let (used, rest) = rest.split_first_chunk()?;
        let (first_frame, rest) = rest.split_first_chunk()?;
        let flags = u32::from_le_bytes(rest.try_into().ok()?);
        let role = match flags & !(VERSION_MASK | STARTS_WRITE) {
            0 => Role::Data,
            0x200 => Role::Header,
            0x400 => Role::Preamble,
            _ => return None,
        };
        let trailer = Self {
            sequence: u64::from_le_bytes(*sequence),
            flushed: u64::from_le_bytes(*flushed),
            salt: u32::from_le_bytes(*salt),
            used: u16::from_le_bytes(*used),
            first_frame: u16::from_le_bytes(*first_frame),
            starts_write: flags & STARTS_WRITE != 0,
            role,
        };
        let sound = flags & VERSION_MASK == VERSION
            && usize::from(trailer.used) <= PAYLOAD_BYTES
            && (trailer.first_frame == NO_FRAME || trailer.first_frame < trailer.used);
        sound.then_some(trailer)
    }
}

/// Completes a block whose payload is in place and has `payload_crc` over its used bytes.
pub(super) fn seal(block: &mut [u8], trailer: &Trailer, payload_crc: u32) {
    let checked = trailer.encode();
    let crc = crc::extend(payload_crc, &checked);
    if let Some((_, end)) = block.split_last_chunk_mut::<TRAILER_BYTES>() {
        for (target, source) in end.iter_mut().zip(checked.iter().chain(&crc.to_le_bytes())) {
            *target = *source;
        }
    }
}

/// The trailer and the used payload of a block, `None` where its crc says it is none.
pub(super) fn open(block: &[u8]) -> Option<(Trailer, &[u8])> {
    let (payload, end) = block.split_last_chunk::<TRAILER_BYTES>()?;
    let (checked, stored_crc) = end.split_first_chunk::<CHECKED_BYTES>()?;
    let trailer = Trailer::decode(checked)?;
    let used = payload.get(..usize::from(trailer.used))?;
    let crc = crc::extend(crc::extend(0, used), checked);
    (*stored_crc == crc.to_le_bytes() && block.len() == BLOCK_BYTES).then_some((trailer, used))
}

/// The version of a block that is sound in all but its version: another release wrote it.
pub(super) fn foreign_version(block: &[u8]) -> Option<u16> {
    /// Where the used bytes stand in a trailer.
    const USED_AT: usize = 20;
    let (payload, end) = block.split_last_chunk::<TRAILER_BYTES>()?;
    let (checked, stored_crc) = end.split_first_chunk::<CHECKED_BYTES>()?;
    let version = u32::from_le_bytes(*checked.last_chunk()?) & VERSION_MASK;
    let used = u16::from_le_bytes(*checked.get(USED_AT..)?.first_chunk()?);
    let used = payload.get(..usize::from(used))?;
    let crc = crc::extend(crc::extend(0, used), checked);
    let is_foreign = version != VERSION && *stored_crc == crc.to_le_bytes() && block.len() == BLOCK_BYTES;
    is_foreign.then(|| u16::try_from(version).unwrap_or(u16::MAX))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trailers() -> impl Strategy<Value = Trailer> {
        let roles = prop_oneof![Just(Role::Data), Just(Role::Header), Just(Role::Preamble)];
        (any::<u64>(), any::<u64>(), any::<u32>(), 0..=PAYLOAD_BYTES, any::<bool>(), any::<bool>(), roles)
            .prop_map(|(sequence, flushed, salt, used, begins, starts_write, role)| {
                let used = u16::try_from(used).unwrap();
                let first_frame = if begins && used > 0 { used - 1 } else { NO_FRAME };
                Trailer { sequence, flushed, salt, used, first_frame, starts_write, role }
            })
    }

    fn sealed(trailer: &Trailer, byte: u8) -> Vec<u8> {
        let mut block = vec![byte; BLOCK_BYTES];
        let crc = crc::extend(0, &block[..usize::from(trailer.used)]);
        seal(&mut block, trailer, crc);
        block
    }

    proptest! {
        #[test]
        fn opens_as_sealed(trailer in trailers(), byte: u8) {
            let block = sealed(&trailer, byte);
            let (opened, payload) = open(&block).unwrap();
            prop_assert_eq!(opened, trailer);
            prop_assert_eq!(payload, &vec![byte; usize::from(trailer.used)][..]);
        }

        #[test]
        fn any_flipped_bit_that_counts_is_seen(trailer in trailers(), bit in 0..BLOCK_BYTES * 8) {
            let mut block = sealed(&trailer, 0x5A);
            block[bit / 8] ^= 1 << (bit % 8);
            let padding = usize::from(trailer.used)..PAYLOAD_BYTES;
            prop_assert_eq!(open(&block).is_some(), padding.contains(&(bit / 8)));
        }

        #[test]
        fn another_releases_block_is_told_from_none(trailer in trailers(), byte: u8, version in 2u8..) {
            let mut block = sealed(&trailer, byte);
            prop_assert_eq!(foreign_version(&block), None);
            let (_, end) = block.split_last_chunk_mut::<TRAILER_BYTES>().unwrap();
            end[CHECKED_BYTES - 4] = version;
            let checked: [u8; CHECKED_BYTES] = *end.first_chunk().unwrap();
            let crc = crc::extend(crc::extend(0, &vec![byte; usize::from(trailer.used)]), &checked);
            block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            prop_assert_eq!(foreign_version(&block), Some(u16::from(version)));
            prop_assert!(open(&block).is_none());
            block[BLOCK_BYTES - 1] ^= 1;
            prop_assert_eq!(foreign_version(&block), None);
        }

        #[test]
        fn garbage_is_no_block(bytes in proptest::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            prop_assert!(open(&bytes).is_none());
        }
    }

    #[test]
    fn zeros_are_no_block() {
        assert!(open(&[0; BLOCK_BYTES]).is_none());
        assert!(open(&[]).is_none());
    }
}
