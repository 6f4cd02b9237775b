//! Zigzag varints as in Kafka's records: seven bits a byte, least significant first, the top bit says "more".

use bytes::BytesMut;

/// Bytes of the longest 32-bit varint.
pub(super) const VARINT_BYTES_MAX: usize = 5;

/// Reads a record section from its start; every read answers `None` where the bytes do not suffice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// A signed 32-bit varint; also `None` where it is longer than such a number can be.
    #[inline]
    pub(super) fn varint(&mut self) -> Option<i32> {
        let raw = match *self.rest {
            [low, ref rest @ ..] if low < 0x80 => {
                self.rest = rest;
                u32::from(low)
            }
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.rest = rest;
                u32::from(low & 0x7f) | u32::from(high) << 7
            }
            _ => u32::try_from(self.long_raw()?).ok()?,
        };
        Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// A signed 64-bit varint.
    #[inline]
    pub(super) fn varlong(&mut self) -> Option<i64> {
        let raw = match *self.rest {
            [low, ref rest @ ..] if low < 0x80 => {
                self.rest = rest;
                u64::from(low)
            }
            // Timestamps of a batch: up to 8 seconds apart.
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.rest = rest;
                u64::from(low & 0x7f) | u64::from(high) << 7
            }
            _ => self.long_raw()?,
        };
        Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    #[cold]
    fn long_raw(&mut self) -> Option<u64> {
        let mut raw = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            raw |= bits << shift;
            if byte < 0x80 {
                return Some(raw);
            }
        }
        None
    }
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Bytes that a number takes as a varint; the same for 32 and 64 bits.
#[inline]
pub(super) const fn encoded_len(value: i64) -> usize {
    // ceil(bits / 7) without a division, for 1 to 64 bits.
    let bits = (zigzag(value) | 1).ilog2() as usize + 1;
    (bits * 9 + 64) / 64
}

/// Some varints and bytes on the stack, so that they go to the buffer in one step. What does not fit is a defect.
#[derive(Debug)]
pub(super) struct Scratch<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

/// Room for one 32-bit varint.
pub(super) type OneVarint = Scratch<8>;
/// Room for a record up to its key: length 5, attributes 1, timestamp 10, offset 5, key length 5.
pub(super) type RecordHead = Scratch<32>;

impl<const N: usize> Scratch<N> {
    #[inline]
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    #[inline]
    fn put<const M: usize>(&mut self, bytes: [u8; M]) {
        if let Some(slot) = self.bytes.get_mut(self.len..).and_then(|rest| rest.first_chunk_mut()) {
            *slot = bytes;
            self.len += M;
        } else {
            debug_assert!(false, "scratch overflow");
        }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        self.put([byte]);
    }

    #[inline]
    pub(super) fn varint(&mut self, value: i64) {
        let mut raw = zigzag(value);
        if raw < 0x80 {
            return self.put([raw as u8]);
        }
        if raw < 0x4000 {
            return self.put([raw as u8 | 0x80, (raw >> 7) as u8]);
        }
        while raw >= 0x80 {
            self.put([raw as u8 | 0x80]);
            raw >>= 7;
        }
        self.put([raw as u8]);
    }

    /// Appends what was put. The whole array is copied and the rest cut off again, because a copy of constant length
    /// is two instructions and one of variable length a call.
    #[inline]
    pub(super) fn append_to(&self, buffer: &mut BytesMut) {
        let end = buffer.len() + self.len;
        buffer.extend_from_slice(&self.bytes);
        buffer.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(value: i64) -> Vec<u8> {
        let mut scratch = RecordHead::new();
        scratch.varint(value);
        let mut buffer = BytesMut::from(&b"before"[..]);
        scratch.append_to(&mut buffer);
        buffer.strip_prefix(b"before").unwrap().to_vec()
    }

    #[test]
    fn known_encodings() {
        for (value, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            assert_eq!(encode(value), bytes);
            assert_eq!(Reader::new(bytes).varlong(), Some(value));
            assert_eq!(Reader::new(bytes).varint().map(i64::from), Some(value));
        }
    }

    #[test]
    fn what_is_too_long_or_cut_is_refused() {
        assert_eq!(Reader::new(&[0xff; 4]).varint(), None);
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 11]).varlong(), None);
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varlong(), None);
        assert_eq!(Reader::new(&[]).varint(), None);
        assert_eq!(Reader::new(&[1, 2]).take(3), None);
    }

    proptest! {
        #[test]
        fn round_trip(value in any::<i64>(), shift in 0_u32..64, more in any::<u8>()) {
            let value = value >> shift;
            let mut bytes = encode(value);
            prop_assert_eq!(bytes.len(), encoded_len(value));
            bytes.push(more);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varlong(), Some(value));
            prop_assert_eq!(reader.rest, &[more]);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), i32::try_from(value).ok());
        }
    }
}
