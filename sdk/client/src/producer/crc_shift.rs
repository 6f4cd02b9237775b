//! What a difference early in a message does to its CRC-32C at the end, without a look at what lies between.
//!
//! A CRC is a remainder modulo a polynomial over GF(2): bytes that follow multiply the difference by x to the number of their bits.
//! That power is put together from squares, as in zlib's `crc32_combine_op` (since 1.2.12), in some hundred nanoseconds. The `crc32c`
//! crate squares a 32 by 32 matrix for each bit of the length instead, which for a batch of 64 KiB takes longer than the checksum of the
//! batch itself.

/// Castagnoli's polynomial, the lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82F6_3B78;
const ONE: u32 = 1 << 31;
const X: u32 = 1 << 30;
/// x to the 2nd, 4th, 8th ... power: the one at `n` is x to the power of 2 to the n. They repeat after 32.
const SQUARES: [u32; 32] = squares();
/// Eight bits are a byte.
const BYTE: usize = 3;

/// `difference` of two checksums, after `bytes` more bytes which are the same in both.
pub(super) fn past(difference: u32, bytes: usize) -> u32 {
    let mut shift = ONE;
    let (mut left, mut square) = (bytes, BYTE);
    while left > 0 {
        if left & 1 == 1 {
            shift = product(SQUARES[square % SQUARES.len()], shift);
        }
        left >>= 1;
        square += 1;
    }
    product(shift, difference)
}

const fn squares() -> [u32; 32] {
    let mut squares = [X; 32];
    let mut at = 1;
    while at < squares.len() {
        squares[at] = product(squares[at - 1], squares[at - 1]);
        at += 1;
    }
    squares
}

/// Modulo the polynomial.
const fn product(left: u32, mut right: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit > 0 {
        if left & bit != 0 {
            product ^= right;
        }
        right = if right & 1 == 1 { (right >> 1) ^ POLYNOMIAL } else { right >> 1 };
        bit >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_library_combines() {
        for bytes in (0..300).chain([4_095, 65_536, 1 << 20, 16_777_213, 20_000_001]) {
            for difference in [0, 1, 0x8000_0000, 0xdead_beef, u32::MAX, 0x1234_5678 ^ bytes as u32] {
                assert_eq!(past(difference, bytes), crc32c::crc32c_combine(difference, 0, bytes), "{bytes}");
            }
        }
    }
}
