//! Buffers for reads, used again.
//!
//! A fresh megabyte costs a reader about as much to zero and to fault in as a fourth of copying it from the page
//! cache. So large buffers come back here when the last `Bytes` of a read is dropped, and wait, up to a bound, for
//! the next read.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller buffers are not kept: a few bytes handed out must not hold many.
const KEPT_BYTES_MIN: usize = 64 * 1024;
/// Lengths are rounded up to this, so that reads of about the same length share buffers.
const STEP_BYTES: usize = 64 * 1024;
/// Buffers that wait at most.
const IDLE_MAX: usize = 64;

/// Buffers that nobody uses at the moment.
pub(super) struct BufferPool {
    idle_bytes_max: usize,
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A buffer in use, of the length that was asked for.
pub(super) struct Buffer {
    pool: Arc<BufferPool>,
    /// As long as it was rounded up to, and never shortened: its bytes stay initialised.
    bytes: Vec<u8>,
    length: usize,
}

impl BufferPool {
    pub(super) fn new(idle_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { idle_bytes_max, idle: Mutex::default() })
    }

    /// A buffer of `length` bytes with arbitrary contents.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let pool = Arc::clone(self);
        if length < KEPT_BYTES_MIN {
            return Buffer { pool, bytes: vec![0; length], length };
        }
        let found = {
            let mut idle = self.idle.lock();
            let fits = |bytes: &Vec<u8>| bytes.len() >= length && bytes.len() / 2 <= length;
            let at = idle.iter().rposition(fits);
            at.map(|at| idle.swap_remove(at))
        };
        let bytes = found.unwrap_or_else(|| vec![0; length.next_multiple_of(STEP_BYTES)]);
        Buffer { pool, bytes, length }
    }

    fn give_back(&self, bytes: Vec<u8>) {
        let mut idle = self.idle.lock();
        let idle_bytes: usize = idle.iter().map(Vec::len).sum();
        if idle.len() < IDLE_MAX && idle_bytes.saturating_add(bytes.len()) <= self.idle_bytes_max {
            idle.push(bytes);
        }
    }
}

impl Buffer {
    /// All of it, to read into.
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }

    /// Its contents, which can be sliced and shared; the buffer goes back when the last of them is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() >= KEPT_BYTES_MIN {
            self.pool.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_used_again_when_their_last_slice_is_gone() {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = pool.take(100_000);
        buffer.as_mut().fill(7);
        let slice = buffer.freeze().slice(10..20);
        let address = slice.as_ptr() as usize - 10;
        assert_ne!(pool.take(100_000).as_ref().as_ptr() as usize, address, "still held by the slice");
        pool.idle.lock().clear();
        drop(slice);
        let again = pool.take(90_000);
        assert_eq!((again.as_ref().as_ptr() as usize, again.as_ref().len()), (address, 90_000));
    }

    #[test]
    fn what_waits_is_bounded() {
        let pool = BufferPool::new(1 << 20);
        let held: Vec<_> = (0..40).map(|_| pool.take(KEPT_BYTES_MIN)).collect();
        drop(held);
        assert_eq!(pool.idle.lock().len(), 16);
        drop(pool.take(2 << 20));
        drop(pool.take(100));
        assert_eq!(pool.idle.lock().len(), 16, "neither too large nor too small ones are kept");
    }
}
