//! A buffer that direct I/O accepts.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::DIRECT_ALIGNMENT;

/// Zeroed bytes whose address and length are multiples of [`DIRECT_ALIGNMENT`].
///
/// It over-allocates by one alignment and begins at the first aligned byte, which needs no `unsafe`.
pub struct AlignedBuffer {
    storage: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// At least `bytes` zeros, rounded up to the alignment.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(DIRECT_ALIGNMENT);
        let storage = vec![0_u8; len + DIRECT_ALIGNMENT].into_boxed_slice();
        let start = storage.as_ptr().align_offset(DIRECT_ALIGNMENT);
        assert!(start <= DIRECT_ALIGNMENT, "byte pointers can always be aligned");
        Self { storage, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.storage.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.storage.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_length_are_aligned() {
        for bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let buffer = AlignedBuffer::zeroed(bytes);
            assert_eq!(buffer.as_ptr().addr() % DIRECT_ALIGNMENT, 0);
            assert_eq!(buffer.len() % DIRECT_ALIGNMENT, 0);
            assert!(buffer.len() >= bytes);
        }
    }
}
