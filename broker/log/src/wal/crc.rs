//! crc32 of pieces, without a second pass over the bytes.
//!
//! A full block's payload counts for two checksums, its block's and its frame's. Hashing it once and *appending* the
//! result to the frame's checksum halves the work: crc32 is linear, so appending `n` bytes is a multiplication by a
//! constant of GF(2)\[x\], here a table for the one length that matters.

use std::sync::LazyLock;

use crc32fast::Hasher;

use super::block::PAYLOAD_BYTES;

/// crc32 of what `crc` stands for, followed by `bytes`. 0 stands for nothing.
pub(super) fn extend(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// crc32 of what `crc` stands for, followed by a full block's payload that has `payload_crc`.
pub(super) fn append_full_payload(crc: u32, payload_crc: u32) -> u32 {
    let shifted = crc.to_le_bytes().iter().zip(SHIFT.iter()).fold(0, |sum, (byte, table)| {
        // The tables have an entry for every byte.
        sum ^ table.get(usize::from(*byte)).copied().unwrap_or(0)
    });
    shifted ^ payload_crc
}

type ShiftTables = [[u32; 256]; 4];

/// `SHIFT[k][b]`: what byte `b` at place `k` of a crc becomes when a full payload of zeros is appended.
static SHIFT: LazyLock<Box<ShiftTables>> = LazyLock::new(|| {
    let zeros = Hasher::new_with_initial_len(0, PAYLOAD_BYTES as u64);
    let shift = |crc: u32| {
        let mut hasher = Hasher::new_with_initial_len(crc, 0);
        hasher.combine(&zeros);
        hasher.finalize()
    };
    let mut tables = Box::new([[0; 256]; 4]);
    for (place, table) in (0_u32..).zip(tables.iter_mut()) {
        for (byte, value) in (0_u32..).zip(table.iter_mut()) {
            *value = shift(byte << (8 * place));
        }
    }
    tables
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn appending_equals_hashing_on(
            front in proptest::collection::vec(any::<u8>(), 0..300),
            payload in proptest::collection::vec(any::<u8>(), PAYLOAD_BYTES),
        ) {
            let front_crc = crc32fast::hash(&front);
            let joined = crc32fast::hash(&[front, payload.clone()].concat());
            prop_assert_eq!(append_full_payload(front_crc, crc32fast::hash(&payload)), joined);
            prop_assert_eq!(extend(front_crc, &payload), joined);
        }
    }
}
